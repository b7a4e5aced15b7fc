//! Garbage collection of AFFINITY: expired entries, and entries whose backend is no longer in its Service's sets (so that
//! neither a backend that comes back nor a reused service id finds old clients).
//!
//! The programs ignore such entries. But their time stamps are 32 bits of a clock that wraps after weeks: an old entry
//! would look recent again.

use std::{
    io,
    os::fd::AsFd as _,
    time::{Duration, Instant},
};

use bytemuck::{bytes_of, pod_read_unaligned};
use proxy_common::{Affinity, AffinityKey, map};

use crate::{
    bpf::{map::RawMap, prog},
    controller::Controller,
    datapath::load::Loaded,
};

/// Between two passes.
const INTERVAL: Duration = Duration::from_secs(60);
/// Minimum between two passes when a backend left a set.
const HURRY: Duration = Duration::from_millis(100);
/// A pass may take up to this fraction of the time (one part in...).
const SHARE: u32 = 20;

/// When the next pass is due.
#[derive(Debug)]
pub struct AffinityGc {
    hz: u32,
    due: Instant,
    last_end: Instant,
    last_took: Duration,
}

impl AffinityGc {
    pub fn new(hz: u32) -> Self {
        let now = Instant::now();
        Self { hz, due: now + INTERVAL, last_end: now, last_took: Duration::ZERO }
    }

    /// When the next pass is due.
    pub fn due(&self) -> Instant {
        self.due
    }

    /// A backend left a set: the next pass is due now, or as soon as the cost of the last one allows.
    pub fn hurry(&mut self) {
        self.due = self.due.min(self.last_end + HURRY.max(self.last_took * SHARE));
    }

    /// One pass.
    pub fn run(&mut self, loaded: &Loaded, controller: &Controller) -> io::Result<()> {
        let began = Instant::now();
        let result = self.pass(loaded, controller);
        self.last_end = Instant::now();
        self.last_took = self.last_end.duration_since(began);
        let least = if result.is_ok() { INTERVAL } else { Duration::from_secs(1) };
        self.due = self.last_end + least.max(self.last_took * SHARE);
        let removed = result?;
        if removed > 0 {
            tracing::debug!(removed, took = ?self.last_took, "session affinities removed");
        }
        Ok(())
    }

    fn pass(&self, loaded: &Loaded, controller: &Controller) -> io::Result<usize> {
        let affinity = loaded.store.map(map::AFFINITY).map_err(io::Error::other)?;
        let clock = loaded.program("clock").map_err(io::Error::other)?;
        // The test packet of a classifier must hold an Ethernet header.
        let now = prog::test_run(clock.as_fd(), &[0; 64])?;
        let is_expired = |key: &AffinityKey, entry: &Affinity| {
            let seconds = controller.affinity_seconds(key.service, entry.backend);
            seconds.is_none_or(|seconds| !entry.is_fresh(now, seconds, self.hz))
        };
        remove_if(affinity, is_expired)
    }
}

/// Removes the entries for which `is_expired` holds; each is checked again, because it may have been refreshed since.
fn remove_if(affinity: &RawMap, is_expired: impl Fn(&AffinityKey, &Affinity) -> bool) -> io::Result<usize> {
    let mut expired: Vec<AffinityKey> = Vec::new();
    affinity.for_each(|key, value| {
        let key = pod_read_unaligned(key);
        if is_expired(&key, &pod_read_unaligned(value)) {
            expired.push(key);
        }
    })?;
    let mut removed = 0;
    for key in expired {
        let still = affinity.lookup(bytes_of(&key))?;
        if still.is_some_and(|value| is_expired(&key, &pod_read_unaligned(&value))) {
            removed += usize::from(affinity.delete(bytes_of(&key))?);
        }
    }
    Ok(removed)
}
