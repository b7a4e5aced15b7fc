//! Foreign packets pass unchanged, byte for byte, at both hooks, and create no state.

use anyhow::Result;
use proxy_common::Counter;
use tests::packet::{
    Datapath, Hook, Ip, Link, Packet, Transport, Way,
    datapath::shared,
    extension::{Extension, extended},
    frame::mend_v4,
    world::{NODE, OUTSIDE, POD, VIP},
};

use crate::case::Case;

/// A node with all entries a packet could match by mistake: VIP, NodePort, backend, ping, in both families.
fn furnished(node: &mut Datapath) -> Result<()> {
    for ip in [Ip::V4, Ip::V6] {
        for transport in [Transport::SYN, Transport::Udp] {
            let case = Case { link: Link::Ethernet, ip, transport };
            let backend = node.backend(case.at(POD, 8080), case.proto(), true)?;
            let service = node.service(case.proto(), &[backend], &[])?;
            node.cluster_ip(&service, case.at(VIP, 80))?;
            node.node_port(&service, ip, 30_080, 0)?;
            node.ping(case.at(VIP, 0).ip(), true)?;
        }
    }
    Ok(())
}

/// The shortest packet of this EtherType that a test run accepts: it requires an Ethernet and an IP header.
pub fn shortest(case: Case) -> usize {
    14 + if case.ip.is_v4() { 20 } else { 40 }
}

#[track_caller]
fn passes(node: &Datapath, link: Link, packet: &[u8], what: &str) {
    for hook in [Hook::Ingress, Hook::Egress] {
        for came_in in [0, node.uplink] {
            let way = Way { device: node.uplink, came_in, complete: false };
            let outcome = node.run(hook, link, packet, way);
            assert_eq!(outcome.verdict, -1, "{hook:?} {link:?}: {what}");
            assert_eq!(outcome.bytes, packet, "{hook:?} {link:?}: {what}");
        }
    }
}

#[track_caller]
fn no_trace(node: &Datapath) {
    for counter in Counter::ALL {
        assert_eq!(node.counter(*counter), 0, "{}", counter.name());
    }
    assert!(node.flows().is_empty());
}

fn to_vip(case: Case) -> Packet {
    case.packet(case.at(OUTSIDE, 2000), case.at(VIP, 80))
}

#[test]
fn truncated_headers() -> Result<()> {
    let mut node = shared()?;
    furnished(&mut node)?;
    let mut ran = 0;
    for case in Case::all() {
        let whole = to_vip(case).bytes();
        let transport = if case.is_tcp() { 20 } else { 8 };
        let end = case.link.header() + case.ip.header() + transport;
        for len in shortest(case)..end {
            passes(&node, case.link, &whole[..len], &format!("{case:?} cut to {len}"));
            ran += 1;
        }
    }
    assert!(ran > 100, "{ran}");
    no_trace(&node);
    Ok(())
}

#[test]
fn other_ethertypes_and_tags() -> Result<()> {
    let mut node = shared()?;
    furnished(&mut node)?;
    for case in Case::all().into_iter().filter(|case| case.link == Link::Ethernet) {
        let whole = to_vip(case).bytes();
        for ethertype in [0x0806u16, 0x8100, 0x88a8, 0x8847, 0x8863, 0x88cc, 0x0600, 0x05dc, 0x0004, 0] {
            let mut other = whole.clone();
            other[12..14].copy_from_slice(&ethertype.to_be_bytes());
            passes(&node, case.link, &other, &format!("EtherType {ethertype:#x}"));
        }
        for tags in [&[0x81, 0x00, 0x00, 0x05][..], &[0x88, 0xa8, 0, 5, 0x81, 0, 0, 6]] {
            let mut tagged = whole.clone();
            tagged.splice(12..12, tags.iter().copied());
            passes(&node, case.link, &tagged, "a VLAN tag in the packet");
        }
        // IPv4 with the EtherType of IPv6, and the other way round.
        let mut crossed = whole.clone();
        crossed[12..14].copy_from_slice(if case.ip.is_v4() { &[0x86, 0xdd] } else { &[0x08, 0x00] });
        crossed.resize(crossed.len().max(60), 0);
        passes(&node, case.link, &crossed, "the other IP version");
    }
    no_trace(&node);
    Ok(())
}

#[test]
fn options_and_odd_headers_of_ipv4() -> Result<()> {
    let mut node = shared()?;
    furnished(&mut node)?;
    for case in Case::all().into_iter().filter(|case| case.ip.is_v4()) {
        let whole = to_vip(case).bytes();
        let ip = case.link.header();
        let header = case.ip.header();
        for ihl in 0..5 {
            let mut bad = whole.clone();
            bad[ip] = 0x40 | ihl;
            passes(&node, case.link, &bad, &format!("header length {ihl}"));
        }
        let mut long = whole[..ip + 36].to_vec();
        long[ip] = 0x4f;
        passes(&node, case.link, &long, "a header longer than the packet");
        for version in [0u8, 1, 3, 5, 6, 15] {
            let mut bad = whole.clone();
            bad[ip] = version << 4 | bad[ip] & 15;
            passes(&node, case.link, &bad, &format!("version {version}"));
        }
        for proto in [0u8, 2, 4, 33, 41, 47, 50, 51, 58, 89, 132, 136, 255] {
            let mut other = whole.clone();
            other[ip + 9] = proto;
            mend_v4(&mut other[ip..ip + header]);
            passes(&node, case.link, &other, &format!("protocol {proto}"));
        }
    }
    no_trace(&node);
    Ok(())
}

