//! Where in SLOTS the backend sets of each service id stand.
//!
//! A range is never rewritten while a frontend names it: a changed set gets a new range, and the old one is freed once no
//! packet can be reading it.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    time::{Duration, Instant},
};

use super::{
    slots::{Range, SlotAllocator},
    table::Table,
};

/// The two sets of a service port.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SetRanges {
    pub cluster: Range,
    pub local: Range,
}

/// The table that holds the sets.
type Slots = Table<u32, u32>;

/// Ranges in use, and those on their way to being free.
#[derive(Debug)]
pub struct SlotSets {
    allocator: SlotAllocator,
    by_service: HashMap<u32, SetRanges>,
    /// Service ids whose ranges were found in the store and that no Service has asked for yet.
    unclaimed: HashSet<u32>,
    /// Ranges that frontends stop naming with the next write.
    released: Vec<Range>,
    /// Ranges that no frontend has named since.
    aging: VecDeque<(Instant, Range)>,
}

impl SlotSets {
    pub fn new(len: u32) -> Self {
        Self {
            allocator: SlotAllocator::new(len),
            by_service: HashMap::new(),
            unclaimed: HashSet::new(),
            released: Vec::new(),
            aging: VecDeque::new(),
        }
    }

    pub fn get(&self, id: u32) -> Option<SetRanges> {
        self.by_service.get(&id).copied()
    }

    /// A new range of `len` slots, added to `fresh`; `None` when there is no room.
    pub fn allocate(&mut self, len: usize, fresh: &mut Vec<Range>) -> Option<Range> {
        let range = self.allocator.allocate(len as u32)?;
        fresh.push(range);
        Some(range)
    }

    /// Returns ranges that nothing names.
    pub fn give_back(&mut self, ranges: Vec<Range>) {
        ranges.into_iter().for_each(|range| self.allocator.free(range));
    }

    /// Makes `new` the ranges of `id`, and returns those it had.
    pub fn assign(&mut self, id: u32, new: SetRanges) -> SetRanges {
        self.unclaimed.remove(&id);
        self.by_service.insert(id, new).unwrap_or_default()
    }

    /// Writes a set to `new`, unless that is its present range, and releases `old`.
    pub fn fill(&mut self, old: Range, new: Range, set: &[u32], backend_ids: &[u32], slots: &mut Slots) {
        if old == new {
            return;
        }
        self.released.push(old);
        for (slot, i) in new.indices().zip(set) {
            slots.set(slot, backend_ids[*i as usize]);
        }
    }

    /// The service id is no longer served.
    pub fn release(&mut self, id: u32) {
        if let Some(SetRanges { cluster, local }) = self.by_service.remove(&id) {
            self.released.extend([cluster, local]);
        }
    }

    /// Takes over the ranges that a frontend found in the store names. All frontends of a service id name the same ranges,
    /// unless a write stopped halfway: then the first pair is kept, and any other stays reserved until no frontend names it.
    /// `is_known`: the id belongs to a service port.
    pub fn adopt(
        &mut self,
        id: u32,
        named: SetRanges,
        is_known: bool,
        slots: &mut Slots,
    ) -> Option<SetRanges> {
        if self.by_service.get(&id) == Some(&named) {
            return None;
        }
        if !is_known || self.by_service.contains_key(&id) {
            return Some(named);
        }
        match (self.reserve(named.cluster, slots), self.reserve(named.local, slots)) {
            (true, true) => {
                self.by_service.insert(id, named);
                self.unclaimed.insert(id);
            }
            (true, false) => self.released.push(named.cluster),
            (false, true) => self.released.push(named.local),
            (false, false) => {}
        }
        None
    }

    /// Reserves a range until no frontend names it.
    pub fn reserve_until_written(&mut self, range: Range, slots: &mut Slots) {
        if self.reserve(range, slots) {
            self.released.push(range);
        }
    }

    /// Takes a range out of the free ones, with its contents.
    fn reserve(&mut self, range: Range, slots: &mut Slots) -> bool {
        let is_free = self.allocator.take(range);
        if is_free {
            for slot in range.indices() {
                if let Some(backend) = slots.applied(&slot).copied() {
                    slots.set(slot, backend);
                }
            }
        }
        is_free
    }

    /// Every Service has been compiled once: releases what was found in the store for others.
    pub fn release_unclaimed(&mut self) {
        for id in std::mem::take(&mut self.unclaimed) {
            self.release(id);
        }
    }

    /// The store is up to date: what was released ages from now on.
    pub fn flushed(&mut self, now: Instant) {
        let released = self.released.drain(..).filter(|range| !range.is_empty());
        self.aging.extend(released.map(|range| (now, range)));
    }

    /// Frees slots that no frontend has named for `grace`: no packet reads them any more. Returns whether there were any.
    pub fn reclaim(&mut self, now: Instant, grace: Duration, slots: &mut Slots) -> bool {
        let mut any = false;
        while let Some((_, range)) = self.aging.pop_front_if(|(since, _)| now.duration_since(*since) >= grace)
        {
            range.indices().for_each(|slot| slots.remove(&slot));
            self.allocator.free(range);
            any = true;
        }
        any
    }

    /// Whether [`reclaim`](Self::reclaim) has something to wait for.
    pub fn is_aging(&self) -> bool {
        !self.aging.is_empty()
    }
}
