//! A 2000-byte UDP request and reply through ClusterIP and NodePort, both families, first fragment last: raw sockets
//! send the fragments, real sockets receive the whole datagrams, at both ends.

use std::net::SocketAddr;

use anyhow::{Context, Result};
use tests::{
    manifest::Service,
    net::{
        Place, Plan,
        plan::{BOTH, Between, Family, vip},
    },
    traffic::pieces::{Backwards, ask, ask_backwards, big},
};

use crate::world::{World, at};

const TARGET: u16 = 9090;
const NODE_PORT: u16 = 30_090;

/// Sends requests to each backend in turn, from unused ports; both must have replied.
fn both_answer(
    place: &Place,
    from: SocketAddr,
    to: SocketAddr,
    in_order: bool,
    names: &[&str],
) -> Result<()> {
    let mut seen = Vec::new();
    for nth in 0..2 * names.len() as u16 {
        let from = SocketAddr::new(from.ip(), from.port() + nth);
        // Some requests arrive in order; the replies never do.
        let answer =
            if nth % 4 < 2 || !in_order { ask_backwards(place, from, to) } else { ask(place, from, to) };
        let answer = answer.with_context(|| format!("{from} asks {to}, question {nth}"))?;
        let name = names.iter().find(|name| answer == big(name));
        seen.push(*name.with_context(|| format!("{from} asks {to}: a wrong answer {:?}", &answer[..20]))?);
    }
    for name in names {
        assert_eq!(seen.iter().filter(|seen| *seen == name).count(), 2, "{from} asks {to}: {seen:?}");
    }
    Ok(())
}

fn everywhere(plan: Plan) -> Result<()> {
    // The kernel's own fragments are sized for the first hop: too long for a tunnel behind it.
    let in_order = plan.between == Between::Routes;
    let world = World::start(plan, |world| {
        let all = Service::new("big", vip(40)).node_port(80, TARGET, NODE_PORT);
        all.pods(&[&world.near, &world.far]).yaml()
    })?;
    let cluster = &world.cluster;
    let mut servers = Vec::new();
    for pod in [&world.near, &world.far] {
        let addrs = [Family::V4, Family::V6].map(|family| pod.addr().of(family));
        servers.push(Backwards::serve(pod.place(), addrs, TARGET, pod.name())?);
        cluster.allow(pod.addr(), TARGET)?;
    }
    let names = ["near", "far"];
    for (nth, family) in BOTH.into_iter().enumerate() {
        let base = 20_000 + 100 * nth as u16;
        let outside = cluster.outside_addr().of(family);
        let service = at(vip(40), family, 80);
        for pod in [&world.client, &world.other] {
            let own = pod.addr().of(family);
            both_answer(pod.place(), SocketAddr::new(own, base), service, in_order, &names)?;
            let front = cluster.node(0).socket_addr(family, NODE_PORT);
            both_answer(pod.place(), SocketAddr::new(own, base + 10), front, in_order, &names)?;
        }
        both_answer(cluster.outside(), SocketAddr::new(outside, base + 20), service, in_order, &names)?;
        for node in cluster.nodes() {
            let front = node.socket_addr(family, NODE_PORT);
            let from = SocketAddr::new(outside, base + 30 + 10 * node.index() as u16);
            both_answer(cluster.outside(), from, front, in_order, &names)?;
        }
    }
    let held = cluster.node(0).shunt_json(&["counter", "list"])?;
    let value = |name: &str| {
        let rows = held.as_array().into_iter().flatten();
        rows.filter(|row| row["name"] == name).filter_map(|row| row["value"].as_u64()).sum::<u64>()
    };
    assert!(value("fragment_held") > 0, "{held}");
    for name in ["fragment_lost", "fragment_not_held", "fragment_dropped", "fragment_tiny"] {
        assert_eq!(value(name), 0, "{name}");
    }
    drop(servers);
    Ok(())
}

#[test]
fn routed_pods() -> Result<()> {
    everywhere(Plan::default())
}

#[test]
fn bridged_pods() -> Result<()> {
    everywhere(Plan::default().bridged())
}

#[test]
fn routed_pods_under_a_cnis_rules() -> Result<()> {
    everywhere(Plan::default().with_cni_rules())
}

#[test]
fn bridged_pods_under_a_cnis_rules() -> Result<()> {
    everywhere(Plan::default().bridged().with_cni_rules())
}

#[test]
fn over_vxlan() -> Result<()> {
    everywhere(Plan::default().vxlan())
}

#[test]
fn over_a_tunnel_without_link_layer() -> Result<()> {
    everywhere(Plan::default().tun())
}
