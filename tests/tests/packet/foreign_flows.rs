//! Flows that shunt did not open, from a node's own address, packet by packet: from the node's sockets, and from pods
//! masqueraded by netfilter. Flows from a frontend's port pass byte for byte in both directions. If shunt and such a
//! flow need the same tuple, the later one gets another port on the wire, and its own port is restored for its owner.
//! SCTP's ports cannot change: there the later flow is dropped.

use std::net::SocketAddr;

use anyhow::Result;
use proxy_common::{Counter, FrontendKind};
use tests::packet::{
    Datapath, Hook, Ip, Link, Transport, Way,
    datapath::{Shared, shared},
    frame::{ACK, PSH, RST, SYN, ends},
    run::XdpOutcome,
    world::{FAR_POD, NODE, OUTSIDE, POD, UPLINK, at},
};

use crate::{
    case::Case,
    sctp::{self, SCTP},
};

const NODE_PORT: u16 = 30_080;
const BALANCER_PORT: u16 = 20_443;
const EXTERNAL_PORT: u16 = 20_444;
const NUMBERS: [u16; 3] = [NODE_PORT, BALANCER_PORT, EXTERNAL_PORT];

/// Sender of packets with the node's own address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sender {
    Socket,
    /// A pod, after netfilter's postrouting.
    Masqueraded,
}

const SENDERS: [Sender; 2] = [Sender::Socket, Sender::Masqueraded];

impl Sender {
    /// The sender's packet leaves through the uplink.
    fn way(self, node: &Datapath) -> Way {
        let came_in = if self == Self::Socket { 0 } else { node.pod };
        Way { device: node.uplink, came_in, complete: false }
    }
}

/// A packet that arrives at the uplink.
fn back_way(node: &Datapath) -> Way {
    Way { device: node.uplink, came_in: node.uplink, complete: false }
}

/// A NodePort, and a load balancer address and an externalIP that are the node's own, for one backend on another node.
fn every_kind(node: &mut Datapath, ip: Ip, proto: u8) -> Result<SocketAddr> {
    let back = at(ip, FAR_POD, 8080);
    let backend = node.backend(back, proto, false)?;
    let service = node.service(proto, &[backend], &[])?;
    node.node_port(&service, ip, NODE_PORT, 0)?;
    node.frontend(&service, at(ip, UPLINK, BALANCER_PORT), FrontendKind::LoadBalancerIp, 0)?;
    node.frontend(&service, at(ip, UPLINK, EXTERNAL_PORT), FrontendKind::ExternalIp, 0)?;
    Ok(back)
}

#[track_caller]
fn untouched(node: &Datapath, case: Case, hook: Hook, way: Way, what: &str, bytes: &[u8]) {
    let out = node.run(hook, case.link, bytes, way);
    assert!(out.is_passed(), "{case:?}, {what}: verdict {}", out.verdict);
    assert_eq!(out.bytes, bytes, "{case:?}, {what}");
}

/// Both directions of a flow from `own` to a foreign server, unchanged.
#[track_caller]
fn passes_whole(node: &Datapath, case: Case, sender: Sender, own: SocketAddr, stranger: SocketAddr) {
    let (out, back) = (sender.way(node), back_way(node));
    let ask = case.packet(own, stranger);
    let answer = ask.answer(SYN | ACK);
    let what = |which: &str| format!("{sender:?} {own} -> {stranger}, {which}");
    untouched(node, case, Hook::Egress, out, &what("the question"), &ask.bytes());
    untouched(node, case, Hook::Ingress, back, &what("the answer"), &answer.bytes());
    for round in 0..2 {
        let more = ask.flagged(ACK | PSH).bytes();
        untouched(node, case, Hook::Egress, out, &what(&format!("question {round}")), &more);
        let more = answer.flagged(ACK | PSH).bytes();
        untouched(node, case, Hook::Ingress, back, &what(&format!("answer {round}")), &more);
    }
}

#[test]
fn a_flow_from_a_frontends_number_passes_byte_for_byte() -> Result<()> {
    for case in Case::all() {
        for sender in SENDERS {
            let mut node = shared()?;
            let back = every_kind(&mut node, case.ip, case.proto())?;
            for number in NUMBERS {
                let (own, stranger) = (case.at(UPLINK, number), case.at(OUTSIDE, 53));
                passes_whole(&node, case, sender, own, stranger);
                // A backend at its own address is a foreign server too.
                passes_whole(&node, case, sender, own, back);
                // Meanwhile another client uses the Service at that port.
                let client = case.at(OUTSIDE + 1, 53);
                let (_, dst) = case.goes_whole(&node, &case.packet(client, own));
                assert_eq!(dst, back, "{case:?}: {client} -> {own}");
            }
        }
    }
    Ok(())
}

