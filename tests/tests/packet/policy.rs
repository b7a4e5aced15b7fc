//! Traffic policies, and the addresses that serve a NodePort.

use anyhow::Result;
use proxy_common::{Addr, Counter, Frontend, FrontendKind, NodeConfig, node::role};
use tests::packet::{
    Hook, Transport, Way,
    datapath::shared,
    frame::ends,
    world::{FAR_POD, NODE, OUTSIDE, POD, UPLINK, VIP},
};

use crate::case::Case;

const NODE_PORT: u16 = 30_080;

#[test]
fn external_local_keeps_the_client_and_stays_on_the_node() -> Result<()> {
    for case in Case::all() {
        let mut node = shared()?;
        let near = node.backend(case.at(POD, 8080), case.proto(), true)?;
        let far = node.backend(case.at(FAR_POD, 8080), case.proto(), false)?;
        let service = node.service(case.proto(), &[far], &[near])?;
        node.node_port(&service, case.ip, NODE_PORT, Frontend::LOCAL)?;
        let ask = case.packet(case.at(OUTSIDE, 2000), case.at(NODE, NODE_PORT));
        assert_eq!(case.goes_whole(&node, &ask), (ask.src, case.at(POD, 8080)), "{case:?}");
        // A pod of this node is short-circuited to the cluster-wide set.
        let ask = case.packet(case.at(POD + 7, 2000), case.at(NODE, NODE_PORT));
        assert_eq!(case.goes_whole(&node, &ask), (ask.src, case.at(FAR_POD, 8080)), "{case:?}");
    }
    Ok(())
}

#[test]
fn local_without_a_local_endpoint_drops_and_counts() -> Result<()> {
    for case in Case::all() {
        let mut node = shared()?;
        let far = node.backend(case.at(FAR_POD, 8080), case.proto(), false)?;
        let service = node.service(case.proto(), &[far], &[])?;
        node.node_port(&service, case.ip, NODE_PORT, Frontend::LOCAL)?;
        node.frontend(&service, case.at(VIP, 80), FrontendKind::ClusterIp, Frontend::LOCAL)?;
        for (client, front) in [
            (case.at(OUTSIDE, 2000), case.at(NODE, NODE_PORT)),
            // The internal policy has no short circuit.
            (case.at(POD, 2000), case.at(VIP, 80)),
            (case.at(OUTSIDE, 2000), case.at(VIP, 80)),
        ] {
            case.ingress(&node, &case.packet(client, front).bytes()).dropped();
        }
        assert_eq!(node.counter(Counter::NoLocalEndpoints), 3, "{case:?}");
        assert_eq!(node.services.get(&service.id, 0)?.dropped, 3);
        assert!(node.flows().is_empty());
        // Packets from the node itself that the socket hooks did not translate.
        node.own(case.link, &case.packet(case.at(NODE, 2000), case.at(VIP, 80)).bytes()).dropped();
    }
    Ok(())
}

#[test]
fn who_is_a_pod_may_be_told_by_its_device() -> Result<()> {
    let mut node = shared()?;
    node.configure(NodeConfig::LOCAL_BY_DEVICE)?;
    for case in Case::ethernet(Transport::SYN) {
        let near = node.backend(case.at(POD, 8080), case.proto(), true)?;
        let far = node.backend(case.at(FAR_POD, 8080), case.proto(), false)?;
        let service = node.service(case.proto(), &[far], &[near])?;
        node.node_port(&service, case.ip, NODE_PORT, Frontend::LOCAL)?;
        // Here addresses contradict devices, and do not count.
        for (client, device, backend) in [(OUTSIDE, node.pod, FAR_POD), (POD + 9, node.uplink, POD)] {
            let ask = case.packet(case.at(client, 2000), case.at(NODE, NODE_PORT));
            let way = Way { device, came_in: device, complete: true };
            let out = node.run(Hook::Ingress, case.link, &ask.bytes(), way).passed();
            assert_eq!(ends(&out, case.link), (ask.src, case.at(backend, 8080)), "{case:?}");
        }
    }
    Ok(())
}

#[test]
fn a_node_port_is_served_at_the_nodes_addresses_only() -> Result<()> {
    for case in Case::all() {
        let mut node = shared()?;
        let near = node.backend(case.at(POD, 8080), case.proto(), true)?;
        let service = node.service(case.proto(), &[near], &[])?;
        node.node_port(&service, case.ip, NODE_PORT, 0)?;
        let other = case.at(UPLINK + 9, NODE_PORT);
        node.node_addrs.insert(Addr::from(other.ip()), role::OWN | role::LOOPBACK, 0)?;
        for host in [NODE, UPLINK] {
            let ask = case.packet(case.at(OUTSIDE, 2000), case.at(host, NODE_PORT));
            assert_eq!(case.goes_whole(&node, &ask).1, case.at(POD, 8080), "{case:?}");
        }
        for front in [other, case.at(OUTSIDE + 5, NODE_PORT), case.at(NODE, NODE_PORT + 1)] {
            let ask = case.packet(case.at(OUTSIDE, 2000), front).bytes();
            assert_eq!(case.through(&node, &ask), ask, "{case:?}");
        }
        // The same port number of the other protocol is another port.
        let twin = if case.is_tcp() { Transport::Udp } else { Transport::SYN };
        let twin = Case { transport: twin, ..case };
        let ask = twin.packet(twin.at(OUTSIDE, 2000), twin.at(NODE, NODE_PORT)).bytes();
        assert_eq!(twin.through(&node, &ask), ask, "{case:?}");
    }
    Ok(())
}

#[test]
fn an_exact_address_wins_over_a_node_port() -> Result<()> {
    let mut node = shared()?;
    for case in Case::ethernet(Transport::Udp) {
        let one = node.backend(case.at(POD, 8080), case.proto(), true)?;
        let two = node.backend(case.at(POD, 8081), case.proto(), true)?;
        let by_port = node.service(case.proto(), &[one], &[])?;
        let by_addr = node.service(case.proto(), &[two], &[])?;
        node.node_port(&by_port, case.ip, NODE_PORT, 0)?;
        node.frontend(&by_addr, case.at(NODE, NODE_PORT), FrontendKind::ExternalIp, Frontend::EXTERNAL)?;
        let ask = case.packet(case.at(OUTSIDE, 2000), case.at(NODE, NODE_PORT));
        assert_eq!(case.goes_whole(&node, &ask).1, case.at(POD, 8081), "{case:?}");
        let ask = case.packet(case.at(OUTSIDE, 2000), case.at(UPLINK, NODE_PORT));
        assert_eq!(case.goes_whole(&node, &ask).1, case.at(POD, 8080), "{case:?}");
    }
    Ok(())
}
