//! Whether a compiled Service fits into the maps, before anything of it is entered.

use std::collections::HashSet;

use proxy_common::{FrontendKey, SetMember, SourceRange, map};

use super::{
    client_rules::source_ranges,
    entries::{backend_key, backend_keys, frontend_keys, port_key, vips},
    full::Full,
    pings::Pings,
    service_tables::ServiceTables,
};
use crate::compile::CompiledService;

impl ServiceTables {
    /// Whether ids and entries suffice at the peak of the write (deletions come last).
    pub(super) fn check_room(&self, compiled: &CompiledService) -> Result<(), Full> {
        let full = |map, max| Err(Full { map, max });
        let ports = compiled.ports.iter();
        let new_ids = ports.filter(|port| self.ids.get(&port_key(&compiled.key, port)).is_none()).count();
        if new_ids > self.ids.available() {
            return full(map::SERVICES, self.sizes.services);
        }
        let backends: HashSet<FrontendKey> = compiled.ports.iter().flat_map(backend_keys).collect();
        let new_backends = backends.iter().filter(|key| self.backends.id(key).is_none()).count();
        if new_backends > self.backends.available() {
            return full(map::BACKENDS, self.sizes.backends);
        }
        let pings = vips(compiled).filter(|vip| self.pings.wants(*vip)).map(Pings::key);
        let frontends: HashSet<FrontendKey> = frontend_keys(compiled).chain(pings).collect();
        let new_frontends = frontends.iter().filter(|key| !self.tables.frontends.occupies(key)).count();
        if self.tables.frontends.occupied() + new_frontends > self.sizes.frontends as usize {
            return full(map::FRONTENDS, self.sizes.frontends);
        }
        let (members, ranges) = self.new_rules(compiled);
        if self.tables.set_members.occupied() + members > self.sizes.slots as usize {
            return full(map::SET_MEMBERS, self.sizes.slots);
        }
        if self.tables.source_ranges.occupied() + ranges > self.sizes.source_ranges as usize {
            return full(map::SOURCE_RANGES, self.sizes.source_ranges);
        }
        Ok(())
    }

    /// How many entries of SET_MEMBERS and SOURCE_RANGES must be added.
    fn new_rules(&self, compiled: &CompiledService) -> (usize, usize) {
        let (mut members, mut ranges) = (0, 0);
        for port in &compiled.ports {
            let id = self.ids.get(&port_key(&compiled.key, port));
            let is_there = |i: &usize| {
                let backend = self.backends.id(&backend_key(port, *i));
                let member = id.zip(backend).map(|(service, backend)| SetMember { service, backend });
                member.is_some_and(|member| self.tables.set_members.occupies(&member))
            };
            if port.affinity_seconds != 0 {
                members += (0..port.backends.len()).filter(|i| !is_there(i)).count();
            }
            let is_new = |range: &SourceRange| id.is_none() || !self.tables.source_ranges.occupies(range);
            ranges += source_ranges(port, id.unwrap_or_default()).filter(is_new).count();
        }
        (members, ranges)
    }
}
