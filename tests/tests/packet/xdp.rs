//! The XDP program, frame by frame: frames translated for a backend of this node, frames forwarded and their replies,
//! and frames passed unchanged to tc.

use std::{net::SocketAddr, os::fd::AsFd as _};

use anyhow::Result;
use proxy_common::{Counter, CtEntry, Frontend, FrontendKind};
use tests::packet::{
    Datapath, Ip, Link, Packet, Transport, Way,
    datapath::{Shared, shared},
    frame::{ACK, FIN, PSH, SYN, ends},
    run::{self, XdpOutcome},
    world::{FAR_POD, MACS, NARROW, NODE, OUTSIDE, POD, UNKNOWN, UPLINK, VIP},
};

use crate::case::Case;

const NODE_PORT: u16 = 30_080;
/// Its transport checksums do not look partial: see `partial_looking`.
const CLIENT: u16 = 2000;

fn cases() -> Vec<Case> {
    let plain = |case: &Case| case.link == Link::Ethernet && case.ip != Ip::V4Options;
    Case::all().into_iter().filter(plain).collect()
}

fn wired() -> Result<Shared> {
    let mut node = shared()?;
    node.wire()?;
    Ok(node)
}

/// A NodePort Service with one backend.
fn node_port(node: &mut Datapath, case: Case, backend: u16, local: bool, flags: u32) -> Result<SocketAddr> {
    let id = node.backend(case.at(backend, 8080), case.proto(), local)?;
    let all = [id];
    let service = node.service(case.proto(), &all, if local { &all } else { &[] })?;
    node.node_port(&service, case.ip, NODE_PORT, flags)?;
    Ok(case.at(NODE, NODE_PORT))
}

/// The frame as the XDP program forwards it: from the uplink to its neighbour, hop limit decremented.
fn sent(packet: &Packet) -> Vec<u8> {
    Packet { macs: [MACS[1], MACS[0]], ttl: packet.ttl - 1, ..packet.clone() }.bytes()
}

#[track_caller]
fn passes_untouched(node: &Datapath, what: &str, bytes: &[u8]) {
    let out = node.lane(bytes);
    assert_eq!((out.action, out.mark.len()), (XdpOutcome::PASS, 0), "{what}");
    assert_eq!(out.bytes, bytes, "{what}");
}

#[test]
fn to_a_backend_of_this_node_the_destination_is_rewritten_and_the_packet_marked() -> Result<()> {
    for case in cases() {
        let mut node = wired()?;
        let front = node_port(&mut node, case, POD, true, 0)?;
        let (client, back) = (case.at(OUTSIDE, CLIENT), case.at(POD, 8080));
        let ask = case.packet(client, front);
        for packet in [ask.clone(), ask.flagged(ACK), ask.flagged(ACK | PSH)] {
            let out = node.lane(&packet.bytes());
            assert_eq!((out.action, out.mark.len()), (XdpOutcome::PASS, 20), "{case:?}");
            assert_eq!(out.bytes, packet.to(back).bytes(), "{case:?}");
        }
        assert_eq!(node.counter(Counter::XdpLocal), 3, "{case:?}");
        assert_eq!(node.counter(Counter::FlowNew), 1, "{case:?}");
        // Replies leave through the stack and tc.
        let answer = case.packet(back, client).flagged(SYN | ACK);
        assert_eq!(case.egress(&node, &answer.bytes()).passed(), answer.from(front).bytes(), "{case:?}");
        assert!(node.flows().values().all(|entry| entry.has(CtEntry::XDP)), "{case:?}");
    }
    Ok(())
}

