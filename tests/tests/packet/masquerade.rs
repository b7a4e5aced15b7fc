//! Source translation: NodePort to a backend on another node, an outside client of a ClusterIP, hairpin, and the choice
//! of the translated source.

use std::net::SocketAddr;

use anyhow::Result;
use proxy_common::{Addr, Counter, CtEntry, NodeConfig};
use tests::packet::{
    Datapath, Transport,
    datapath::shared,
    frame::{ACK, FIN, SYN, ends},
    world::{FAR_POD, NODE, OUTSIDE, POD, UPLINK, VIP},
};

use crate::case::Case;

const NODE_PORT: u16 = 30_080;

/// Request and reply of a flow whose source becomes the uplink's; checks all four halves and returns that source.
#[track_caller]
fn four_halves(
    case: Case,
    node: &Datapath,
    client: SocketAddr,
    front: SocketAddr,
    back: SocketAddr,
) -> SocketAddr {
    let ask = case.packet(client, front);
    let inside = case.ingress(node, &ask.bytes()).passed();
    assert_eq!(inside, ask.to(back).bytes(), "{case:?}: the node's stack sees client and backend");
    let out = case.egress(node, &inside).passed();
    let (source, _) = ends(&out, case.link);
    assert_eq!(out, ask.from(source).to(back).bytes(), "{case:?}: the request that leaves");
    assert_eq!(source.ip(), case.at(UPLINK, 0).ip(), "{case:?}: the device's own address");

    let answer = case.packet(back, source).flagged(SYN | ACK);
    let inside = case.ingress(node, &answer.bytes()).passed();
    assert_eq!(inside, answer.to(client).bytes(), "{case:?}: the node's stack sees backend and client");
    let out = case.egress(node, &inside).passed();
    assert_eq!(out, answer.from(front).to(client).bytes(), "{case:?}: the reply that leaves");

    // Further packets of the flow get the same translation.
    let more = ask.flagged(ACK);
    assert_eq!(case.through(node, &more.bytes()), more.from(source).to(back).bytes(), "{case:?}");
    source
}

#[test]
fn a_node_port_with_a_backend_elsewhere() -> Result<()> {
    for case in Case::all() {
        let mut node = shared()?;
        let backend = node.backend(case.at(FAR_POD, 8080), case.proto(), false)?;
        let service = node.service(case.proto(), &[backend], &[])?;
        node.node_port(&service, case.ip, NODE_PORT, 0)?;
        let front = case.at(NODE, NODE_PORT);
        let client = case.at(OUTSIDE, 2000);
        let source = four_halves(case, &node, client, front, case.at(FAR_POD, 8080));
        assert_eq!(source.port(), 2000, "{case:?}: the client's own port where it is free");
        let flows = node.flows();
        assert_eq!(flows.len(), 4, "{case:?}");
        for flag in [CtEntry::REQUEST, CtEntry::REPLY, CtEntry::MASQUERADE, CtEntry::UNMASQUERADE] {
            assert_eq!(flows.values().filter(|entry| entry.has(flag)).count(), 1, "{case:?}");
        }
        assert_eq!(node.counter(Counter::FlowMasqueraded), 1);
    }
    Ok(())
}

#[test]
fn an_outside_client_of_a_cluster_ip() -> Result<()> {
    for case in Case::all() {
        let mut node = shared()?;
        let backend = node.backend(case.at(FAR_POD, 8080), case.proto(), false)?;
        let service = node.service(case.proto(), &[backend], &[])?;
        node.cluster_ip(&service, case.at(VIP, 80))?;
        four_halves(case, &node, case.at(OUTSIDE, 2000), case.at(VIP, 80), case.at(FAR_POD, 8080));
    }
    Ok(())
}

#[test]
fn a_pod_that_reaches_itself() -> Result<()> {
    for case in Case::all() {
        let mut node = shared()?;
        let backend = node.backend(case.at(POD, 8080), case.proto(), true)?;
        let service = node.service(case.proto(), &[backend], &[])?;
        node.cluster_ip(&service, case.at(VIP, 80))?;
        four_halves(case, &node, case.at(POD, 2000), case.at(VIP, 80), case.at(POD, 8080));
        // From the very port it serves, source and destination would be equal: it gets another client port.
        let (client, back) = (case.at(POD, 8080), case.at(POD, 8080));
        let ask = case.packet(client, case.at(VIP, 80));
        let inside = ends(&case.ingress(&node, &ask.bytes()).passed(), case.link);
        assert_eq!((inside.0.ip(), inside.1), (client.ip(), back), "{case:?}");
        assert_ne!(inside.0, client, "{case:?}");
        let (source, _) = case.goes_whole(&node, &ask);
        assert_eq!(source.ip(), case.at(UPLINK, 0).ip(), "{case:?}");
        let answer = case.packet(back, source).flagged(SYN | ACK);
        assert_eq!(case.goes_whole(&node, &answer), (case.at(VIP, 80), client), "{case:?}");
    }
    Ok(())
}

