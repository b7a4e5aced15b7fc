//! SCTP: only addresses change, because its checksum covers the ports and a program cannot recompute it. A flow that
//! would need another port is dropped. All packets are raw bytes: no SCTP socket is opened.

use std::net::{IpAddr, SocketAddr};

use anyhow::Result;
use proxy_common::Counter;
use tests::packet::{
    Datapath, Hook, Ip, Link, Way,
    datapath::shared,
    frame::mend_v4,
    icmp::Error,
    world::{FAR_POD, OUTSIDE, POD, UPLINK, VIP, at},
};

pub const SCTP: u8 = 132;

/// A packet whose checksum, a CRC32c over all of SCTP, must arrive unchanged.
pub fn packet(link: Link, ip: Ip, src: SocketAddr, dst: SocketAddr) -> Vec<u8> {
    let mut body = Vec::new();
    body.extend(src.port().to_be_bytes());
    body.extend(dst.port().to_be_bytes());
    // Verification tag, checksum; the header of an INIT chunk.
    body.extend([0, 0, 0, 0, 0xc5, 0x2c, 0x32, 0xc0, 1, 0, 0, 20]);
    body.extend([0x5a; 16]);
    let mut bytes = match link {
        Link::Ip => Vec::new(),
        Link::Ethernet => vec![2, 1, 1, 1, 1, 1, 2, 2, 2, 2, 2, 2],
    };
    match (src.ip(), dst.ip()) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => {
            if link == Link::Ethernet {
                bytes.extend([8, 0]);
            }
            let start = bytes.len();
            let words = (ip.header() / 4) as u8;
            bytes.extend([
                0x40 | words,
                2,
                0,
                (ip.header() + body.len()) as u8,
                1,
                2,
                0x40,
                0,
                61,
                SCTP,
                0,
                0,
            ]);
            bytes.extend(src.octets());
            bytes.extend(dst.octets());
            bytes.resize(start + ip.header(), 1);
            mend_v4(&mut bytes[start..]);
        }
        (IpAddr::V6(src), IpAddr::V6(dst)) => {
            if link == Link::Ethernet {
                bytes.extend([0x86, 0xdd]);
            }
            bytes.extend([0x60, 0, 0, 0, 0, body.len() as u8, SCTP, 61]);
            bytes.extend(src.octets());
            bytes.extend(dst.octets());
        }
        _ => panic!("{src} and {dst} are not of one family"),
    }
    bytes.extend(body);
    bytes
}

fn kinds() -> impl Iterator<Item = (Link, Ip)> {
    Link::BOTH.into_iter().flat_map(|link| Ip::ALL.into_iter().map(move |ip| (link, ip)))
}

#[track_caller]
fn hook(node: &Datapath, hook: Hook, link: Link, bytes: &[u8]) -> Vec<u8> {
    let came_in = if hook == Hook::Ingress { node.uplink } else { node.pod };
    // The device's checksum over the packet has to stay correct, although SCTP does not use it.
    let way = Way { device: node.uplink, came_in, complete: link == Link::Ethernet };
    node.run(hook, link, bytes, way).passed()
}

#[track_caller]
fn through(node: &Datapath, link: Link, bytes: &[u8]) -> Vec<u8> {
    hook(node, Hook::Egress, link, &hook(node, Hook::Ingress, link, bytes))
}

#[test]
fn addresses_change_and_ports_stay() -> Result<()> {
    for (link, ip) in kinds() {
        let mut node = shared()?;
        let backend = node.backend(at(ip, POD, 3868), SCTP, true)?;
        let service = node.service(SCTP, &[backend], &[])?;
        node.cluster_ip(&service, at(ip, VIP, 3868))?;
        let (client, front, back) = (at(ip, POD + 1, 50_000), at(ip, VIP, 3868), at(ip, POD, 3868));
        let ask = packet(link, ip, client, front);
        for _ in 0..3 {
            assert_eq!(through(&node, link, &ask), packet(link, ip, client, back), "{link:?} {ip:?}");
            let answer = packet(link, ip, back, client);
            assert_eq!(through(&node, link, &answer), packet(link, ip, front, client), "{link:?} {ip:?}");
        }
        assert_eq!(node.counter(Counter::FlowNew), 1);
        // An error about it.
        let about = |src, dst| Error::about(&packet(link, ip, src, dst), link, ip, ip.header(), 8);
        let arrives = about(client, back).between_hosts(back.ip(), client.ip()).bytes();
        let want = about(client, front).between_hosts(front.ip(), client.ip()).bytes();
        assert_eq!(through(&node, link, &arrives), want, "{link:?} {ip:?}: an error");
    }
    Ok(())
}