#[test]
fn to_a_backend_elsewhere_and_back_both_ends_are_rewritten_and_the_frame_sent() -> Result<()> {
    for case in cases() {
        let mut node = wired()?;
        let front = node_port(&mut node, case, FAR_POD, false, 0)?;
        let (client, back) = (case.at(OUTSIDE, CLIENT), case.at(FAR_POD, 8080));
        let source = case.at(UPLINK, CLIENT);
        let ask = case.packet(client, front);
        let answer = case.packet(back, source).flagged(SYN | ACK);
        for round in 0..3 {
            let (ask, answer) = if round == 0 {
                (ask.clone(), answer.clone())
            } else {
                (ask.flagged(ACK | PSH), answer.flagged(ACK))
            };
            let out = node.lane(&ask.bytes());
            assert_eq!(out.action, XdpOutcome::TX, "{case:?}");
            assert_eq!(out.bytes, sent(&ask.from(source).to(back)), "{case:?}: request");
            let out = node.lane(&answer.bytes());
            assert_eq!(out.action, XdpOutcome::TX, "{case:?}");
            assert_eq!(out.bytes, sent(&answer.from(front).to(client)), "{case:?}: reply");
        }
        let flows = node.flows();
        assert_eq!(flows.len(), 4, "{case:?}");
        assert!(flows.values().all(|entry| entry.has(CtEntry::XDP)), "{case:?}");
        assert_eq!(node.counter(Counter::XdpForwarded), 6, "{case:?}");
        assert_eq!(node.counter(Counter::FlowMasqueraded), 1, "{case:?}");
        // A packet that arrives at tc is forwarded by the same entries.
        let more = ask.flagged(ACK);
        assert_eq!(case.through(&node, &more.bytes()), more.from(source).to(back).bytes(), "{case:?}");
        let more = answer.flagged(ACK);
        assert_eq!(case.through(&node, &more.bytes()), more.from(front).to(client).bytes(), "{case:?}");
    }
    Ok(())
}

#[test]
fn load_balancer_and_external_addresses_are_in_the_lane_and_cluster_ips_are_not() -> Result<()> {
    for case in Case::ethernet(Transport::SYN) {
        let mut node = wired()?;
        let backend = node.backend(case.at(FAR_POD, 8080), case.proto(), false)?;
        let service = node.service(case.proto(), &[backend], &[])?;
        for (port, kind, action) in [
            (80, FrontendKind::LoadBalancerIp, XdpOutcome::TX),
            (81, FrontendKind::ExternalIp, XdpOutcome::TX),
            (82, FrontendKind::ClusterIp, XdpOutcome::PASS),
        ] {
            node.frontend(&service, case.at(VIP, port), kind, Frontend::EXTERNAL)?;
            let ask = case.packet(case.at(OUTSIDE, CLIENT + port), case.at(VIP, port));
            assert_eq!(node.lane(&ask.bytes()).action, action, "{kind:?}");
        }
    }
    Ok(())
}

/// Rejections and drops happen at tc, which counts them, and the round robin advances only once.
#[test]
fn what_is_refused_or_dropped_is_tcs() -> Result<()> {
    for case in Case::ethernet(Transport::SYN) {
        let mut node = wired()?;
        let empty = node.service(case.proto(), &[], &[])?;
        node.node_port(&empty, case.ip, NODE_PORT, 0)?;
        let backend = node.backend(case.at(FAR_POD, 8080), case.proto(), false)?;
        let elsewhere = node.service(case.proto(), &[backend], &[])?;
        node.node_port(&elsewhere, case.ip, NODE_PORT + 1, Frontend::LOCAL)?;
        let ask = case.packet(case.at(OUTSIDE, CLIENT), case.at(NODE, NODE_PORT));
        passes_untouched(&node, "no endpoints", &ask.bytes());
        assert_eq!(node.counter(Counter::NoBackend), 0);
        assert!(node.ingress(case.link, &ask.bytes()).is_redirected());
        assert_eq!(node.counter(Counter::NoBackend), 1);
        let ask = ask.to(case.at(NODE, NODE_PORT + 1));
        passes_untouched(&node, "policy Local", &ask.bytes());
        case.ingress(&node, &ask.bytes()).dropped();
        assert_eq!((node.counter(Counter::NoLocalEndpoints), node.counter(Counter::XdpLeft)), (1, 2));
        let ask = ask.flagged(ACK);
        passes_untouched(&node, "in mid-stream", &ask.bytes());
        assert!(node.flows().is_empty());
    }
    Ok(())
}

