//! One map's desired contents, and where the store differs from them.
//!
//! The only diff of the project. It knows neither Services nor the kernel: keys and values are anything that converts
//! to bytes and back.

use std::{collections::HashMap, hash::Hash};

use crate::maps::{Op, RawEntries};

/// A key or value that a map stores as bytes.
pub trait Record: Clone + Eq {
    fn to_bytes(&self) -> Vec<u8>;
    /// `None` if the bytes are invalid.
    fn from_bytes(bytes: &[u8]) -> Option<Self>;
}

impl<T: bytemuck::Pod + Eq> Record for T {
    fn to_bytes(&self) -> Vec<u8> {
        bytemuck::bytes_of(self).to_vec()
    }

    fn from_bytes(bytes: &[u8]) -> Option<Self> {
        bytemuck::try_pod_read_unaligned(bytes).ok()
    }
}

/// What a map must hold (desired) and what it holds (applied).
///
/// Applied is kept only where it differs: a key that is not `stale` is in the store as desired.
#[derive(Debug)]
pub struct Table<K, V> {
    map: &'static str,
    /// Elements of an array cannot be deleted: they are zeroed.
    is_array: bool,
    desired: HashMap<K, V>,
    /// What the store holds instead of the desired value; `None`: nothing.
    stale: HashMap<K, Option<V>>,
    /// Keys in the store that are not desired.
    leaving: usize,
}

impl<K: Record + Hash + Ord, V: Record> Table<K, V> {
    pub fn hash(map: &'static str) -> Self {
        Self { map, is_array: false, desired: HashMap::new(), stale: HashMap::new(), leaving: 0 }
    }

    pub fn array(map: &'static str) -> Self {
        Self { is_array: true, ..Self::hash(map) }
    }

