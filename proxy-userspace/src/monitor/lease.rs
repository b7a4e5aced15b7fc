//! The lease on MONITOR: a lock that allows only one reader, the event kinds that the programs report, and an expiry time,
//! which is renewed periodically. If the process is killed, the lease expires and the programs stop reporting.

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

use super::error::MonitorError;
use crate::{
    bpf::{map::RawMap, shared::SharedArray},
    inspect::pins::Pins,
};

/// Validity of the lease after a renewal.
pub const DURATION: Duration = Duration::from_secs(3);
/// Renewal interval: two renewals may be late.
pub const RENEWAL_INTERVAL: Duration = Duration::from_secs(1);

/// Held by the only reader. Dropping it ends the lease.
#[derive(Debug)]
pub struct Lease {
    monitor: SharedArray,
    path: PathBuf,
    id: u32,
    /// The last reported value of the counter of lost events.
    lost: u64,
    /// Locks the directory of the maps. The agent locks its parent, and bpffs has no regular files. Removing the pins also
    /// removes the lock.
    _lock: Flock<File>,
}

impl Lease {
    /// Takes the lock and ends the lease of an earlier reader. Events start with [`Self::begin`].
    pub fn take(pins: &Pins) -> Result<Self, MonitorError> {
        let map = pins.map(map::MONITOR)?;
        let dir = pins.maps();
        let failed = |action| move |source: io::Error| MonitorError::Io { action, source };
        let file = File::open(&dir).map_err(failed("opening the directory of the pinned maps"))?;
        let lock = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => lock,
            Err((_, Errno::EWOULDBLOCK)) => return Err(MonitorError::AlreadyRunning(dir)),
            Err((_, errno)) => return Err(failed("locking the directory of the pinned maps")(errno.into())),
        };
        let monitor = SharedArray::map(&map).map_err(failed("mapping MONITOR into memory"))?;
        let mut lease =
            Self { monitor, path: dir.join(map::MONITOR), id: map.info().id, lost: 0, _lock: lock };
        lease.end();
        lease.lost = lease.counter().load(Ordering::Relaxed);
        Ok(lease)
    }

    /// Enables events of `kinds`, one in `one_in`.
    pub fn begin(&self, kinds: u32, one_in: u32) -> Result<(), MonitorError> {
        self.monitor.u32_at(offset_of!(Monitor, kinds)).store(kinds, Ordering::Relaxed);
        self.monitor.u32_at(offset_of!(Monitor, one_in)).store(one_in, Ordering::Relaxed);
        self.renew()
    }

    /// Renews the lease. Fails if the pinned map is no longer the mapped one.
    pub fn renew(&self) -> Result<(), MonitorError> {
        let gone = || MonitorError::Gone(self.path.clone());
        let pinned = match RawMap::open(&self.path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(gone()),
            other => {
                other.map_err(|source| MonitorError::Io { action: "opening the pin of MONITOR", source })?
            }
        };
        if pinned.info().id != self.id {
            return Err(gone());
        }
        self.until().store(end_of_lease(monotonic()?), Ordering::Release);
        Ok(())
    }

    /// Disables events.
    pub fn end(&self) {
        self.until().store(0, Ordering::Release);
    }

    /// The number of lost events since the last call.
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

/// The expiry of a lease renewed at `now`; never 0, which means no lease.
fn end_of_lease(now: u64) -> u64 {
    now.saturating_add(DURATION.as_nanos() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_outlives_two_late_renewals() {
        assert_eq!(end_of_lease(7_000_000_000), 10_000_000_000);
        assert!(DURATION > 2 * RENEWAL_INTERVAL);
        assert_ne!(end_of_lease(0), 0);
        assert_eq!(end_of_lease(u64::MAX), u64::MAX);
    }

    #[test]
    fn clocks_are_monotonic() {
        let before = monotonic().unwrap();
        assert!(monotonic().unwrap() >= before);
        assert!(wall_clock().unwrap() > 1_600_000_000_000_000_000);
    }

    #[test]
    fn fields_of_monitor_are_aligned() {
        assert_eq!(offset_of!(Monitor, until) % 8, 0);
        assert_eq!(offset_of!(Monitor, lost) % 8, 0);
        assert_eq!((offset_of!(Monitor, kinds) % 4, offset_of!(Monitor, one_in) % 4), (0, 0));
    }
}
