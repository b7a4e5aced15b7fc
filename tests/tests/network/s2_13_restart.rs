//! SERVICE-SEMANTICS 2.13: traffic continues while the proxy is stopped, is killed, restarts, or restarts to find a
//! changed cluster.

use std::{
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::Result;
use tests::{
    manifest::Service,
    net::{
        Plan,
        plan::{BOTH, Family, vip},
    },
    traffic::Outcome,
};

use crate::{
    trio::{ALL, Trio, evenly, soon, soon_unserved},
    world::{TARGET, at},
};

const NODE_PORT: u16 = 30080;

fn web(trio: &Trio) -> Service {
    Service::new("web", vip(10)).node_port(80, TARGET, NODE_PORT).pods(&trio.servers.each_ref())
}

/// While `f` runs, pods, nodes and the outside client keep opening connections and sending datagrams, and all of them
/// are answered. Returns their number.
fn under_traffic(trio: &Trio, f: impl FnOnce() -> Result<()>) -> Result<usize> {
    let (stop, count) = (AtomicBool::new(false), AtomicUsize::new(0));
    thread::scope(|scope| {
        let mut askers = Vec::new();
        for family in BOTH {
            let node = at(trio.node(0).addr(), family, NODE_PORT);
            for (from, to) in [
                (trio.pod(0), at(vip(10), family, 80)),
                (trio.host(0), at(vip(10), family, 80)),
                (trio.outside(), node),
            ] {
                let (stop, count) = (&stop, &count);
                askers.push(scope.spawn(move || {
                    while !stop.load(Ordering::Relaxed) {
                        for attempt in [from.tcp(to), from.udp(to)] {
                            assert!(matches!(attempt.outcome, Outcome::Answered(_)), "{attempt}");
                            count.fetch_add(1, Ordering::Relaxed);
                        }
                        thread::sleep(Duration::from_millis(2));
                    }
                }));
            }
        }
        let result = f();
        stop.store(true, Ordering::Relaxed);
        askers.into_iter().for_each(|asker| asker.join().expect("every attempt is answered"));
        result
    })?;
    Ok(count.into_inner())
}

#[test]
fn s2_13_a_restart_under_traffic_is_not_noticed() -> Result<()> {
    let trio = Trio::start(Plan::default(), &[], |trio| vec![web(trio)])?;
    let open = BOTH.map(|family| {
        [
            trio.pod(0).stream(at(vip(10), family, 80)),
            trio.outside().stream(at(trio.node(0).addr(), family, NODE_PORT)),
        ]
    });
    let open: Vec<_> = open.into_iter().flatten().collect();
    let before: Vec<_> = open.iter().map(|stream| stream.steady(2)).collect();
    let count = under_traffic(&trio, || {
        for end in [tests::net::Node::stop_shunt, tests::net::Node::kill_shunt] {
            end(trio.node(0))?;
            thread::sleep(Duration::from_millis(200));
            trio.node(0).start_shunt(&[])?;
        }
        Ok(())
    })?;
    assert!(count > 100, "only {count} attempts");
    assert_eq!(open.iter().map(|stream| stream.steady(5)).collect::<Vec<_>>(), before);
    Ok(())
}

/// Changes made while it was stopped are in effect once it is ready: Services and endpoints that were added, changed
/// and removed.
#[test]
fn s2_13_changes_made_while_away_hold_after_the_start() -> Result<()> {
    let trio = Trio::start(Plan::default(), &[], |trio| {
        vec![web(trio), trio.service("goes", vip(11)), trio.service("shrinks", vip(12))]
    })?;
    for node in trio.cluster.nodes() {
        node.kill_shunt()?;
    }
    let shrunk = trio.empty("shrinks", vip(12)).pods(&[&trio.servers[1]]);
    trio.apply(&[web(&trio), shrunk, trio.service("comes", vip(13))])?;
    // The maps are unchanged.
    evenly(&trio.pod(0), at(vip(11), Family::V4, 80), &ALL);
    evenly(&trio.pod(0), at(vip(12), Family::V6, 80), &ALL);
    trio.cluster.start(&[])?;
    for family in BOTH {
        for from in [trio.pod(0), trio.host(1)] {
            evenly(&from, at(vip(10), family, 80), &ALL);
            evenly(&from, at(vip(12), family, 80), &["b"]);
            evenly(&from, at(vip(13), family, 80), &ALL);
            soon_unserved(&from, at(vip(11), family, 80));
        }
    }
    Ok(())
}

/// A changed flag takes effect at the next start.
#[test]
fn s2_13_other_flags_after_the_start() -> Result<()> {
    let trio = Trio::start(Plan::default(), &[], |trio| vec![web(trio)])?;
    let node = at(trio.node(0).addr(), Family::V4, NODE_PORT);
    evenly(&trio.outside(), node, &ALL);
    trio.node(0).stop_shunt()?;
    trio.node(0).start_shunt(&["--nodeport-addresses", "10.0.0.0/8"])?;
    soon_unserved(&trio.outside(), node);
    trio.node(0).stop_shunt()?;
    trio.node(0).start_shunt(&["--masquerade-all"])?;
    for answer in evenly(&trio.outside(), node, &ALL) {
        assert!(crate::world::is_of_node(answer.peer, 0), "{answer}");
    }
    Ok(())
}

/// Changes reach the maps in under a second, thirty of them in sequence; the longest delay is printed.
#[test]
fn s2_13_endpoint_changes_are_visible_soon() -> Result<()> {
    let trio = Trio::start(Plan::default(), &[], |trio| vec![web(trio)])?;
    let to = at(vip(10), Family::V4, 80);
    let mut times = Vec::new();
    for nth in 0..30 {
        let name = ALL[nth % 3];
        trio.apply(&[trio.empty("web", vip(10)).pods(&[&trio.servers[nth % 3]])])?;
        let start = Instant::now();
        soon(&trio.pod(0), to, &[name]);
        times.push(start.elapsed());
    }
    times.sort();
    println!("an endpoint change is visible after {:?} in the median, {:?} at most", times[15], times[29]);
    Ok(())
}
