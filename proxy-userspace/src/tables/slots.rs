//! Allocation of contiguous ranges in SLOTS, one per backend set.

use std::collections::{BTreeMap, BTreeSet};

/// `base .. base + len` of SLOTS; an empty range has base 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Range {
    pub base: u32,
    pub len: u32,
}

impl Range {
    /// The indices it covers.
    pub fn indices(self) -> std::ops::Range<u32> {
        self.base..self.base + self.len
    }

    pub fn is_empty(self) -> bool {
        self.len == 0
    }
}

/// The free part of SLOTS. Best fit: the smallest hole that is large enough.
#[derive(Debug)]
pub struct SlotAllocator {
    /// Base to length; adjacent holes are merged.
    holes: BTreeMap<u32, u32>,
    by_len: BTreeSet<(u32, u32)>,
}

impl SlotAllocator {
    pub fn new(size: u32) -> Self {
        let mut allocator = Self { holes: BTreeMap::new(), by_len: BTreeSet::new() };
        allocator.add_hole(0, size);
        allocator
    }

    /// A range of `len` slots; `None` if no hole is large enough.
    pub fn allocate(&mut self, len: u32) -> Option<Range> {
        if len == 0 {
            return Some(Range::default());
        }
        let &(hole_len, base) = self.by_len.range((len, 0)..).next()?;
        self.remove_hole(base, hole_len);
        self.add_hole(base + len, hole_len - len);
        Some(Range { base, len })
    }

    /// Takes exactly this range; returns false if part of it is taken or out of bounds.
    pub fn take(&mut self, range: Range) -> bool {
        if range.is_empty() {
            return true;
        }
        let Some((&base, &len)) = self.holes.range(..=range.base).next_back() else { return false };
        let Some(end) = range.base.checked_add(range.len) else { return false };
        if end > base + len {
            return false;
        }
        self.remove_hole(base, len);
        self.add_hole(base, range.base - base);
        self.add_hole(end, base + len - end);
        true
    }

    /// Returns a range.
    pub fn free(&mut self, range: Range) {
        if range.is_empty() {
            return;
        }
        let (mut base, mut len) = (range.base, range.len);
        if let Some((&left, &left_len)) = self.holes.range(..base).next_back()
            && left + left_len == base
        {
            self.remove_hole(left, left_len);
            (base, len) = (left, len + left_len);
        }
        if let Some(&right_len) = self.holes.get(&(base + len)) {
            self.remove_hole(base + len, right_len);
            len += right_len;
        }
        self.add_hole(base, len);
    }

    fn add_hole(&mut self, base: u32, len: u32) {
        if len > 0 {
            self.holes.insert(base, len);
            self.by_len.insert((len, base));
        }
    }

    fn remove_hole(&mut self, base: u32, len: u32) {
        self.holes.remove(&base);
        self.by_len.remove(&(len, base));
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Ranges never overlap or exceed the map, and freeing all of them restores one hole.
        #[test]
        fn ranges_are_disjoint_and_come_back(steps in prop::collection::vec((0u32..9, any::<prop::sample::Index>(), any::<bool>()), 1..60)) {
            let size = 64;
            let mut allocator = SlotAllocator::new(size);
            let mut held: Vec<Range> = Vec::new();
            for (len, which, give_back) in steps {
                if give_back && !held.is_empty() {
                    allocator.free(held.swap_remove(which.index(held.len())));
                } else if let Some(range) = allocator.allocate(len) {
                    prop_assert_eq!(range.len, len);
                    held.push(range);
                }
                let mut used: Vec<u32> = held.iter().flat_map(|range| range.indices()).collect();
                let total = used.len();
                used.sort_unstable();
                used.dedup();
                prop_assert_eq!(used.len(), total);
                prop_assert!(used.iter().all(|i| *i < size));
            }
            held.into_iter().for_each(|range| allocator.free(range));
            prop_assert_eq!(allocator.allocate(size), Some(Range { base: 0, len: size }));
        }
    }

    #[test]
    fn a_given_range_is_taken_once_and_in_bounds() {
        let mut allocator = SlotAllocator::new(10);
        assert!(allocator.take(Range { base: 3, len: 4 }));
        assert!(!allocator.take(Range { base: 6, len: 1 }));
        assert!(!allocator.take(Range { base: 8, len: 3 }));
        assert!(!allocator.take(Range { base: u32::MAX, len: 2 }));
        assert!(allocator.take(Range { base: 7, len: 3 }));
        assert_eq!(allocator.allocate(3), Some(Range { base: 0, len: 3 }));
        assert_eq!(allocator.allocate(1), None);
    }
}
