//! Cluster addresses without a Service: other ports of a ClusterIP, and unassigned addresses of a ServiceCIDR.

use anyhow::Result;
use proxy_common::Counter;
use tests::packet::{
    Datapath, Link, Packet, Transport,
    datapath::shared,
    frame::{ACK, PSH},
    world::{NODE, OUTSIDE, POD, VIP},
};

use crate::case::Case;

/// An unassigned address of the ServiceCIDR.
const FREE: u16 = VIP + 1;

/// Kinds that a test run can reject (see `refusal.rs`).
fn cases() -> impl Iterator<Item = Case> {
    Case::all().into_iter().filter(|case| case.link == Link::Ethernet || case.is_tcp())
}

fn refusal(packet: &Packet) -> Vec<u8> {
    if packet.is_tcp() { packet.reset() } else { packet.unreachable() }
}

/// A Service at port 80 of the VIP, in a ServiceCIDR.
fn served(case: Case, node: &mut Datapath) -> Result<()> {
    let backend = node.backend(case.at(POD, 8080), case.proto(), true)?;
    let service = node.service(case.proto(), &[backend], &[])?;
    node.cluster_ip(&service, case.at(VIP, 80))?;
    node.cluster_address(case.at(VIP, 80).ip())?;
    node.service_cidr()
}

#[test]
fn another_port_of_a_cluster_ip_is_refused() -> Result<()> {
    for case in cases() {
        let mut node = shared()?;
        served(case, &mut node)?;
        for port in [81, 443, 8080] {
            let ask = case.packet(case.at(OUTSIDE, 2000), case.at(VIP, port));
            assert_eq!(node.ingress(case.link, &ask.bytes()).redirected(), refusal(&ask), "{case:?} {port}");
            let ask = case.packet(case.at(NODE, 2000), case.at(VIP, port));
            assert_eq!(node.own(case.link, &ask.bytes()).redirected(), refusal(&ask), "{case:?} {port}");
        }
        assert_eq!(node.counter(Counter::NoServicePort), 6);
        assert!(node.flows().is_empty(), "{case:?}: a refusal leaves nothing behind");
        // The port of another protocol is another port.
        let other = Case::ethernet(if case.is_tcp() { Transport::Udp } else { Transport::SYN });
        for other in other.into_iter().filter(|other| other.ip.is_v4() == case.ip.is_v4()) {
            let ask = other.packet(other.at(OUTSIDE, 2000), other.at(VIP, 80));
            assert_eq!(node.ingress(other.link, &ask.bytes()).redirected(), refusal(&ask), "{other:?}");
        }
    }
    Ok(())
}

#[test]
fn mid_stream_to_another_port_ends_fast() -> Result<()> {
    for case in cases().filter(Case::is_tcp) {
        let mut node = shared()?;
        served(case, &mut node)?;
        for flags in [ACK, ACK | PSH] {
            let ask = case.packet(case.at(OUTSIDE, 2000), case.at(VIP, 81)).flagged(flags);
            assert_eq!(node.ingress(case.link, &ask.bytes()).redirected(), refusal(&ask), "{case:?}");
        }
    }
    Ok(())
}

#[test]
fn other_protocols_to_a_cluster_ip_are_refused() -> Result<()> {
    const GRE: u8 = 47;
    for case in Case::ethernet(Transport::Udp) {
        let mut node = shared()?;
        served(case, &mut node)?;
        let ask = |to: u16| {
            let mut bytes = case.packet(case.at(OUTSIDE, 2000), case.at(to, 80)).bytes();
            if case.ip.is_v4() {
                bytes[14 + 9] = GRE;
                // Incrementally (RFC 1624): the other protocol number is larger by 30.
                let sum = u32::from(!u16::from_be_bytes([bytes[24], bytes[25]])) + u32::from(GRE - 17);
                let folded = (sum & 0xffff) as u16 + (sum >> 16) as u16;
                bytes[24..26].copy_from_slice(&(!folded).to_be_bytes());
            } else {
                bytes[14 + 6] = GRE;
            }
            bytes
        };
        let to_vip = ask(VIP);
        let answer = node.ingress(case.link, &to_vip).redirected();
        let (icmp, unreachable) = if case.ip.is_v4() { (34, [3, 3]) } else { (54, [1, 4]) };
        assert_eq!(answer[icmp..icmp + 2], unreachable, "{case:?}");
        let quoted = &to_vip[14..icmp + 8];
        assert_eq!(answer[icmp + 8..], *quoted, "{case:?}");
        assert_eq!(node.own(case.link, &to_vip).redirected().len(), answer.len());
        assert_eq!(node.counter(Counter::NoServicePort), 2);
        let elsewhere = ask(OUTSIDE);
        assert_eq!(node.ingress(case.link, &elsewhere).passed(), elsewhere, "{case:?}");
        let free = ask(FREE);
        assert!(node.egress(case.link, &free).is_dropped(), "{case:?}");
    }
    Ok(())
}

#[test]
fn a_load_balancers_address_refuses_nothing() -> Result<()> {
    for case in cases() {
        let mut node = shared()?;
        served(case, &mut node)?;
        // As for a load balancer address: only the ping entry. The port's bit in the array is set by coincidence.
        node.ping(case.at(VIP, 80).ip(), true)?;
        let ask = case.packet(case.at(OUTSIDE, 2000), case.at(VIP, 81)).bytes();
        assert_eq!(node.ingress(case.link, &ask).passed(), ask, "{case:?}");
        assert_eq!(node.egress(case.link, &ask).passed(), ask, "{case:?}");
        assert_eq!(node.own(case.link, &ask).passed(), ask, "{case:?}");
    }
    Ok(())
}

#[test]
fn what_leaves_for_nobodys_address_is_dropped() -> Result<()> {
    for case in Case::all() {
        let mut node = shared()?;
        served(case, &mut node)?;
        let ask = case.packet(case.at(OUTSIDE, 2000), case.at(FREE, 80)).bytes();
        // Another proxy on this node may serve it.
        assert_eq!(node.ingress(case.link, &ask).passed(), ask, "{case:?}");
        assert!(node.egress(case.link, &ask).is_dropped(), "{case:?}");
        assert!(node.own(case.link, &ask).is_dropped(), "{case:?}");
        assert_eq!(node.counter(Counter::Unallocated), 2);
        // A packet to a Service's own address leaves if another component on this node or the next one is to serve it.
        let known = case.packet(case.at(OUTSIDE, 2000), case.at(VIP, 80)).bytes();
        assert_eq!(node.egress(case.link, &known).passed(), known, "{case:?}");
        // Outside the range.
        let other = case.packet(case.at(POD, 2000), case.at(OUTSIDE, 80)).bytes();
        assert_eq!(node.egress(case.link, &other).passed(), other, "{case:?}");
    }
    Ok(())
}
