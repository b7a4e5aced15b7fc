//! TCP and UDP after IPv6 extension headers are translated, rejected and answered like any other; the headers are
//! unchanged.

use anyhow::Result;
use proxy_common::Counter;
use tests::packet::{
    Datapath, Ip, Link, Packet, Transport,
    datapath::shared,
    extension::{Extension, extended},
    frame::{ACK, FIN, RST, SYN},
    world::{FAR_POD, NODE, OUTSIDE, POD, VIP},
};

use crate::case::Case;

fn cases() -> impl Iterator<Item = Case> {
    Case::all().into_iter().filter(|case| !case.ip.is_v4())
}

/// Extension headers in front of the transport header.
fn chains() -> Vec<Vec<Extension>> {
    vec![
        vec![Extension::HOP_BY_HOP],
        vec![Extension::OPTIONS],
        vec![Extension::routing(0)],
        // A datagram in a single fragment (RFC 6946).
        vec![Extension::fragment(0, false)],
        vec![Extension::new(60, 31)],
        vec![Extension::HOP_BY_HOP, Extension::new(60, 2), Extension::routing(0), Extension::OPTIONS],
    ]
}

/// A packet passes through the node and is output as `want`, both with these headers.
#[track_caller]
fn goes(case: Case, node: &Datapath, chain: &[Extension], packet: &Packet, want: &Packet) {
    let out = case.through(node, &extended(&packet.bytes(), case.link, chain));
    assert_eq!(out, extended(&want.bytes(), case.link, chain), "{case:?} {chain:?}");
}

#[test]
fn a_flow_with_extension_headers() -> Result<()> {
    for chain in chains() {
        for case in cases() {
            let mut node = shared()?;
            let backend = node.backend(case.at(POD, 8080), case.proto(), true)?;
            let service = node.service(case.proto(), &[backend], &[])?;
            node.cluster_ip(&service, case.at(VIP, 80))?;
            let (client, front, back) = (case.at(POD + 1, 2000), case.at(VIP, 80), case.at(POD, 8080));
            let ask = case.packet(client, front);
            goes(case, &node, &chain, &ask, &ask.to(back));
            let answer = case.packet(back, client).flagged(SYN | ACK);
            goes(case, &node, &chain, &answer, &answer.from(front));
            // Packets without such headers belong to the same flow.
            let more = ask.flagged(ACK);
            assert_eq!(case.through(&node, &more.bytes()), more.to(back).bytes(), "{case:?}");
            goes(case, &node, &chain, &more, &more.to(back));
            assert_eq!(node.flows().len(), 2);
            if case.is_tcp() {
                // These packets also close the flow and open it again.
                goes(case, &node, &chain, &ask.flagged(FIN | ACK), &ask.to(back).flagged(FIN | ACK));
                let end = answer.flagged(FIN | ACK);
                goes(case, &node, &chain, &end, &end.from(front));
                goes(case, &node, &chain, &more, &more.to(back));
                goes(case, &node, &chain, &ask, &ask.to(back));
                assert_eq!(node.counter(Counter::FlowNew), 2, "{case:?}");
            }
        }
    }
    Ok(())
}

#[test]
fn source_translation_with_extension_headers() -> Result<()> {
    for chain in chains() {
        for case in cases() {
            let mut node = shared()?;
            let backend = node.backend(case.at(FAR_POD, 8080), case.proto(), false)?;
            let service = node.service(case.proto(), &[backend], &[])?;
            node.node_port(&service, case.ip, 30_080, 0)?;
            let (client, front) = (case.at(OUTSIDE, 2000), case.at(NODE, 30_080));
            let (back, source) = (case.at(FAR_POD, 8080), case.at(tests::packet::world::UPLINK, 2000));
            let ask = case.packet(client, front);
            goes(case, &node, &chain, &ask, &ask.from(source).to(back));
            let answer = case.packet(back, source).flagged(SYN | ACK);
            goes(case, &node, &chain, &answer, &answer.from(front).to(client));
            assert_eq!(node.flows().len(), 4, "{case:?}");
        }
    }
    Ok(())
}

/// The rejection itself has none of the headers.
#[test]
fn refused_with_extension_headers() -> Result<()> {
    for chain in chains() {
        for transport in [Transport::SYN, Transport::Udp] {
            let case = Case { link: Link::Ethernet, ip: Ip::V6, transport };
            let mut node = shared()?;
            let service = node.service(case.proto(), &[], &[])?;
            node.cluster_ip(&service, case.at(VIP, 80))?;
            for len in [0, 5, 600] {
                let mut ask = case.packet(case.at(OUTSIDE, 2000), case.at(VIP, 80));
                ask.payload = vec![9; len];
                let want = if case.is_tcp() { ask.reset() } else { ask.unreachable() };
                let bytes = extended(&ask.bytes(), case.link, &chain);
                let answer = node.ingress(case.link, &bytes).redirected();
                assert_eq!(answer, want, "{case:?} {chain:?} from outside");
                let answer = node.own(case.link, &bytes).redirected();
                assert_eq!(answer, want, "{case:?} {chain:?} from the node itself");
                let reset = extended(&ask.flagged(RST).bytes(), case.link, &chain);
                if case.is_tcp() {
                    node.ingress(case.link, &reset).dropped();
                }
            }
            assert!(node.flows().is_empty());
        }
    }
    Ok(())
}
