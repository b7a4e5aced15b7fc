//! The number of flows from a node to one backend with source translation: 60,000 TCP connections without a loss, each
//! with a source of its own. After that new flows are rejected and counted, until others are closed.

use std::collections::BTreeSet;

use anyhow::Result;
use proxy_common::Counter;
use tests::packet::{
    Datapath, Link, Packet, Transport,
    frame::{ACK, RST, SYN, ends},
    world::{FAR_POD, NODE, OUTSIDE, UPLINK},
};

use crate::case::Case;

const NODE_PORT: u16 = 30_080;
const FLOWS: usize = 60_000;
/// More than the number of available ports: 64,512.
const TOO_MANY: usize = 65_000;
/// Ports of each client.
const PORTS: usize = 4100;
/// Room for four halves of each flow, and for the shares of half-open and other flows.
const CONNTRACK: u32 = 1 << 20;

fn client(case: Case, nth: usize) -> std::net::SocketAddr {
    case.at(OUTSIDE + (nth / PORTS) as u16, 5000 + (nth % PORTS) as u16)
}

/// The client's first number; the backend's is twice that.
const ISN: u32 = 0x1000_0000;

/// A complete handshake of the `nth` client; returns its source on the wire, or none if it was rejected.
fn connect(node: &Datapath, case: Case, nth: usize) -> Option<std::net::SocketAddr> {
    let segment = |src, dst, flags, seq, ack| {
        Packet::new(case.link, case.ip, src, dst, Transport::Tcp { flags, seq, ack })
    };
    let (client, front) = (client(case, nth), case.at(NODE, NODE_PORT));
    let syn = segment(client, front, SYN, ISN, 0);
    let inside = node.ingress(case.link, &syn.bytes());
    if !inside.is_passed() {
        return None;
    }
    let out = node.egress(case.link, &inside.bytes);
    if !out.is_passed() {
        return None;
    }
    let (source, back) = ends(&out.bytes, case.link);
    assert_eq!(out.bytes, syn.from(source).to(back).bytes(), "flow {nth}");
    let answer = segment(back, source, SYN | ACK, 2 * ISN, ISN + 1);
    let inside = node.ingress(case.link, &answer.bytes()).passed();
    assert_eq!(inside, answer.to(client).bytes(), "flow {nth}");
    let inside = node.egress(case.link, &inside).passed();
    assert_eq!(inside, answer.from(front).to(client).bytes(), "flow {nth}");
    let ack = segment(client, front, ACK, ISN + 1, 2 * ISN + 1);
    let inside = node.ingress(case.link, &ack.bytes()).passed();
    assert_eq!(node.egress(case.link, &inside).passed(), ack.from(source).to(back).bytes(), "flow {nth}");
    Some(source)
}

#[test]
fn sixty_thousand_connections_to_one_backend() -> Result<()> {
    let mut node = Datapath::load(CONNTRACK)?;
    for case in Case::ethernet(Transport::SYN) {
        node.clear()?;
        let backend = node.backend(case.at(FAR_POD, 8080), case.proto(), false)?;
        let service = node.service(case.proto(), &[backend], &[])?;
        node.node_port(&service, case.ip, NODE_PORT, 0)?;
        let mut sources = BTreeSet::new();
        let mut lost = 0;
        let mut refused = None;
        for nth in 0..TOO_MANY {
            match connect(&node, case, nth) {
                Some(source) => assert!(sources.insert(source), "{case:?}: {source} twice"),
                None if nth >= FLOWS => {
                    refused = Some(nth);
                    break;
                }
                None => lost += 1,
            }
        }
        println!("{case:?}: {} connections, {lost} of {FLOWS} lost, then {refused:?} refused", sources.len());
        assert_eq!(lost, 0, "{case:?}: of {FLOWS} connections to one backend");
        let refused = refused.expect("there are fewer ports than connections");
        assert!(node.counter(Counter::NoFreeSource) > 0, "{case:?}: the refusal was not counted");
        assert!(sources.iter().all(|source| source.ip() == case.at(UPLINK, 0).ip()), "{case:?}");
        assert!(!sources.contains(&case.at(UPLINK, NODE_PORT)), "{case:?}: a source is a NodePort");

        // An eighth of them is closed, and the next ones are served: a bounded search need not find a single free port.
        assert_eq!(case.link, Link::Ethernet);
        for nth in (0..FLOWS).step_by(8) {
            let over = case.packet(client(case, nth), case.at(NODE, NODE_PORT));
            let over = over.flagged(RST | ACK).numbered(ISN + 1, 2 * ISN + 1);
            let inside = node.ingress(case.link, &over.bytes()).passed();
            node.egress(case.link, &inside).passed();
        }
        for nth in refused..refused + 100 {
            let source = connect(&node, case, nth);
            assert!(source.is_some(), "{case:?}: ports are free again, and connection {nth} is given none");
        }
    }
    Ok(())
}
