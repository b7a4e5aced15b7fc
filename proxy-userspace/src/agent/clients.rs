//! When to look at AFFINITY, and what goes: entries that have expired, and those whose backend is no longer one of
//! their Service's (so that neither a backend that comes back nor a service id that is used anew finds old clients).
//!
//! The programs pass over such entries anyway. But their stamps are 32 bits of a clock that wraps after weeks: what is
//! left alone for so long would look recent again.

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

/// Between two looks.
const INTERVAL: Duration = Duration::from_secs(60);
/// Between two looks at the least, when a backend left a set.
const HURRY: Duration = Duration::from_millis(100);
/// A look may take up to one part in so many of the time.
const SHARE: u32 = 20;

/// The timetable.
#[derive(Debug)]
pub struct Clients {
    hz: u32,
    due: Instant,
    last_end: Instant,
    last_took: Duration,
}

impl Clients {
    pub fn new(hz: u32) -> Self {
        let now = Instant::now();
        Self { hz, due: now + INTERVAL, last_end: now, last_took: Duration::ZERO }
    }

    /// When to look next.
    pub fn due(&self) -> Option<Instant> {
        Some(self.due)
    }

    /// A backend left a set: look now, or as soon as the last look's cost allows.
    pub fn hurry(&mut self) {
        self.due = self.due.min(self.last_end + HURRY.max(self.last_took * SHARE));
    }

    /// Removes the entries that are over.
    pub fn collect(&mut self, loaded: &Loaded, controller: &Controller) -> io::Result<()> {
        let began = Instant::now();
        let result = self.look(loaded, controller);
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

    fn look(&self, loaded: &Loaded, controller: &Controller) -> io::Result<usize> {
        let affinity = loaded.store.map(map::AFFINITY).map_err(io::Error::other)?;
        let clock = loaded.program("clock").map_err(io::Error::other)?;
        // A classifier's test packet must hold an Ethernet header.
        let now = prog::test_run(clock.as_fd(), &[0; 64])?;
        let is_over = |key: &AffinityKey, entry: &Affinity| {
            let seconds = controller.affinity_seconds(key.service, entry.backend);
            seconds.is_none_or(|seconds| !entry.is_fresh(now, seconds, self.hz))
        };
        remove_if(affinity, is_over)
    }
}

/// Removes the entries that `is_over` names, each looked at once more: it may have been refreshed since.
fn remove_if(affinity: &RawMap, is_over: impl Fn(&AffinityKey, &Affinity) -> bool) -> io::Result<usize> {
    let mut over: Vec<AffinityKey> = Vec::new();
    affinity.for_each(|key, value| {
        let key = pod_read_unaligned(key);
        if is_over(&key, &pod_read_unaligned(value)) {
            over.push(key);
        }
    })?;
    let mut removed = 0;
    for key in over {
        let still = affinity.lookup(bytes_of(&key))?;
        if still.is_some_and(|value| is_over(&key, &pod_read_unaligned(&value))) {
            removed += usize::from(affinity.delete(bytes_of(&key))?);
        }
    }
    Ok(removed)
}
