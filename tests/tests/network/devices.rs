//! Devices are added and removed while shunt runs.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use tests::{
    net::{
        Plan,
        cluster::eventually,
        foreign::{Hook, tcx_programs},
        plan::BOTH,
        tun,
    },
    traffic::{Client, Outcome},
};

use crate::world::{World, web};

/// Time limit from a device's creation until both hooks are attached.
const HOOKED_WITHIN: Duration = Duration::from_millis(500);

fn appear(plan: Plan) -> Result<()> {
    let world = World::start(plan, |world| world.web().yaml())?;
    let node = world.cluster.node(0).netns();
    let mut times = Vec::new();
    for nth in 0..10 {
        let pod = world.cluster.add_pod(0, &format!("late-{nth}"))?;
        let made = Instant::now();
        eventually(HOOKED_WITHIN, || {
            [Hook::Ingress, Hook::Egress]
                .iter()
                .all(|hook| tcx_programs(node, pod.device(), *hook).is_ok_and(|n| n > 0))
        })
        .with_context(|| format!("{} is not hooked", pod.device()))?;
        times.push(made.elapsed());
        for family in BOTH {
            Client::at(pod.place()).tcp(web(family)).answered();
            Client::at(pod.place()).udp(web(family)).answered();
        }
    }
    times.sort();
    println!("hooked after the device was ready: median {:?}, longest {:?}", times[5], times[9]);
    Ok(())
}

#[test]
fn a_routed_pod_that_appears_is_served() -> Result<()> {
    appear(Plan::default())
}

#[test]
fn a_bridged_pod_that_appears_is_served() -> Result<()> {
    appear(Plan::default().bridged())
}

/// Time from link-up to hooked, printed in the closing note. The devices are created and set up by single system calls,
/// so that no process start is included; some may be hooked before they are up.
#[test]
fn link_up_to_hooked() -> Result<()> {
    let world = World::start(Plan::default(), |world| world.web().yaml())?;
    let node = world.cluster.node(0).netns();
    let (mut from_made, mut from_up, mut devices) = (Vec::new(), Vec::new(), Vec::new());
    for nth in 0..20 {
        let device = format!("new{nth}");
        // Every second device has no link-layer header.
        let start = Instant::now();
        devices.push(node.enter(|| tun::make(&device, nth % 2 == 0))?);
        let made = Instant::now();
        node.enter(|| tun::set_up(&device))?;
        let up = Instant::now();
        while tcx_programs(node, &device, Hook::Egress)? == 0
            || tcx_programs(node, &device, Hook::Ingress)? == 0
        {
            anyhow::ensure!(start.elapsed() < HOOKED_WITHIN, "{device} is not hooked");
            std::thread::sleep(Duration::from_micros(100));
        }
        from_made.push(made.elapsed());
        from_up.push(up.elapsed());
    }
    for times in [&mut from_made, &mut from_up] {
        times.sort();
    }
    println!("from made to hooked: median {:?}, longest {:?}", from_made[10], from_made[19]);
    println!("from link-up to hooked: median {:?}, longest {:?}", from_up[10], from_up[19]);
    Ok(())
}

/// A pod is replaced by another one with the same address and device name.
#[test]
fn a_pod_that_is_replaced_is_served() -> Result<()> {
    let world = World::start(Plan::default(), |world| world.web().yaml())?;
    for nth in 0..3 {
        let pod = world.cluster.add_pod(0, &format!("short-{nth}"))?;
        let from = Client::at(pod.place());
        eventually(Duration::from_secs(2), || {
            matches!(
                from.clone().patience(Duration::from_millis(200)).tcp(web(BOTH[0])).outcome,
                Outcome::Answered(_)
            )
        })?;
        world.cluster.remove_pod(&pod)?;
    }
    let log = world.cluster.node(0).shunt_log();
    assert!(!log.to_lowercase().contains("panic"), "{log}");
    Ok(())
}
