//! Every packet of a Service's flow is counted once. Every rejected or dropped packet is counted once too, by device
//! and reason. The packets are plain ones, and ones that take the slow parsing path (options, extension headers,
//! fragments).

use anyhow::Result;
use proxy_common::{Counter, Frontend, ServiceStats};
use tests::packet::{
    Datapath, Link, Packet,
    datapath::shared,
    extension::{Extension, extended},
    fragment::fragments,
    frame::{ACK, SYN},
    world::{FAR_POD, NODE, OUTSIDE, POD, UPLINK, VIP},
};

use crate::case::Case;

const NODE_PORT: u16 = 30_080;

/// The packet's bytes: plain, and over IPv6 with extension headers too.
fn shapes(packet: &Packet) -> Vec<Vec<u8>> {
    let plain = packet.bytes();
    if packet.ip.is_v4() {
        return vec![plain];
    }
    vec![extended(&plain, packet.link, &[Extension::HOP_BY_HOP, Extension::OPTIONS]), plain]
}

fn stats(node: &Datapath, service: u32) -> ServiceStats {
    node.stats(service).expect("SERVICE_STATS is readable")
}

#[test]
fn packets_of_a_flow_are_counted_once_each_way() -> Result<()> {
    for case in Case::all() {
        let mut node = shared()?;
        let backend = node.backend(case.at(POD, 8080), case.proto(), true)?;
        let service = node.service(case.proto(), &[backend], &[])?;
        node.cluster_ip(&service, case.at(VIP, 80))?;
        let (client, front, back) = (case.at(POD + 1, 2000), case.at(VIP, 80), case.at(POD, 8080));
        let mut expected = ServiceStats { flows: 1, ..stats(&node, service.id) };
        assert_eq!(expected.packets_in, 0, "{case:?}");
        // The first packet, and some of the following ones.
        for ask in [case.packet(client, front), case.packet(client, front).flagged(ACK)] {
            for bytes in shapes(&ask) {
                case.through(&node, &bytes);
                expected.packets_in += 1;
                expected.bytes_in += bytes.len() as u64;
                assert_eq!(stats(&node, service.id), expected, "{case:?}");
            }
            for bytes in shapes(&case.packet(back, client).flagged(SYN | ACK)) {
                case.through(&node, &bytes);
                expected.packets_out += 1;
                expected.bytes_out += bytes.len() as u64;
                assert_eq!(stats(&node, service.id), expected, "{case:?}");
            }
        }
        assert!(node.drops()?.is_empty(), "{case:?}: {:?}", node.drops());
    }
    Ok(())
}

#[test]
fn a_translated_source_makes_no_second_count_and_a_direct_flow_none() -> Result<()> {
    for case in Case::all() {
        let mut node = shared()?;
        let backend = node.backend(case.at(FAR_POD, 8080), case.proto(), false)?;
        let service = node.service(case.proto(), &[backend], &[])?;
        node.node_port(&service, case.ip, NODE_PORT, 0)?;
        let (client, back) = (case.at(OUTSIDE, 2000), case.at(FAR_POD, 8080));
        case.through(&node, &case.packet(client, case.at(NODE, NODE_PORT)).bytes());
        case.through(&node, &case.packet(back, case.at(UPLINK, 2000)).flagged(SYN | ACK).bytes());
        let counted = stats(&node, service.id);
        assert_eq!((counted.flows, counted.packets_in, counted.packets_out), (1, 1, 1), "{case:?}");
        case.through(&node, &case.packet(case.at(POD, 2001), back).bytes());
        assert_eq!(stats(&node, service.id), counted, "{case:?}: a direct flow is no Service's");
        assert_eq!(stats(&node, 0).packets_in, 0);
    }
    Ok(())
}

#[test]
fn what_is_refused_or_dropped_is_counted_once_with_its_device() -> Result<()> {
    for case in Case::all() {
        let mut node = shared()?;
        let far = node.backend(case.at(FAR_POD, 8080), case.proto(), false)?;
        let nobody = node.service(case.proto(), &[], &[])?;
        let elsewhere = node.service(case.proto(), &[far], &[])?;
        node.cluster_ip(&nobody, case.at(VIP, 80))?;
        node.node_port(&elsewhere, case.ip, NODE_PORT, Frontend::LOCAL)?;
        let mut expected = Vec::new();
        let mut count = |node: &Datapath, reason: Counter, packets: u64| {
            expected.push(((node.uplink, reason as u32), packets));
            expected.sort_unstable();
            assert_eq!(node.drops().expect("DROPS is readable"), expected, "{case:?}");
            assert_eq!(node.counter(reason), packets, "{case:?}");
        };
        let refused = case.packet(case.at(OUTSIDE, 2000), case.at(VIP, 80));
        for bytes in shapes(&refused) {
            node.ingress(case.link, &bytes).redirected();
            node.own(case.link, &bytes).redirected();
        }
        let packets = 2 * shapes(&refused).len() as u64;
        count(&node, Counter::NoBackend, packets);
        let dropped = case.packet(case.at(OUTSIDE, 2000), case.at(NODE, NODE_PORT));
        for bytes in shapes(&dropped) {
            node.ingress(case.link, &bytes).dropped();
        }
        count(&node, Counter::NoLocalEndpoints, shapes(&dropped).len() as u64);
    }
    Ok(())
}

/// The first fragment is dropped for its reason, the following ones because the first was.
#[test]
fn fragments_of_what_is_dropped_are_counted_each() -> Result<()> {
    for case in Case::all().into_iter().filter(|case| case.link == Link::Ethernet && !case.is_tcp()) {
        let mut node = shared()?;
        let far = node.backend(case.at(FAR_POD, 8080), case.proto(), false)?;
        let elsewhere = node.service(case.proto(), &[far], &[])?;
        node.node_port(&elsewhere, case.ip, NODE_PORT, Frontend::LOCAL)?;
        let mut packet = case.packet(case.at(OUTSIDE, 2000), case.at(NODE, NODE_PORT));
        packet.payload = vec![7; 2000];
        let frames = fragments(&packet.bytes(), packet.link, 77, 560);
        for frame in &frames {
            node.ingress(case.link, frame).dropped();
        }
        let rest = frames.len() as u64 - 1;
        let mut expected = vec![
            ((node.uplink, Counter::NoLocalEndpoints as u32), 1),
            ((node.uplink, Counter::FragmentDropped as u32), rest),
        ];
        expected.sort_unstable();
        assert_eq!(node.drops()?, expected, "{case:?}");
    }
    Ok(())
}
