//! Packets that arrive with a loopback address or an address of the node as source: forged. They make no flow, in tc and in XDP.
//! To a Service they are dropped, to a pod's own address they pass.

use std::net::{IpAddr, SocketAddr};

use anyhow::Result;
use proxy_common::{Counter, FrontendKind};
use tests::packet::{
    Datapath, Link, Transport,
    datapath::shared,
    world::{NODE, OUTSIDE, POD, UPLINK, VIP},
};

use crate::case::Case;

const NODE_PORT: u16 = 30_080;

/// A Service with every kind of address, and its pod's own.
fn destinations(case: Case, node: &mut Datapath) -> Result<[SocketAddr; 4]> {
    let pod = case.at(POD, 8080);
    let backend = node.backend(pod, case.proto(), true)?;
    let service = node.service(case.proto(), &[backend], &[])?;
    let (cluster, external) = (case.at(VIP, 80), case.at(VIP + 1, 80));
    node.cluster_ip(&service, cluster)?;
    node.frontend(&service, external, FrontendKind::LoadBalancerIp, 0)?;
    node.node_port(&service, case.ip, NODE_PORT, 0)?;
    Ok([cluster, external, case.at(NODE, NODE_PORT), pod])
}

/// Without an Ethernet header a test run takes the protocol from the source address, which rules out loopback addresses.
fn forged(case: Case) -> Vec<SocketAddr> {
    let loopback: IpAddr =
        if case.ip.is_v4() { [127, 9, 9, 9].into() } else { [0, 0, 0, 0, 0, 0, 0, 1u16].into() };
    let mut sources = vec![case.at(NODE, 4000), case.at(UPLINK, 4000)];
    if case.link == Link::Ethernet {
        sources.push(SocketAddr::new(loopback, 4000));
    }
    sources
}

#[test]
fn make_no_flow() -> Result<()> {
    for case in Case::all() {
        let mut node = shared()?;
        for to in destinations(case, &mut node)? {
            for from in forged(case) {
                let packet = case.packet(from, to);
                let before = node.counter(Counter::Martian);
                let outcome = case.ingress(&node, &packet.bytes());
                if to == case.at(POD, 8080) {
                    assert_eq!(outcome.passed(), packet.bytes(), "{case:?} {from} -> {to}");
                } else {
                    assert!(outcome.is_dropped(), "{case:?} {from} -> {to}");
                    assert_eq!(node.counter(Counter::Martian), before + 1, "{case:?} {from} -> {to}");
                }
                assert_eq!(node.flows().len(), 0, "{case:?} {from} -> {to}");
            }
            // From another source the same packet makes one.
            case.ingress(&node, &case.packet(case.at(OUTSIDE, 4000), to).bytes()).passed();
            assert_ne!(node.flows().len(), 0, "{case:?} {to}");
            node.forget_flows()?;
        }
    }
    Ok(())
}

#[test]
fn make_no_flow_in_xdp() -> Result<()> {
    for case in [Case::ethernet(Transport::SYN), Case::ethernet(Transport::Udp)].concat() {
        assert_eq!(case.link, Link::Ethernet);
        let mut node = shared()?;
        node.wire()?;
        for to in destinations(case, &mut node)? {
            for from in forged(case) {
                let packet = case.packet(from, to).bytes();
                assert_eq!(node.lane(&packet).bytes, packet, "{case:?} {from} -> {to}");
                assert_eq!(node.flows().len(), 0, "{case:?} {from} -> {to}");
            }
        }
    }
    Ok(())
}
