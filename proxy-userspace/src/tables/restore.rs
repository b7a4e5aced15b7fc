//! Ids and slot ranges found in the store at start, so that a restart renames nothing and writes only what changed in
//! between.

use std::collections::HashSet;

use proxy_common::{Frontend, ServiceMeta};

use super::{entries::port_key_of, service_tables::ServiceTables, slot_sets::SetRanges, slots::Range};
use crate::maps::{MapError, MapStore};

impl ServiceTables {
    /// Reads the store and takes over what it holds: service ids and backends as retired, slot ranges as unclaimed, until
    /// Services ask for them. Once, before the first Service.
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
        // Where a port has two ids, the one that frontends name comes first.
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

    fn restore_ranges(&mut self) {
        let mut others = Vec::new();
        for (_, frontend) in self.tables.frontends.applied_entries() {
            let id = frontend.service;
            let is_known = self.ids.key(id).is_some();
            let other = self.sets.adopt(id, ranges_of(&frontend), is_known, &mut self.tables.slots);
            others.extend(other.into_iter().flat_map(|ranges| [ranges.cluster, ranges.local]));
        }
        for range in others {
            self.sets.reserve_until_written(range, &mut self.tables.slots);
        }
    }
}

fn ranges_of(frontend: &Frontend) -> SetRanges {
    let range = |base, len| if len == 0 { Range::default() } else { Range { base, len } };
    SetRanges {
        cluster: range(frontend.cluster_base, frontend.cluster_count),
        local: range(frontend.local_base, frontend.local_count),
    }
}
