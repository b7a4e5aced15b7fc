//! When to look at CONNTRACK, and what to do with what is found: expired flows go, and the controller learns
//! which ids nobody names any more.

use std::{
    io,
    os::fd::AsFd as _,
    time::{Duration, Instant},
};

use proxy_common::map;

use crate::{
    bpf::prog,
    controller::{Controller, InUse},
    datapath::{
        collector::{self, Clock, Timeouts},
        load::Loaded,
    },
};

/// Between two looks.
const INTERVAL: Duration = Duration::from_secs(5);
/// Between two looks at the least, when datagrams are to leave a backend.
const HURRY: Duration = Duration::from_millis(50);
/// A look may take up to one part in so many of the time...
const SHARE: u32 = 20;
/// ...and this while there is more to remove, or little room.
const BUSY_SHARE: u32 = 4;
/// Flows removed in one look: what is left waits for the next, so that devices and Services do not wait for it.
const MOST: usize = 16_384;

/// The collector's timetable.
#[derive(Debug)]
pub struct Flows {
    hz: u32,
    timeouts: Timeouts,
    due: Instant,
    last_end: Instant,
    last_took: Duration,
}

impl Flows {
    pub fn new(hz: u32) -> Self {
        let now = Instant::now();
        Self {
            hz,
            timeouts: Timeouts::default(),
            due: now + INTERVAL,
            last_end: now,
            last_took: Duration::ZERO,
        }
    }

    /// When to look next.
    pub fn due(&self) -> Option<Instant> {
        Some(self.due)
    }

    /// Datagrams are to leave a backend: look now, or as soon as the last look's cost allows.
    pub fn hurry(&mut self) {
        self.due = self.due.min(self.last_end + HURRY.max(self.last_took * BUSY_SHARE));
    }

    /// Removes expired flows and tells the controller which ids are still named. Whether ids were freed,
    /// so that a sync has something to delete.
    pub fn collect(&mut self, loaded: &mut Loaded, controller: &mut Controller) -> io::Result<bool> {
        let began = Instant::now();
        let result = self.look(began, loaded, controller);
        self.last_end = Instant::now();
        self.last_took = self.last_end.duration_since(began);
        let (least, share) = match &result {
            Ok(looked) if looked.has_more => (HURRY, BUSY_SHARE),
            Ok(looked) if looked.is_crowded => (INTERVAL, BUSY_SHARE),
            _ => (INTERVAL, SHARE),
        };
        self.due = self.last_end + least.max(self.last_took * share);
        result.map(|looked| looked.freed)
    }

    fn look(&self, began: Instant, loaded: &mut Loaded, controller: &mut Controller) -> io::Result<Looked> {
        let conntrack = loaded.store.map(map::CONNTRACK).map_err(io::Error::other)?;
        let dump = collector::dump(conntrack)?;
        let clock = Clock { now: jiffies(loaded)?, hz: self.hz };
        let serves = |service, backend| controller.serves(service, backend);
        let max = conntrack.info().max_entries as usize;
        let timeouts = self.timeouts.with_room(dump.len(), max);
        let found = collector::collect(&dump, clock, &timeouts, serves);
        let now = &found.dead[..found.dead.len().min(MOST)];
        let removed = collector::remove(conntrack, now)?;
        let has_more = now.len() < found.dead.len();
        let is_crowded = dump.len() > max / 4 * 3;
        if removed > 0 {
            tracing::debug!(
                removed,
                entries = found.entries,
                took = ?began.elapsed(),
                "expired flows removed"
            );
        }
        if !controller.has_retired() {
            return Ok(Looked { freed: false, has_more, is_crowded });
        }
        let mut in_use = InUse { services: found.services, backends: found.backends };
        // What could not be deleted this time still names its ids.
        for (_, entry) in found.dead.iter().flat_map(|flow| &flow.halves) {
            in_use.services.insert(entry.service);
            in_use.backends.insert(entry.backend);
        }
        controller.release(began, &in_use);
        Ok(Looked { freed: true, has_more, is_crowded })
    }
}

/// What a look came to.
struct Looked {
    /// The controller was told which ids are still named: a sync may have something to delete.
    freed: bool,
    /// There is more to remove.
    has_more: bool,
    /// Little room is left.
    is_crowded: bool,
}

/// The kernel's jiffies, low 32 bits, as the programs see them.
fn jiffies(loaded: &Loaded) -> io::Result<u32> {
    let clock = loaded.program("clock").map_err(io::Error::other)?;
    // A classifier's test packet must hold an Ethernet header.
    prog::test_run(clock.as_fd(), &[0; 64])
}