/// The open flow ends with a reset, and its peer may become a client.
#[test]
fn a_number_is_the_frontends_again_when_the_flow_is_over() -> Result<()> {
    for case in Case::tcp() {
        let mut node = shared()?;
        let back = every_kind(&mut node, case.ip, case.proto())?;
        let (own, stranger) = (case.at(UPLINK, NODE_PORT), case.at(OUTSIDE, 53));
        passes_whole(&node, case, Sender::Socket, own, stranger);
        let reset = case.packet(own, stranger).flagged(RST | ACK);
        untouched(&node, case, Hook::Egress, Sender::Socket.way(&node), "the reset", &reset.bytes());
        let (_, dst) = case.goes_whole(&node, &case.packet(stranger, own));
        assert_eq!(dst, back, "{case:?}");
    }
    Ok(())
}

fn wired() -> Result<Shared> {
    let mut node = shared()?;
    node.wire()?;
    Ok(node)
}

#[test]
fn a_flow_from_a_frontends_number_passes_the_lane() -> Result<()> {
    let plain = |case: &Case| case.link == Link::Ethernet && case.ip != Ip::V4Options;
    for case in Case::all().into_iter().filter(plain) {
        let mut node = wired()?;
        every_kind(&mut node, case.ip, case.proto())?;
        for (nth, number) in NUMBERS.into_iter().enumerate() {
            let (own, stranger) = (case.at(UPLINK, number), case.at(OUTSIDE, 5300 + nth as u16));
            let ask = case.packet(own, stranger);
            untouched(&node, case, Hook::Egress, Sender::Socket.way(&node), "the question", &ask.bytes());
            let answer = ask.answer(SYN | ACK);
            for bytes in [answer.bytes(), answer.flagged(ACK | PSH).bytes()] {
                let out = node.lane(&bytes);
                assert_eq!(out.action, XdpOutcome::PASS, "{case:?}, {number}");
                assert_eq!(out.bytes, bytes, "{case:?}, {number}");
                untouched(&node, case, Hook::Ingress, back_way(&node), "after it", &bytes);
            }
        }
    }
    Ok(())
}

#[test]
fn sctp_from_a_frontends_number_passes_byte_for_byte() -> Result<()> {
    for link in Link::BOTH {
        for ip in Ip::ALL {
            let case = Case { link, ip, transport: Transport::Udp };
            for sender in SENDERS {
                let mut node = shared()?;
                every_kind(&mut node, ip, SCTP)?;
                for number in NUMBERS {
                    let (own, stranger) = (at(ip, UPLINK, number), at(ip, OUTSIDE, 5300));
                    let ask = sctp::packet(link, ip, own, stranger);
                    untouched(&node, case, Hook::Egress, sender.way(&node), "the INIT", &ask);
                    let answer = sctp::packet(link, ip, stranger, own);
                    untouched(&node, case, Hook::Ingress, back_way(&node), "its answer", &answer);
                }
            }
        }
    }
    Ok(())
}

/// The source on the wire of a NodePort flow from this client; checks that nothing else was changed.
#[track_caller]
fn served(node: &Datapath, case: Case, client: SocketAddr, back: SocketAddr) -> SocketAddr {
    let (source, dst) = case.goes_whole(node, &case.packet(client, case.at(NODE, NODE_PORT)));
    assert_eq!(dst, back, "{case:?}");
    source
}

/// The source on the wire of a foreign flow; checks that nothing else was changed.
#[track_caller]
fn sent(node: &Datapath, case: Case, sender: Sender, own: SocketAddr, to: SocketAddr) -> SocketAddr {
    let ask = case.packet(own, to);
    let out = node.run(Hook::Egress, case.link, &ask.bytes(), sender.way(node)).passed();
    let (source, dst) = ends(&out, case.link);
    assert_eq!(out, ask.from(source).bytes(), "{case:?}, {sender:?}");
    assert_eq!((source.ip(), dst), (own.ip(), to), "{case:?}, {sender:?}");
    source
}

/// A reply from `back` to `source` on the wire; the host's stack must receive it for `want`.
#[track_caller]
fn comes_to(node: &Datapath, case: Case, back: SocketAddr, source: SocketAddr, want: SocketAddr) {
    let answer = case.packet(back, source).flagged(SYN | ACK);
    let inside = case.ingress(node, &answer.bytes()).passed();
    assert_eq!(inside, answer.to(want).bytes(), "{case:?}: the answer to {source} on the wire");
}