#[test]
fn policy_local_keeps_the_client_and_hairpins_are_tcs() -> Result<()> {
    for case in cases() {
        let mut node = wired()?;
        let front = node_port(&mut node, case, POD, true, Frontend::LOCAL)?;
        let ask = case.packet(case.at(OUTSIDE, CLIENT), front);
        let out = node.lane(&ask.bytes());
        assert_eq!(out.bytes, ask.to(case.at(POD, 8080)).bytes(), "{case:?}");
        assert_eq!(out.mark.len(), 20);
    }
    Ok(())
}

#[test]
fn whatever_is_unsure_goes_on_to_tc_and_the_flow_stays_there() -> Result<()> {
    for case in Case::ethernet(Transport::SYN) {
        for host in [UNKNOWN, UPLINK] {
            let mut node = wired()?;
            // A neighbour that has to be resolved first; a backend among the node's own processes.
            let front = node_port(&mut node, case, host, host == UPLINK, 0)?;
            let ask = case.packet(case.at(OUTSIDE, CLIENT), front);
            passes_untouched(&node, "not for the lane", &ask.bytes());
            assert!(!node.flows().values().any(|entry| entry.has(CtEntry::XDP)), "{host:x}");
            assert_eq!(node.counter(Counter::FlowNew), 1, "the turn is taken");
            let (src, dst) = ends(&case.ingress(&node, &ask.bytes()).passed(), case.link);
            assert_eq!((src, dst), (case.at(OUTSIDE, CLIENT), case.at(host, 8080)));
            passes_untouched(&node, "a flow of tc's", &ask.flagged(ACK).bytes());
            assert_eq!(node.counter(Counter::FlowNew), 1);
        }
    }
    Ok(())
}

#[test]
fn frames_that_are_not_plain_pass_as_they_came() -> Result<()> {
    for case in cases() {
        let mut node = wired()?;
        let front = node_port(&mut node, case, FAR_POD, false, 0)?;
        let ask = case.packet(case.at(OUTSIDE, CLIENT), front);
        assert_eq!(node.lane(&ask.bytes()).action, XdpOutcome::TX);
        let ask = ask.flagged(ACK);
        let mut strange = vec![
            ("the last hop", Packet { ttl: 1, ..ask.clone() }.bytes()),
            (
                "to another machine's MAC",
                Packet { macs: [[2, 7, 7, 7, 7, 7], MACS[1]], ..ask.clone() }.bytes(),
            ),
            ("cut short", {
                let mut bytes = ask.bytes();
                bytes.pop();
                bytes
            }),
        ];
        let mut vlan = ask.bytes();
        vlan.splice(12..12, [0x81, 0, 0, 5]);
        strange.push(("a VLAN tag", vlan));
        if case.ip.is_v4() {
            let options = Packet { ip: Ip::V4Options, ..ask.clone() };
            strange.push(("options", options.bytes()));
            let mut fragment = ask.bytes();
            fragment[20] |= 0x20;
            strange.push(("a fragment", fragment));
        }
        if case.transport != Transport::UdpNoSum {
            strange.push(("a partial checksum", partial(&ask)));
        }
        for (what, bytes) in strange {
            passes_untouched(&node, what, &bytes);
        }
    }
    Ok(())
}

/// As left by a sender whose device completes the checksum: the pseudo-header's sum, not inverted.
fn partial(packet: &Packet) -> Vec<u8> {
    let mut bytes = packet.bytes();
    let l4 = 14 + if packet.ip.is_v4() { 20 } else { 40 };
    let at = l4 + if packet.is_tcp() { 16 } else { 6 };
    let octets = |ip: std::net::IpAddr| match ip {
        std::net::IpAddr::V4(ip) => ip.octets().to_vec(),
        std::net::IpAddr::V6(ip) => ip.octets().to_vec(),
    };
    let len = (bytes.len() - l4) as u16;
    let tail = [&[0, packet.proto()][..], &len.to_be_bytes()].concat();
    let sum = tests::packet::frame::checksum(&[&octets(packet.src.ip()), &octets(packet.dst.ip()), &tail]);
    bytes[at..at + 2].copy_from_slice(&(!sum).to_be_bytes());
    bytes
}

