//! NodePort: every node serves it for backends on all nodes; a local backend sees the client's address, a remote one
//! the node's.

use std::net::SocketAddr;

use anyhow::Result;
use tests::{
    net::{
        Lane, Plan, Pod,
        plan::{BOTH, Family},
    },
    traffic::{Answer, Client},
};

use crate::world::{NODE_PORT, World, at, is_of_node};

/// Four replies over TCP and four over UDP, from both backends.
#[track_caller]
fn both_answer(world: &World, from: &Client, to: SocketAddr) -> Vec<(Answer, Pod)> {
    let attempts = (0..4).flat_map(|_| [from.tcp(to), from.udp(to)]);
    let answers: Vec<_> = attempts
        .map(|attempt| {
            let answer = attempt.answered();
            let backend = if answer.backend == world.near.name() { &world.near } else { &world.far };
            (answer, backend.clone())
        })
        .collect();
    for backend in [&world.near, &world.far] {
        let count = answers.iter().filter(|(answer, _)| answer.backend == backend.name()).count();
        assert_eq!(count, 4, "{to}: {} answered {count} of 8 times", backend.name());
    }
    answers
}

fn from_everywhere(plan: Plan) -> Result<()> {
    let masquerades = plan.masquerades();
    let world = World::start(plan, |world| world.web().yaml())?;
    for family in BOTH {
        for entry in 0..2 {
            let to = world.node_port(entry, family);
            for (answer, backend) in both_answer(&world, &world.outside(), to) {
                let kept = answer.peer.ip() == world.cluster.outside_addr().of(family);
                let want_kept = backend.node() == entry;
                let right = if want_kept { kept } else { is_of_node(answer.peer, entry) };
                assert!(right, "outside -> {to}: {answer}, a backend on node {}", backend.node());
            }
            // A pod of node 0, and a pod of node 1.
            for client in [&world.client, &world.other] {
                for (answer, backend) in both_answer(&world, &Client::at(client.place()), to) {
                    let kept = answer.peer.ip() == client.addr().of(family);
                    let right = match (backend.node() == entry, client.node() == entry) {
                        (true, true) => kept,
                        // A CNI masquerades before the packet reaches the other node's NodePort.
                        (true, false) if masquerades => is_of_node(answer.peer, client.node()),
                        (true, false) => kept,
                        // The reply passes this node anyway: source translation is allowed, but not needed.
                        (false, true) => kept || is_of_node(answer.peer, entry),
                        (false, false) => is_of_node(answer.peer, entry),
                    };
                    assert!(right, "{} -> {to}: {answer}", client.name());
                }
            }
        }
        // Processes of a node use the other node's NodePort.
        for (answer, _) in both_answer(&world, &world.host(0), world.node_port(1, family)) {
            assert!(is_of_node(answer.peer, 0) || is_of_node(answer.peer, 1), "{answer}");
        }
    }
    Ok(())
}

#[test]
fn in_the_native_xdp_lane() -> Result<()> {
    from_everywhere(Plan::default().xdp(Lane::Native))
}

#[test]
fn in_the_generic_xdp_lane() -> Result<()> {
    from_everywhere(Plan::default().bridged().xdp(Lane::Generic))
}

#[test]
fn routed_pods() -> Result<()> {
    from_everywhere(Plan::default())
}

#[test]
fn bridged_pods() -> Result<()> {
    from_everywhere(Plan::default().bridged())
}

#[test]
fn routed_pods_over_vxlan() -> Result<()> {
    from_everywhere(Plan::default().vxlan())
}

#[test]
fn bridged_pods_over_vxlan() -> Result<()> {
    from_everywhere(Plan::default().bridged().vxlan())
}

#[test]
fn over_a_tunnel_without_link_layer() -> Result<()> {
    from_everywhere(Plan::default().tun())
}

/// With the node's address the source would be a martian at the other node: the tunnel's own address is used.
#[test]
fn over_vxlan_the_backend_sees_the_tunnels_address() -> Result<()> {
    let world = World::start(Plan::default().vxlan(), |world| world.web().yaml())?;
    for family in BOTH {
        for (answer, backend) in both_answer(&world, &world.outside(), world.node_port(0, family)) {
            if backend.node() == 1 {
                assert_eq!(answer.peer.ip(), tests::net::plan::pod_addr(0, 0).of(family), "{answer}");
            }
        }
    }
    Ok(())
}

/// Many clients at once, all with the same source port, so that the backend could confuse them.
#[test]
fn translated_sources_do_not_collide() -> Result<()> {
    let world = World::start(Plan::default(), |world| world.web().yaml())?;
    let to = world.node_port(0, Family::V4);
    let streams: Vec<_> = (0..60).map(|nth| world.outside().port(20_000 + nth).stream(to)).collect();
    // A second client, a pod of the other node, uses the same ports.
    let others: Vec<_> =
        (0..60).map(|nth| Client::at(world.other.place()).port(20_000 + nth).stream(to)).collect();
    let mut seen = std::collections::BTreeSet::new();
    for stream in streams.iter().chain(&others) {
        let answer = stream.steady(2);
        assert!(seen.insert((answer.backend.clone(), answer.peer)), "{answer} twice");
    }
    for stream in streams.iter().chain(&others) {
        stream.steady(2);
    }
    Ok(())
}

/// A NodePort is served at the node's own addresses only: other addresses and other ports are unaffected.
#[test]
fn other_ports_of_the_node_are_untouched() -> Result<()> {
    let world = World::start(Plan::default(), |world| world.web().yaml())?;
    world.cluster.node(0).serve_tcp(Family::V4, 9999, "plain")?;
    let to = world.cluster.node(0).socket_addr(Family::V4, 9999);
    assert_eq!(world.outside().tcp(to).answered().backend, "plain");
    world.outside().tcp(world.cluster.node(0).socket_addr(Family::V4, NODE_PORT + 1)).refused();
    // A pod's own address with that port is no NodePort.
    world.pod().tcp(at(world.far.addr(), Family::V4, NODE_PORT)).refused();
    Ok(())
}
