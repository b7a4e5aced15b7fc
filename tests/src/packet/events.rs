//! Monitors a datapath as `shunt monitor` does: writes MONITOR, reads EVENTS.

use std::time::Duration;

use anyhow::{Context as _, Result};
use aya::maps::{Array, RingBuf};
use bytemuck::Zeroable as _;
use nix::time::{ClockId, clock_gettime};
use proxy_common::{FlowEvent, Monitor, map};

use super::Datapath;

/// CLOCK_MONOTONIC in nanoseconds.
pub fn monotonic() -> Result<u64> {
    Ok(Duration::from(clock_gettime(ClockId::CLOCK_MONOTONIC)?).as_nanos() as u64)
}

impl Datapath {
    /// Makes the programs report events of `kinds` for a minute.
    pub fn watch(&mut self, kinds: u32) -> Result<()> {
        let until = monotonic()? + 60_000_000_000;
        self.monitor(Monitor { until, kinds, one_in: 1, lost: 0 })
    }

    /// Writes MONITOR.
    pub fn monitor(&mut self, value: Monitor) -> Result<()> {
        let map = self.ebpf.map_mut(map::MONITOR).context("no map MONITOR")?;
        Ok(Array::<_, Monitor>::try_from(map)?.set(0, value, 0)?)
    }

    /// Number of events lost for lack of room.
    pub fn lost(&self) -> Result<u64> {
        let map = self.ebpf.map(map::MONITOR).context("no map MONITOR")?;
        Ok(Array::<_, Monitor>::try_from(map)?.get(&0, 0)?.lost)
    }

    /// The events reported since the last call.
    pub fn told(&mut self) -> Result<Vec<FlowEvent>> {
        let map = self.ebpf.map_mut(map::EVENTS).context("no map EVENTS")?;
        let mut ring = RingBuf::try_from(map)?;
        let mut all = Vec::new();
        while let Some(item) = ring.next() {
            all.push(bytemuck::pod_read_unaligned(&item));
        }
        Ok(all)
    }

    /// Stops monitoring and discards unread events.
    pub(super) fn unwatch(&mut self) -> Result<()> {
        self.monitor(Monitor::zeroed())?;
        self.told().map(drop)
    }
}
