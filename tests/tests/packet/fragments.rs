//! IP fragments: every fragment of a datagram follows its first fragment, in any order of arrival.

use std::net::SocketAddr;

use anyhow::Result;
use proxy_common::{Counter, Fragment};
use tests::packet::{
    Datapath, Hook, Packet, Tap, Transport, Way,
    datapath::shared,
    fragment::fragments,
    world::{FAR_POD, NODE, OUTSIDE, POD, UPLINK, VIP},
};

use crate::case::Case;

const NODE_PORT: u16 = 30_080;
const ID: u32 = 0x1234_5678;

/// A datagram of 2000 bytes (TCP: a segment of that size that opens a connection).
fn big(case: Case, from: SocketAddr, to: SocketAddr) -> Packet {
    let mut packet = case.packet(from, to);
    packet.payload = (0..=255).cycle().take(2000).collect();
    packet
}

/// The packet in four fragments.
fn cut(packet: &Packet, id: u32) -> Vec<Vec<u8>> {
    fragments(&packet.bytes(), packet.link, id, 560)
}

fn ingress(case: Case, node: &Datapath, frames: &[Vec<u8>]) -> Vec<Vec<u8>> {
    through(case, node, Hook::Ingress, frames)
}

fn egress(case: Case, node: &Datapath, frames: &[Vec<u8>]) -> Vec<Vec<u8>> {
    through(case, node, Hook::Egress, frames)
}

/// Sends frames through a hook; frames that the hook sends itself pass it again. Returns the passed frames in order.
#[track_caller]
fn through(case: Case, node: &Datapath, hook: Hook, frames: &[Vec<u8>]) -> Vec<Vec<u8>> {
    let tap = Tap::on(node.uplink).expect("AF_PACKET");
    let mut passed = Vec::new();
    for frame in frames {
        let mut rounds = vec![frame.clone()];
        while !rounds.is_empty() {
            let round = std::mem::take(&mut rounds);
            for frame in round {
                let held = node.counter(Counter::FragmentHeld);
                // A packet whose length changes no longer has a device checksum, but a test run does not know that: it
                // checks one only if no fragments are held.
                let outcome = if waits(node) {
                    node.run(hook, case.link, &frame, Way { complete: false, ..case.way(hook, node) })
                } else {
                    case.run(node, hook, &frame)
                };
                if outcome.is_passed() {
                    passed.push(outcome.bytes);
                } else if outcome.is_redirected() {
                    // The hook has sent all but the last one itself.
                    rounds.extend(tap.pending(hook));
                    rounds.push(outcome.bytes);
                } else {
                    assert_eq!(node.counter(Counter::FragmentHeld), held + 1, "{case:?}: dropped");
                }
            }
        }
    }
    assert!(tap.pending(hook).is_empty(), "{case:?}: more was sent than told");
    passed
}

/// Whether a datagram waits for its first fragment.
fn waits(node: &Datapath) -> bool {
    node.fragments.iter().any(|entry| entry.is_ok_and(|(_, entry)| entry.state < Fragment::UNDECIDED))
}

/// The same frames in any order.
#[track_caller]
fn same(case: Case, mut have: Vec<Vec<u8>>, packet: &Packet, id: u32) {
    let mut want = cut(packet, id);
    have.sort();
    want.sort();
    assert_eq!(have, want, "{case:?}");
}

/// The same frames, with the first fragment first.
#[track_caller]
fn first_first(case: Case, have: Vec<Vec<u8>>, packet: &Packet, id: u32) {
    assert_eq!(have.first(), cut(packet, id).first(), "{case:?}");
    same(case, have, packet, id);
}

fn served(case: Case, node: &mut Datapath, backend: u16) -> Result<()> {
    let id = node.backend(case.at(backend, 8080), case.proto(), backend != FAR_POD)?;
    let service = node.service(case.proto(), &[id], &[])?;
    node.cluster_ip(&service, case.at(VIP, 80))?;
    node.ping(case.at(VIP, 0).ip(), true)?;
    node.node_port(&service, case.ip, NODE_PORT, 0)
}

/// Arrival orders of four fragments.
const ORDERS: [[usize; 4]; 5] = [[0, 1, 2, 3], [3, 2, 1, 0], [1, 0, 3, 2], [1, 2, 3, 0], [2, 3, 0, 1]];

fn ordered(frames: &[Vec<u8>], order: [usize; 4]) -> Vec<Vec<u8>> {
    order.iter().map(|nth| frames[*nth].clone()).collect()
}

#[test]
fn a_request_and_its_answer_in_every_order() -> Result<()> {
    for case in Case::all() {
        let mut node = shared()?;
        served(case, &mut node, POD)?;
        let (client, vip, to) = (case.at(OUTSIDE, 2000), case.at(VIP, 80), case.at(POD, 8080));
        for (nth, order) in ORDERS.iter().enumerate() {
            let id = ID + nth as u32;
            let ask = big(case, client, vip);
            let inside = ingress(case, &node, &ordered(&cut(&ask, id), *order));
            first_first(case, inside.clone(), &ask.to(to), id);
            same(case, egress(case, &node, &inside), &ask.to(to), id);

            let answer = ask.to(to).answer(0x12);
            let inside = ingress(case, &node, &ordered(&cut(&answer, id), *order));
            assert_eq!(inside, ordered(&cut(&answer, id), *order), "{case:?}: ingress has no say in it");
            first_first(case, egress(case, &node, &inside), &answer.from(vip), id);
        }
        assert_eq!(node.counter(Counter::FragmentLost), 0);
        assert_eq!(node.counter(Counter::FragmentNotHeld), 0);
    }
    Ok(())
}

