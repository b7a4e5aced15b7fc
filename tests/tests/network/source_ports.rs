//! The number of flows from a node to one backend with source translation: 60,000 without a loss. Further flows are
//! rejected at once when no port is left, and counted.
//!
//! Over UDP with real replies; the packet suite does the same for TCP.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use tests::{
    manifest::Service,
    net::{
        Crowd, Plan, Proxy,
        crowd::{Reply, client},
        plan::{Family, node_addr, vip},
    },
};

use crate::{
    foreign_world::{Foreign, Losses, is_full},
    world::{NODE_PORT, PORT, TARGET, at},
};

/// Flows that must be served.
const FLOWS: usize = 60_000;
/// More than the number of available ports: 64,512.
const TOO_MANY: usize = 65_000;
/// Enough to show a fault; `SHUNT_TEST_FULL=1` uses the full number.
const ENOUGH: usize = 500;

/// The kernel looks for a free port at 240 places at most, which is not always enough towards the end: 27 of 60,000
/// here had no reply to their first request, some of them not to their second.
const REFEREES_LOSSES: usize = 200;

/// Flows that are opened before waiting for all their replies.
const BATCH: usize = 100;
const PATIENCE: Duration = Duration::from_secs(1);

fn flows_to_one_backend(proxy: Proxy, family: Family) -> Result<()> {
    // A request and its reply would expire after half a minute, which is less than a slow machine needs.
    let times = ["--conntrack-udp-timeout", "10m", "--conntrack-udp-timeout-stream", "10m"];
    let flags = [&["--conntrack-max", "1048576"][..], &times].concat();
    let foreign = Foreign::start_with(Plan::default(), proxy, &flags, |world| {
        vec![Service::new("web", vip(10)).node_port(PORT, TARGET, NODE_PORT).pods(&[&world.far])]
    })?;
    for node in foreign.world.cluster.nodes().iter().filter(|_| proxy == Proxy::Referee) {
        for name in ["nf_conntrack_udp_timeout", "nf_conntrack_udp_timeout_stream"] {
            node.netns().sysctl(&format!("net/netfilter/{name}"), "600")?;
        }
    }
    let mut crowd = Crowd::new(&foreign.world.cluster)?;
    let to = at(node_addr(0), family, NODE_PORT);
    let mut losses = Losses::default();
    // With all flows open, each still gets its own reply.
    for round in ["first", "second"] {
        let start = Instant::now();
        for first in (0..FLOWS).step_by(BATCH) {
            for (nth, reply) in (first..).zip(crowd.ask(first..first + BATCH, to, PATIENCE)?) {
                let what = format!("the {round} question of {}: {reply:?}", client(nth, to.is_ipv4()));
                losses.note(&what, reply == Reply::Answered);
            }
            if losses.len() > ENOUGH && !is_full() {
                println!("given up after {first} flows");
                return losses.none(&foreign);
            }
        }
        println!("{proxy:?}, {family:?}, {round} questions: {losses}, {:?}", start.elapsed());
    }
    if proxy == Proxy::Referee {
        ensure!(losses.len() < REFEREES_LOSSES, "the referee: {losses}");
        return Ok(());
    }
    beyond(&foreign, &mut crowd, family)?;
    for first in (0..FLOWS).step_by(7 * BATCH) {
        for reply in crowd.ask(first..(first + BATCH).min(FLOWS), to, PATIENCE)? {
            losses.note(&format!("with no port left: {reply:?}"), reply == Reply::Answered);
        }
    }
    losses.none(&foreign)
}

/// Opens flows until one is rejected, which must happen at once and be counted.
fn beyond(foreign: &Foreign, crowd: &mut Crowd, family: Family) -> Result<()> {
    let to = at(node_addr(0), family, NODE_PORT);
    for nth in FLOWS..TOO_MANY {
        let reply = crowd.ask(nth..nth + 1, to, PATIENCE)?.remove(0);
        if reply == Reply::Answered {
            continue;
        }
        println!("flow {nth}: {reply:?}");
        let is_at_once = matches!(reply, Reply::Refused(took) if took < Duration::from_millis(100));
        ensure!(is_at_once, "flow {nth}: {reply:?}, expected a refusal within 100 ms");
        let counted = foreign.world.cluster.node(0).counter("no_free_source")?;
        ensure!(counted > 0, "the refusal was not counted");
        return Ok(());
    }
    anyhow::bail!("{TOO_MANY} flows to one backend from one address: two of them share a tuple")
}

#[test]
fn sixty_thousand_flows_to_one_backend_over_ipv4() -> Result<()> {
    flows_to_one_backend(Proxy::Shunt, Family::V4)
}

#[test]
fn sixty_thousand_flows_to_one_backend_over_ipv6() -> Result<()> {
    flows_to_one_backend(Proxy::Shunt, Family::V6)
}

#[test]
fn sixty_thousand_flows_to_one_backend_with_the_referee() -> Result<()> {
    flows_to_one_backend(Proxy::Referee, Family::V4)?;
    flows_to_one_backend(Proxy::Referee, Family::V6)
}
