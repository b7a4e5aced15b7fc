//! ClusterIP: pods reach backends on their own and on the other node, and keep their own source address.

use anyhow::Result;
use tests::{
    manifest::Service,
    net::{Plan, plan::BOTH},
    traffic::Client,
};

use crate::world::{World, is_of_node, web, web_addr};

/// TCP and UDP, both families, both backends, from a pod of each node.
fn pods_reach_a_service(plan: Plan) -> Result<()> {
    let world = World::start(plan, |world| world.web().yaml())?;
    for family in BOTH {
        for client in [&world.client, &world.other] {
            let from = Client::at(client.place());
            for attempt in [Client::tcp, Client::udp] {
                let mut seen = Vec::new();
                for _ in 0..4 {
                    let answer = attempt(&from, web(family)).answered();
                    assert_eq!(answer.peer.ip(), client.addr().of(family), "{answer} for {}", client.name());
                    seen.push(answer.backend);
                }
                for backend in [&world.near, &world.far] {
                    assert!(seen.iter().any(|name| name == backend.name()), "{}: {seen:?}", client.name());
                }
            }
        }
    }
    Ok(())
}

#[test]
fn of_routed_pods() -> Result<()> {
    pods_reach_a_service(Plan::default())
}

#[test]
fn of_bridged_pods() -> Result<()> {
    pods_reach_a_service(Plan::default().bridged())
}

#[test]
fn of_routed_pods_over_vxlan() -> Result<()> {
    pods_reach_a_service(Plan::default().vxlan())
}

#[test]
fn of_bridged_pods_over_vxlan() -> Result<()> {
    pods_reach_a_service(Plan::default().bridged().vxlan())
}

#[test]
fn over_a_tunnel_without_link_layer() -> Result<()> {
    pods_reach_a_service(Plan::default().tun())
}

#[test]
fn large_transfers_pass_both_ways() -> Result<()> {
    let world = World::start(Plan::default().vxlan(), |world| world.web().yaml())?;
    let body = vec![0x5a; 4 << 20];
    for family in BOTH {
        for _ in 0..2 {
            let stream = world.pod().stream(web(family));
            stream.upload(&body)?;
            stream.steady(50);
        }
    }
    Ok(())
}

/// A packet whose source and destination are the same pod would be dropped by that pod's own stack.
fn a_pod_reaches_itself(plan: Plan) -> Result<()> {
    let world = World::start(plan, |world| {
        Service::new("web", web_addr()).tcp(80, 8080).udp(80, 8080).pods(&[&world.near]).yaml()
    })?;
    let itself = Client::at(world.near.place());
    for family in BOTH {
        for attempt in [itself.tcp(web(family)), itself.udp(web(family))] {
            let answer = attempt.answered();
            assert_eq!(answer.backend, "near");
            assert!(is_of_node(answer.peer, 0), "{answer}: expected an address of the node");
        }
        itself.stream(web(family)).steady(20);
    }
    Ok(())
}

#[test]
fn hairpin_of_a_routed_pod() -> Result<()> {
    a_pod_reaches_itself(Plan::default())
}

#[test]
fn hairpin_of_a_bridged_pod() -> Result<()> {
    a_pod_reaches_itself(Plan::default().bridged())
}

#[test]
fn from_outside_by_a_route() -> Result<()> {
    let world = World::start(Plan::default(), |world| world.web().yaml())?;
    for family in BOTH {
        for attempt in
            (0..4).flat_map(|_| [world.outside().tcp(web(family)), world.outside().udp(web(family))])
        {
            let answer = attempt.answered();
            match answer.backend.as_str() {
                "near" => assert_eq!(answer.peer.ip(), world.cluster.outside_addr().of(family), "{answer}"),
                _ => assert!(is_of_node(answer.peer, 0), "{answer}: expected the entry node's address"),
            }
        }
    }
    Ok(())
}