#[test]
fn two_flows_that_want_one_tuple_have_two() -> Result<()> {
    for case in Case::all() {
        for sender in SENDERS {
            for is_client_first in [false, true] {
                let mut node = shared()?;
                let back = every_kind(&mut node, case.ip, case.proto())?;
                let (own, client) = (case.at(UPLINK, 2000), case.at(OUTSIDE, 2000));
                let (wire_client, wire_own) = if is_client_first {
                    (served(&node, case, client, back), sent(&node, case, sender, own, back))
                } else {
                    let wire_own = sent(&node, case, sender, own, back);
                    assert_eq!(wire_own, own, "{case:?}: the first keeps its port");
                    (served(&node, case, client, back), wire_own)
                };
                let what = format!("{case:?}, {sender:?}, the client first: {is_client_first}");
                assert_ne!(wire_client, wire_own, "{what}");
                for _ in 0..2 {
                    comes_to(&node, case, back, wire_own, own);
                    comes_to(&node, case, back, wire_client, client);
                    // Further packets too.
                    let more = case.packet(own, back).flagged(ACK);
                    let out = node.run(Hook::Egress, case.link, &more.bytes(), sender.way(&node));
                    assert_eq!(out.passed(), more.from(wire_own).bytes(), "{what}");
                }
            }
        }
    }
    Ok(())
}

#[test]
fn of_two_sctp_flows_that_want_one_tuple_the_later_is_dropped() -> Result<()> {
    for ip in [Ip::V4, Ip::V6] {
        for sender in SENDERS {
            for is_client_first in [false, true] {
                let link = Link::Ethernet;
                let mut node = shared()?;
                // The port of SCTP's frontend is its target port.
                let backend = node.backend(at(ip, FAR_POD, NODE_PORT), SCTP, false)?;
                let service = node.service(SCTP, &[backend], &[])?;
                node.node_port(&service, ip, NODE_PORT, 0)?;
                let back = at(ip, FAR_POD, NODE_PORT);
                let (own, client) = (at(ip, UPLINK, 2000), at(ip, OUTSIDE, 2000));
                let direct = sctp::packet(link, ip, own, back);
                let asked = sctp::packet(link, ip, client, at(ip, NODE, NODE_PORT));
                let client_asks = |node: &Datapath| {
                    let inside = node.ingress(link, &asked);
                    if inside.is_passed() { node.egress(link, &inside.bytes) } else { inside }
                };
                let sends = |node: &Datapath| node.run(Hook::Egress, link, &direct, sender.way(node));
                let (first, second) = if is_client_first {
                    (client_asks(&node), sends(&node))
                } else {
                    (sends(&node), client_asks(&node))
                };
                let what = format!("{ip:?}, {sender:?}, the client first: {is_client_first}");
                assert!(first.is_passed(), "{what}");
                assert!(!second.is_passed(), "{what}: both are on the wire with one tuple");
                let want = if is_client_first { client } else { own };
                let answer = node.ingress(link, &sctp::packet(link, ip, back, own));
                assert_eq!(answer.passed(), sctp::packet(link, ip, back, want), "{what}");
            }
        }
    }
    Ok(())
}

/// Flows of a pod of this node to a backend here are not flows of the node's addresses.
#[test]
fn a_pods_own_flows_keep_their_ports() -> Result<()> {
    for case in Case::all() {
        let mut node = shared()?;
        let back = every_kind(&mut node, case.ip, case.proto())?;
        let wire = served(&node, case, case.at(OUTSIDE, 2000), back);
        let pod = case.at(POD, 2000);
        assert_eq!(case.goes_whole(&node, &case.packet(pod, back)), (pod, back), "{case:?}");
        comes_to(&node, case, back, wire, case.at(OUTSIDE, 2000));
        comes_to(&node, case, back, pod, pod);
    }
    Ok(())
}

/// The record of a direct flow does not reserve its port forever: a closed flow releases it.
#[test]
fn a_port_is_the_clients_again_when_the_direct_flow_is_over() -> Result<()> {
    for case in Case::tcp() {
        let mut node = shared()?;
        let back = every_kind(&mut node, case.ip, case.proto())?;
        let own = case.at(UPLINK, 2000);
        sent(&node, case, Sender::Socket, own, back);
        let reset = case.packet(own, back).flagged(RST | ACK);
        let out = node.run(Hook::Egress, case.link, &reset.bytes(), Sender::Socket.way(&node));
        assert_eq!(out.passed(), reset.bytes(), "{case:?}");
        let client = case.at(OUTSIDE, 2000);
        let wire = served(&node, case, client, back);
        comes_to(&node, case, back, wire, client);
        assert_eq!(node.counter(Counter::NoFreeSource), 0);
    }
    Ok(())
}
