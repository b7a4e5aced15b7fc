//! Concurrency: new flows that begin on several CPUs at the same moment.

use std::{
    collections::BTreeSet,
    sync::{Barrier, Mutex},
    thread,
};

use anyhow::{Context as _, Result};
use serde_json::Value;
use tests::{
    net::{Plan, plan::BOTH},
    traffic::{Client, Tally},
};

use crate::world::{World, web};

const BURSTS: u64 = 40;

/// The first datagrams of a flow may reach the hook before any of them has recorded it: all go to one backend. Each
/// that loses this race has advanced the round robin, so the distribution may be uneven by that number; nothing else
/// may make it uneven.
#[test]
fn a_burst_of_datagrams_is_one_flow() -> Result<()> {
    let world = World::start(Plan::default(), |world| world.web().yaml())?;
    for family in BOTH {
        for (from, to) in [
            (world.pod(), web(family)),
            (world.outside(), world.node_port(0, family)),
            (world.host(0), web(family)),
        ] {
            let mut tally = Tally::default();
            let before = turns(&world)?;
            // Distinct ports: a port that the kernel assigns twice would continue its earlier flow.
            for port in 40_000..40_000 + BURSTS as u16 {
                let answers = from.clone().port(port).udp_connected(to)?.burst(8)?;
                let backends: BTreeSet<_> =
                    answers.iter().map(|answer| (&answer.backend, answer.peer)).collect();
                assert_eq!(backends.len(), 1, "{to}: one socket's datagrams: {backends:?}");
                tally.add(&answers[0].backend);
            }
            let races = (turns(&world)? - before)
                .checked_sub(BURSTS)
                .with_context(|| format!("{to}: fewer turns than flows"))?;
            let uneven = tally.count("near").abs_diff(tally.count("far")) as u64;
            assert_eq!(tally.iter().count(), 2, "{to}: {tally}");
            assert!(uneven <= 1 + races, "{to}: {tally} with {races} races lost");
        }
    }
    Ok(())
}

/// Round-robin turns taken on the first node, over all service ports.
fn turns(world: &World) -> Result<u64> {
    let dump: Vec<Value> =
        serde_json::from_str(&world.cluster.node(0).shunt_command(&["-j", "map", "dump", "SERVICES"])?)?;
    let taken = dump.iter().map(|entry| entry["formatted"]["value"]["cluster_next"].as_u64());
    taken.sum::<Option<u64>>().context("an element of SERVICES without turns")
}

/// The counter is atomic: even with four concurrent clients, no backend is more than one behind.
#[test]
fn clients_in_parallel_are_spread_evenly() -> Result<()> {
    const CLIENTS: usize = 4;
    const EACH: usize = 75;
    let world = World::start(Plan::default(), |world| world.web().yaml())?;
    let pods = (0..CLIENTS)
        .map(|nth| world.cluster.add_pod(0, &format!("client-{nth}")))
        .collect::<Result<Vec<_>>>()?;
    for family in BOTH {
        // A pod is served once its device is hooked: one request per pod, an even number in total.
        for pod in &pods {
            Client::at(pod.place()).tcp(web(family)).answered();
        }
        let (start, total) = (Barrier::new(CLIENTS), Mutex::new(Tally::default()));
        thread::scope(|scope| {
            for pod in &pods {
                let client = Client::at(pod.place());
                let (start, total) = (&start, &total);
                scope.spawn(move || {
                    start.wait();
                    for _ in 0..EACH {
                        let answer = client.tcp(web(family)).answered();
                        total.lock().expect("no holder panics").add(&answer.backend);
                    }
                });
            }
        });
        total.into_inner()?.even_over(&["near", "far"]);
    }
    Ok(())
}
