//! Backend selection for new flows.

use std::collections::BTreeMap;

use anyhow::Result;
use proxy_common::{Frontend, FrontendKind};
use tests::packet::{
    Datapath, Transport,
    datapath::shared,
    world::{NODE, OUTSIDE, POD, VIP},
};

use crate::case::Case;

const NODE_PORT: u16 = 30_080;

/// The backends of `flows` clients, by port, with the number of flows of each.
fn spread(
    case: Case,
    node: &Datapath,
    ask: impl Fn(u16) -> (u16, u16, u16),
    flows: u16,
) -> BTreeMap<u16, u32> {
    let mut counts = BTreeMap::new();
    for flow in 0..flows {
        let (port, host, front) = ask(flow);
        let (_, to) = case.goes_whole(node, &case.packet(case.at(OUTSIDE, port), case.at(host, front)));
        *counts.entry(to.port()).or_default() += 1;
    }
    counts
}

#[track_caller]
fn even(counts: &BTreeMap<u16, u32>, backends: usize) {
    assert_eq!(counts.len(), backends, "{counts:?}");
    let (min, max) = (counts.values().min().unwrap(), counts.values().max().unwrap());
    assert!(max - min <= 1, "{counts:?}");
}

#[test]
fn round_robin_is_exact_per_set_and_shared_by_frontends() -> Result<()> {
    for transport in [Transport::SYN, Transport::Udp] {
        let mut node = shared()?;
        for case in Case::ethernet(transport) {
            let backends = (0..7)
                .map(|n| node.backend(case.at(POD, 8000 + n), case.proto(), true))
                .collect::<Result<Vec<_>>>()?;
            let service = node.service(case.proto(), &backends, &backends[..3])?;
            node.cluster_ip(&service, case.at(VIP, 80))?;
            node.node_port(&service, case.ip, NODE_PORT, Frontend::LOCAL)?;
            // ClusterIP and a NodePort of Local policy in turn: two sets, which do not pin each other to a backend.
            let both = |flow: u16| {
                if flow.is_multiple_of(2) { (2000 + flow, VIP, 80) } else { (2000 + flow, NODE, NODE_PORT) }
            };
            let counts = spread(case, &node, both, 420);
            assert_eq!(counts.values().sum::<u32>(), 420);
            for n in 0..7u16 {
                let want = if n < 3 { 30 + 70 } else { 30 };
                assert_eq!(counts[&(8000 + n)], want, "{case:?}: {counts:?}");
            }
            let counters = node.services.get(&service.id, 0)?;
            assert_eq!((counters.cluster_next, counters.local_next), (210, 210));

            node.forget_flows()?;
            even(&spread(case, &node, |flow| (3000 + flow, VIP, 80), 100), 7);
        }
    }
    Ok(())
}

#[test]
fn random_reaches_all_and_favours_none() -> Result<()> {
    let mut node = shared()?;
    for case in Case::ethernet(Transport::Udp) {
        let backends = (0..4)
            .map(|n| node.backend(case.at(POD, 8000 + n), case.proto(), true))
            .collect::<Result<Vec<_>>>()?;
        let service = node.service(case.proto(), &backends, &[])?;
        node.frontend(&service, case.at(VIP, 80), FrontendKind::ClusterIp, Frontend::RANDOM)?;
        let counts = spread(case, &node, |flow| (2000 + flow, VIP, 80), 2000);
        // 500 each on average; 6.5 standard deviations are 126.
        assert!(counts.values().all(|count| (374..=626).contains(count)), "{counts:?}");
        assert_eq!(counts.len(), 4);
        assert!(counts.values().max() > counts.values().min(), "not in turn: {counts:?}");
    }
    Ok(())
}

#[test]
fn an_existing_flow_keeps_its_backend() -> Result<()> {
    for case in Case::all() {
        let mut node = shared()?;
        let backends = (0..3)
            .map(|n| node.backend(case.at(POD, 8000 + n), case.proto(), true))
            .collect::<Result<Vec<_>>>()?;
        let service = node.service(case.proto(), &backends, &[])?;
        node.cluster_ip(&service, case.at(VIP, 80))?;
        let ask = case.packet(case.at(OUTSIDE, 2000), case.at(VIP, 80));
        let first = case.goes_whole(&node, &ask);
        for _ in 0..5 {
            // A repeated SYN too.
            assert_eq!(case.goes_whole(&node, &ask), first, "{case:?}");
        }
        let other = case.goes_whole(&node, &case.packet(case.at(OUTSIDE, 2001), case.at(VIP, 80)));
        assert_ne!(other.1, first.1);
        // The Service loses that backend, then all of them: the flow continues.
        let without = node.service(case.proto(), &backends[1..], &[])?;
        node.cluster_ip(&without, case.at(VIP, 80))?;
        assert_eq!(case.goes_whole(&node, &ask.flagged(tests::packet::frame::ACK)), first, "{case:?}");
        let none = node.service(case.proto(), &[], &[])?;
        node.cluster_ip(&none, case.at(VIP, 80))?;
        assert_eq!(case.goes_whole(&node, &ask.flagged(tests::packet::frame::ACK)), first, "{case:?}");
    }
    Ok(())
}
