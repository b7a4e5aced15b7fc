//! A Service whose backends are node addresses, as the API server's is: 10.68.0.1:443 -> 192.168.8.20x:6443.

use anyhow::Result;
use tests::{
    manifest::Service,
    net::{
        Plan,
        plan::{BOTH, vip},
    },
    traffic::{Client, Tally},
};

use crate::world::{World, at};

fn pods_and_nodes_reach_it(plan: Plan) -> Result<()> {
    let rules = plan.cni_rules;
    let world = World::start(plan, |world| {
        let nodes: Vec<_> = world.cluster.nodes().iter().collect();
        Service::new("kubernetes", vip(1)).tcp(443, 6443).nodes(&nodes).yaml()
    })?;
    for node in world.cluster.nodes() {
        for family in BOTH {
            node.serve_tcp(family, 6443, node.name())?;
        }
    }
    for family in BOTH {
        let to = at(vip(1), family, 443);
        for from in [world.pod(), Client::at(world.other.place()), world.host(0), world.host(1)] {
            Tally::of(20, || from.tcp(to)).even_over(&["node-1", "node-2"]);
            from.stream(to).steady(20);
        }
    }
    if rules {
        assert_eq!(world.cluster.invalid()?, 0);
    }
    Ok(())
}

#[test]
fn routed_pods() -> Result<()> {
    pods_and_nodes_reach_it(Plan::default())
}

#[test]
fn bridged_pods() -> Result<()> {
    pods_and_nodes_reach_it(Plan::default().bridged())
}

#[test]
fn under_cni_rules() -> Result<()> {
    pods_and_nodes_reach_it(Plan::default().with_cni_rules())
}

#[test]
fn over_vxlan_under_cni_rules() -> Result<()> {
    pods_and_nodes_reach_it(Plan::default().bridged().vxlan().with_cni_rules())
}
