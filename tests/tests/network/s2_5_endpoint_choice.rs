//! SERVICE-SEMANTICS 2.5: the endpoints eligible for traffic, as they change.

use anyhow::Result;
use tests::{
    manifest::{Endpoint, Service},
    net::{
        Plan,
        plan::{BOTH, Family, OUTSIDE, vip},
    },
};

use crate::{
    trio::{ALL, Trio, evenly, silent, soon},
    world::{TARGET, at},
};

const NODE_PORT: u16 = 30080;

/// The Service and three with policies; all with the same endpoints.
fn services(endpoints: &[Endpoint]) -> Vec<Service> {
    let over = |name: &str, last: u8, node_port: u16| {
        Service::new(name, vip(last)).node_port(80, TARGET, node_port).endpoints(endpoints.to_vec())
    };
    vec![
        over("cluster", 10, NODE_PORT),
        over("internal", 11, NODE_PORT + 1).internal_traffic_local(),
        over("external", 12, NODE_PORT + 2).external_traffic_local(),
    ]
}

/// Waits until these backends answer at `cluster` (for client pods of node 0 and node 1, and for outside through node
/// 0), then checks the other protocol and family.
#[track_caller]
fn cluster_goes_to(trio: &Trio, here: &[&str], there: &[&str]) {
    let to = |family| at(vip(10), family, 80);
    for family in BOTH {
        soon(&trio.pod(0), to(family), here);
        soon(&trio.pod(1), to(family), there);
        soon(&trio.outside(), at(trio.node(0).addr(), family, NODE_PORT), here);
        soon(&trio.host(0), to(family), here);
        if !here.is_empty() {
            evenly(&trio.pod(0), to(family), here);
        }
    }
}

/// The same for the Services of policy Local on node `node`; an empty list means silence.
#[track_caller]
fn local_goes_to(trio: &Trio, node: usize, backends: &[&str]) {
    for family in BOTH {
        let inside = (trio.pod(node), at(vip(11), family, 80));
        let outside = (trio.outside(), at(trio.node(node).addr(), family, NODE_PORT + 2));
        if backends.is_empty() {
            silent(&[inside, outside]);
        } else {
            soon(&inside.0, inside.1, backends);
            soon(&outside.0, outside.1, backends);
            evenly(&outside.0, outside.1, backends)
                .iter()
                .for_each(|answer| assert_eq!(answer.peer.ip(), OUTSIDE.of(family)));
        }
    }
}

#[test]
fn s2_5_ready_endpoints_are_used() -> Result<()> {
    let trio =
        Trio::start(Plan::default(), &[], |trio| services(&trio.servers.each_ref().map(Endpoint::pod)))?;
    let [a, b, c] = trio.servers.each_ref().map(Endpoint::pod);
    cluster_goes_to(&trio, &ALL, &ALL);
    local_goes_to(&trio, 0, &["a"]);
    trio.apply(&services(&[a.clone().unready(), b.clone(), c.clone()]))?;
    cluster_goes_to(&trio, &["b", "c"], &["b", "c"]);
    local_goes_to(&trio, 0, &[]);
    trio.apply(&services(&[a.clone().unready(), b.unready(), c.unready()]))?;
    cluster_goes_to(&trio, &[], &[]);
    trio.apply(&services(&[a]))?;
    cluster_goes_to(&trio, &["a"], &["a"]);
    local_goes_to(&trio, 0, &["a"]);
    Ok(())
}

/// KEP-1669: if no ready endpoint is left, terminating endpoints that still serve are used.
#[test]
fn s2_5_terminating_endpoints_are_the_clusters_last_resort() -> Result<()> {
    let trio =
        Trio::start(Plan::default(), &[], |trio| services(&trio.servers.each_ref().map(Endpoint::pod)))?;
    let [a, b, c] = trio.servers.each_ref().map(Endpoint::pod);
    trio.apply(&services(&[a.clone().terminating(), b.clone(), c.clone().terminating()]))?;
    cluster_goes_to(&trio, &["b"], &["b"]);
    trio.apply(&services(&[a.clone().terminating(), b.clone().terminating(), c.clone().gone()]))?;
    cluster_goes_to(&trio, &["a", "b"], &["a", "b"]);
    trio.apply(&services(&[a.clone().gone(), b.clone().gone(), c.clone().gone()]))?;
    cluster_goes_to(&trio, &[], &[]);
    // With a ready endpoint, the fallback ends.
    trio.apply(&services(&[a.terminating(), b.terminating(), c]))?;
    cluster_goes_to(&trio, &["c"], &["c"]);
    Ok(())
}

/// The local set has its own fallback: another node's ready endpoint does not end it.
#[test]
fn s2_5_terminating_endpoints_are_the_local_sets_last_resort() -> Result<()> {
    let trio =
        Trio::start(Plan::default(), &[], |trio| services(&trio.servers.each_ref().map(Endpoint::pod)))?;
    let second = trio.cluster.add_server(0, "a2", TARGET)?;
    let [a, b, _] = trio.servers.each_ref().map(Endpoint::pod);
    let a2 = Endpoint::pod(&second);
    trio.apply(&services(&[a.clone().terminating(), b.clone()]))?;
    cluster_goes_to(&trio, &["b"], &["b"]);
    local_goes_to(&trio, 0, &["a"]);
    local_goes_to(&trio, 1, &["b"]);
    // A ready endpoint next to it takes over.
    trio.apply(&services(&[a.clone().terminating(), a2.clone(), b.clone()]))?;
    cluster_goes_to(&trio, &["a2", "b"], &["a2", "b"]);
    local_goes_to(&trio, 0, &["a2"]);
    // Only terminating endpoints on other nodes: dropped here, not rejected.
    trio.apply(&services(&[b.terminating()]))?;
    cluster_goes_to(&trio, &["b"], &["b"]);
    local_goes_to(&trio, 0, &[]);
    local_goes_to(&trio, 1, &["b"]);
    Ok(())
}

