//! From compiled Services to map contents: gives ids and slot ranges, counts what Services share, and keeps entries that
//! flows may still name.
//!
//! [`ServiceTables::replace`] is all or nothing: a Service that does not fit changes nothing. Its cost depends on that
//! Service alone.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use proxy_common::{Addr, FrontendKey, ServiceMeta, SetMember, map};

use super::{
    backends::Backends,
    changes::Changes,
    claims::Claims,
    client_rules::ClientRules,
    desired::Tables,
    entries::{backend_key, frontend_key, frontend_keys, frontend_value, port_key, service_meta, vip_use},
    full::Full,
    installed::Installed,
    pings::Pings,
    port_bits::PortBits,
    service_ids::ServiceIds,
    slot_sets::{SetRanges, SlotSets},
    slots::Range,
};
use crate::{
    compile::{CompiledPort, CompiledService},
    config::MapSizes,
    maps::Op,
    model::ServiceKey,
    problem::Problem,
};

/// Ids that flows or sockets still name, as read from the datapath's maps.
#[derive(Clone, Debug, Default)]
pub struct InUse {
    pub services: HashSet<u32>,
    pub backends: HashSet<u32>,
}

/// All Services as the maps must hold them.
#[derive(Debug)]
pub struct ServiceTables {
    pub tables: Tables,
    pub(super) sizes: MapSizes,
    pub(super) services: HashMap<ServiceKey, Installed>,
    pub(super) ids: ServiceIds,
    pub(super) backends: Backends,
    pub(super) bits: PortBits,
    pub(super) sets: SlotSets,
    pub(super) claims: Claims,
    pub(super) pings: Pings,
    changes: Changes,
    /// Something was freed since the last call of [`take_made_room`](Self::take_made_room).
    made_room: bool,
}

impl ServiceTables {
    pub fn new(sizes: MapSizes) -> Self {
        Self {
            tables: Tables::default(),
            sizes,
            services: HashMap::new(),
            ids: ServiceIds::new(sizes.services),
            backends: Backends::new(sizes.backends),
            bits: PortBits::default(),
            sets: SlotSets::new(sizes.slots),
            claims: Claims::default(),
            pings: Pings::default(),
            changes: Changes::default(),
            made_room: false,
        }
    }

    /// The state of this Service that is entered now.
    pub fn installed(&self, key: &ServiceKey) -> Option<&Arc<CompiledService>> {
        self.services.get(key).map(|installed| &installed.compiled)
    }

    pub fn installed_keys(&self) -> impl Iterator<Item = &ServiceKey> {
        self.services.keys()
    }

    /// Whether some port of this Service has an id, or had one in the store at start.
    pub fn knows(&self, compiled: &CompiledService) -> bool {
        compiled.ports.iter().any(|port| self.ids.get(&port_key(&compiled.key, port)).is_some())
    }

