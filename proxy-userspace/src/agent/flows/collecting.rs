//! The collector thread: when to look at CONNTRACK, and what to do with what is found.

use std::{
    collections::{HashMap, HashSet},
    io,
    os::fd::AsFd as _,
    sync::mpsc::{Receiver, RecvTimeoutError},
    time::{Duration, Instant},
};

use proxy_common::{CtEntry, Proto, map, tcp};

use super::{Maps, Report};
use crate::{
    bpf::prog,
    config::Timeouts,
    controller::InUse,
    datapath::collector::{self, Clock, leavers},
    metrics::METRICS,
};

/// Between two looks, and while little room is left.
const INTERVAL: Duration = Duration::from_secs(5);
const CROWDED: Duration = Duration::from_secs(1);
/// A look may take up to one part in so many of the time...
const SHARE: u32 = 20;
/// ...and this while little room is left.
const CROWDED_SHARE: u32 = 3;

/// Looks at CONNTRACK until the other end of `alive` is gone.
pub fn run(maps: &Maps, timeouts: Timeouts, hz: u32, alive: &Receiver<()>) {
    let mut pause = INTERVAL;
    while alive.recv_timeout(pause) == Err(RecvTimeoutError::Timeout) {
        let began = Instant::now();
        pause = match look(maps, timeouts, hz, began) {
            Ok(true) => CROWDED.max(began.elapsed() * CROWDED_SHARE),
            Ok(false) => INTERVAL.max(began.elapsed() * SHARE),
            Err(error) => {
                tracing::warn!(%error, "collecting expired flows failed");
                METRICS.own.failed("flows");
                INTERVAL
            }
        };
    }
}

/// Removes what has expired, and reports which ids are still named. Whether little room is left.
fn look(maps: &Maps, timeouts: Timeouts, hz: u32, began: Instant) -> io::Result<bool> {
    let conntrack = &maps.conntrack;
    let dump = collector::dump(conntrack)?;
    let clock = Clock { now: jiffies(maps)?, hz };
    let gone = come_apart(maps, &dump)?;
    let max = conntrack.info().max_entries as usize;
    let timeouts = timeouts.with_room(dump.len(), max);
    let found =
        collector::collect(&dump, clock, &timeouts, |service, backend| !gone.contains(&(service, backend)));
    let removed = collector::remove(conntrack, &found.dead)?;
    METRICS.own.flows_expired.inc_by(removed as u64);
    METRICS.own.map_fill(map::CONNTRACK, dump.len());
    METRICS.own.conntrack(&by_state(&dump));
    if removed > 0 {
        let (entries, took) = (found.entries, began.elapsed());
        tracing::debug!(removed, entries, ?took, "expired flows removed");
    }
    leavers::release_sockets(&maps.sock_backend, |pair| gone.contains(&pair))?;
    let mut in_use = InUse { services: found.services, backends: found.backends };
    // What could not be deleted this time still names its ids.
    for (_, entry) in found.dead.iter().flat_map(|flow| &flow.halves) {
        in_use.services.insert(entry.service);
        in_use.backends.insert(entry.backend);
    }
    // Nobody there: the agent is going down.
    let _ended = maps.reports.send(Report::Looked { began, in_use });
    Ok(dump.len() > max / 4 * 3)
}

/// How many flows there are in each state.
fn by_state(dump: &collector::Dump) -> HashMap<(&'static str, &'static str), i64> {
    let mut counts = HashMap::new();
    for (key, entry) in dump.iter().filter(|(_, entry)| entry.has(CtEntry::REQUEST)) {
        let reply = dump.get(&entry.egress_key(key)).map_or(0, |reply| reply.state);
        let protocol = Proto::name(key.proto).unwrap_or("other");
        *counts.entry((protocol, tcp::name(entry.state | reply, key.proto))).or_default() += 1;
    }
    counts
}

/// Pairs that flows or sockets name and that have come apart: the leavers thread has dealt with them, but a flow that
/// began in that very moment may have been missed.
fn come_apart(maps: &Maps, dump: &collector::Dump) -> io::Result<HashSet<leavers::Pair>> {
    let flows = dump.iter().filter(|(key, entry)| leavers::is_leaver(key, entry));
    let mut pairs: HashSet<_> = flows.map(|(_, entry)| (entry.service, entry.backend)).collect();
    leavers::sockets(&maps.sock_backend, |_, peer| {
        pairs.insert((peer.service, peer.backend));
    })?;
    Ok(maps.ask(pairs))
}

/// The kernel's jiffies, low 32 bits, as the programs see them.
fn jiffies(maps: &Maps) -> io::Result<u32> {
    // A classifier's test packet must hold an Ethernet header.
    prog::test_run(maps.clock.as_fd(), &[0; 64])
}