/// PreferSameZone: node 0 is alone in its zone, nodes 1 and 2 share the other.
#[test]
fn s2_5_zone_hints() -> Result<()> {
    let trio =
        Trio::start(Plan::default(), &[], |trio| services(&trio.servers.each_ref().map(Endpoint::pod)))?;
    let [a, b, c] = trio.servers.each_ref().map(Endpoint::pod);
    let (za, zb) = (["zone-a"].as_slice(), ["zone-b"].as_slice());
    let hinted = [a.clone().for_zones(za), b.clone().for_zones(zb), c.clone().for_zones(zb)];
    trio.apply(&services(&hinted))?;
    cluster_goes_to(&trio, &["a"], &["b", "c"]);
    // Hints do not restrict the local set.
    trio.apply(&services(&[a.clone().for_zones(zb), b.clone().for_zones(za), c.clone().for_zones(zb)]))?;
    cluster_goes_to(&trio, &["b"], &["a", "c"]);
    local_goes_to(&trio, 0, &["a"]);
    local_goes_to(&trio, 1, &["b"]);
    // All or nothing: one ready endpoint has no hint.
    trio.apply(&services(&[a.clone().for_zones(za), b.clone(), c.clone().for_zones(zb)]))?;
    cluster_goes_to(&trio, &ALL, &ALL);
    // That endpoint is not ready, so it does not count.
    trio.apply(&services(&[a.clone().for_zones(za), b.clone().unready(), c.clone().for_zones(zb)]))?;
    cluster_goes_to(&trio, &["a"], &["c"]);
    // No endpoint has a hint for this zone.
    trio.apply(&services(&[a.for_zones(zb), b.for_zones(zb), c.for_zones(zb)]))?;
    cluster_goes_to(&trio, &ALL, &ALL);
    Ok(())
}

/// PreferSameNode: the controller sets both node and zone hints on every endpoint.
#[test]
fn s2_5_node_hints_go_before_zone_hints() -> Result<()> {
    let trio =
        Trio::start(Plan::default(), &[], |trio| services(&trio.servers.each_ref().map(Endpoint::pod)))?;
    let hinted = || {
        let pods = trio.servers.each_ref().map(Endpoint::pod);
        let [a, b, c] = pods;
        [
            a.for_nodes(&["node-1"]).for_zones(&["zone-a"]),
            b.for_nodes(&["node-2"]).for_zones(&["zone-b"]),
            c.for_nodes(&["node-3"]).for_zones(&["zone-b"]),
        ]
    };
    let [a, b, c] = hinted();
    trio.apply(&services(&[a.clone(), b.clone(), c.clone()]))?;
    cluster_goes_to(&trio, &["a"], &["b"]);
    // Node 1's own endpoint is not ready: its zone's is next.
    trio.apply(&services(&[a.clone(), b.clone().unready(), c.clone()]))?;
    cluster_goes_to(&trio, &["a"], &["c"]);
    // Node 0's is terminating, and there is no other in its zone: all ready ones are used.
    trio.apply(&services(&[a.clone().terminating(), b.clone(), c.clone()]))?;
    cluster_goes_to(&trio, &["b", "c"], &["b"]);
    // No endpoint is ready: the fallback ignores topology.
    trio.apply(&services(&[a.clone().terminating(), b.clone().terminating(), c.clone().gone()]))?;
    cluster_goes_to(&trio, &["a", "b"], &["a", "b"]);
    trio.apply(&services(&[a, b, c]))?;
    cluster_goes_to(&trio, &["a"], &["b"]);
    Ok(())
}

/// The policies are changed while the Service is in use.
#[test]
fn s2_5_policies_change_live() -> Result<()> {
    let trio = Trio::start(Plan::default(), &[], |_| vec![])?;
    let plain =
        || Service::new("web", vip(10)).node_port(80, TARGET, NODE_PORT).pods(&trio.servers.each_ref());
    for _ in 0..2 {
        for (service, inside, outside) in [
            (plain(), ALL.as_slice(), ALL.as_slice()),
            (plain().internal_traffic_local(), &["a"], &ALL),
            (plain().internal_traffic_local().external_traffic_local(), &["a"], &["a"]),
            (plain().external_traffic_local(), &ALL, &["a"]),
        ] {
            trio.apply(&[service])?;
            for family in [Family::V6, Family::V4] {
                soon(&trio.pod(0), at(vip(10), family, 80), inside);
                soon(&trio.host(0), at(vip(10), family, 80), inside);
                soon(&trio.outside(), at(trio.node(0).addr(), family, NODE_PORT), outside);
            }
        }
    }
    Ok(())
}
