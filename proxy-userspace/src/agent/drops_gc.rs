//! Garbage collection of DROPS: entries of removed devices are added to [`DropKey::GONE`], so that the sum over a reason
//! stays the same. Pods come and go, and the map's size is limited.
//!
//! Called at each repair.

use std::{
    collections::{BTreeMap, HashSet},
    io,
};

use bytemuck::{bytes_of, pod_read_unaligned};
use nix::net::if_::if_nameindex;
use proxy_common::{DropKey, map};

use crate::{bpf::map::RawMap, datapath::load::Loaded, inspect::per_cpu, metrics::METRICS};

/// Folds the entries of removed devices; returns their number.
pub fn fold_removed_devices(loaded: &Loaded) -> io::Result<usize> {
    let drops = loaded.store.map(map::DROPS).map_err(io::Error::other)?;
    let mut entries: Vec<(DropKey, u64)> = Vec::new();
    drops.for_each(|key, value| entries.push((pod_read_unaligned(key), per_cpu::sum(value))))?;
    // Devices are listed after their entries are read: a new device must not count as removed.
    let devices: HashSet<u32> = if_nameindex()?.iter().map(|device| device.index()).collect();
    let gone: Vec<_> = entries.into_iter().filter(|(key, _)| is_gone(key.ifindex, &devices)).collect();
    if gone.is_empty() {
        return Ok(0);
    }
    // Between delete and update the counts are nowhere, and a scrape would report drops of no device. While one is in
    // progress, this waits for the next repair.
    match METRICS.unless_scraped(|| fold(drops, &gone)) {
        Some(done) => done.map(|()| gone.len()),
        None => Ok(0),
    }
}

fn is_gone(ifindex: u32, devices: &HashSet<u32>) -> bool {
    ifindex != 0 && ifindex != DropKey::GONE && !devices.contains(&ifindex)
}

/// Deletes first, because the map may be full.
fn fold(drops: &RawMap, gone: &[(DropKey, u64)]) -> io::Result<()> {
    let mut sums: BTreeMap<u32, u64> = BTreeMap::new();
    for (key, packets) in gone {
        if drops.delete(bytes_of(key))? {
            *sums.entry(key.reason).or_default() += packets;
        }
    }
    for (reason, packets) in sums {
        let key = DropKey { ifindex: DropKey::GONE, reason };
        let before = drops.lookup(bytes_of(&key))?.map_or(0, |value| per_cpu::sum(&value));
        // One CPU's value is enough: no program writes this entry.
        let mut value = vec![0; drops.value_len()];
        value[..size_of::<u64>()].copy_from_slice(&before.wrapping_add(packets).to_ne_bytes());
        drops.update(bytes_of(&key), &value)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_devices_can_be_gone() {
        let devices = HashSet::from([1, 7]);
        assert_eq!(
            [1, 2, 7, 0, DropKey::GONE].map(|ifindex| is_gone(ifindex, &devices)),
            [false, true, false, false, false]
        );
    }
}