#[test]
fn a_translated_source_keeps_its_port_or_there_is_no_flow() -> Result<()> {
    for (link, ip) in kinds() {
        let mut node = shared()?;
        let backend = node.backend(at(ip, FAR_POD, 3868), SCTP, false)?;
        let service = node.service(SCTP, &[backend], &[])?;
        node.cluster_ip(&service, at(ip, VIP, 3868))?;
        let (front, back) = (at(ip, VIP, 3868), at(ip, FAR_POD, 3868));
        let (client, source) = (at(ip, OUTSIDE, 50_000), at(ip, UPLINK, 50_000));
        let ask = packet(link, ip, client, front);
        assert_eq!(through(&node, link, &ask), packet(link, ip, source, back), "{link:?} {ip:?}");
        let answer = packet(link, ip, back, source);
        assert_eq!(through(&node, link, &answer), packet(link, ip, front, client), "{link:?} {ip:?}");
        // Another client with that port has no other port to use.
        let inside = hook(&node, Hook::Ingress, link, &packet(link, ip, at(ip, OUTSIDE + 1, 50_000), front));
        node.egress(link, &inside).dropped();
        assert_eq!(node.counter(Counter::SctpPort), 1, "{link:?} {ip:?}");
    }
    Ok(())
}

#[test]
fn a_flow_that_needs_another_port_is_dropped() -> Result<()> {
    for (link, ip) in kinds() {
        let mut node = shared()?;
        let backend = node.backend(at(ip, POD, 3868), SCTP, true)?;
        let service = node.service(SCTP, &[backend], &[])?;
        // The frontend's port differs from the backend's.
        node.cluster_ip(&service, at(ip, VIP, 80))?;
        node.ingress(link, &packet(link, ip, at(ip, POD + 1, 50_000), at(ip, VIP, 80))).dropped();
        assert_eq!(node.counter(Counter::SctpPort), 1);
        // The middle tuple belongs to another flow.
        node.cluster_ip(&service, at(ip, VIP, 3868))?;
        let (client, back) = (at(ip, POD + 1, 50_000), at(ip, POD, 3868));
        let direct = packet(link, ip, client, back);
        assert_eq!(through(&node, link, &direct), direct);
        node.ingress(link, &packet(link, ip, client, at(ip, VIP, 3868))).dropped();
        assert_eq!(node.counter(Counter::SctpPort), 2, "{link:?} {ip:?}");
        assert_eq!(through(&node, link, &direct), direct, "the direct flow goes on");
        // The backend connects to itself from its own port.
        node.ingress(link, &packet(link, ip, back, at(ip, VIP, 3868))).dropped();
        assert_eq!(node.counter(Counter::SctpPort), 3, "{link:?} {ip:?}");
    }
    Ok(())
}

#[test]
fn refused_with_port_unreachable() -> Result<()> {
    for ip in Ip::ALL {
        let mut node = shared()?;
        let service = node.service(SCTP, &[], &[])?;
        let (client, front) = (at(ip, POD, 50_000), at(ip, VIP, 3868));
        node.cluster_ip(&service, front)?;
        let link = Link::Ethernet;
        let ask = packet(link, ip, client, front);
        let error = Error::about(&ask, link, ip, ip.header(), 12).between_hosts(front.ip(), client.ip());
        let want = Error { ip: if ip.is_v4() { Ip::V4 } else { ip }, ..error }.bytes();
        for got in [node.ingress(link, &ask).redirected(), node.own(link, &ask).redirected()] {
            // The reverse path, from the frontend to the client, and the complete expected message.
            assert_eq!((&got[..6], &got[6..12]), (&ask[6..12], &ask[..6]));
            let header = 14 + if ip.is_v4() { 20 } else { 40 };
            assert_eq!(got[header..], want[header..], "{ip:?}");
            let addresses = if ip.is_v4() { 26..34 } else { 22..54 };
            assert_eq!(got[addresses.clone()], want[addresses], "{ip:?}");
        }
        assert!(node.flows().is_empty());
    }
    Ok(())
}

#[test]
fn cut_short_it_passes() -> Result<()> {
    for (link, ip) in kinds() {
        let mut node = shared()?;
        let backend = node.backend(at(ip, POD, 3868), SCTP, true)?;
        let service = node.service(SCTP, &[backend], &[])?;
        node.cluster_ip(&service, at(ip, VIP, 3868))?;
        let whole = packet(link, ip, at(ip, POD + 1, 50_000), at(ip, VIP, 3868));
        let least = 14 + if ip.is_v4() { 20 } else { 40 };
        for len in least..link.header() + ip.header() + 12 {
            assert_eq!(node.ingress(link, &whole[..len]).passed(), whole[..len], "{link:?} {ip:?}");
        }
        assert!(node.flows().is_empty());
    }
    Ok(())
}
