//! A foreign tc program on the same device stays effective: packets it drops stay dropped, in either order of
//! attachment.

use anyhow::Result;
use tests::net::{
    Plan,
    foreign::{DropAll, Hook},
    plan::BOTH,
};

use crate::world::{World, web};

const HOOKS: [Hook; 2] = [Hook::Ingress, Hook::Egress];

#[test]
fn dropping_on_tcx() -> Result<()> {
    let world = World::start(Plan::default(), |world| world.web().yaml())?;
    let node = world.cluster.node(0).netns();
    let drop_all = DropAll::load()?;
    for family in BOTH {
        for hook in HOOKS {
            world.pod().tcp(web(family)).answered();
            let link = drop_all.attach_tcx(node, world.client.device(), hook)?;
            world.pod().tcp(web(family)).timed_out();
            world.pod().udp(web(family)).timed_out();
            drop(link);
            world.pod().tcp(web(family)).answered();
        }
    }
    Ok(())
}

#[test]
fn dropping_on_clsact() -> Result<()> {
    let world = World::start(Plan::default(), |world| world.web().yaml())?;
    let node = world.cluster.node(0);
    let drop_all = DropAll::load()?;
    for (nth, hook) in HOOKS.into_iter().enumerate() {
        world.pod().tcp(web(BOTH[0])).answered();
        let pin = node.bpffs().join(format!("foreign-{nth}"));
        drop_all.attach_clsact(node.netns(), world.client.device(), hook, &pin)?;
        world.pod().tcp(web(BOTH[0])).timed_out();
        DropAll::detach_clsact(node.netns(), world.client.device(), hook)?;
        world.pod().tcp(web(BOTH[0])).answered();
    }
    Ok(())
}

#[test]
fn there_before_shunt() -> Result<()> {
    let world = World::without_shunt(Plan::default())?;
    world.cluster.apply("services.yaml", &world.web().yaml())?;
    let link =
        DropAll::load()?.attach_tcx(world.cluster.node(0).netns(), world.client.device(), Hook::Ingress)?;
    world.cluster.start(&[])?;
    world.pod().tcp(web(BOTH[0])).timed_out();
    drop(link);
    world.pod().tcp(web(BOTH[0])).answered();
    Ok(())
}