#[test]
fn what_is_too_long_for_its_way_is_the_stacks_to_answer() -> Result<()> {
    for case in Case::ethernet(Transport::Udp) {
        let mut node = wired()?;
        let front = node_port(&mut node, case, NARROW, false, 0)?;
        let ask = case.packet(case.at(OUTSIDE, CLIENT), front);
        assert_eq!(node.lane(&ask.bytes()).action, XdpOutcome::TX);
        let long = Packet { payload: vec![7; 1400], ..ask.clone() };
        passes_untouched(&node, "longer than the route's MTU", &long.bytes());
        let fits = Packet { payload: vec![7; 1200], ..ask };
        assert_eq!(node.lane(&fits.bytes()).action, XdpOutcome::TX);
    }
    Ok(())
}

#[test]
fn a_syn_takes_the_tuple_of_a_flow_that_is_over() -> Result<()> {
    for case in Case::ethernet(Transport::SYN) {
        let mut node = wired()?;
        let front = node_port(&mut node, case, FAR_POD, false, 0)?;
        let (client, back, source) =
            (case.at(OUTSIDE, CLIENT), case.at(FAR_POD, 8080), case.at(UPLINK, CLIENT));
        for round in 1..=10 {
            let ask = case.packet(client, front);
            let out = node.lane(&ask.bytes());
            assert_eq!(out.bytes, sent(&ask.from(source).to(back)), "{case:?}");
            let answer = case.packet(back, source);
            node.lane(&answer.flagged(SYN | ACK).bytes());
            node.lane(&ask.flagged(ACK).bytes());
            node.lane(&ask.flagged(FIN | ACK).bytes());
            node.lane(&answer.flagged(FIN | ACK).bytes());
            node.lane(&ask.flagged(ACK).bytes());
            assert_eq!(node.counter(Counter::FlowNew), round);
            assert_eq!(node.flows().len(), 4);
        }
    }
    Ok(())
}

/// Ten thousand datagrams and segments of known flows, each compared with one built from scratch.
#[test]
fn checksums_changed_in_place_are_those_of_a_packet_built_from_scratch() -> Result<()> {
    for case in cases() {
        let mut node = wired()?;
        let front = node_port(&mut node, case, FAR_POD, false, 0)?;
        let (client, back, source) =
            (case.at(OUTSIDE, CLIENT), case.at(FAR_POD, 8080), case.at(UPLINK, CLIENT));
        let ask = case.packet(client, front);
        node.lane(&ask.bytes());
        let (mut random, mut left) = (0x2545_f491_4f6c_dd1d_u64, 0);
        for _ in 0..4_000 {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            let payload = random.to_le_bytes()[..(random >> 61) as usize + 1].to_vec();
            let packet = Packet { payload, ..ask.flagged(ACK | PSH) };
            let out = node.lane(&packet.bytes());
            if packet.bytes() == partial(&packet) {
                left += 1;
                assert_eq!((out.action, out.bytes), (XdpOutcome::PASS, packet.bytes()));
            } else {
                assert_eq!(out.bytes, sent(&packet.from(source).to(back)), "{case:?}: {packet:?}");
            }
        }
        assert!(left < 10, "{case:?}");
    }
    Ok(())
}

/// The tc program of a device with the XDP program passes packets without a mark to the ingress program.
#[test]
fn what_carries_no_mark_meets_the_ingress_program() -> Result<()> {
    for case in cases() {
        let mut node = wired()?;
        let front = node_port(&mut node, case, UNKNOWN, false, 0)?;
        let ask = case.packet(case.at(OUTSIDE, CLIENT), front);
        let way = Way { device: node.uplink, came_in: node.uplink, complete: false };
        let gate = node.program("ingress_xdp").fd()?.as_fd();
        let out = run::run(gate, &ask.bytes(), way)?.passed();
        assert_eq!(out, ask.to(case.at(UNKNOWN, 8080)).bytes(), "{case:?}");
    }
    Ok(())
}
