//! Incomplete fragments: a first fragment that is rejected, tiny or late, too many fragments, or too old ones.

use anyhow::Result;
use proxy_common::{Addr, Counter, Fragment, FragmentKey, fragment::HELD_OF_DATAGRAM};
use tests::packet::{
    Datapath, Hook, Packet, Tap, Transport, Way,
    datapath::shared,
    fragment::fragments,
    run,
    world::{OUTSIDE, POD, VIP},
};

use crate::case::Case;

const ID: u32 = 0x1234_5678;

/// HZ of a datapath by default.
const SECOND: u32 = 250;

/// A VIP, with or without a backend.
fn vip(case: Case, node: &mut Datapath, backend: bool) -> Result<()> {
    let id = node.backend(case.at(POD, 8080), case.proto(), true)?;
    let backends: &[u32] = if backend { &[id] } else { &[] };
    let service = node.service(case.proto(), backends, &[])?;
    node.cluster_ip(&service, case.at(VIP, 80))?;
    node.ping(case.at(VIP, 0).ip(), backend)
}

fn big(case: Case, len: usize) -> Packet {
    let mut packet = case.packet(case.at(OUTSIDE, 2000), case.at(VIP, 80));
    packet.payload = (0..=255).cycle().take(len).collect();
    packet
}

fn cut(packet: &Packet, size: usize) -> Vec<Vec<u8>> {
    fragments(&packet.bytes(), packet.link, ID, size)
}

/// Without checking a device checksum: a packet whose length changes no longer has one.
fn ingress(case: Case, node: &Datapath, frame: &[u8]) -> run::Outcome {
    node.run(Hook::Ingress, case.link, frame, Way { complete: false, ..case.way(Hook::Ingress, node) })
}

fn key(case: Case) -> FragmentKey {
    let (src, dst) = (case.at(OUTSIDE, 0).ip(), case.at(VIP, 0).ip());
    let id = if case.ip.is_v4() { u32::from((ID as u16).to_be()) } else { ID.to_be() };
    FragmentKey { src: src.into(), dst: dst.into(), id, proto: case.proto(), half: 0, reserved: 0 }
}

/// The kernel's clock, read from the entry that a first fragment creates.
fn jiffies(case: Case, node: &Datapath, first: &[u8]) -> Result<u32> {
    case.ingress(node, first).passed();
    Ok(node.fragments.get(&key(case), 0)?.since)
}

#[test]
fn what_follows_a_refused_first_is_dropped() -> Result<()> {
    for case in Case::ethernet(Transport::Udp) {
        let mut node = shared()?;
        vip(case, &mut node, false)?;
        let frames = cut(&big(case, 2000), 560);
        assert!(ingress(case, &node, &frames[0]).is_redirected(), "{case:?}: told so at once");
        for frame in &frames[1..] {
            case.ingress(&node, frame).dropped();
        }
        assert_eq!(node.counter(Counter::FragmentDropped), 3);
        assert_eq!(node.counter(Counter::NoBackend), 1);
        assert_eq!(node.counter(Counter::FragmentHeld), 0);
    }
    Ok(())
}

#[test]
fn a_tiny_first_fragment_is_dropped_with_its_datagram() -> Result<()> {
    for case in Case::ethernet(Transport::SYN) {
        let mut node = shared()?;
        vip(case, &mut node, true)?;
        let ask = big(case, 64);
        for (nth, frame) in cut(&ask, 8).iter().enumerate() {
            case.ingress(&node, frame).dropped();
            assert_eq!(node.counter(Counter::FragmentTiny), 1, "{case:?}");
            assert_eq!(node.counter(Counter::FragmentDropped), nth as u64, "{case:?}");
        }
        // Unrelated to Services at another address.
        for frame in cut(&ask.to(case.at(OUTSIDE + 1, 80)), 8) {
            assert_eq!(case.ingress(&node, &frame).passed(), frame, "{case:?}");
        }
        assert!(node.flows().is_empty());
    }
    Ok(())
}

#[test]
fn frames_of_more_than_one_element_are_held_whole() -> Result<()> {
    for case in Case::ethernet(Transport::Udp) {
        let mut node = shared()?;
        vip(case, &mut node, true)?;
        let ask = big(case, 8000);
        let (frames, want) = (cut(&ask, 2960), cut(&ask.to(case.at(POD, 8080)), 2960));
        let tap = Tap::on(node.uplink)?;
        for nth in [2, 1] {
            ingress(case, &node, &frames[nth]).dropped();
        }
        let last = ingress(case, &node, &frames[0]).redirected();
        assert_eq!([tap.pending(Hook::Ingress), vec![last]].concat(), frames, "{case:?}");
        for (frame, want) in frames.iter().zip(&want) {
            assert_eq!(&case.ingress(&node, frame).passed(), want, "{case:?}");
        }
        assert_eq!(node.counter(Counter::FragmentHeld), 2);
    }
    Ok(())
}

