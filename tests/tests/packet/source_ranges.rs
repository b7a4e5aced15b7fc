//! Source ranges: clients allowed at a load balancer address (SERVICE-SEMANTICS 2.9) and at a NodePort
//! (`--nodeport-source-ranges`).

use anyhow::Result;
use proxy_common::{Counter, Frontend, FrontendKind};
use tests::packet::{
    Datapath, Ip, Link, Transport,
    datapath::shared,
    frame::ACK,
    run::XdpOutcome,
    world::{FAR_POD, NODE, OUTSIDE, POD, Service, VIP, addr},
};

use crate::case::Case;

const NODE_PORT: u16 = 30_080;

/// A load balancer address that allows the ranges around these hosts, with this many bits of each host number.
fn ranged(node: &mut Datapath, case: Case, hosts: &[(u16, u32)]) -> Result<Service> {
    let near = node.backend(case.at(POD, 8080), case.proto(), true)?;
    let service = node.service(case.proto(), &[near], &[near])?;
    node.frontend(&service, case.at(VIP, 80), FrontendKind::LoadBalancerIp, Frontend::EXTERNAL)?;
    node.let_in(&service, &ranges(case.ip, hosts))?;
    // Frontends of other kinds: neither has the flag.
    node.node_port(&service, case.ip, NODE_PORT, 0)?;
    node.cluster_ip(&service, case.at(VIP + 1, 80))?;
    Ok(service)
}

fn ranges(ip: Ip, hosts: &[(u16, u32)]) -> Vec<(std::net::IpAddr, u32)> {
    let before = if ip.is_v4() { 16 } else { 112 };
    hosts.iter().map(|(host, bits)| (addr(ip, *host), before + bits)).collect()
}

#[test]
fn only_who_is_in_a_range_begins_a_flow() -> Result<()> {
    for case in Case::all() {
        let mut node = shared()?;
        // Only OUTSIDE, and sixteen addresses of the pods.
        ranged(&mut node, case, &[(OUTSIDE, 16), (FAR_POD & 0xfff0, 12)])?;
        for client in [OUTSIDE, FAR_POD, FAR_POD | 0x000f] {
            let ask = case.packet(case.at(client, 2000), case.at(VIP, 80));
            assert_eq!(case.goes_whole(&node, &ask).1, case.at(POD, 8080), "{case:?}");
        }
        let outsiders = [OUTSIDE + 1, OUTSIDE - 1, FAR_POD + 0x10, POD + 7];
        for client in outsiders {
            let ask = case.packet(case.at(client, 2000), case.at(VIP, 80));
            case.ingress(&node, &ask.bytes()).dropped();
            // In mid-stream too: no reset is sent.
            case.ingress(&node, &ask.flagged(ACK).bytes()).dropped();
            for front in [case.at(NODE, NODE_PORT), case.at(VIP + 1, 80)] {
                let ask = case.packet(case.at(client, 2001), front);
                assert_eq!(case.goes_whole(&node, &ask).1, case.at(POD, 8080), "{case:?}");
                node.forget_flows()?;
            }
        }
        assert_eq!(node.counter(Counter::SrcRange), 2 * outsiders.len() as u64, "{case:?}");
    }
    Ok(())
}

#[test]
fn an_open_flow_outlives_its_range() -> Result<()> {
    for case in Case::all() {
        let mut node = shared()?;
        ranged(&mut node, case, &[(OUTSIDE, 16)])?;
        let ask = case.packet(case.at(OUTSIDE, 2000), case.at(VIP, 80));
        let way = case.goes_whole(&node, &ask);
        node.let_nobody_in()?;
        assert_eq!(case.goes_whole(&node, &ask.flagged(ACK)), way, "{case:?}");
        let new = case.packet(case.at(OUTSIDE, 2001), case.at(VIP, 80));
        case.ingress(&node, &new.bytes()).dropped();
    }
    Ok(())
}

