//! Ids for service ports and backends: dense, never 0, and reused as late as possible, because CONNTRACK and its
//! readers may name an id after its owner is gone.

use std::collections::{HashSet, VecDeque};

/// The free ids of one kind.
#[derive(Debug)]
pub struct IdPool {
    /// The lowest id never handed out.
    fresh: u32,
    /// Ids are below this.
    limit: u32,
    /// Returned ids, oldest first.
    free: VecDeque<u32>,
}

impl IdPool {
    /// Ids 1 to `len - 1`: they index an array of `len` elements.
    pub fn new(len: u32) -> Self {
        Self { fresh: 1, limit: len, free: VecDeque::new() }
    }

    /// How many ids can still be taken.
    pub fn available(&self) -> usize {
        self.limit.saturating_sub(self.fresh) as usize + self.free.len()
    }

    pub fn take(&mut self) -> Option<u32> {
        if self.fresh < self.limit {
            self.fresh += 1;
            return Some(self.fresh - 1);
        }
        self.free.pop_front()
    }

    pub fn give_back(&mut self, id: u32) {
        self.free.push_back(id);
    }

    /// Whether an id read from a map is in range.
    pub fn is_valid(&self, id: u32) -> bool {
        id > 0 && id < self.limit
    }

    /// Marks ids as taken, at start, before any other call.
    pub fn adopt(&mut self, taken: &HashSet<u32>) {
        self.fresh = taken.iter().max().map_or(1, |max| max + 1);
        self.free = (1..self.fresh).filter(|id| !taken.contains(id)).collect();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_start_at_one_and_are_reused_last() {
        let mut pool = IdPool::new(4);
        assert_eq!(pool.available(), 3);
        assert_eq!([pool.take(), pool.take()], [Some(1), Some(2)]);
        pool.give_back(1);
        assert_eq!([pool.take(), pool.take(), pool.take()], [Some(3), Some(1), None]);
        assert_eq!(pool.available(), 0);
    }

    #[test]
    fn adopted_ids_are_not_handed_out() {
        let mut pool = IdPool::new(6);
        pool.adopt(&HashSet::from([2, 4]));
        let rest: Vec<u32> = std::iter::from_fn(|| pool.take()).collect();
        assert_eq!(rest, [5, 1, 3]);
    }
}