#[test]
fn with_source_translation_in_every_order() -> Result<()> {
    for case in Case::all() {
        let mut node = shared()?;
        served(case, &mut node, FAR_POD)?;
        let (client, front, to) = (case.at(OUTSIDE, 2000), case.at(NODE, NODE_PORT), case.at(FAR_POD, 8080));
        let source = case.at(UPLINK, 2000);
        for (nth, order) in ORDERS.iter().enumerate() {
            let id = ID + nth as u32;
            let ask = big(case, client, front);
            let inside = ingress(case, &node, &ordered(&cut(&ask, id), *order));
            first_first(case, inside, &ask.to(to), id);
            // As passed on by a host that reorders them.
            let mixed = ordered(&cut(&ask.to(to), id), *order);
            first_first(case, egress(case, &node, &mixed), &ask.from(source).to(to), id);

            let answer = ask.from(source).to(to).answer(0x12);
            let inside = ingress(case, &node, &ordered(&cut(&answer, id), *order));
            first_first(case, inside, &answer.to(client), id);
            let mixed = ordered(&cut(&answer.to(client), id), *order);
            first_first(case, egress(case, &node, &mixed), &answer.from(front).to(client), id);
        }
        assert_eq!(node.counter(Counter::FragmentLost), 0);
    }
    Ok(())
}

#[test]
fn duplicates_follow_too() -> Result<()> {
    for case in Case::all() {
        let mut node = shared()?;
        served(case, &mut node, POD)?;
        let ask = big(case, case.at(OUTSIDE, 2000), case.at(VIP, 80));
        let (frames, want) = (cut(&ask, ID), cut(&ask.to(case.at(POD, 8080)), ID));
        let order = [3, 3, 1, 0, 0, 2, 1, 3];
        let mut passed = ingress(case, &node, &order.map(|nth: usize| frames[nth].clone()));
        let mut want = order.map(|nth| want[nth].clone()).to_vec();
        passed.sort();
        want.sort();
        assert_eq!(passed, want, "{case:?}");
    }
    Ok(())
}

/// Two datagrams with one identification: the later fragments follow the most recent first fragment.
#[test]
fn an_identification_that_is_used_again() -> Result<()> {
    for case in Case::ethernet(Transport::Udp) {
        let mut node = shared()?;
        let backends = [POD, POD + 1].map(|host| case.at(host, 8080));
        let ids =
            [node.backend(backends[0], case.proto(), true)?, node.backend(backends[1], case.proto(), true)?];
        let service = node.service(case.proto(), &ids, &[])?;
        node.cluster_ip(&service, case.at(VIP, 80))?;
        node.ping(case.at(VIP, 0).ip(), true)?;
        let mut seen = Vec::new();
        for port in [2000, 2001] {
            let ask = big(case, case.at(OUTSIDE, port), case.at(VIP, 80));
            let passed = ingress(case, &node, &cut(&ask, ID));
            let to = backends.into_iter().find(|to| passed == cut(&ask.to(*to), ID));
            seen.push(to.expect("all fragments to one backend"));
        }
        assert_ne!(seen[0], seen[1], "{case:?}: round robin");
    }
    Ok(())
}

#[test]
fn none_of_ours_pass_as_they_come() -> Result<()> {
    for case in Case::all() {
        let mut node = shared()?;
        served(case, &mut node, POD)?;
        let outside = case.at(OUTSIDE, 2000);
        for order in ORDERS {
            // No fragment may go to another address.
            let stranger = ordered(&cut(&big(case, outside, case.at(OUTSIDE + 1, 80)), ID), order);
            for hook in [Hook::Ingress, Hook::Egress] {
                assert_eq!(through(case, &node, hook, &stranger), stranger, "{case:?} {hook:?}");
            }
        }
        assert_eq!(node.counter(Counter::FragmentHeld), 0);
        assert!(node.fragments.keys().next().is_none(), "{case:?}: no trace");

        // To the node but not to a Service; from a backend but in no flow: byte for byte, the first fragment first.
        for (nth, order) in ORDERS.iter().enumerate() {
            let id = ID + nth as u32;
            let other = big(case, outside, case.at(NODE, 9999));
            first_first(case, ingress(case, &node, &ordered(&cut(&other, id), *order)), &other, id);
            let other = big(case, case.at(POD, 9999), outside);
            first_first(case, egress(case, &node, &ordered(&cut(&other, id), *order)), &other, id);
        }
        assert!(node.flows().is_empty(), "{case:?}");
    }
    Ok(())
}
