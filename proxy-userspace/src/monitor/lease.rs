//! MONITOR, as the process that watches holds it: the lock that makes it the only one, what it wants to be told, and the
//! time up to which it wants to, which is renewed before it runs out. Whoever is killed costs the programs nothing once
//! that time is over.

use std::{
    fs::File,
    io,
    mem::offset_of,
    path::PathBuf,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use nix::{
    errno::Errno,
    fcntl::{Flock, FlockArg},
    time::{ClockId, clock_gettime},
};
use proxy_common::{Monitor, map};

use super::MonitorError;
use crate::{
    bpf::{map::RawMap, shared::SharedArray},
    inspect::pins::Pins,
};

/// How long the programs go on telling after the last renewal.
pub const LASTS: Duration = Duration::from_secs(3);
/// Between two renewals: two may be late.
pub const RENEWED_EVERY: Duration = Duration::from_secs(1);

/// Held while this process is the one that watches. Ends when dropped.
#[derive(Debug)]
pub struct Lease {
    monitor: SharedArray,
    path: PathBuf,
    id: u32,
    /// Events for which there was no room, as far as that was told.
    lost: u64,
    /// Locks the directory of the maps: the agent locks the one above, bpffs holds no regular file, and so whoever
    /// removes the pins removes the lock with what it protects.
    _lock: Flock<File>,
}

impl Lease {
    /// Makes this process the one that watches. Nothing is told before [`Self::begin`], nor for an earlier one any more.
    pub fn take(pins: &Pins) -> Result<Self, MonitorError> {
        let map = pins.map(map::MONITOR)?;
        let dir = pins.maps();
        let failed = |action| move |source: io::Error| MonitorError::Io { action, source };
        let file = File::open(&dir).map_err(failed("opening the directory of the pinned maps"))?;
        let lock = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => lock,
            Err((_, Errno::EWOULDBLOCK)) => return Err(MonitorError::Watched(dir)),
            Err((_, errno)) => return Err(failed("locking the directory of the pinned maps")(errno.into())),
        };
        let monitor = SharedArray::map(&map).map_err(failed("mapping MONITOR into memory"))?;
        let mut lease =
            Self { monitor, path: dir.join(map::MONITOR), id: map.info().id, lost: 0, _lock: lock };
        lease.end();
        lease.lost = lease.counter().load(Ordering::Relaxed);
        Ok(lease)
    }

    /// Has the programs tell of `kinds`, one event in `one_in`.
    pub fn begin(&self, kinds: u32, one_in: u32) -> Result<(), MonitorError> {
        self.monitor.u32_at(offset_of!(Monitor, kinds)).store(kinds, Ordering::Relaxed);
        self.monitor.u32_at(offset_of!(Monitor, one_in)).store(one_in, Ordering::Relaxed);
        self.renew()
    }

    /// Wants to be told for some more time; fails where the maps are no longer those that the programs write to.
    pub fn renew(&self) -> Result<(), MonitorError> {
        let gone = || MonitorError::Gone(self.path.clone());
        let pinned = match RawMap::open(&self.path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(gone()),
            other => {
                other.map_err(|source| MonitorError::Io { action: "looking for MONITOR's pin", source })?
            }
        };
        if pinned.info().id != self.id {
            return Err(gone());
        }
        self.until().store(end_of_lease(monotonic()?), Ordering::Release);
        Ok(())
    }

    /// Wants to be told nothing more.
    pub fn end(&self) {
        self.until().store(0, Ordering::Release);
    }

    /// Events that were lost since this was last asked.
    pub fn newly_lost(&mut self) -> u64 {
        let now = self.counter().load(Ordering::Relaxed);
        now.wrapping_sub(std::mem::replace(&mut self.lost, now))
    }

    fn until(&self) -> &AtomicU64 {
        self.monitor.u64_at(offset_of!(Monitor, until))
    }

    fn counter(&self) -> &AtomicU64 {
        self.monitor.u64_at(offset_of!(Monitor, lost))
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.end();
    }
}

/// CLOCK_MONOTONIC in nanoseconds, as the programs read it.
pub fn monotonic() -> Result<u64, MonitorError> {
    nanos_of(ClockId::CLOCK_MONOTONIC)
}

/// CLOCK_REALTIME in nanoseconds.
pub fn wall_clock() -> Result<u64, MonitorError> {
    nanos_of(ClockId::CLOCK_REALTIME)
}

fn nanos_of(clock: ClockId) -> Result<u64, MonitorError> {
    let now = clock_gettime(clock)
        .map_err(|errno| MonitorError::Io { action: "reading the clock", source: errno.into() })?;
    Ok(Duration::from(now).as_nanos() as u64)
}

/// When a lease that is renewed at `now` runs out; never 0, which is nobody's.
fn end_of_lease(now: u64) -> u64 {
    now.saturating_add(LASTS.as_nanos() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_outlives_two_late_renewals_and_is_never_nobodys() {
        assert_eq!(end_of_lease(7_000_000_000), 10_000_000_000);
        assert!(LASTS > 2 * RENEWED_EVERY);
        assert_ne!(end_of_lease(0), 0);
        assert_eq!(end_of_lease(u64::MAX), u64::MAX);
    }

    #[test]
    fn the_clocks_go_on() {
        let before = monotonic().unwrap();
        assert!(monotonic().unwrap() >= before);
        assert!(wall_clock().unwrap() > 1_600_000_000_000_000_000);
    }

    #[test]
    fn numbers_of_monitor_are_aligned() {
        assert_eq!(offset_of!(Monitor, until) % 8, 0);
        assert_eq!(offset_of!(Monitor, lost) % 8, 0);
        assert_eq!((offset_of!(Monitor, kinds) % 4, offset_of!(Monitor, one_in) % 4), (0, 0));
    }
}
