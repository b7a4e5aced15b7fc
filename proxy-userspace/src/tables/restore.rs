//! Ids and places found in the store at start, so that a restart renames nothing and writes only what
//! changed meanwhile.

use std::collections::HashSet;

use proxy_common::{Frontend, ServiceMeta};

use super::{
    lowering::{Lowering, Ranges, port_key_of},
    slots::Range,
};
use crate::maps::{MapError, MapStore};

impl Lowering {
    /// Reads the store and takes over what it holds: service ids and backends as retired ones, slot ranges as
    /// held ones, until Services ask for them. Once, before the first Service.
    pub fn restore(&mut self, store: &mut dyn MapStore) -> Result<(), MapError> {
        self.tables.load(store)?;
        self.restore_service_ids();
        self.restore_backends();
        self.restore_ranges();
        Ok(())
    }

    /// Reads the store again: the next write repairs what differs in it.
    pub fn reload(&mut self, store: &mut dyn MapStore) -> Result<(), MapError> {
        self.tables.load(store)
    }

    fn restore_service_ids(&mut self) {
        let frontends = self.tables.frontends.applied_entries();
        let named: HashSet<u32> = frontends.iter().map(|(_, frontend)| frontend.service).collect();
        let mut found = Vec::new();
        for (id, meta) in self.tables.service_meta.applied_entries() {
            if let Some(key) = port_key_of(&meta).filter(|_| self.ids.is_valid(id)) {
                self.tables.service_meta.set(id, meta);
                found.push((id, key, meta.flags & ServiceMeta::GONE != 0));
            }
        }
        // Where a port has two ids, the one that packets may meet goes first.
        found.sort_by_key(|(id, ..)| (!named.contains(id), *id));
        self.ids.adopt(found);
    }

    fn restore_backends(&mut self) {
        let found = self.tables.backend_addrs.applied_entries();
        let is_same = |key: &proxy_common::FrontendKey, id: &u32| {
            let backend = self.tables.backends.applied(id);
            backend.is_some_and(|b| (b.addr, b.port, b.proto) == (key.addr, key.port, key.proto))
        };
        let found: Vec<_> = found
            .into_iter()
            .filter(|(key, id)| is_same(key, id))
            .map(|(key, id)| (key, id, self.tables.backend_meta.applied(&id).cloned()))
            .collect();
        self.backends.adopt(found, &mut self.tables, &mut self.bits);
    }

    /// All frontends of a service id name the same ranges, unless a write stopped halfway: then the first
    /// pair is held, and any other kept out of use until no frontend names it.
    fn restore_ranges(&mut self) {
        let mut others = Vec::new();
        for (_, frontend) in self.tables.frontends.applied_entries() {
            let named = named(&frontend);
            let id = frontend.service;
            if self.ids.key(id).is_some() && !self.ranges.contains_key(&id) {
                self.hold_both(id, named);
            } else if self.ranges.get(&id) != Some(&named) {
                others.extend([named.cluster, named.local]);
            }
        }
        for range in others {
            if self.hold(range) {
                self.freed.push(range);
            }
        }
    }

    fn hold_both(&mut self, id: u32, named: Ranges) {
        match (self.hold(named.cluster), self.hold(named.local)) {
            (true, true) => {
                self.ranges.insert(id, named);
                self.held.insert(id);
            }
            (true, false) => self.freed.push(named.cluster),
            (false, true) => self.freed.push(named.local),
            (false, false) => {}
        }
    }

    /// Takes a range out of the free ones, with what it holds.
    fn hold(&mut self, range: Range) -> bool {
        let is_taken = self.slots.take(range);
        if is_taken {
            for slot in range.indices() {
                if let Some(backend) = self.tables.slots.applied(&slot).copied() {
                    self.tables.slots.set(slot, backend);
                }
            }
        }
        is_taken
    }
}

fn named(frontend: &Frontend) -> Ranges {
    let range = |base, len| if len == 0 { Range::default() } else { Range { base, len } };
    Ranges {
        cluster: range(frontend.cluster_base, frontend.cluster_count),
        local: range(frontend.local_base, frontend.local_count),
    }
}
