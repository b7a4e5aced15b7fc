//! Ids and places found in the store at start, so that a restart renames nothing and writes only what
//! changed meanwhile.

use std::collections::HashMap;

use proxy_common::{Frontend, FrontendKind};

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
        let mut found = HashMap::new();
        for (id, meta) in self.tables.service_meta.applied_entries() {
            if let Some(key) = port_key_of(&meta).filter(|_| self.ids.is_valid(id)) {
                found.entry(key).or_insert((id, meta));
            }
        }
        let found: Vec<_> = found.into_iter().collect();
        for (_, (id, meta)) in &found {
            self.tables.service_meta.set(*id, *meta);
        }
        self.ids.adopt(found.into_iter().map(|(key, (id, _))| (id, key)).collect());
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
    /// pair is held and the other kept out of use until no frontend names it.
    fn restore_ranges(&mut self) {
        for (_, frontend) in self.tables.frontends.applied_entries() {
            let is_ping = frontend.kind == FrontendKind::Ping as u32;
            if is_ping || self.ids.key(frontend.service).is_none() {
                continue;
            }
            let named = named(&frontend);
            match self.ranges.get(&frontend.service).copied() {
                Some(held) if held == named => {}
                Some(held) => {
                    for range in [named.cluster, named.local] {
                        if range != held.cluster && range != held.local && self.hold(range) {
                            self.freed.push(range);
                        }
                    }
                }
                None => self.hold_both(frontend.service, named),
            }
        }
    }

    fn hold_both(&mut self, id: u32, named: Ranges) {
        if !self.hold(named.cluster) {
            return;
        }
        if !self.hold(named.local) {
            self.freed.push(named.cluster);
            return;
        }
        self.ranges.insert(id, named);
        self.held.insert(id);
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
