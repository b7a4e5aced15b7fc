//! The service id of each service port and family, from its allocation until nothing names it any more.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Instant,
};

use super::ids::IdPool;
use crate::model::{Family, Protocol, ServiceKey};

/// The service port and family of a service id.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PortKey {
    pub service: ServiceKey,
    pub port_name: Arc<str>,
    pub protocol: Protocol,
    pub family: Family,
}

/// Ids in use and retired.
#[derive(Debug)]
pub struct ServiceIds {
    pool: IdPool,
    ids: HashMap<PortKey, u32>,
    keys: HashMap<u32, PortKey>,
    /// Retired ids and since when the store no longer names them; `None` until that is written.
    retired: HashMap<u32, Option<Instant>>,
    /// Ids that no written frontend has named yet.
    fresh: HashSet<u32>,
    /// Found in the store, of ports that have not been compiled yet.
    adopted: HashSet<u32>,
}

impl ServiceIds {
    pub fn new(len: u32) -> Self {
        Self {
            pool: IdPool::new(len),
            ids: HashMap::new(),
            keys: HashMap::new(),
            retired: HashMap::new(),
            fresh: HashSet::new(),
            adopted: HashSet::new(),
        }
    }

    pub fn available(&self) -> usize {
        self.pool.available()
    }

    pub fn is_valid(&self, id: u32) -> bool {
        self.pool.is_valid(id)
    }

    pub fn get(&self, key: &PortKey) -> Option<u32> {
        self.ids.get(key).copied()
    }

    pub fn key(&self, id: u32) -> Option<&PortKey> {
        self.keys.get(&id)
    }

    /// Returns the port's id, and whether its counters start again. A port that comes back before its id was freed
    /// keeps the id but counts as new, unless only this process was away.
    pub fn acquire(&mut self, key: PortKey) -> Option<(u32, bool)> {
        if let Some(id) = self.get(&key) {
            let was_gone = self.retired.remove(&id).is_some();
            let was_there = self.adopted.remove(&id);
            return Some((id, was_gone && !was_there));
        }
        let id = self.pool.take()?;
        self.keys.insert(id, key.clone());
        self.ids.insert(key, id);
        self.fresh.insert(id);
        Some((id, true))
    }

    /// The port is gone; its id stays reserved until [`free_unused`](Self::free_unused). Returns false if nothing can
    /// have named it: then it is free at once.
    pub fn retire(&mut self, id: u32) -> bool {
        if self.fresh.remove(&id) {
            self.free(id);
            return false;
        }
        self.retired.insert(id, None);
        true
    }

    /// Frontends were written: packets may use any id from now on.
    pub fn named(&mut self) {
        self.fresh.clear();
    }

    fn free(&mut self, id: u32) {
        self.adopted.remove(&id);
        if let Some(key) = self.keys.remove(&id)
            && self.get(&key) == Some(id)
        {
            self.ids.remove(&key);
        }
        self.pool.give_back(id);
    }

    /// The store no longer sends new flows to retired ids.
    pub fn flushed(&mut self, now: Instant) {
        self.retired.values_mut().filter(|since| since.is_none()).for_each(|since| *since = Some(now));
    }

    /// Frees the ids retired before `before` that are not in use; returns them.
    pub fn free_unused(&mut self, before: Instant, in_use: &HashSet<u32>) -> Vec<u32> {
        let unused = |(id, since): (&u32, &Option<Instant>)| {
            (since.is_some_and(|since| since <= before) && !in_use.contains(id)).then_some(*id)
        };
        let mut freed: Vec<u32> = self.retired.iter().filter_map(unused).collect();
        freed.sort_unstable();
        for id in &freed {
            self.retired.remove(id);
            self.free(*id);
        }
        freed
    }

    pub fn has_retired(&self) -> bool {
        !self.retired.is_empty()
    }

    /// Ids found in the store whose port does not exist: a port that takes one later counts as new.
    pub fn take_unclaimed(&mut self) -> HashSet<u32> {
        std::mem::take(&mut self.adopted)
    }

    /// Takes over the ids found in the store; once, before any other call. All count as retired until their port is
    /// compiled; a port that was already gone (`true`) counts as new. If a port has several ids, which an interrupted
    /// write may leave, the first is used.
    pub fn adopt(&mut self, found: Vec<(u32, PortKey, bool)>) {
        for (id, key, was_gone) in found {
            self.ids.entry(key.clone()).or_insert(id);
            self.keys.insert(id, key);
            self.retired.insert(id, None);
            if !was_gone {
                self.adopted.insert(id);
            }
        }
        self.pool.adopt(&self.keys.keys().copied().collect());
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn key(name: &str) -> PortKey {
        let service = ServiceKey::new("default", name);
        PortKey { service, port_name: "".into(), protocol: Protocol::Tcp, family: Family::V4 }
    }

    #[test]
    fn a_retired_id_is_kept_until_nothing_names_it() {
        let mut ids = ServiceIds::new(10);
        let (id, new) = ids.acquire(key("a")).unwrap();
        assert!(new);
        ids.named();
        assert!(ids.retire(id));
        let now = Instant::now();
        assert!(ids.free_unused(now, &HashSet::new()).is_empty(), "not written yet");
        ids.flushed(now);
        assert!(ids.free_unused(now - Duration::from_secs(1), &HashSet::new()).is_empty(), "dump was before");
        assert!(ids.free_unused(now, &HashSet::from([id])).is_empty(), "still named");
        assert_eq!(ids.acquire(key("a")), Some((id, true)), "the same id, with new counters");
        assert_eq!(ids.acquire(key("a")), Some((id, false)));
        ids.retire(id);
        ids.flushed(now);
        assert_eq!(ids.free_unused(now, &HashSet::new()), [id]);
        assert_eq!(ids.get(&key("a")), None);
    }

    #[test]
    fn what_was_there_before_us_goes_on_counting() {
        let mut ids = ServiceIds::new(10);
        ids.adopt(vec![(4, key("a"), false), (5, key("b"), false), (6, key("c"), true)]);
        assert_eq!(ids.acquire(key("a")), Some((4, false)));
        assert_eq!(ids.acquire(key("c")), Some((6, true)), "it was gone before we were");
        assert_eq!(ids.take_unclaimed(), HashSet::from([5]));
        ids.named();
        ids.retire(4);
        assert_eq!(ids.acquire(key("a")), Some((4, true)));
        let now = Instant::now();
        ids.flushed(now);
        assert_eq!(ids.free_unused(now, &HashSet::new()), [5]);
        assert!(ids.acquire(key("b")).is_some_and(|(_, is_new)| is_new));
    }

    #[test]
    fn an_id_that_nothing_can_have_named_is_free_at_once() {
        let mut ids = ServiceIds::new(2);
        let (id, _) = ids.acquire(key("a")).unwrap();
        assert!(!ids.retire(id));
        assert!(!ids.has_retired());
        assert_eq!(ids.acquire(key("b")), Some((id, true)));
    }
}
