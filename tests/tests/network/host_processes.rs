//! The node's own processes: translated at the socket, so that they see only the Service's address.

use std::net::{Ipv4Addr, SocketAddr};

use anyhow::Result;
use tests::{
    net::{
        Plan,
        plan::{BOTH, Family},
    },
    traffic::{Client, Tally},
};

use crate::world::{NODE_PORT, World, is_of_node, web};

fn start() -> Result<World> {
    World::start(Plan::default(), |world| world.web().yaml())
}

#[test]
fn a_cluster_ip() -> Result<()> {
    let world = start()?;
    for family in BOTH {
        for node in 0..2 {
            let host = world.host(node);
            Tally::of(10, || host.tcp(web(family))).even_over(&["near", "far"]);
            Tally::of(10, || host.udp(web(family))).even_over(&["near", "far"]);
            assert!(is_of_node(host.tcp(web(family)).answered().peer, node));
        }
    }
    Ok(())
}

#[test]
fn a_node_port_on_the_nodes_own_address() -> Result<()> {
    let world = start()?;
    for family in BOTH {
        let to = world.node_port(0, family);
        Tally::of(10, || world.host(0).tcp(to)).even_over(&["near", "far"]);
        Tally::of(10, || world.host(0).udp(to)).even_over(&["near", "far"]);
    }
    Ok(())
}

#[test]
fn a_node_port_on_loopback() -> Result<()> {
    let world = start()?;
    let to = SocketAddr::from((Ipv4Addr::LOCALHOST, NODE_PORT));
    Tally::of(10, || world.host(0).tcp(to)).even_over(&["near", "far"]);
    Tally::of(10, || world.host(0).udp(to)).even_over(&["near", "far"]);
    // Other clients do not reach it: a pod's own loopback has no NodePorts.
    world.pod().tcp(to).refused();
    Ok(())
}

#[test]
fn v4_mapped_destinations_of_v6_sockets() -> Result<()> {
    let world = start()?;
    let host = world.host(0).v4_mapped();
    let local = SocketAddr::from((Ipv4Addr::LOCALHOST, NODE_PORT));
    for to in [web(Family::V4), world.node_port(0, Family::V4), local] {
        Tally::of(6, || host.tcp(to)).even_over(&["near", "far"]);
        Tally::of(6, || host.udp(to)).even_over(&["near", "far"]);
        host.udp_unconnected(to)?.ask()?;
    }
    Ok(())
}

/// A socket that names its peer with each datagram receives replies from that peer, and keeps its backend; other
/// sockets get a new one.
#[test]
fn unconnected_udp() -> Result<()> {
    let world = start()?;
    for family in BOTH {
        let mut tally = Tally::default();
        for to in [web(family), world.node_port(0, family)] {
            for _ in 0..10 {
                let socket = world.host(0).udp_unconnected(to)?;
                let first = socket.ask()?;
                for _ in 0..5 {
                    assert_eq!(socket.ask()?, first);
                }
                tally.add(&first.backend);
            }
        }
        tally.even_over(&["near", "far"]);
    }
    Ok(())
}

/// One socket uses two Services and a pod directly, in turn; each reply comes from the address of the request.
#[test]
fn one_unconnected_socket_with_several_peers() -> Result<()> {
    let world = start()?;
    for family in BOTH {
        let mut socket = world.host(0).udp_unconnected(web(family))?;
        let peers = [web(family), world.near.socket_addr(family, 8080), world.node_port(0, family)];
        for to in peers.into_iter().cycle().take(12) {
            socket.redirect(to);
            socket.ask()?;
        }
    }
    Ok(())
}

#[test]
fn getpeername_says_what_was_asked_for() -> Result<()> {
    let world = start()?;
    for family in BOTH {
        for to in [web(family), world.node_port(0, family)] {
            assert_eq!(world.host(0).stream(to).peer_addr()?, to);
            assert_eq!(world.host(0).udp_connected(to)?.peer_addr()?, to);
        }
        let direct = world.near.socket_addr(family, 8080);
        assert_eq!(world.host(0).stream(direct).peer_addr()?, direct);
    }
    Ok(())
}

#[test]
fn long_streams_of_the_node_itself() -> Result<()> {
    let world = start()?;
    for family in BOTH {
        let streams: Vec<_> = (0..4).map(|_| world.host(0).stream(web(family))).collect();
        for stream in &streams {
            stream.steady(50);
            stream.upload(&vec![1; 1 << 18])?;
        }
    }
    Ok(())
}

#[test]
fn without_socket_hooks_the_wire_is_left() -> Result<()> {
    let world = World::without_shunt(Plan::default())?;
    world.cluster.apply("services.yaml", &world.web().yaml())?;
    world.cluster.start(&["--socket-lb", "off"])?;
    for family in BOTH {
        // Pods and the outside client do not depend on the socket hooks.
        world.pod().tcp(web(family)).answered();
        world.outside().tcp(world.node_port(0, family)).answered();
    }
    Ok(())
}

#[test]
fn with_socket_hooks_for_all_pods_are_served_too() -> Result<()> {
    let world = World::without_shunt(Plan::default())?;
    world.cluster.apply("services.yaml", &world.web().yaml())?;
    world.cluster.start(&["--socket-lb", "all"])?;
    let pod = Client::at(&world.cluster.node(0).process_of(&world.client)?);
    for family in BOTH {
        for protocol in [Client::tcp, Client::udp] {
            Tally::of(10, || protocol(&pod, web(family))).even_over(&["near", "far"]);
        }
        Tally::of(10, || world.host(0).tcp(web(family))).even_over(&["near", "far"]);
    }
    Ok(())
}