    pub fn map(&self) -> &'static str {
        self.map
    }

    /// The desired value.
    pub fn get(&self, key: &K) -> Option<&V> {
        self.desired.get(key)
    }

    /// The value in the store, as far as known.
    pub fn applied(&self, key: &K) -> Option<&V> {
        self.stale.get(key).map_or_else(|| self.desired.get(key), Option::as_ref)
    }

    /// All keys and values in the store, as far as known, in order of their keys.
    pub fn applied_entries(&self) -> Vec<(K, V)> {
        let fresh = self.desired.iter().filter(|(k, _)| !self.stale.contains_key(k));
        let stale = self.stale.iter().filter_map(|(k, v)| Some((k, v.as_ref()?)));
        let mut entries: Vec<_> = fresh.chain(stale).map(|(k, v)| (k.clone(), v.clone())).collect();
        entries.sort_unstable_by(|a, b| a.0.cmp(&b.0));
        entries
    }

    /// All desired keys and values, in order of their keys.
    pub fn entries(&self) -> Vec<(&K, &V)> {
        let mut entries: Vec<_> = self.desired.iter().collect();
        entries.sort_unstable_by(|a, b| a.0.cmp(b.0));
        entries
    }

    pub fn len(&self) -> usize {
        self.desired.len()
    }

    pub fn is_empty(&self) -> bool {
        self.desired.is_empty()
    }

    /// The maximum number of entries in the store while a diff is written: deletions come last.
    pub fn occupied(&self) -> usize {
        self.desired.len() + self.leaving
    }

    /// Whether the key already occupies an entry in the store.
    pub fn occupies(&self, key: &K) -> bool {
        self.desired.contains_key(key) || self.is_leaving(key)
    }

    pub fn set(&mut self, key: K, value: V) {
        self.change(key, Some(value));
    }

    pub fn remove(&mut self, key: &K) {
        if self.desired.contains_key(key) {
            self.change(key.clone(), None);
        }
    }

    fn change(&mut self, key: K, value: Option<V>) {
        let was_leaving = self.is_leaving(&key);
        let old = match &value {
            Some(value) if self.desired.get(&key) == Some(value) => return,
            Some(value) => self.desired.insert(key.clone(), value.clone()),
            None => self.desired.remove(&key),
        };
        let applied = self.stale.entry(key.clone()).or_insert(old);
        if *applied == value {
            self.stale.remove(&key);
        }
        self.count_leaving(&key, was_leaving);
    }

    /// Sets the applied contents to what was read from the store.
    pub fn load(&mut self, entries: RawEntries) {
        self.stale.clear();
        let decoded = entries.iter().filter_map(|(k, v)| Some((K::from_bytes(k)?, V::from_bytes(v)?)));
        let found: HashMap<K, V> = decoded.collect();
        for (key, value) in &self.desired {
            let is_zero_element = || self.is_array && value.to_bytes().iter().all(|b| *b == 0);
            if !found.contains_key(key) && !is_zero_element() {
                self.stale.insert(key.clone(), None);
            }
        }
        for (key, value) in found {
            if self.desired.get(&key) != Some(&value) {
                self.stale.insert(key, Some(value));
            }
        }
        self.leaving = self.stale.keys().filter(|key| !self.desired.contains_key(key)).count();
    }

    /// Writes of desired values that differ and that `wanted` accepts (given what is applied), by key.
    pub fn puts_where(&self, ops: &mut Vec<Op>, wanted: impl Fn(&V, Option<&V>) -> bool) {
        self.puts_as(ops, |value, applied| wanted(value, applied).then(|| value.clone()));
    }

    /// Writes of desired values that differ, by key.
    pub fn puts(&self, ops: &mut Vec<Op>) {
        self.puts_where(ops, |_, _| true);
    }

    /// Writes of what `write` makes of each desired value that differs (given what is applied), by key.
    pub fn puts_as(&self, ops: &mut Vec<Op>, write: impl Fn(&V, Option<&V>) -> Option<V>) {
        let changed = self.stale.iter().filter_map(|(key, applied)| {
            Some((key, write(self.desired.get(key)?, applied.as_ref())?.to_bytes()))
        });
        let mut puts: Vec<_> = changed.collect();
        puts.sort_unstable_by(|a, b| a.0.cmp(b.0));
        let put = |(key, value): (&K, _)| Op::Put { map: self.map, key: key.to_bytes(), value };
        ops.extend(puts.into_iter().map(put));
    }

    /// Deletions of what is not desired, by key.
    pub fn deletes(&self, ops: &mut Vec<Op>) {
        let stale = self.stale.iter().filter(|(key, _)| !self.desired.contains_key(key));
        let mut gone: Vec<_> = stale.filter_map(|(key, applied)| Some((key, applied.as_ref()?))).collect();
        gone.sort_unstable_by(|a, b| a.0.cmp(b.0));
        ops.extend(gone.into_iter().map(|(key, applied)| {
            let key = key.to_bytes();
            if self.is_array {
                Op::Put { map: self.map, key, value: vec![0; applied.to_bytes().len()] }
            } else {
                Op::Delete { map: self.map, key }
            }
        }));
    }

    /// The store carried out `op`, which belongs to this table.
    pub fn commit(&mut self, op: &Op) {
        let (key, value) = match op {
            Op::Put { key, value, .. } => (K::from_bytes(key), Some(value)),
            Op::Delete { key, .. } => (K::from_bytes(key), None),
        };
        let Some(key) = key else { return };
        let is_zeroed = self.is_array && value.is_some_and(|value| value.iter().all(|b| *b == 0));
        let applied = if is_zeroed && !self.desired.contains_key(&key) {
            None
        } else {
            value.and_then(|value| V::from_bytes(value))
        };
        let was_leaving = self.is_leaving(&key);
        if self.desired.get(&key) == applied.as_ref() {
            self.stale.remove(&key);
        } else {
            self.stale.insert(key.clone(), applied);
        }
        self.count_leaving(&key, was_leaving);
    }

    fn is_leaving(&self, key: &K) -> bool {
        !self.desired.contains_key(key) && matches!(self.stale.get(key), Some(Some(_)))
    }

    fn count_leaving(&mut self, key: &K, was_leaving: bool) {
        match (was_leaving, self.is_leaving(key)) {
            (false, true) => self.leaving += 1,
            (true, false) => self.leaving -= 1,
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    /// Applies ops as a store does.
    fn replay(store: &mut BTreeMap<Vec<u8>, Vec<u8>>, ops: &[Op]) {
        for op in ops {
            match op {
                Op::Put { key, value, .. } => drop(store.insert(key.clone(), value.clone())),
                Op::Delete { key, .. } => drop(store.remove(key)),
            }
        }
    }

    fn diff(table: &Table<u32, u32>) -> Vec<Op> {
        let mut ops = Vec::new();
        table.puts(&mut ops);
        table.deletes(&mut ops);
        ops
    }

    fn held(table: &Table<u32, u32>) -> BTreeMap<Vec<u8>, Vec<u8>> {
        table.entries().into_iter().map(|(k, v)| (k.to_bytes(), v.to_bytes())).collect()
    }

    proptest! {
        /// Any changes, with a store that stops at any op and is read back at any time: the diff replayed
        /// onto a copy of the store is what is desired, and then nothing is left to write.
        #[test]
        fn replaying_the_diff_gives_what_is_desired(
            is_array: bool,
            start in prop::collection::btree_map(0u32..12, 1u32..4, 0..10),
            steps in prop::collection::vec((0u32..12, 0u32..4, prop::option::of(0usize..6), any::<bool>()), 0..40),
        ) {
            let mut table = if is_array { Table::array("T") } else { Table::hash("T") };
            let mut store: BTreeMap<Vec<u8>, Vec<u8>> =
                start.iter().map(|(k, v)| (k.to_bytes(), v.to_bytes())).collect();
            table.load(store.clone().into_iter().collect());
            for (key, value, flush, reload) in steps {
                if value == 0 { table.remove(&key) } else { table.set(key, value) }
                if let Some(done) = flush {
                    let ops = diff(&table);
                    let done = &ops[..done.min(ops.len())];
                    replay(&mut store, done);
                    done.iter().for_each(|op| table.commit(op));
                }
                let real = |v: &Vec<u8>| !is_array || v.iter().any(|b| *b != 0);
                store.retain(|_, v| real(v));
                if reload {
                    table.load(store.clone().into_iter().collect());
                }
                let union: std::collections::BTreeSet<_> = store.keys().cloned().chain(held(&table).into_keys()).collect();
                prop_assert_eq!(table.occupied(), union.len());
            }
            let ops = diff(&table);
            replay(&mut store, &ops);
            store.retain(|_, v| !is_array || v.iter().any(|b| *b != 0));
            prop_assert_eq!(&store, &held(&table));
            ops.iter().for_each(|op| table.commit(op));
            prop_assert!(diff(&table).is_empty());
            prop_assert_eq!(table.occupied(), table.len());
        }
    }

    #[test]
    fn what_goes_and_comes_back_unchanged_is_not_written() {
        let mut table = Table::hash("T");
        table.load(vec![(7u32.to_bytes(), 1u32.to_bytes())]);
        assert_eq!(diff(&table), [Op::Delete { map: "T", key: 7u32.to_bytes() }]);
        table.set(7u32, 1u32);
        assert!(diff(&table).is_empty());
        table.remove(&7);
        table.set(7, 1);
        assert!(diff(&table).is_empty());
    }
}
