//! Maps in memory, for `shunt compile` and for tests, which can make writes fail.

use std::collections::{BTreeMap, HashMap};

use proxy_common::map;

use super::{MapError, MapStore, Op, RawEntries};

/// Maps whose elements always exist and start as zeros.
const ARRAYS: [&str; 5] = [map::SLOTS, map::BACKENDS, map::SERVICES, map::PORTS, map::NODE_CONFIG];

/// A [`MapStore`] without a kernel.
#[derive(Clone, Debug, Default)]
pub struct MemoryStore {
    maps: HashMap<&'static str, BTreeMap<Vec<u8>, Vec<u8>>>,
    limits: HashMap<&'static str, u32>,
    fail_after: Option<usize>,
    /// Every op carried out, in order.
    log: Vec<Op>,
}

impl MemoryStore {
    /// From now on `map` accepts at most `max` entries.
    pub fn limit(&mut self, map: &'static str, max: u32) {
        self.limits.insert(map, max);
    }

    /// The write after `ops` more fails, once.
    pub fn fail_after(&mut self, ops: usize) {
        self.fail_after = Some(ops);
    }

    /// Cancels a failure that has not happened yet.
    pub fn never_fail(&mut self) {
        self.fail_after = None;
    }

    /// The ops carried out since the last call.
    pub fn take_log(&mut self) -> Vec<Op> {
        std::mem::take(&mut self.log)
    }

    /// What `map` holds.
    pub fn entries(&self, map: &'static str) -> impl Iterator<Item = (&Vec<u8>, &Vec<u8>)> {
        self.maps.get(map).into_iter().flatten()
    }

    fn carry_out(&mut self, op: &Op) -> Result<(), MapError> {
        match &mut self.fail_after {
            Some(0) => {
                self.fail_after = None;
                let source = std::io::Error::other("as the test asked");
                return Err(MapError::Io { map: op.map(), action: "writing", source });
            }
            Some(left) => *left -= 1,
            None => {}
        }
        let entries = self.maps.entry(op.map()).or_default();
        match op {
            Op::Put { map, key, value } => {
                let max = self.limits.get(map).copied().unwrap_or(u32::MAX);
                if ARRAYS.contains(map) && value.iter().all(|b| *b == 0) {
                    entries.remove(key);
                } else if !entries.contains_key(key) && entries.len() >= max as usize {
                    return Err(MapError::Full { map, max });
                } else {
                    entries.insert(key.clone(), value.clone());
                }
            }
            Op::Delete { key, .. } => drop(entries.remove(key)),
        }
        self.log.push(op.clone());
        Ok(())
    }
}

impl MapStore for MemoryStore {
    fn read(&mut self, map: &'static str) -> Result<RawEntries, MapError> {
        Ok(self.maps.get(map).map(|m| m.clone().into_iter().collect()).unwrap_or_default())
    }

    fn write(&mut self, ops: &[Op]) -> Result<(), (usize, MapError)> {
        for (done, op) in ops.iter().enumerate() {
            self.carry_out(op).map_err(|error| (done, error))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(map: &'static str, key: u8, value: u8) -> Op {
        Op::Put { map, key: vec![key], value: vec![value] }
    }

    #[test]
    fn a_full_map_refuses_new_keys_only() {
        let mut store = MemoryStore::default();
        store.limit(map::FRONTENDS, 1);
        store.write(&[put(map::FRONTENDS, 1, 1), put(map::FRONTENDS, 1, 2)]).unwrap();
        let (done, error) = store.write(&[put(map::FRONTENDS, 2, 1)]).unwrap_err();
        assert_eq!(done, 0);
        assert!(matches!(error, MapError::Full { map: map::FRONTENDS, max: 1 }));
    }

    #[test]
    fn zeroed_elements_of_an_array_read_as_nothing() {
        let mut store = MemoryStore::default();
        store.write(&[put(map::SLOTS, 1, 1), put(map::SLOTS, 1, 0)]).unwrap();
        assert!(store.read(map::SLOTS).unwrap().is_empty());
        store.fail_after(1);
        assert_eq!(store.write(&[put(map::SLOTS, 1, 1), put(map::SLOTS, 2, 1)]).unwrap_err().0, 1);
        store.write(&[put(map::SLOTS, 2, 1)]).unwrap();
    }
}
