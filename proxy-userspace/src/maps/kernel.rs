//! The kernel's maps as a [`MapStore`], used by `shunt run`.
//!
//! Runs of operations of one kind on one map become one batch. The order between runs is kept, because the programs
//! read while they are written.

use std::{collections::BTreeMap, io, os::fd::OwnedFd, path::Path};

use super::{MapError, MapStore, Op, RawEntries};
use crate::bpf::map::{PartialWrite, RawMap};

/// Open maps by name.
#[derive(Debug, Default)]
pub struct KernelStore {
    maps: BTreeMap<&'static str, RawMap>,
}

impl KernelStore {
    /// Opens `names` as pinned under `dir`.
    pub fn open(dir: &Path, names: &[&'static str]) -> Result<Self, MapError> {
        let mut store = Self::default();
        for &map in names {
            let raw = RawMap::open(&dir.join(map)).map_err(|source| MapError::Io {
                map,
                action: "open",
                source,
            })?;
            store.maps.insert(map, raw);
        }
        Ok(store)
    }

    /// Adds a map by its descriptor.
    pub fn insert(&mut self, map: &'static str, fd: OwnedFd) -> Result<(), MapError> {
        let raw = RawMap::new(fd).map_err(|source| MapError::Io { map, action: "open", source })?;
        self.maps.insert(map, raw);
        Ok(())
    }

    /// The open map of this name.
    pub fn map(&self, map: &'static str) -> Result<&RawMap, MapError> {
        self.maps.get(map).ok_or(MapError::Missing { map })
    }

    fn failed(&self, map: &'static str, action: &'static str, source: io::Error) -> MapError {
        match (source.raw_os_error(), self.maps.get(map)) {
            // Hash maps answer E2BIG, LPM tries ENOSPC.
            (Some(libc::E2BIG | libc::ENOSPC), Some(raw)) if action == "write" => {
                MapError::Full { map, max: raw.info().max_entries }
            }
            _ => MapError::Io { map, action, source },
        }
    }
}

impl MapStore for KernelStore {
    fn read(&mut self, map: &'static str) -> Result<RawEntries, MapError> {
        let raw = self.map(map)?;
        let sparse = raw.is_array();
        let mut entries = RawEntries::new();
        raw.for_each(|key, value| {
            if !sparse || value.iter().any(|b| *b != 0) {
                entries.push((key.to_vec(), value.to_vec()));
            }
        })
        .map_err(|source| self.failed(map, "read", source))?;
        Ok(entries)
    }

    fn write(&mut self, ops: &[Op]) -> Result<(), (usize, MapError)> {
        let mut done = 0;
        for run in runs(ops) {
            let (map, action) = match &run[0] {
                Op::Put { map, .. } => (*map, "write"),
                Op::Delete { map, .. } => (*map, "delete from"),
            };
            let result = self.map(map).map_err(|e| (done, e))?.write_run(run);
            if let Err(PartialWrite { done: some, source }) = result {
                return Err((done + some, self.failed(map, action, source)));
            }
            done += run.len();
        }
        Ok(())
    }
}

impl RawMap {
    fn write_run(&self, run: &[Op]) -> Result<(), PartialWrite> {
        match run {
            [] => Ok(()),
            [Op::Put { key, value, .. }] => {
                self.update(key, value).map_err(|source| PartialWrite { done: 0, source })
            }
            [Op::Delete { key, .. }] => {
                self.delete(key).map(drop).map_err(|source| PartialWrite { done: 0, source })
            }
            [Op::Put { .. }, ..] => self.update_all(run.iter().map(|op| match op {
                Op::Put { key, value, .. } => (key.as_slice(), value.as_slice()),
                Op::Delete { .. } => unreachable!("a run has one kind"),
            })),
            [Op::Delete { .. }, ..] => self.delete_all(run.iter().map(|op| op_key(op).1)).map(drop),
        }
    }
}

fn op_key(op: &Op) -> (&'static str, &[u8]) {
    match op {
        Op::Put { map, key, .. } | Op::Delete { map, key } => (map, key),
    }
}

/// Splits `ops` into the longest runs of one kind on one map.
fn runs(ops: &[Op]) -> impl Iterator<Item = &[Op]> {
    ops.chunk_by(|a, b| {
        op_key(a).0 == op_key(b).0 && matches!(a, Op::Put { .. }) == matches!(b, Op::Put { .. })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(map: &'static str, key: u8) -> Op {
        Op::Put { map, key: vec![key], value: vec![0] }
    }

    #[test]
    fn runs_keep_order_and_split_by_map_and_kind() {
        let ops = [
            put("A", 1),
            put("A", 2),
            put("B", 1),
            Op::Delete { map: "B", key: vec![1] },
            Op::Delete { map: "B", key: vec![2] },
            put("A", 3),
        ];
        let lengths: Vec<_> = runs(&ops).map(<[Op]>::len).collect();
        assert_eq!(lengths, [2, 1, 2, 1]);
        assert_eq!(runs(&ops).flatten().cloned().collect::<Vec<_>>(), ops);
        assert_eq!(runs(&[]).count(), 0);
    }

    #[test]
    fn a_map_that_is_not_open_is_named() {
        let (done, error) = KernelStore::default().write(&[put("A", 1)]).unwrap_err();
        assert_eq!((done, error.to_string().as_str()), (0, "map A is not open"));
    }
}