/// Checked first, so a rejected client cannot probe for endpoints; an allowed client gets the rejection for a missing
/// endpoint.
#[test]
fn ranges_come_before_the_refusal() -> Result<()> {
    // A rejection is a new packet, which a device's checksum does not cover.
    for case in Case::ethernet(Transport::SYN).into_iter().chain(Case::ethernet(Transport::Udp)) {
        let mut node = shared()?;
        let service = node.service(case.proto(), &[], &[])?;
        node.frontend(&service, case.at(VIP, 80), FrontendKind::LoadBalancerIp, Frontend::EXTERNAL)?;
        node.let_in(&service, &ranges(case.ip, &[(OUTSIDE, 16)]))?;
        let from = |client| case.packet(case.at(client, 2000), case.at(VIP, 80)).bytes();
        case.ingress(&node, &from(OUTSIDE + 1)).dropped();
        assert_eq!((node.counter(Counter::SrcRange), node.counter(Counter::NoBackend)), (1, 0));
        node.ingress(case.link, &from(OUTSIDE)).redirected();
        assert_eq!((node.counter(Counter::SrcRange), node.counter(Counter::NoBackend)), (1, 1));
    }
    Ok(())
}

/// Packets from the node itself that the socket hooks did not translate.
#[test]
fn the_nodes_own_packets() -> Result<()> {
    for case in Case::all() {
        let mut node = shared()?;
        let service = ranged(&mut node, case, &[(OUTSIDE, 16)])?;
        let own = case.packet(case.at(NODE, 2000), case.at(VIP, 80)).bytes();
        node.own(case.link, &own).dropped();
        assert_eq!(node.counter(Counter::SrcRange), 1, "{case:?}");
        node.let_in(&service, &ranges(case.ip, &[(NODE, 16)]))?;
        assert_eq!(node.own(case.link, &own).passed(), own);
    }
    Ok(())
}

/// The ranges of NodePorts and of load balancer addresses of one Service are independent.
#[test]
fn node_ports_have_ranges_of_their_own() -> Result<()> {
    for case in Case::all() {
        let mut node = shared()?;
        let service = ranged(&mut node, case, &[(OUTSIDE, 16)])?;
        node.let_into_node_ports(&service, &ranges(case.ip, &[(FAR_POD & 0xfff0, 12)]))?;
        let ask = |client, front| case.packet(case.at(client, 2000), front);
        let (address, node_port) = (case.at(VIP, 80), case.at(NODE, NODE_PORT));
        for (client, front) in [(OUTSIDE, address), (FAR_POD, node_port), (FAR_POD | 0x000f, node_port)] {
            assert_eq!(case.goes_whole(&node, &ask(client, front)).1, case.at(POD, 8080), "{case:?}");
        }
        for (client, front) in [(FAR_POD, address), (OUTSIDE, node_port), (FAR_POD + 0x10, node_port)] {
            let ask = ask(client, front);
            case.ingress(&node, &ask.bytes()).dropped();
            case.ingress(&node, &ask.flagged(ACK).bytes()).dropped();
        }
        assert_eq!(node.counter(Counter::SrcRange), 6, "{case:?}");
        let other = ask(OUTSIDE + 1, case.at(VIP + 1, 80));
        assert_eq!(case.goes_whole(&node, &other).1, case.at(POD, 8080), "the ClusterIP: {case:?}");
    }
    Ok(())
}

/// The XDP program passes packets of a client outside the ranges to tc, which drops them.
#[test]
fn node_ports_have_ranges_in_the_xdp_lane() -> Result<()> {
    let plain = |case: &Case| case.link == Link::Ethernet && case.ip != Ip::V4Options;
    for case in Case::all().into_iter().filter(plain) {
        let mut node = shared()?;
        node.wire()?;
        let near = node.backend(case.at(POD, 8080), case.proto(), true)?;
        let service = node.service(case.proto(), &[near], &[near])?;
        node.node_port(&service, case.ip, NODE_PORT, 0)?;
        node.let_into_node_ports(&service, &ranges(case.ip, &[(OUTSIDE, 16)]))?;
        let ask = |client| case.packet(case.at(client, 2000), case.at(NODE, NODE_PORT)).bytes();
        let (stranger, client) = (ask(OUTSIDE + 1), ask(OUTSIDE));
        let out = node.lane(&stranger);
        assert_eq!((out.action, &out.bytes), (XdpOutcome::PASS, &stranger), "{case:?}");
        case.ingress(&node, &stranger).dropped();
        assert_eq!(node.counter(Counter::SrcRange), 1, "{case:?}");
        assert_ne!(node.lane(&client).bytes, client, "translated: {case:?}");
        assert_eq!(node.counter(Counter::SrcRange), 1, "{case:?}");
    }
    Ok(())
}