#[test]
fn a_datagram_in_too_many_pieces_is_held_in_part() -> Result<()> {
    let case = Case::ethernet(Transport::Udp)[0];
    let mut node = shared()?;
    vip(case, &mut node, true)?;
    let frames = cut(&big(case, 800), 8);
    let later = &frames[1..];
    for frame in later.iter().rev() {
        ingress(case, &node, frame);
    }
    let held = u64::from(HELD_OF_DATAGRAM);
    assert_eq!(node.counter(Counter::FragmentHeld), held);
    assert_eq!(node.counter(Counter::FragmentNotHeld), later.len() as u64 - held);
    let tap = Tap::on(node.uplink)?;
    assert!(ingress(case, &node, &frames[0]).is_redirected());
    // The first fragment and all held ones but the last; the last is the test run's own output.
    assert_eq!(tap.pending(Hook::Ingress).len() as u64, held);
    Ok(())
}

#[test]
fn what_was_overwritten_is_lost_and_its_first_is_not() -> Result<()> {
    let case = Case::ethernet(Transport::Udp)[0];
    let mut node = shared()?;
    vip(case, &mut node, true)?;
    let ask = big(case, 2000);
    let frames = cut(&ask, 560);
    ingress(case, &node, &frames[1]).dropped();
    for id in 0..600 {
        let others = fragments(&ask.bytes(), case.link, id, 560);
        ingress(case, &node, &others[1]).dropped();
    }
    let tap = Tap::on(node.uplink)?;
    ingress(case, &node, &frames[0]).dropped();
    assert_eq!(node.counter(Counter::FragmentLost), 1);
    assert_eq!(tap.pending(Hook::Ingress), frames[..1], "the first goes around alone");
    let want = cut(&ask.to(case.at(POD, 8080)), 560);
    assert_eq!(case.ingress(&node, &frames[0]).passed(), want[0]);
    assert_eq!(case.ingress(&node, &frames[1]).passed(), want[1]);
    Ok(())
}

#[test]
fn an_entry_counts_for_some_seconds() -> Result<()> {
    for case in Case::ethernet(Transport::Udp) {
        let mut node = shared()?;
        vip(case, &mut node, true)?;
        let frames = cut(&big(case, 2000), 560);
        let grow_old = |node: &mut Datapath| -> Result<()> {
            let mut entry = node.fragments.get(&key(case), 0)?;
            entry.since = entry.since.wrapping_sub(Fragment::SECONDS * SECOND);
            Ok(node.fragments.insert(key(case), entry, 0)?)
        };
        // The first fragment of an earlier datagram, and a later fragment of another with the same identification.
        case.ingress(&node, &frames[0]).passed();
        case.ingress(&node, &frames[1]).passed();
        grow_old(&mut node)?;
        case.ingress(&node, &frames[2]).dropped();
        assert_eq!(node.counter(Counter::FragmentHeld), 1, "{case:?}");
        // Its first fragment arrives too late to release the held ones.
        grow_old(&mut node)?;
        case.ingress(&node, &frames[0]).passed();
        case.ingress(&node, &frames[2]).passed();
    }
    Ok(())
}

#[test]
fn while_another_cpu_looks_at_the_first_the_others_go_around() -> Result<()> {
    for case in Case::ethernet(Transport::Udp) {
        let mut node = shared()?;
        vip(case, &mut node, true)?;
        let frames = cut(&big(case, 2000), 560);
        let later = &frames[1];
        let addr = Addr::UNSPECIFIED_V6;
        let mut around = false;
        // A jiffy may pass in between.
        for _ in 0..20 {
            let entry = Fragment {
                addr,
                state: Fragment::UNDECIDED,
                since: jiffies(case, &node, &frames[0])?,
                reserved: 0,
            };
            node.fragments.insert(key(case), entry, 0)?;
            let outcome = case.ingress(&node, later);
            assert_eq!(&outcome.bytes, later, "{case:?}");
            around |= outcome.is_redirected();
        }
        assert!(around, "{case:?}");
        let since = jiffies(case, &node, &frames[0])?.wrapping_sub(SECOND);
        let entry = Fragment { addr, state: Fragment::UNDECIDED, since, reserved: 0 };
        node.fragments.insert(key(case), entry, 0)?;
        assert_eq!(&case.ingress(&node, later).passed(), later, "{case:?}: not for ever");
    }
    Ok(())
}
