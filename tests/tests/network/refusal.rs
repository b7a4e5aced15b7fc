//! A Service without endpoints rejects at once, TCP and UDP, for every client.

use std::time::Duration;

use anyhow::Result;
use tests::{
    manifest::Service,
    net::{Plan, cluster::eventually, plan::BOTH},
    traffic::{Outcome, Tally},
};

use crate::world::{World, is_of_node, web, web_addr};

fn empty() -> Service {
    Service::new("web", web_addr()).node_port(80, 8080, 30080)
}

fn refused_everywhere(plan: Plan) -> Result<()> {
    let world = World::start(plan, |_| empty().yaml())?;
    for family in BOTH {
        let node = world.node_port(0, family);
        for from in [world.pod(), world.host(0), world.outside()] {
            for to in [web(family), node] {
                from.tcp(to).refused();
                from.udp(to).refused();
            }
        }
    }
    Ok(())
}

#[test]
fn by_routed_pods_nodes_and_outside() -> Result<()> {
    refused_everywhere(Plan::default())
}

#[test]
fn by_bridged_pods_nodes_and_outside() -> Result<()> {
    refused_everywhere(Plan::default().bridged())
}

#[test]
fn under_cni_rules() -> Result<()> {
    refused_everywhere(Plan::default().with_cni_rules())
}

/// ping and getaddrinfo use connect() of a UDP socket to look up routes: it must not fail.
#[test]
fn connecting_a_udp_socket_is_not_refused() -> Result<()> {
    let world = World::start(Plan::default(), |_| empty().yaml())?;
    for family in BOTH {
        let socket = world.host(0).udp_connected(web(family))?;
        assert_eq!(Outcome::from_io(socket.ask()), Outcome::Refused);
        let unconnected = world.host(0).udp_unconnected(web(family))?;
        assert_eq!(Outcome::from_io(unconnected.ask()), Outcome::Refused);
    }
    Ok(())
}

/// Endpoints are added and removed; the verdict follows within a second.
#[test]
fn until_there_is_an_endpoint_and_after_the_last() -> Result<()> {
    let world = World::start(Plan::default(), |_| empty().yaml())?;
    let to = web(BOTH[0]);
    world.pod().tcp(to).refused();
    world.cluster.apply("services.yaml", &world.web().yaml())?;
    eventually(Duration::from_secs(1), || matches!(world.pod().tcp(to).outcome, Outcome::Answered(_)))?;
    Tally::of(10, || world.pod().tcp(to)).even_over(&["near", "far"]);
    world.cluster.apply("services.yaml", &empty().yaml())?;
    eventually(Duration::from_secs(1), || world.pod().tcp(to).outcome == Outcome::Refused)?;
    world.pod().udp(to).refused();
    world.host(0).tcp(to).refused();
    Ok(())
}

/// internalTrafficPolicy Local with endpoints only on other nodes means silence, not rejection (KEP-2086).
#[test]
fn internal_local_without_a_local_endpoint_is_silence() -> Result<()> {
    let world = World::start(Plan::default(), |world| {
        Service::new("web", web_addr())
            .tcp(80, 8080)
            .udp(80, 8080)
            .internal_traffic_local()
            .pods(&[&world.far])
            .yaml()
    })?;
    for family in BOTH {
        world.pod().tcp(web(family)).timed_out();
        world.pod().udp(web(family)).timed_out();
        let other = tests::traffic::Client::at(world.other.place());
        let answer = other.tcp(web(family)).answered();
        assert!(answer.backend == "far" && !is_of_node(answer.peer, 1), "{answer}");
    }
    Ok(())
}
