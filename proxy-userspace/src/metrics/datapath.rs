//! Metrics read from maps: the datapath's counters, and how full the maps are. Read from the pins for each scrape.
//!
//! Maps that the controller writes, and CONNTRACK, which conntrack-gc reads anyway, are counted there
//! ([`super::own::OwnMetrics::map_fill`]). The others hold some ten thousand entries at most and are read here.

use std::collections::HashMap;

use prometheus::{IntCounterVec, IntGaugeVec};
use proxy_common::{Counter, counter::Kind, map};

use super::{own::OwnMetrics, register::Register};
use crate::inspect::{
    InspectError, counters,
    drops::{self, DeviceDrops},
    pins::Pins,
};

/// Counters and fill of maps.
#[derive(Debug)]
pub struct DatapathMetrics {
    events: IntCounterVec,
    drops: IntCounterVec,
    refusals: IntCounterVec,
    max_entries: IntGaugeVec,
    /// Counts without a device, by reason: the highest value read, and the part of it counted since this process
    /// started.
    nowhere: HashMap<u32, (u64, u64)>,
}

/// Hash maps that neither the controller nor conntrack-gc counts.
const READ_HERE: [&str; 6] =
    [map::AFFINITY, map::DEVICES, map::SOCK_REVNAT, map::SOCK_BACKEND, map::FRAGMENTS, map::DROPS];

impl DatapathMetrics {
    pub(super) fn new(register: &Register<'_>) -> Self {
        let mut metrics = Self {
            events: register.counters(
                "shunt_datapath_events_total",
                "Events counted by the datapath: the totals of `shunt counter list`.",
                &["event"],
            ),
            drops: register.counters(
                "shunt_datapath_drops_total",
                "Packets dropped without an answer, by reason and device.",
                &["reason", "device"],
            ),
            refusals: register.counters(
                "shunt_datapath_refusals_total",
                "Packets refused with RST or port unreachable, and refused socket calls, by reason and device.",
                &["reason", "device"],
            ),
            max_entries: register.int_gauges(
                "shunt_map_max_entries",
                "Maximum entries of a map.",
                &["map"],
            ),
            nowhere: HashMap::new(),
        };
        metrics.set(&[], &[], |_| None);
        metrics
    }

    /// Reads the pinned maps. What cannot be read keeps its last value: a starting agent has pinned nothing yet.
    pub(super) fn fill(&mut self, pins: &Pins, own: &OwnMetrics) {
        if let Err(error) = self.fill_counters(pins) {
            tracing::debug!(%error, "cannot read the counters");
        }
        for name in map::ALL {
            if let Err(error) = self.fill_map(pins, name, own) {
                tracing::debug!(%error, "cannot read {name}");
            }
        }
    }

    /// Counts of an earlier run are not new.
    pub(super) fn begin(&mut self, pins: &Pins) {
        // An unreadable map does not exist yet.
        if self.fill_counters(pins).is_ok() {
            self.nowhere.values_mut().for_each(|(_, since)| *since = 0);
        }
    }

    /// The totals are read first: packets counted in between are attributed to a device and not to the difference.
    fn fill_counters(&mut self, pins: &Pins) -> Result<(), InspectError> {
        let totals = counters::totals(pins)?;
        let by_device = drops::read(pins)?;
        self.set(&totals, &by_device, drops::device_name);
        Ok(())
    }

    /// `device=""` stands for the socket hooks and for counts without a device. It must not decrease, which Prometheus
    /// would take for a counter reset. Nor may a removed device add its whole count at once: its series disappears with
    /// it, and the total remains in the event's counter.
    fn set(&mut self, totals: &[u64], by_device: &[DeviceDrops], name: impl Fn(u32) -> Option<String>) {
        self.drops.reset();
        self.refusals.reset();
        for counter in Counter::ALL {
            let total = totals.get(*counter as usize).copied().unwrap_or(0);
            let event = self.events.with_label_values(&[counter.name()]);
            event.reset();
            event.inc_by(total);
            let vec = match counter.kind() {
                Kind::Event => continue,
                Kind::Drop => &self.drops,
                Kind::Refusal => &self.refusals,
            };
            let mut nowhere = total;
            for entry in
                by_device.iter().filter(|entry| entry.reason == *counter as u32 && entry.ifindex != 0)
            {
                nowhere = nowhere.saturating_sub(entry.packets);
                if let Some(device) = name(entry.ifindex) {
                    vec.with_label_values(&[counter.name(), &*device]).inc_by(entry.packets);
                }
            }
            let (most, since) = self.nowhere.entry(*counter as u32).or_default();
            *since += nowhere.saturating_sub(*most);
            *most = nowhere.max(*most);
            vec.with_label_values(&[counter.name(), ""]).inc_by(*since);
        }
    }

    fn fill_map(&self, pins: &Pins, name: &'static str, own: &OwnMetrics) -> Result<(), InspectError> {
        let map = pins.map(name)?;
        self.max_entries.with_label_values(&[name]).set(map.info().max_entries.into());
        if READ_HERE.contains(&name) {
            let mut entries = 0;
            map.for_each(|_, _| entries += 1)
                .map_err(|error| InspectError::io("reading the map", pins.maps().join(name), error))?;
            own.map_fill(name, entries);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proxy_common::DropKey;

    use super::*;

    fn metrics() -> DatapathMetrics {
        DatapathMetrics::new(&Register(&prometheus::Registry::new()))
    }

    fn drops(ifindex: u32, packets: u64) -> DeviceDrops {
        DeviceDrops { ifindex, reason: Counter::NoBackend as u32, packets }
    }

    /// COUNTERS with this many refusals for lack of a backend.
    fn totals(refused: u64) -> Vec<u64> {
        let mut totals = vec![0; Counter::ALL.len()];
        totals[Counter::NoBackend as usize] = refused;
        totals
    }

    fn name(ifindex: u32) -> Option<String> {
        (ifindex < 10).then(|| format!("eth{ifindex}"))
    }

    /// The refusals for lack of a backend.
    fn value(metrics: &DatapathMetrics, device: &str) -> u64 {
        metrics.refusals.with_label_values(&["no_backend", device]).get()
    }

    #[test]
    fn devices_and_the_rest_add_up_to_the_total() {
        let mut metrics = metrics();
        metrics.set(&totals(100), &[drops(0, 10), drops(2, 30), drops(3, 50)], name);
        assert_eq!(["eth2", "eth3", ""].map(|device| value(&metrics, device)), [30, 50, 20]);
        let event = metrics.events.with_label_values(&["no_backend"]);
        assert_eq!(event.get(), 100);
    }

    #[test]
    fn a_device_that_goes_takes_its_series_along_and_nothing_else() {
        let mut metrics = metrics();
        for entries in [
            // Removed, and not yet folded; then folded into the removed devices.
            [drops(0, 10), drops(2, 30), drops(44, 50)],
            [drops(0, 10), drops(2, 30), drops(DropKey::GONE, 50)],
        ] {
            metrics.set(&totals(90), &entries, name);
            assert_eq!(["eth2", ""].map(|device| value(&metrics, device)), [30, 10]);
        }
    }

    #[test]
    fn what_belongs_to_no_device_never_goes_back() {
        let mut metrics = metrics();
        metrics.set(&totals(20), &[drops(0, 20)], name);
        // The device has counted one more packet than the total, which was read first.
        metrics.set(&totals(20), &[drops(0, 20), drops(2, 1)], name);
        assert_eq!(["eth2", ""].map(|device| value(&metrics, device)), [1, 20]);
    }
}