    /// Claims that lost their frontend to another Service.
    pub fn conflicts(&self) -> impl Iterator<Item = Problem> + '_ {
        self.claims.problems()
    }

    /// Claims that lost since the last call.
    pub fn take_fresh_conflicts(&mut self) -> Vec<Problem> {
        self.claims.take_fresh()
    }

    /// The addresses of this node, with their roles.
    pub fn set_node_addrs(&mut self, roles: BTreeMap<Addr, u32>) {
        let before = self.tables.node_addrs.entries();
        let gone: Vec<Addr> =
            before.iter().map(|(addr, _)| **addr).filter(|addr| !roles.contains_key(addr)).collect();
        let new: Vec<Addr> =
            roles.keys().copied().filter(|addr| self.tables.node_addrs.get(addr).is_none()).collect();
        for addr in gone {
            self.tables.node_addrs.remove(&addr);
            self.bits.remove_node_addr(addr, &mut self.tables);
        }
        for addr in new {
            self.bits.add_node_addr(addr, &mut self.tables);
        }
        roles.into_iter().for_each(|(addr, role)| self.tables.node_addrs.set(addr, role));
    }

    /// The nodes' own addresses, for which no VIP answers pings.
    pub fn set_node_addresses(&mut self, nodes: HashSet<IpAddr>) {
        self.pings.set_nodes(nodes, &mut self.tables);
    }

    /// Replaces the state of the Service `key` from the next write on; `None` removes it.
    pub fn replace(&mut self, key: &ServiceKey, compiled: Option<Arc<CompiledService>>) -> Result<(), Full> {
        let compiled = compiled.filter(|compiled| !compiled.ports.is_empty());
        if self.installed(key).map(Arc::as_ref) == compiled.as_deref() {
            return Ok(());
        }
        let installed = match compiled {
            None => None,
            Some(compiled) => {
                self.check_room(&compiled)?;
                let ranges = self.place(&compiled)?;
                Some(self.install(compiled, &ranges)?)
            }
        };
        let (ids, frontends) = match &installed {
            None => (HashSet::new(), HashSet::new()),
            Some(new) => {
                self.changes.note_served(self.services.get(key), new);
                (new.ids.iter().copied().collect(), frontend_keys(&new.compiled).collect())
            }
        };
        let old = match installed {
            None => self.services.remove(key),
            Some(new) => self.services.insert(key.clone(), new),
        };
        if let Some(old) = old {
            self.uninstall(&old, &ids, &frontends);
        }
        Ok(())
    }

    /// Finds a range for every set: the current one where the contents are the same, else a new one.
    fn place(&mut self, compiled: &CompiledService) -> Result<Vec<SetRanges>, Full> {
        let mut placed = Vec::with_capacity(compiled.ports.len());
        let mut fresh = Vec::new();
        for port in &compiled.ports {
            let id = self.ids.get(&port_key(&compiled.key, port));
            let old = id.and_then(|id| self.sets.get(id)).unwrap_or_default();
            let cluster = self.place_set(port, &port.cluster, old.cluster, &mut fresh);
            let local = self.place_set(port, &port.local, old.local, &mut fresh);
            let (Some(cluster), Some(local)) = (cluster, local) else {
                self.sets.give_back(fresh);
                return Err(Full { map: map::SLOTS, max: self.sizes.slots });
            };
            placed.push(SetRanges { cluster, local });
        }
        Ok(placed)
    }

    fn place_set(
        &mut self,
        port: &CompiledPort,
        set: &[u32],
        old: Range,
        fresh: &mut Vec<Range>,
    ) -> Option<Range> {
        let is_same = old.len as usize == set.len()
            && old.indices().zip(set).all(|(slot, i)| {
                let id = self.backends.id(&backend_key(port, *i as usize));
                id.is_some() && self.tables.slots.get(&slot).copied() == id
            });
        if is_same { Some(old) } else { self.sets.allocate(set.len(), fresh) }
    }

    /// Enters everything the Service needs; [`check_room`](Self::check_room) has checked that it fits.
    fn install(&mut self, compiled: Arc<CompiledService>, ranges: &[SetRanges]) -> Result<Installed, Full> {
        let mut ids = Vec::with_capacity(compiled.ports.len());
        let mut rules = ClientRules::default();
        for (port, ranges) in compiled.ports.iter().zip(ranges) {
            let key = port_key(&compiled.key, port);
            let (id, is_new) =
                self.ids.acquire(key).ok_or(Full { map: map::SERVICES, max: self.sizes.services })?;
            if is_new {
                self.tables.clear_service(id, id < self.sizes.stats);
            }
            ids.push(id);
            self.tables.service_meta.set(id, service_meta(&compiled.key, port));
            let backend_ids = self.install_backends(port)?;
            rules.add(port, id, &backend_ids);
            let (old, slots) = (self.sets.assign(id, *ranges), &mut self.tables.slots);
            self.sets.fill(old.cluster, ranges.cluster, &port.cluster, &backend_ids, slots);
            self.sets.fill(old.local, ranges.local, &port.local, &backend_ids, slots);
            for frontend in &port.frontends {
                let value = frontend_value(id, port, frontend, *ranges);
                let (key, created) = (frontend_key(port, frontend), compiled.created.as_ref());
                self.claims.put(&compiled.key, created, key, value, &mut self.tables, &mut self.bits);
                if let Some(ip) = frontend.address {
                    self.pings.add(ip.into(), vip_use(port, frontend), &mut self.tables, &mut self.bits);
                }
            }
        }
        rules.put(&mut self.tables);
        Ok(Installed { compiled, ids, rules })
    }

    /// Enters the backends of one port; returns their ids, in order.
    fn install_backends(&mut self, port: &CompiledPort) -> Result<Vec<u32>, Full> {
        let each = port.backends.iter().enumerate().map(|(i, backend)| {
            let id = self.backends.acquire(backend_key(port, i), backend, &mut self.tables, &mut self.bits);
            id.ok_or(Full { map: map::BACKENDS, max: self.sizes.backends })
        });
        each.collect()
    }

    /// Removes what an old state of a Service had, except the ids and frontends that its new state kept.
    fn uninstall(&mut self, old: &Installed, kept: &HashSet<u32>, kept_frontends: &HashSet<FrontendKey>) {
        let key = &old.compiled.key;
        let now = self.services.get(key);
        let none = ClientRules::default();
        let rules = now.map_or(&none, |installed| &installed.rules);
        self.changes.affinity_lost |= old.rules.remove_but(rules, &mut self.tables);
        for (port, id) in old.compiled.ports.iter().zip(&old.ids) {
            let now = now.and_then(|installed| installed.port(*id));
            self.changes.note_removed(*id, port, now, &self.backends);
            for (i, backend) in port.backends.iter().enumerate() {
                self.backends.release(backend_key(port, i), backend, &mut self.tables, &mut self.bits);
            }
            for frontend in &port.frontends {
                let frontend_key = frontend_key(port, frontend);
                if !kept_frontends.contains(&frontend_key) {
                    self.claims.remove(key, frontend_key, &mut self.tables, &mut self.bits);
                    self.made_room = true;
                }
                if let Some(ip) = frontend.address {
                    self.pings.remove(ip.into(), vip_use(port, frontend), &mut self.tables, &mut self.bits);
                }
            }
            if !kept.contains(id) {
                if self.ids.retire(*id) {
                    let gone = ServiceMeta { flags: ServiceMeta::GONE, ..service_meta(key, port) };
                    self.tables.service_meta.set(*id, gone);
                } else {
                    self.tables.service_meta.remove(id);
                }
                self.sets.release(*id);
            }
        }
    }

    /// Every Service has been compiled once: removes what the store held for others.
    pub fn drop_unclaimed(&mut self) {
        self.sets.release_unclaimed();
        // Ports deleted while no agent ran, or a second id of one port: two ids would be shown under one name.
        for id in self.ids.take_unclaimed() {
            if let Some(meta) = self.tables.service_meta.get(&id).copied() {
                self.tables.service_meta.set(id, ServiceMeta { flags: ServiceMeta::GONE, ..meta });
            }
        }
    }

    /// The store carried out `done`.
    pub fn commit(&mut self, done: &[Op]) {
        self.tables.commit(done);
        if done.iter().any(|op| op.map() == map::FRONTENDS) {
            self.ids.named();
            self.backends.named();
        }
    }

    /// The store holds what the tables say: what was released ages from now on.
    pub fn flushed(&mut self, now: Instant) {
        self.sets.flushed(now);
        self.ids.flushed(now);
        self.backends.flushed(now);
    }

    /// Frees slots that no frontend has named for `grace`.
    pub fn reclaim(&mut self, now: Instant, grace: Duration) {
        self.made_room |= self.sets.reclaim(now, grace, &mut self.tables.slots);
    }

    /// Whether [`reclaim`](Self::reclaim) has something to wait for.
    pub fn is_aging(&self) -> bool {
        self.sets.is_aging()
    }

    /// Whether retired ids wait for [`release`](Self::release).
    pub fn has_retired(&self) -> bool {
        self.ids.has_retired() || self.backends.has_retired()
    }

    /// Frees ids retired before `before` that nothing names.
    pub fn release(&mut self, before: Instant, in_use: &InUse) {
        for id in self.ids.free_unused(before, &in_use.services) {
            self.tables.service_meta.remove(&id);
            self.made_room = true;
        }
        self.made_room |=
            self.backends.free_unused(before, &in_use.backends, &mut self.tables, &mut self.bits);
    }

    /// Whether something was freed since the last call.
    pub fn take_made_room(&mut self) -> bool {
        std::mem::take(&mut self.made_room)
    }

    /// What changed for existing flows and clients since the last call.
    pub fn take_changes(&mut self) -> Changes {
        std::mem::take(&mut self.changes)
    }

    /// The affinity timeout of this service id, if this backend id is in one of its sets.
    pub fn affinity_seconds(&self, service: u32, backend: u32) -> Option<u32> {
        self.tables.set_members.get(&SetMember { service, backend })?;
        self.port(service).map(|port| port.affinity_seconds)
    }

    /// Whether UDP flows of this service id may still use this backend id.
    pub fn serves(&self, service: u32, backend: u32) -> bool {
        let Some(backend) = self.tables.backends.get(&backend) else { return false };
        let endpoint = (backend.addr.to_ip(), backend.port.host());
        self.port(service).is_some_and(|port| port.serving.contains(&endpoint))
    }

    /// The service port with this id, while it is served.
    fn port(&self, id: u32) -> Option<&CompiledPort> {
        self.services.get(&self.ids.key(id)?.service)?.port(id)
    }
}