#[test]
fn masquerade_all_but_not_under_local_policy() -> Result<()> {
    let mut node = shared()?;
    node.configure(NodeConfig::MASQUERADE_ALL)?;
    for case in Case::ethernet(Transport::SYN) {
        let backend = node.backend(case.at(POD, 8080), case.proto(), true)?;
        let service = node.service(case.proto(), &[backend], &[backend])?;
        node.cluster_ip(&service, case.at(VIP, 80))?;
        node.node_port(&service, case.ip, NODE_PORT, proxy_common::Frontend::LOCAL)?;
        four_halves(case, &node, case.at(POD + 1, 2000), case.at(VIP, 80), case.at(POD, 8080));
        let ask = case.packet(case.at(OUTSIDE, 2001), case.at(NODE, NODE_PORT));
        let ends = case.goes_whole(&node, &ask);
        assert_eq!(ends, (case.at(OUTSIDE, 2001), case.at(POD, 8080)), "{case:?}");
    }
    Ok(())
}

#[test]
fn the_source_is_the_devices_own_else_the_nodes_primary() -> Result<()> {
    let mut node = shared()?;
    let mut device = node.devices.get(&node.uplink, 0)?;
    (device.source_v4, device.source_v6) = (Addr::UNSPECIFIED_V4, Addr::UNSPECIFIED_V6);
    let uplink = node.uplink;
    node.devices.insert(uplink, device, 0)?;
    for case in Case::ethernet(Transport::Udp) {
        let backend = node.backend(case.at(FAR_POD, 8080), case.proto(), false)?;
        let service = node.service(case.proto(), &[backend], &[])?;
        node.cluster_ip(&service, case.at(VIP, 80))?;
        let (source, _) = case.goes_whole(&node, &case.packet(case.at(OUTSIDE, 2000), case.at(VIP, 80)));
        assert_eq!(source, case.at(NODE, 2000), "{case:?}");
    }
    Ok(())
}

#[test]
fn a_privileged_taken_or_node_ports_number_is_replaced_by_another() -> Result<()> {
    let mut node = shared()?;
    for case in Case::ethernet(Transport::SYN) {
        let backend = node.backend(case.at(FAR_POD, 8080), case.proto(), false)?;
        let service = node.service(case.proto(), &[backend], &[])?;
        node.cluster_ip(&service, case.at(VIP, 80))?;
        // A NodePort is never used as source port.
        node.node_port(&service, case.ip, 20_651, 0)?;
        let mut sources = Vec::new();
        for (client, port) in
            [(OUTSIDE, 2000), (OUTSIDE + 1, 2000), (OUTSIDE, 40_000), (OUTSIDE, 80), (OUTSIDE, 20_651)]
        {
            let source =
                four_halves(case, &node, case.at(client, port), case.at(VIP, 80), case.at(FAR_POD, 8080));
            assert!(source.port() >= 1024, "{case:?}: {source} is privileged");
            assert_ne!(source.port(), 20_651);
            let is_kept = (client, port) == (OUTSIDE, 2000) || port == 40_000;
            assert_eq!(source.port() == port, is_kept, "{case:?}: {port} as {source}");
            assert!(!sources.contains(&source), "{case:?}: {source} twice");
            sources.push(source);
        }
    }
    Ok(())
}

/// The backend holds a closed connection's port in TIME_WAIT: another flow from that port could be answered by a reset.
#[test]
fn the_port_of_a_flow_that_is_over_is_nobody_elses_while_others_are_free() -> Result<()> {
    let mut node = shared()?;
    for case in Case::ethernet(Transport::SYN) {
        let backend = node.backend(case.at(FAR_POD, 8080), case.proto(), false)?;
        let service = node.service(case.proto(), &[backend], &[])?;
        node.cluster_ip(&service, case.at(VIP, 80))?;
        let (front, back) = (case.at(VIP, 80), case.at(FAR_POD, 8080));
        let first = case.at(OUTSIDE, 2000);
        let source = four_halves(case, &node, first, front, back);
        case.through(&node, &case.packet(first, front).flagged(FIN | ACK).bytes());
        case.through(&node, &case.packet(back, source).flagged(FIN | ACK).bytes());
        let other = four_halves(case, &node, case.at(OUTSIDE + 1, 2000), front, back);
        assert_ne!(other, source, "{case:?}: another client");
        let again = four_halves(case, &node, first, front, back);
        assert_eq!(again, source, "{case:?}: the same client from the same port");
    }
    Ok(())
}
