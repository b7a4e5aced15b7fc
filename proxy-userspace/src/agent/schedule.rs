//! When the agent syncs, tries devices again, and repairs.

use std::time::{Duration, Instant};

/// Delay after a failure.
const RETRY: Duration = Duration::from_secs(1);

/// Times of the next actions; `None`: there is nothing to do.
#[derive(Debug)]
pub(super) struct Schedule {
    min_sync: Duration,
    repair_interval: Duration,
    last_sync: Instant,
    pub(super) sync_at: Option<Instant>,
    pub(super) devices_at: Option<Instant>,
    pub(super) repair_at: Instant,
}

impl Schedule {
    pub(super) fn new(min_sync: Duration, repair_interval: Duration) -> Self {
        let now = Instant::now();
        Self {
            min_sync,
            repair_interval,
            last_sync: now,
            sync_at: None,
            devices_at: None,
            repair_at: now + repair_interval,
        }
    }

    /// Something changed: sync as soon as `min_sync` has passed since the last one.
    pub(super) fn sync_soon(&mut self) {
        let soon = self.last_sync + self.min_sync;
        // Earlier than a sync that only cleans up after the last one.
        self.sync_at = Some(self.sync_at.map_or(soon, |at| at.min(soon)));
    }

    /// Something can be cleaned up: sync, unless one is scheduled.
    pub(super) fn sync_sometime(&mut self) {
        self.sync_at.get_or_insert(self.last_sync + self.min_sync);
    }

    pub(super) fn sync_begins(&mut self) {
        self.sync_at = None;
    }

    pub(super) fn sync_ended(&mut self) {
        self.last_sync = Instant::now();
    }

    /// The next sync, counted from the end of the last one.
    pub(super) fn sync_after(&mut self, delay: Duration) {
        self.sync_at = Some(self.last_sync + delay);
    }

    pub(super) fn sync_failed(&mut self) {
        self.sync_ended();
        self.sync_after(RETRY);
    }

    /// Some device must be tried again.
    pub(super) fn devices_after(&mut self, delay: Duration) {
        self.devices_at.get_or_insert(Instant::now() + delay);
    }

    /// Following devices failed: a repair reads them all again.
    pub(super) fn devices_failed(&mut self) {
        self.repair_at = Instant::now() + RETRY;
    }

    pub(super) fn repair_begins(&mut self) {
        self.repair_at = Instant::now() + self.repair_interval;
    }
}
