//! A VIP answers ping while it has an endpoint: from pods, from outside and from the node itself.

use std::time::Duration;

use anyhow::Result;
use tests::{
    manifest::Service,
    net::{
        Plan,
        plan::{BOTH, vip},
    },
    traffic::ping,
};

use crate::world::{World, web_addr};

const PATIENCE: Duration = Duration::from_secs(1);

fn answers(plan: Plan) -> Result<()> {
    let world = World::start(plan, |world| {
        let empty = Service::new("empty", vip(11)).tcp(80, 8080);
        [world.web().yaml(), empty.yaml()].join("---\n")
    })?;
    let node = world.cluster.node(0);
    for family in BOTH {
        for (who, place) in [
            ("a pod", world.client.place()),
            ("a pod of the other node", world.other.place()),
            ("outside", world.cluster.outside()),
            ("the node", node.place()),
        ] {
            assert!(ping(place, web_addr().of(family), PATIENCE)?, "{who} pings the VIP, {family:?}");
            assert!(
                !ping(place, vip(11).of(family), PATIENCE)?,
                "{who}: a VIP without endpoints answers, {family:?}"
            );
        }
        // An address that is no VIP answers for itself, as before.
        assert!(ping(world.client.place(), world.far.addr().of(family), PATIENCE)?);
        assert!(ping(world.cluster.outside(), node.addr().of(family), PATIENCE)?);
    }
    Ok(())
}

#[test]
fn with_routed_pods() -> Result<()> {
    answers(Plan::default())
}

#[test]
fn with_bridged_pods() -> Result<()> {
    answers(Plan::default().bridged())
}
