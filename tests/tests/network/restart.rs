//! shunt stops and starts; traffic is not affected.

use anyhow::Result;
use tests::{
    net::{Plan, plan::BOTH},
    traffic::{Stream, Tally},
};

use crate::world::{World, web};

/// One open connection of each kind.
fn streams(world: &World) -> Vec<Stream> {
    BOTH.into_iter()
        .flat_map(|family| {
            [
                world.pod().stream(web(family)),
                world.pod().stream(web(family)),
                world.outside().stream(world.node_port(0, family)),
                world.outside().stream(world.node_port(0, family)),
                world.host(0).stream(web(family)),
            ]
        })
        .collect()
}

fn survives(end: impl Fn(&tests::net::Node) -> Result<()>) -> Result<()> {
    let world = World::start(Plan::default(), |world| world.web().yaml())?;
    let open = streams(&world);
    let before: Vec<_> = open.iter().map(|stream| stream.steady(2)).collect();
    let untouched = |when: &str| {
        let now: Vec<_> = open.iter().map(|stream| stream.steady(5)).collect();
        assert_eq!(now, before, "{when}");
    };
    for node in world.cluster.nodes() {
        end(node)?;
    }
    untouched("while shunt is away");
    for family in BOTH {
        Tally::of(10, || world.pod().tcp(web(family))).even_over(&["near", "far"]);
        world.outside().tcp(world.node_port(0, family)).answered();
        world.host(0).tcp(web(family)).answered();
    }
    world.cluster.start(&[])?;
    untouched("after shunt came back");
    for family in BOTH {
        Tally::of(10, || world.pod().tcp(web(family))).even_over(&["near", "far"]);
        Tally::of(10, || world.host(0).tcp(web(family))).even_over(&["near", "far"]);
    }
    Ok(())
}

#[test]
fn stopped_and_started() -> Result<()> {
    survives(tests::net::Node::stop_shunt)
}

#[test]
fn killed_and_started() -> Result<()> {
    survives(tests::net::Node::kill_shunt)
}
