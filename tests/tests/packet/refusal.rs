//! Rejections: a Service without endpoints, and TCP packets in mid-stream that belong to no known flow.

use anyhow::Result;
use proxy_common::Counter;
use tests::packet::{
    Datapath, Link, Packet, Transport,
    datapath::shared,
    frame::{ACK, FIN, PSH, RST, SYN},
    world::{NODE, OUTSIDE, POD, VIP},
};

use crate::case::Case;

/// The expected response to the packet.
fn refusal(packet: &Packet) -> Vec<u8> {
    if packet.is_tcp() { packet.reset() } else { packet.unreachable() }
}

/// Kinds that a test run can reject: without an Ethernet header the kernel assumes there is one (see
/// [`tests::packet::world::addr`]) and inserts the ICMP message after it. The network suite has real devices without
/// link-layer headers.
fn cases() -> impl Iterator<Item = Case> {
    Case::all().into_iter().filter(|case| case.link == Link::Ethernet || case.is_tcp())
}

fn without_endpoint(case: Case, node: &mut Datapath) -> Result<()> {
    let service = node.service(case.proto(), &[], &[])?;
    node.cluster_ip(&service, case.at(VIP, 80))
}

#[test]
fn a_service_without_endpoint_refuses_at_once() -> Result<()> {
    for case in cases() {
        let mut node = shared()?;
        without_endpoint(case, &mut node)?;
        for client in [OUTSIDE, POD] {
            let mut ask = case.packet(case.at(client, 2000), case.at(VIP, 80));
            let answer = node.ingress(case.link, &ask.bytes()).redirected();
            assert_eq!(answer, refusal(&ask), "{case:?}");
            for len in [0, 1, 5, 8, 1400] {
                // TCP: a SYN may carry data (TFO), which the acknowledgement includes.
                ask.payload = (0..len).map(|n| n as u8).collect();
                let answer = node.ingress(case.link, &ask.bytes()).redirected();
                assert_eq!(answer, refusal(&ask), "{case:?} with {len} bytes");
            }
        }
        assert_eq!(node.counter(Counter::NoBackend), 12);
        assert!(node.flows().is_empty(), "{case:?}: a refusal leaves nothing behind");
    }
    Ok(())
}

#[test]
fn the_node_itself_is_refused_too() -> Result<()> {
    for case in cases() {
        let mut node = shared()?;
        without_endpoint(case, &mut node)?;
        let ask = case.packet(case.at(NODE, 2000), case.at(VIP, 80));
        assert_eq!(node.own(case.link, &ask.bytes()).redirected(), refusal(&ask), "{case:?}");
        // A foreign packet that leaves is not the node's own.
        assert_eq!(node.egress(case.link, &ask.bytes()).passed(), ask.bytes(), "{case:?}");
    }
    Ok(())
}

#[test]
fn tcp_in_mid_stream_without_a_flow_ends_fast() -> Result<()> {
    let mut node = shared()?;
    for case in cases().filter(|case| case.is_tcp()) {
        node.clear()?;
        let backend = node.backend(case.at(POD, 8080), case.proto(), true)?;
        let service = node.service(case.proto(), &[backend], &[])?;
        node.cluster_ip(&service, case.at(VIP, 80))?;
        for flags in [ACK, ACK | PSH, FIN, FIN | ACK, SYN | ACK, SYN | FIN, 0, PSH] {
            let mut ask = case.packet(case.at(OUTSIDE, 2000), case.at(VIP, 80));
            ask.transport = Transport::Tcp { flags, seq: 0xffff_fff0, ack: 0x0102_0304 };
            if flags & PSH != 0 {
                ask.payload = vec![7; 333];
            }
            let answer = node.ingress(case.link, &ask.bytes()).redirected();
            assert_eq!(answer, ask.reset(), "{case:?} with flags {flags:#x}");
        }
        // A reset gets no response (RFC 9293).
        let ask = case.packet(case.at(OUTSIDE, 2000), case.at(VIP, 80)).flagged(RST);
        node.ingress(case.link, &ask.bytes()).dropped();
        assert_eq!(node.counter(Counter::NoFlow), 9);
        assert!(node.flows().is_empty());
        // At the backend's own address the backend decides.
        let ask = case.packet(case.at(OUTSIDE, 2000), case.at(POD, 8080)).flagged(ACK).bytes();
        assert_eq!(case.through(&node, &ask), ask, "{case:?}");
    }
    Ok(())
}
