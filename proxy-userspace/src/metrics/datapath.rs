//! What lives in maps: the datapath's counters, and how full the maps are. Read from the pins for each answer.
//!
//! Maps that the controller writes and CONNTRACK, which the collector reads anyway, are counted by those who know
//! ([`super::own::OwnMetrics::map_fill`]); the others hold some ten thousand entries at most and are read here.

use std::io;

use prometheus::{IntCounterVec, IntGaugeVec};
use proxy_common::{Counter, map};

use super::{OwnMetrics, Register};
use crate::{bpf::map::RawMap, datapath::pins::Pins};

/// Counters and maps.
#[derive(Debug)]
pub struct DatapathMetrics {
    events: IntCounterVec,
    drops: IntCounterVec,
    refusals: IntCounterVec,
    max_entries: IntGaugeVec,
}

/// What a counter counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Event,
    /// Packets that ended, silently.
    Drop,
    /// Packets that were answered with a refusal.
    Refusal,
}

fn kind(counter: Counter) -> Kind {
    match counter {
        Counter::NoBackend | Counter::NoFlow | Counter::NoServicePort => Kind::Refusal,
        Counter::NoLocalEndpoints
        | Counter::ConntrackFull
        | Counter::NoFreePort
        | Counter::NoFreeSource
        | Counter::BadSlot
        | Counter::RewriteFailed
        | Counter::FragmentLost
        | Counter::FragmentDropped
        | Counter::FragmentTiny
        | Counter::SrcRange
        | Counter::Unallocated
        | Counter::RedirectDropped
        | Counter::SctpPort => Kind::Drop,
        _ => Kind::Event,
    }
}

/// Hashes that neither the controller nor the collector counts.
const READ_HERE: [&str; 5] =
    [map::AFFINITY, map::DEVICES, map::SOCK_REVNAT, map::SOCK_BACKEND, map::FRAGMENTS];

impl DatapathMetrics {
    pub(super) fn new(register: &Register<'_>) -> Self {
        let metrics = Self {
            events: register.counters(
                "shunt_datapath_events_total",
                "What the datapath did: every counter of `shunt counter list`.",
                &["event"],
            ),
            drops: register.counters(
                "shunt_datapath_drops_total",
                "Packets dropped without an answer, by reason.",
                &["reason"],
            ),
            refusals: register.counters(
                "shunt_datapath_refusals_total",
                "Packets refused with RST or port unreachable, by reason.",
                &["reason"],
            ),
            max_entries: register.int_gauges(
                "shunt_map_max_entries",
                "Entries that a map has room for.",
                &["map"],
            ),
        };
        for counter in Counter::ALL {
            metrics.set(*counter, 0);
        }
        metrics
    }

    /// Reads what is pinned. What cannot be read keeps its last value: an agent that has just begun has pinned nothing.
    pub(super) fn fill(&mut self, pins: &Pins, own: &OwnMetrics) {
        if let Err(error) = self.fill_counters(pins) {
            tracing::debug!(%error, "cannot read {}", map::COUNTERS);
        }
        for name in map::ALL {
            if let Err(error) = self.fill_map(pins, name, own) {
                tracing::debug!(%error, "cannot read {name}");
            }
        }
    }

    fn fill_counters(&self, pins: &Pins) -> io::Result<()> {
        let map = RawMap::open(&pins.map(map::COUNTERS))?;
        for counter in Counter::ALL {
            let per_cpu = map.lookup(&(*counter as u32).to_ne_bytes())?.unwrap_or_default();
            let values = per_cpu.chunks_exact(8).filter_map(|v| v.try_into().ok()).map(u64::from_ne_bytes);
            self.set(*counter, values.fold(0, u64::wrapping_add));
        }
        Ok(())
    }

    fn set(&self, counter: Counter, value: u64) {
        let label = [counter.name()];
        let by_kind = match kind(counter) {
            Kind::Event => None,
            Kind::Drop => Some(&self.drops),
            Kind::Refusal => Some(&self.refusals),
        };
        for vec in [Some(&self.events), by_kind].into_iter().flatten() {
            let series = vec.with_label_values(&label);
            series.reset();
            series.inc_by(value);
        }
    }

    fn fill_map(&self, pins: &Pins, name: &'static str, own: &OwnMetrics) -> io::Result<()> {
        let map = RawMap::open(&pins.map(name))?;
        self.max_entries.with_label_values(&[name]).set(map.info().max_entries.into());
        if READ_HERE.contains(&name) {
            let mut entries = 0;
            map.for_each(|_, _| entries += 1)?;
            own.map_fill(name, entries);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The words in `proxy-common/src/counter.rs` decide: who adds a drop there must add it here.
    #[test]
    fn drops_and_refusals_are_what_their_comments_say() {
        let text = include_str!("../../../proxy-common/src/counter.rs");
        for counter in Counter::ALL {
            let at = text.find(&format!("\"{}\"", counter.name())).expect("a name");
            let comment = text[..at].rfind("///").map(|from| &text[from..at]).expect("a comment");
            let want = if comment.starts_with("/// Dropped:") {
                Kind::Drop
            } else if comment.starts_with("/// Refused:") {
                Kind::Refusal
            } else {
                Kind::Event
            };
            // Fragments that waited and were never sent on: gone, whatever the comment begins with.
            let want = if *counter == Counter::FragmentLost { Kind::Drop } else { want };
            assert_eq!(kind(*counter), want, "{}", counter.name());
        }
    }
}
