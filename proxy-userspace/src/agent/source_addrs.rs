//! SOURCE_ADDRS kept in step with routes, rules and addresses: when [`Sources`] are asked for, and what of them is written.
//! Called by [`DeviceHooks`](super::device_hooks::DeviceHooks), which writes the sources of whole devices into DEVICES.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use bytemuck::{bytes_of, pod_read_unaligned};
use proxy_common::{Addr, Device, SourceAddrKey, map};

use crate::{
    datapath::{
        devices::Devices,
        netlink::Socket,
        source_addrs::{Egress, Sources},
    },
    maps::{MapError, MapStore, Op},
};

/// Routes may change many times a second: between two looks passes at least this time,
const REST: Duration = Duration::from_millis(100);

/// and this many times what a look takes.
const REST_FOR_WORK: u32 = 10;

/// After a look that failed.
const RETRY: Duration = Duration::from_secs(1);

#[derive(Debug, Default)]
pub struct SourceAddrs {
    found: Sources,
    /// What SOURCE_ADDRS holds; `None` where that is not known.
    written: Option<BTreeMap<SourceAddrKey, Addr>>,
    /// Something changed since the last look.
    is_stale: bool,
    /// No look before this.
    not_before: Option<Instant>,
}

impl SourceAddrs {
    /// Routes, rules or addresses changed.
    pub fn changed(&mut self) {
        self.is_stale = true;
    }

    /// Nobody knows what is in the map.
    pub fn distrust(&mut self) {
        self.written = None;
        self.is_stale = true;
    }

    /// How long until a look is due; `None` where nothing changed.
    pub fn due(&self) -> Option<Duration> {
        let wait = self.not_before.map_or(Duration::ZERO, |at| at.saturating_duration_since(Instant::now()));
        self.is_stale.then_some(wait)
    }

    /// Looks, and writes what differs. Says whether the source of a device changed.
    pub fn refresh(
        &mut self,
        netlink: &mut Socket,
        devices: &Devices,
        egress: &[Egress],
        store: &mut impl MapStore,
    ) -> Result<bool, MapError> {
        let began = Instant::now();
        let found = match Sources::ask(netlink, devices, egress) {
            Ok(found) => found,
            Err(error) => {
                tracing::warn!(%error, "reading routes failed: source addresses stay as they are for now");
                self.not_before = Some(Instant::now() + RETRY);
                return Ok(false);
            }
        };
        let took = began.elapsed();
        self.is_stale = false;
        self.not_before = Some(Instant::now() + REST.max(took * REST_FOR_WORK));
        if found.left > 0 && self.found.left == 0 {
            tracing::warn!(
                routes = found.left,
                "too many routes: towards the narrowest, translated flows have their device's source address"
            );
        }
        self.write(&found, store)?;
        let is_other = found.devices != self.found.devices;
        tracing::debug!(
            ranges = found.ranges.len(),
            devices = found.devices.len(),
            ?took,
            "source addresses"
        );
        self.found = found;
        Ok(is_other)
    }

    fn write(&mut self, found: &Sources, store: &mut impl MapStore) -> Result<(), MapError> {
        let held = match self.written.take() {
            Some(written) => written,
            None => read(store)?,
        };
        // What a device loses goes last: until then its destinations have the source they had.
        let mut ops: Vec<_> = found
            .ranges
            .iter()
            .filter(|(key, source)| held.get(key) != Some(source))
            .map(|(key, source)| Op::Put {
                map: map::SOURCE_ADDRS,
                key: bytes_of(key).to_vec(),
                value: bytes_of(source).to_vec(),
            })
            .collect();
        let gone = held.keys().filter(|key| !found.ranges.contains_key(key));
        ops.extend(gone.map(|key| Op::Delete { map: map::SOURCE_ADDRS, key: bytes_of(key).to_vec() }));
        store.write(&ops).map_err(|(_, error)| error)?;
        self.written = Some(found.ranges.clone());
        Ok(())
    }

    /// Puts the sources of a device into what the datapath is told of it.
    pub fn describe(&self, ifindex: u32, device: &mut Device) {
        let [v4, v6] = self.found.devices.get(&ifindex).copied().unwrap_or_default();
        device.source_v4 = v4.unwrap_or(device.source_v4);
        device.source_v6 = v6.unwrap_or(device.source_v6);
    }
}

fn read(store: &mut impl MapStore) -> Result<BTreeMap<SourceAddrKey, Addr>, MapError> {
    let entries = store.read(map::SOURCE_ADDRS)?;
    Ok(entries.iter().map(|(key, value)| (pod_read_unaligned(key), pod_read_unaligned(value))).collect())
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use super::*;
    use crate::maps::memory::MemoryStore;

    fn addr(text: &str) -> Addr {
        text.parse::<IpAddr>().unwrap().into()
    }

    fn sources(ranges: &[(u32, &str, &str)]) -> Sources {
        let key = |device: u32, to: &str| SourceAddrKey::new(device, addr(to), 96 + 24);
        let ranges = ranges.iter().map(|(device, to, source)| (key(*device, to), addr(source))).collect();
        Sources { ranges, ..Sources::default() }
    }

    #[test]
    fn the_map_follows_and_what_an_earlier_run_left_goes() {
        let mut store = MemoryStore::default();
        let first = sources(&[(2, "10.1.0.0", "10.1.0.9"), (2, "10.2.0.0", "10.2.0.9")]);
        SourceAddrs::default().write(&first, &mut store).unwrap();
        assert_eq!(read(&mut store).unwrap(), first.ranges);
        let mut later = SourceAddrs::default();
        for next in [
            sources(&[(2, "10.1.0.0", "10.1.0.8"), (3, "10.3.0.0", "10.3.0.9")]),
            sources(&[(3, "10.3.0.0", "10.3.0.9")]),
            sources(&[]),
        ] {
            later.write(&next, &mut store).unwrap();
            assert_eq!(read(&mut store).unwrap(), next.ranges);
        }
    }

    #[test]
    fn a_look_is_due_when_something_changed_and_the_last_is_past() {
        let mut state = SourceAddrs::default();
        assert_eq!(state.due(), None);
        state.changed();
        assert_eq!(state.due(), Some(Duration::ZERO));
        state.not_before = Some(Instant::now() + RETRY);
        assert!(state.due().unwrap() > Duration::from_millis(500));
    }

    #[test]
    fn a_device_has_the_sources_that_are_known() {
        let mut state = SourceAddrs::default();
        state.found.devices.insert(2, [Some(addr("10.0.0.1")), None]);
        let mut device: Device = bytemuck::Zeroable::zeroed();
        device.source_v6 = addr("fd00::1");
        state.describe(2, &mut device);
        assert_eq!((device.source_v4, device.source_v6), (addr("10.0.0.1"), addr("fd00::1")));
    }
}
