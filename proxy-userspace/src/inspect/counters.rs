//! `shunt counter list`: COUNTERS summed over all CPUs, followed by DROPS per device.

use std::io::{self, Write};

use proxy_common::{Counter, map};
use serde::Serialize;

use super::{
    InspectError,
    drops::{self, DeviceDrops},
    per_cpu,
    pins::Pins,
    table::print_table_into,
};

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct CounterView {
    pub name: &'static str,
    pub value: u64,
    /// Absent in totals.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub device: Option<String>,
}

/// Every counter, including those at zero; then refusals and drops per device. So a search by name finds the total first.
pub fn read(pins: &Pins) -> Result<Vec<CounterView>, InspectError> {
    let mut views = views(&totals(pins)?);
    views.extend(drops::read(pins)?.iter().filter_map(of_device));
    Ok(views)
}

/// The totals by counter number.
pub fn totals(pins: &Pins) -> Result<Vec<u64>, InspectError> {
    let counters = pins.map(map::COUNTERS)?;
    let mut sums = vec![0; counters.info().max_entries as usize];
    counters
        .for_each(|key, value| {
            if let Some(sum) = sums.get_mut(bytemuck::pod_read_unaligned::<u32>(key) as usize) {
                *sum = per_cpu::sum(value);
            }
        })
        .map_err(|error| InspectError::io("reading the map", pins.maps().join(map::COUNTERS), error))?;
    Ok(sums)
}

fn of_device(drops: &DeviceDrops) -> Option<CounterView> {
    let device = Some(drops::device_text(drops.ifindex));
    Some(CounterView { name: drops.reason()?.name(), value: drops.packets, device })
}

fn views(sums: &[u64]) -> Vec<CounterView> {
    let view = |counter: &Counter| CounterView {
        name: counter.name(),
        value: sums.get(*counter as usize).copied().unwrap_or(0),
        device: None,
    };
    Counter::ALL.iter().map(view).collect()
}

/// The totals; with `wide` also the values per device.
pub fn print_counters_into(
    out: &mut impl Write,
    views: &[CounterView],
    headers: bool,
    wide: bool,
) -> io::Result<()> {
    let mut header = vec!["COUNTER", "VALUE"];
    header.extend(wide.then_some("DEVICE"));
    let shown = views.iter().filter(|view| wide || view.device.is_none());
    let rows = shown.map(|view| {
        let mut row = vec![view.name.to_owned(), view.value.to_string()];
        row.extend(view.device.clone());
        row
    });
    print_table_into(out, headers, &header, rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn printed(views: &[CounterView], wide: bool) -> String {
        let mut out = Vec::new();
        print_counters_into(&mut out, views, true, wide).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn every_counter_is_named() {
        let views = views(&[7]);
        assert_eq!(views.len(), Counter::ALL.len());
        assert_eq!(printed(&views[..2], false), "COUNTER       VALUE\nflow_new      7\nflow_direct   0\n");
    }

    #[test]
    fn devices_follow_the_totals_only_in_the_wide_table() {
        let total = views(&[0, 0, 0, 0, 0, 5]).swap_remove(Counter::NoBackend as usize);
        let drops = DeviceDrops { ifindex: 0, reason: Counter::NoBackend as u32, packets: 3 };
        let views = [total, of_device(&drops).unwrap()];
        assert_eq!(printed(&views, false), "COUNTER      VALUE\nno_backend   5\n");
        assert_eq!(
            printed(&views, true),
            "COUNTER      VALUE   DEVICE\nno_backend   5\nno_backend   3       (sockets)\n"
        );
        let json = serde_json::to_string(&views).unwrap();
        assert_eq!(
            json,
            r#"[{"name":"no_backend","value":5},{"name":"no_backend","value":3,"device":"(sockets)"}]"#
        );
    }
}