#[test]
fn extension_headers_and_mapped_addresses_of_ipv6() -> Result<()> {
    let mut node = shared()?;
    furnished(&mut node)?;
    for case in Case::all().into_iter().filter(|case| !case.ip.is_v4()) {
        let whole = to_vip(case).bytes();
        let ip = case.link.header();
        for next in [50u8, 51, 59, 135, 139, 140, 1, 2, 255] {
            let mut extended = whole.clone();
            let inner = extended[ip + 6];
            extended[ip + 6] = next;
            extended.splice(ip + 40..ip + 40, [inner, 0, 0, 0, 0, 0, 0, 0]);
            passes(&node, case.link, &extended, &format!("extension header {next}"));
        }
        for (headers, what) in [
            (vec![Extension::routing(1)], "a router of its own choice is next"),
            (vec![Extension::OPTIONS, Extension::HOP_BY_HOP], "hop-by-hop options that are not first"),
            (vec![Extension::OPTIONS, Extension::new(51, 2)], "authenticated addresses"),
            (vec![Extension::OPTIONS; 5], "more headers than anybody looks at"),
            (vec![Extension::fragment(0, true), Extension::fragment(0, false)], "a fragment of a fragment"),
        ] {
            passes(&node, case.link, &extended(&whole, case.link, &headers), what);
        }
        let many = [Extension::HOP_BY_HOP, Extension::new(60, 3), Extension::routing(0), Extension::OPTIONS];
        let long = extended(&whole, case.link, &many);
        let transport = if case.is_tcp() { 20 } else { 8 };
        for len in shortest(case)..long.len() - (whole.len() - ip - 40) + transport {
            passes(&node, case.link, &long[..len], &format!("extension headers cut to {len}"));
        }
        // An IPv4 VIP mapped into IPv6 must not match IPv4's tables.
        let mapped = |host: u16| {
            let [high, low] = host.to_be_bytes();
            [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 8, 0, high, low]
        };
        if case.link == Link::Ethernet {
            for at in [8, 24] {
                let mut strange = whole.clone();
                strange[ip + at..ip + at + 16].copy_from_slice(&mapped(VIP));
                passes(&node, case.link, &strange, "one v4-mapped address");
            }
            let mut strange = whole.clone();
            strange[ip + 8..ip + 24].copy_from_slice(&mapped(OUTSIDE));
            strange[ip + 24..ip + 40].copy_from_slice(&mapped(VIP));
            passes(&node, case.link, &strange, "v4-mapped addresses");
        }
    }
    no_trace(&node);
    Ok(())
}

#[test]
fn other_addresses_and_ports() -> Result<()> {
    let mut node = shared()?;
    furnished(&mut node)?;
    for case in Case::all() {
        let from = case.at(OUTSIDE, 2000);
        for (to, what) in [
            (case.at(VIP, 81), "another port of a VIP"),
            (case.at(VIP + 1, 80), "another address with a VIP's port"),
            (case.at(NODE, 80), "the node, a VIP's port"),
            (case.at(POD, 80), "a backend, a VIP's port"),
            (case.at(POD + 1, 8080), "no backend, a backend's port"),
            (case.at(VIP, 8080), "a VIP, a backend's port"),
            (case.at(VIP, 0), "port 0"),
        ] {
            passes(&node, case.link, &case.packet(from, to).bytes(), what);
        }
        let to = if case.ip.is_v4() { "224.0.0.251" } else { "ff02::fb" };
        let group = std::net::SocketAddr::new(to.parse()?, 80);
        passes(&node, case.link, &case.packet(from, group).bytes(), "multicast");
        if case.ip.is_v4() {
            let all = std::net::SocketAddr::new("255.255.255.255".parse()?, 80);
            passes(&node, case.link, &case.packet(from, all).bytes(), "broadcast");
        }
    }
    no_trace(&node);
    Ok(())
}

#[test]
fn random_bytes() -> Result<()> {
    let mut node = shared()?;
    furnished(&mut node)?;
    let mut random = tests::packet::model::Random::new(0x5eed);
    for round in 0..20_000u32 {
        let len = 54 + random.below(80) as usize;
        let mut bytes: Vec<u8> = (0..len).map(|_| random.word() as u8).collect();
        let link = Link::BOTH[(round % 2) as usize];
        // Mostly with an EtherType and a version that pass the first checks.
        match random.below(3) {
            0 => bytes[12..14].copy_from_slice(&[0x08, 0x00]),
            1 => bytes[12..14].copy_from_slice(&[0x86, 0xdd]),
            _ => {}
        }
        if random.below(2) == 0 {
            bytes[link.header()] = [0x45, 0x46, 0x60][random.below(3) as usize];
            let proto = link.header() + if bytes[link.header()] == 0x60 { 6 } else { 9 };
            bytes[proto] = [1, 6, 17, 58][random.below(4) as usize];
        }
        passes(&node, link, &bytes, &format!("round {round}: {bytes:02x?}"));
    }
    no_trace(&node);
    Ok(())
}
