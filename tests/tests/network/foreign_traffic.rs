//! Services alongside foreign traffic ([`tests::net::foreign_traffic`]): neither may disturb the other. The whole suite
//! runs with it under `SHUNT_TEST_FOREIGN=1`; these tests always do, and also have direct flows to their backends.

use std::{
    thread,
    time::{Duration, Instant},
};

use anyhow::Result;
use tests::{
    net::{
        Plan, Proxy,
        foreign_traffic::SHARED,
        plan::{BOTH, Family},
    },
    traffic::{Attempt, Client},
};

use crate::world::{TARGET, World, web};

/// How long both run.
const TIME: Duration = Duration::from_secs(4);

/// A cluster whose foreign traffic starts before `shunt`, as on an existing node.
fn start(plan: Plan, proxy: Proxy) -> Result<World> {
    let world = World::without_shunt(plan)?;
    world.cluster.start_foreign_traffic(&[&world.near, &world.far], TARGET)?;
    thread::sleep(Duration::from_millis(500));
    proxy.start(&world.cluster, &[world.web()], &[])?;
    Ok(world)
}

/// All clients use the Service, the outside client with ports that direct flows have too. Returns the number of uses.
fn use_service(world: &World) -> Result<usize> {
    let start = Instant::now();
    let mut attempts = 0;
    let note = |attempts: &mut usize, attempt: &Attempt| {
        attempt.answered();
        *attempts += 1;
    };
    while start.elapsed() < TIME {
        let family: Family = BOTH[attempts / 2 % 2];
        let port = SHARED.start + (attempts / 4) as u16 % SHARED.len() as u16;
        let outside = world.outside().port(port);
        let to = world.node_port(0, family);
        // The client closes first: a server in TIME_WAIT would block a port that is used again.
        let stream = outside.connect(to)?;
        stream.steady(2);
        nix::sys::socket::setsockopt(
            &stream,
            nix::sys::socket::sockopt::Linger,
            &libc::linger { l_onoff: 1, l_linger: 0 },
        )?;
        note(&mut attempts, &outside.udp(to));
        for from in [world.pod(), world.host(0), Client::at(world.other.place())] {
            note(&mut attempts, &from.tcp(web(family)));
            note(&mut attempts, &from.udp(web(family)));
        }
    }
    Ok(attempts)
}

fn side_by_side(plan: Plan, proxy: Proxy) -> Result<()> {
    let world = start(plan, proxy)?;
    let count = use_service(&world);
    world.cluster.end_foreign_traffic()?;
    println!("{} uses of the Service meanwhile", count?);
    Ok(())
}

#[test]
fn with_routed_pods() -> Result<()> {
    side_by_side(Plan::default(), Proxy::Shunt)
}

#[test]
fn with_bridged_pods() -> Result<()> {
    side_by_side(Plan::default().bridged(), Proxy::Shunt)
}

#[test]
fn over_vxlan() -> Result<()> {
    side_by_side(Plan::default().vxlan(), Proxy::Shunt)
}

#[test]
fn under_cni_rules() -> Result<()> {
    side_by_side(Plan::default().with_cni_rules(), Proxy::Shunt)
}

#[test]
fn with_the_referee() -> Result<()> {
    for plan in [Plan::default(), Plan::default().bridged(), Plan::default().vxlan()] {
        side_by_side(plan, Proxy::Referee)?;
    }
    Ok(())
}

/// Services are added and removed, and the agent is restarted.
#[test]
fn through_changes_and_restarts() -> Result<()> {
    let world = start(Plan::default(), Proxy::Shunt)?;
    let node = world.cluster.node(0);
    for round in 0..3 {
        Proxy::Shunt.apply(&world.cluster, &[])?;
        thread::sleep(Duration::from_millis(300));
        Proxy::Shunt.apply(&world.cluster, &[world.web()])?;
        if round == 1 {
            node.stop_shunt()?
        } else {
            node.kill_shunt()?
        }
        thread::sleep(Duration::from_millis(300));
        node.start_shunt(&[])?;
        for family in BOTH {
            world.outside().tcp(world.node_port(0, family)).answered();
            world.pod().udp(web(family)).answered();
        }
    }
    world.cluster.end_foreign_traffic()
}
