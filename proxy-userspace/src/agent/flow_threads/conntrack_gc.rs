//! The conntrack-gc thread: when to read CONNTRACK, and what to do with the result.

use std::{
    collections::{HashMap, HashSet},
    io,
    os::fd::AsFd as _,
    sync::mpsc::{Receiver, RecvTimeoutError},
    time::{Duration, Instant},
};

use proxy_common::{Counter, CtEntry, Proto, map, tcp};

use super::request::{Maps, Report};
use crate::{
    bpf::prog,
    config::Timeouts,
    controller::InUse,
    datapath::conntrack_gc::{Clock, Dump, dump, find_dead, remove, udp_flush},
    inspect::per_cpu,
    metrics::METRICS,
};

/// Between two passes.
const INTERVAL: Duration = Duration::from_secs(5);
/// The same while the table is nearly full.
const CROWDED: Duration = Duration::from_secs(1);
/// A pass may take up to this fraction of the time (one part in...).
const SHARE: u32 = 20;
/// The same while the table is nearly full.
const CROWDED_SHARE: u32 = 3;

/// Between two reports of a full table.
const REPORT: Duration = Duration::from_secs(60);

/// Runs until the other end of `alive` is dropped.
pub fn run(maps: &Maps, timeouts: Timeouts, hz: u32, alive: &Receiver<()>) {
    let mut pause = INTERVAL;
    let mut refusals = Refusals { reported: refused(maps), last: None };
    while alive.recv_timeout(pause) == Err(RecvTimeoutError::Timeout) {
        let began = Instant::now();
        if let Some(refused) = refusals.due(refused(maps), began) {
            let max = maps.conntrack.info().max_entries as usize;
            // The receiver is gone only when the agent stops.
            let _ended = maps.reports.send(Report::Full { refused, max });
        }
        pause = match pass(maps, timeouts, hz, began) {
            Ok(true) => CROWDED.max(began.elapsed() * CROWDED_SHARE),
            Ok(false) => INTERVAL.max(began.elapsed() * SHARE),
            Err(error) => {
                tracing::warn!(%error, "removing expired flows failed");
                METRICS.own.failed("flows");
                INTERVAL
            }
        };
    }
}

/// New flows that were refused because the table was full, and when that was reported.
struct Refusals {
    reported: u64,
    last: Option<Instant>,
}

impl Refusals {
    /// How many are to be reported now, by their total so far.
    fn due(&mut self, total: u64, now: Instant) -> Option<u64> {
        let refused = total.saturating_sub(self.reported);
        let is_due = self.last.is_none_or(|last| now.duration_since(last) >= REPORT);
        if refused == 0 || !is_due {
            return None;
        }
        *self = Self { reported: total, last: Some(now) };
        Some(refused)
    }
}

/// The counter of refused flows; 0 if it cannot be read.
fn refused(maps: &Maps) -> u64 {
    let key = (Counter::ConntrackFull as u32).to_ne_bytes();
    maps.counters.lookup(&key).ok().flatten().map_or(0, |values| per_cpu::sum(&values))
}

/// Deletes expired flows and reports the ids that the others name. Returns whether the table is nearly full.
fn pass(maps: &Maps, timeouts: Timeouts, hz: u32, began: Instant) -> io::Result<bool> {
    let conntrack = &maps.conntrack;
    let dump = dump(conntrack)?;
    let clock = Clock { now: jiffies(maps)?, hz };
    let gone = removed_pairs(maps, &dump)?;
    let max = conntrack.info().max_entries as usize;
    let timeouts = timeouts.with_room(dump.len(), max);
    let found = find_dead(&dump, clock, &timeouts, |service, backend| !gone.contains(&(service, backend)));
    let removed = remove(conntrack, &found.dead)?;
    METRICS.own.flows_expired.inc_by(removed as u64);
    METRICS.own.map_fill(map::CONNTRACK, dump.len());
    METRICS.own.conntrack(&by_state(&dump));
    if removed > 0 {
        let (entries, took) = (found.entries, began.elapsed());
        tracing::debug!(removed, entries, ?took, "expired flows removed");
    }
    udp_flush::release_sockets(&maps.sock_backend, |pair| gone.contains(&pair))?;
    let mut in_use = InUse { services: found.services, backends: found.backends };
    // Flows that were not deleted this time still name their ids.
    for (_, entry) in found.dead.iter().flat_map(|flow| &flow.halves) {
        in_use.services.insert(entry.service);
        in_use.backends.insert(entry.backend);
    }
    // The receiver is gone only when the agent stops.
    let _ended = maps.reports.send(Report::InUse { began, in_use });
    Ok(dump.len() > max / 4 * 3)
}

/// The number of flows in each state, by protocol.
fn by_state(dump: &Dump) -> HashMap<(&'static str, &'static str), i64> {
    let mut counts = HashMap::new();
    for (key, entry) in dump.iter().filter(|(_, entry)| entry.has(CtEntry::REQUEST)) {
        let reply = dump.get(&entry.egress_key(key)).map_or(0, |reply| reply.state);
        let protocol = Proto::name(key.proto).unwrap_or("other");
        *counts.entry((protocol, tcp::name(entry.state | reply, key.proto))).or_default() += 1;
    }
    counts
}

/// Pairs that flows or sockets name and that no longer belong together. The udp-flush thread has flushed them, but may have
/// missed a flow that began at that moment.
fn removed_pairs(maps: &Maps, dump: &Dump) -> io::Result<HashSet<udp_flush::Pair>> {
    let flows = dump.iter().filter(|(key, entry)| udp_flush::is_udp_request(key, entry));
    let mut pairs: HashSet<_> = flows.map(|(_, entry)| (entry.service, entry.backend)).collect();
    udp_flush::sockets(&maps.sock_backend, |_, peer| {
        pairs.insert((peer.service, peer.backend));
    })?;
    Ok(maps.removed_of(pairs))
}

/// The low 32 bits of the kernel's jiffies, as the programs see them.
fn jiffies(maps: &Maps) -> io::Result<u32> {
    // The test packet of a classifier must hold an Ethernet header.
    prog::test_run(maps.clock.as_fd(), &[0; 64])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_table_is_reported_once_a_minute() {
        let now = Instant::now();
        let mut refusals = Refusals { reported: 5, last: None };
        let mut at = |total, seconds| refusals.due(total, now + Duration::from_secs(seconds));
        assert_eq!(at(5, 0), None, "counted before");
        assert_eq!(at(8, 5), Some(3));
        assert_eq!(at(9, 10), None, "a minute has not passed");
        assert_eq!(at(20, 66), Some(12));
        assert_eq!(at(20, 200), None);
    }
}
