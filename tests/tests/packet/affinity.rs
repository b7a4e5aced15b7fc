//! Session affinity: the backend of a client's next flow (SERVICE-SEMANTICS 2.10).

use std::collections::BTreeMap;

use anyhow::Result;
use proxy_common::{Affinity, AffinityKey, Frontend, SetMember};
use tests::packet::{
    Datapath, Transport,
    datapath::shared,
    frame::ACK,
    world::{NODE, OUTSIDE, POD, Service, VIP, addr},
};

use crate::case::Case;

const NODE_PORT: u16 = 30_080;
const SECONDS: u32 = 100;
/// Jiffies per second in the object by default.
const HZ: u32 = 250;

/// Three local backends at a ClusterIP and a NodePort; only the first is in the local set.
fn sticky(node: &mut Datapath, case: Case) -> Result<(Service, Vec<u32>)> {
    let backends = (0..3)
        .map(|n| node.backend(case.at(POD, 8000 + n), case.proto(), true))
        .collect::<Result<Vec<_>>>()?;
    let service = node.service(case.proto(), &backends, &backends[..1])?;
    node.cluster_ip(&service, case.at(VIP, 80))?;
    node.node_port(&service, case.ip, NODE_PORT, 0)?;
    node.stay(&service, SECONDS)?;
    Ok((service, backends))
}

/// The backend port of a new flow from this client and port.
#[track_caller]
fn asks(node: &Datapath, case: Case, client: u16, port: u16, front: (u16, u16)) -> u16 {
    let ask = case.packet(case.at(client, port), case.at(front.0, front.1));
    case.goes_whole(node, &ask).1.port()
}

const CLUSTER_IP: (u16, u16) = (VIP, 80);
const AT_NODE: (u16, u16) = (NODE, NODE_PORT);

#[test]
fn a_client_stays_and_takes_no_turn() -> Result<()> {
    for case in Case::all() {
        let mut node = shared()?;
        let (service, _) = sticky(&mut node, case)?;
        let mut counts = BTreeMap::<u16, u32>::new();
        for client in 0..12 {
            let first = asks(&node, case, OUTSIDE + client, 2000, CLUSTER_IP);
            *counts.entry(first).or_default() += 1;
            for port in 2001..2010 {
                let front = if port % 2 == 0 { CLUSTER_IP } else { AT_NODE };
                assert_eq!(asks(&node, case, OUTSIDE + client, port, front), first, "{case:?}");
            }
        }
        // Twelve clients, four per backend: a client with affinity does not advance the round robin.
        assert_eq!(counts, [(8000, 4), (8001, 4), (8002, 4)].into(), "{case:?}");
        assert_eq!(node.services.get(&service.id, 0)?.cluster_next, 12);
    }
    Ok(())
}

/// The entry of the client OUTSIDE.
fn entry(node: &Datapath, case: Case, service: &Service) -> (AffinityKey, Affinity) {
    let key = AffinityKey { client: addr(case.ip, OUTSIDE).into(), service: service.id };
    (key, node.affinity.get(&key, 0).expect("an entry of the client"))
}

#[test]
fn time_runs_out_from_the_last_new_flow() -> Result<()> {
    for case in Case::all() {
        let mut node = shared()?;
        let (service, _) = sticky(&mut node, case)?;
        assert_eq!(asks(&node, case, OUTSIDE, 2000, CLUSTER_IP), 8000);
        let (key, now) = entry(&node, case, &service);
        let ago = |seconds: u32| Affinity { last_used: now.last_used.wrapping_sub(seconds * HZ), ..now };

        // The existing flow continues: it refreshes nothing.
        node.affinity.insert(key, ago(SECONDS - 2), 0)?;
        let more = case.packet(case.at(OUTSIDE, 2000), case.at(VIP, 80)).flagged(ACK);
        case.goes_whole(&node, &more);
        assert_eq!(entry(&node, case, &service).1, ago(SECONDS - 2), "{case:?}");
        // A new flow before the timeout restarts the timeout.
        assert_eq!(asks(&node, case, OUTSIDE, 2001, CLUSTER_IP), 8000);
        let refreshed = entry(&node, case, &service).1;
        assert!(refreshed.last_used.wrapping_sub(now.last_used) < 60 * HZ, "{refreshed:?} {now:?}");

        // After the timeout: the next backend in turn, which the client then keeps.
        for (turn, late) in [(1, ago(SECONDS + 1)), (2, ago(10 * SECONDS)), (0, ago(u32::MAX / HZ / 2))] {
            node.affinity.insert(key, late, 0)?;
            for flow in 0..3 {
                let port = 3000 + 10 * turn + flow;
                assert_eq!(asks(&node, case, OUTSIDE, port, CLUSTER_IP), 8000 + turn, "{case:?}");
            }
        }
    }
    Ok(())
}

#[test]
fn a_backend_counts_only_in_the_set_that_the_frontend_uses() -> Result<()> {
    for case in Case::ethernet(Transport::SYN).into_iter().chain(Case::ethernet(Transport::Udp)) {
        let mut node = shared()?;
        let (service, backends) = sticky(&mut node, case)?;
        node.node_port(&service, case.ip, NODE_PORT, Frontend::LOCAL)?;
        node.stay(&service, SECONDS)?;
        // Another client takes the first turn, so that this client gets a backend outside the local set.
        asks(&node, case, OUTSIDE + 1, 2000, CLUSTER_IP);
        assert_eq!(asks(&node, case, OUTSIDE, 2000, CLUSTER_IP), 8001);
        assert_eq!(asks(&node, case, OUTSIDE, 2001, AT_NODE), 8000, "the only one of the local set");
        assert_eq!(asks(&node, case, OUTSIDE, 2002, CLUSTER_IP), 8000, "both have it now");
        // The backend leaves the cluster-wide set, and then the local one.
        let member = SetMember { service: service.id, backend: backends[0] };
        node.set_members.insert(member, proxy_common::affinity::set_bits::LOCAL, 0)?;
        assert_eq!(asks(&node, case, OUTSIDE, 2003, AT_NODE), 8000);
        assert_ne!(asks(&node, case, OUTSIDE, 2004, CLUSTER_IP), 8000, "{case:?}");
        let second = asks(&node, case, OUTSIDE, 2005, CLUSTER_IP);
        assert_eq!(asks(&node, case, OUTSIDE, 2006, CLUSTER_IP), second);
    }
    Ok(())
}

#[test]
fn other_services_and_families_know_nothing_of_it() -> Result<()> {
    let mut node = shared()?;
    for case in Case::ethernet(Transport::SYN) {
        let (_, backends) = sticky(&mut node, case)?;
        let other = node.service(case.proto(), &backends, &[])?;
        node.cluster_ip(&other, case.at(VIP, 81))?;
        node.stay(&other, SECONDS)?;
        let turns = node.service(case.proto(), &backends, &[])?;
        node.cluster_ip(&turns, case.at(VIP, 82))?;
        asks(&node, case, OUTSIDE + 1, 2000, CLUSTER_IP);
        assert_eq!(asks(&node, case, OUTSIDE, 2000, CLUSTER_IP), 8001);
        assert_eq!(asks(&node, case, OUTSIDE, 2000, (VIP, 81)), 8000);
        let in_turn: Vec<u16> = (0..4).map(|n| asks(&node, case, OUTSIDE, 2000 + n, (VIP, 82))).collect();
        assert_eq!(in_turn, [8000, 8001, 8002, 8000]);
    }
    Ok(())
}
