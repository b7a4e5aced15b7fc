//! `shunt counter list`: COUNTERS summed over the CPUs.

use std::io::{self, Write};

use proxy_common::{Counter, map};
use serde::Serialize;

use super::{InspectError, pins::Pins, table::print_table_into};

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct CounterView {
    pub name: &'static str,
    pub value: u64,
}

/// Every counter, those at zero too.
pub fn read(pins: &Pins) -> Result<Vec<CounterView>, InspectError> {
    let counters = pins.map(map::COUNTERS)?;
    let mut sums = vec![0; counters.info().max_entries as usize];
    counters
        .for_each(|key, value| {
            if let Some(sum) = sums.get_mut(bytemuck::pod_read_unaligned::<u32>(key) as usize) {
                *sum = sum_of_cpus(value);
            }
        })
        .map_err(|error| InspectError::io("reading the map", pins.maps().join(map::COUNTERS), error))?;
    Ok(views(&sums))
}

/// One CPU's count after the other.
fn sum_of_cpus(value: &[u8]) -> u64 {
    value.chunks_exact(8).map(bytemuck::pod_read_unaligned::<u64>).fold(0, u64::wrapping_add)
}

fn views(sums: &[u64]) -> Vec<CounterView> {
    let view = |counter: &Counter| CounterView {
        name: counter.name(),
        value: sums.get(*counter as usize).copied().unwrap_or(0),
    };
    Counter::ALL.iter().map(view).collect()
}

pub fn print_counters_into(out: &mut impl Write, views: &[CounterView], headers: bool) -> io::Result<()> {
    let rows = views.iter().map(|view| vec![view.name.to_owned(), view.value.to_string()]);
    print_table_into(out, headers, &["COUNTER", "VALUE"], rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpus_are_summed_and_every_counter_is_named() {
        let cpus: Vec<u8> = [3u64, 4].iter().flat_map(|count| count.to_ne_bytes()).collect();
        assert_eq!(sum_of_cpus(&cpus), 7);
        let views = views(&[7]);
        assert_eq!(views.len(), Counter::ALL.len());
        let mut out = Vec::new();
        print_counters_into(&mut out, &views[..2], true).unwrap();
        assert_eq!(
            String::from_utf8(out).unwrap(),
            "COUNTER       VALUE\nflow_new      7\nflow_direct   0\n"
        );
    }
}
