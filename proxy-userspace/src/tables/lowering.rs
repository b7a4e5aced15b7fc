//! From compiled Services to map contents: gives ids and slot ranges, counts what Services share, and keeps
//! what flows may still name.
//!
//! [`Lowering::replace`] is all or nothing: a Service that does not fit changes nothing. Its cost depends on
//! that Service alone.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use ipnet::IpNet;
use proxy_common::{
    Addr, Frontend, FrontendKey, FrontendKind, Name, Port, ServiceMeta, SetMember, SourceRange, map,
};

use super::{
    Tables,
    backends::Backends,
    claims::Claims,
    clients::{ClientRules, source_range},
    pings::{Pings, Use},
    port_bits::PortBits,
    service_ids::{PortKey, ServiceIds},
    slots::{Range, SlotAllocator},
};
use crate::{
    compile::{CompiledFrontend, CompiledPort, CompiledService},
    config::MapSizes,
    maps::Op,
    model::{Family, Protocol, ServiceKey},
    problem::Problem,
};

/// A Service does not fit: this map has no room.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("map {map} has no room ({max} entries)")]
pub struct Full {
    pub map: &'static str,
    pub max: u32,
}

/// Ids that flows or sockets still name, as the datapath's maps tell.
#[derive(Clone, Debug, Default)]
pub struct InUse {
    pub services: HashSet<u32>,
    pub backends: HashSet<u32>,
}

/// All Services as the maps must hold them.
#[derive(Debug)]
pub struct Lowering {
    pub tables: Tables,
    sizes: MapSizes,
    services: HashMap<ServiceKey, Installed>,
    pub(super) ids: ServiceIds,
    pub(super) backends: Backends,
    pub(super) bits: PortBits,
    pub(super) slots: SlotAllocator,
    claims: Claims,
    pings: Pings,
    /// Where the sets of each service id stand.
    pub(super) ranges: HashMap<u32, Ranges>,
    /// Ids with ranges found in the store that no Service has asked for yet.
    pub(super) held: HashSet<u32>,
    /// Ranges that frontends stop naming with the next write.
    pub(super) freed: Vec<Range>,
    /// Ranges that no frontend has named since.
    aging: VecDeque<(Instant, Range)>,
    /// UDP: service and backend ids that no longer belong together.
    removed: Vec<(u32, u32)>,
    /// A backend left a set that clients stay with.
    left: bool,
    /// A UDP port has a backend that had none.
    served: bool,
    /// Something was freed since the last look.
    made_room: bool,
}

#[derive(Debug)]
struct Installed {
    compiled: Arc<CompiledService>,
    /// Service ids, one for each port.
    ids: Vec<u32>,
    rules: ClientRules,
}

/// The two sets of a service port.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ranges {
    pub cluster: Range,
    pub local: Range,
}

impl Lowering {
    pub fn new(sizes: MapSizes) -> Self {
        Self {
            tables: Tables::default(),
            sizes,
            services: HashMap::new(),
            ids: ServiceIds::new(sizes.services),
            backends: Backends::new(sizes.backends),
            bits: PortBits::default(),
            slots: SlotAllocator::new(sizes.slots),
            claims: Claims::default(),
            pings: Pings::default(),
            ranges: HashMap::new(),
            held: HashSet::new(),
            freed: Vec::new(),
            aging: VecDeque::new(),
            removed: Vec::new(),
            left: false,
            served: false,
            made_room: false,
        }
    }

    /// What is served now for this Service.
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

    /// Which addresses are nodes' own, so that no VIP's ping answer stands in for them.
    pub fn set_node_addresses(&mut self, nodes: HashSet<IpAddr>) {
        self.pings.set_nodes(nodes, &mut self.tables);
    }

    /// Serves `compiled` under `key` from the next write on (`None`: nothing), instead of what was.
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
        self.served |= installed.as_ref().is_some_and(|new| serves_more(self.services.get(key), new));
        let (ids, frontends) = match &installed {
            None => (HashSet::new(), HashSet::new()),
            Some(new) => (new.ids.iter().copied().collect(), frontend_keys(&new.compiled).collect()),
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

    /// Whether ids and frontends suffice, at the worst moment of the write (deletions come last).
    fn check_room(&self, compiled: &CompiledService) -> Result<(), Full> {
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

    /// How many entries of SET_MEMBERS and SOURCE_RANGES it needs that are not there.
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
            let is_there = |range: &&IpNet| {
                id.is_some_and(|id| self.tables.source_ranges.occupies(&source_range(id, range)))
            };
            ranges += port.source_ranges.iter().flatten().filter(|range| !is_there(range)).count();
        }
        (members, ranges)
    }

    /// Finds a place for every set: the old one where it says the same, else a free one.
    fn place(&mut self, compiled: &CompiledService) -> Result<Vec<Ranges>, Full> {
        let mut placed = Vec::with_capacity(compiled.ports.len());
        let mut fresh = Vec::new();
        for port in &compiled.ports {
            let old =
                self.ids.get(&port_key(&compiled.key, port)).and_then(|id| self.ranges.get(&id)).copied();
            let old = old.unwrap_or_default();
            let cluster = self.place_set(port, &port.cluster, old.cluster, &mut fresh);
            let local = self.place_set(port, &port.local, old.local, &mut fresh);
            let (Some(cluster), Some(local)) = (cluster, local) else {
                fresh.into_iter().for_each(|range| self.slots.free(range));
                return Err(Full { map: map::SLOTS, max: self.sizes.slots });
            };
            placed.push(Ranges { cluster, local });
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
        let says_the_same = old.len as usize == set.len()
            && old.indices().zip(set).all(|(slot, i)| {
                let id = self.backends.id(&backend_key(port, *i as usize));
                id.is_some() && self.tables.slots.get(&slot).copied() == id
            });
        if says_the_same {
            return Some(old);
        }
        let range = self.slots.allocate(set.len() as u32)?;
        fresh.push(range);
        Some(range)
    }

    /// Enters everything the Service needs; [`check_room`](Self::check_room) said that it fits.
    fn install(&mut self, compiled: Arc<CompiledService>, ranges: &[Ranges]) -> Result<Installed, Full> {
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
            let mut backend_ids = Vec::with_capacity(port.backends.len());
            for (i, backend) in port.backends.iter().enumerate() {
                let key = backend_key(port, i);
                let id = self.backends.acquire(key, backend, &mut self.tables, &mut self.bits);
                backend_ids.push(id.ok_or(Full { map: map::BACKENDS, max: self.sizes.backends })?);
            }
            rules.add(port, id, &backend_ids);
            let old = self.ranges.insert(id, *ranges).unwrap_or_default();
            self.held.remove(&id);
            self.fill(old.cluster, ranges.cluster, &port.cluster, &backend_ids);
            self.fill(old.local, ranges.local, &port.local, &backend_ids);
            for frontend in &port.frontends {
                let value = frontend_value(id, port, frontend, *ranges);
                let (key, created) = (frontend_key(port, frontend), compiled.created.as_ref());
                self.claims.put(&compiled.key, created, key, value, &mut self.tables, &mut self.bits);
                if let Some(ip) = frontend.address {
                    self.pings.add(ip.into(), used(port, frontend), &mut self.tables, &mut self.bits);
                }
            }
        }
        rules.put(&mut self.tables);
        Ok(Installed { compiled, ids, rules })
    }

    /// Writes a set to its place, unless that is where it stands already, and lets go of the old place.
    fn fill(&mut self, old: Range, new: Range, set: &[u32], backend_ids: &[u32]) {
        if old == new {
            return;
        }
        self.freed.push(old);
        for (slot, i) in new.indices().zip(set) {
            self.tables.slots.set(slot, backend_ids[*i as usize]);
        }
    }

    /// Lets go of what an old state of a Service had, but for the ids and frontends its new state kept.
    fn uninstall(&mut self, old: &Installed, kept: &HashSet<u32>, kept_frontends: &HashSet<FrontendKey>) {
        let key = &old.compiled.key;
        let none = ClientRules::default();
        let rules = self.services.get(key).map_or(&none, |installed| &installed.rules);
        self.left |= old.rules.remove_but(rules, &mut self.tables);
        for (port, id) in old.compiled.ports.iter().zip(&old.ids) {
            self.note_removed(key, port, *id);
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
                    self.pings.remove(ip.into(), used(port, frontend), &mut self.tables, &mut self.bits);
                }
            }
            if !kept.contains(id) {
                if self.ids.retire(*id) {
                    let gone = ServiceMeta { flags: ServiceMeta::GONE, ..service_meta(key, port) };
                    self.tables.service_meta.set(*id, gone);
                } else {
                    self.tables.service_meta.remove(id);
                }
                self.drop_ranges(*id);
            }
        }
    }

    /// Notes the endpoints of a UDP port that stopped serving it.
    fn note_removed(&mut self, key: &ServiceKey, old: &CompiledPort, id: u32) {
        let now = self.services.get(key).and_then(|installed| {
            let i = installed.ids.iter().position(|other| *other == id)?;
            installed.compiled.ports.get(i)
        });
        let serving: HashSet<_> = now.iter().flat_map(|port| &port.serving).collect();
        let gone = old.serving.iter().filter(|endpoint| !serving.contains(endpoint));
        let gone = gone.filter_map(|(ip, port)| {
            let key = FrontendKey::new((*ip).into(), Port::new(*port), old.protocol.number());
            Some((id, self.backends.id(&key)?))
        });
        self.removed.extend(gone);
    }

    fn drop_ranges(&mut self, id: u32) {
        if let Some(Ranges { cluster, local }) = self.ranges.remove(&id) {
            self.freed.extend([cluster, local]);
        }
    }

    /// Every Service has been compiled once: what the store held for others goes.
    pub fn drop_held(&mut self) {
        for id in std::mem::take(&mut self.held) {
            self.drop_ranges(id);
        }
        // Deleted while no agent was there, or a second id of one port: two would be shown under one name.
        for id in self.ids.take_unclaimed() {
            if let Some(meta) = self.tables.service_meta.get(&id).copied() {
                self.tables.service_meta.set(id, ServiceMeta { flags: ServiceMeta::GONE, ..meta });
            }
        }
    }

    /// Takes note of what the store carried out.
    pub fn commit(&mut self, done: &[Op]) {
        self.tables.commit(done);
        if done.iter().any(|op| op.map() == map::FRONTENDS) {
            self.ids.named();
            self.backends.named();
        }
    }

    /// The store holds what the tables say: what was let go ages from now on.
    pub fn flushed(&mut self, now: Instant) {
        let freed = self.freed.drain(..).filter(|range| !range.is_empty());
        self.aging.extend(freed.map(|range| (now, range)));
        self.ids.flushed(now);
        self.backends.flushed(now);
    }

    /// Frees slots that no frontend has named for `grace`: no packet still reads them.
    pub fn reclaim(&mut self, now: Instant, grace: Duration) {
        while let Some((_, range)) = self.aging.pop_front_if(|(since, _)| now.duration_since(*since) >= grace)
        {
            range.indices().for_each(|slot| self.tables.slots.remove(&slot));
            self.slots.free(range);
            self.made_room = true;
        }
    }

    /// Whether [`reclaim`](Self::reclaim) has something to wait for.
    pub fn is_aging(&self) -> bool {
        !self.aging.is_empty()
    }

    /// Whether ids wait for [`release`](Self::release).
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

    /// UDP: pairs of service and backend id that came apart since the last call.
    pub fn take_removed(&mut self) -> Vec<(u32, u32)> {
        std::mem::take(&mut self.removed)
    }

    /// Whether a backend left a set that clients stay with, since the last call.
    pub fn take_left(&mut self) -> bool {
        std::mem::take(&mut self.left)
    }

    /// For how many seconds a client of this service id stays with this backend id; `None` where it does not.
    pub fn affinity_seconds(&self, service: u32, backend: u32) -> Option<u32> {
        self.tables.set_members.get(&SetMember { service, backend })?;
        self.port(service).map(|port| port.affinity_seconds)
    }

    /// Whether a UDP port has a backend that had none, since the last call.
    pub fn take_served(&mut self) -> bool {
        std::mem::take(&mut self.served)
    }

    /// Whether UDP flows of this service id to this backend id may live on.
    pub fn serves(&self, service: u32, backend: u32) -> bool {
        let Some(backend) = self.tables.backends.get(&backend) else { return false };
        let endpoint = (backend.addr.to_ip(), backend.port.host());
        self.port(service).is_some_and(|port| port.serving.contains(&endpoint))
    }

    /// The port that this service id stands for, while it is served.
    fn port(&self, id: u32) -> Option<&CompiledPort> {
        let installed = self.services.get(&self.ids.key(id)?.service)?;
        let at = installed.ids.iter().position(|other| *other == id)?;
        installed.compiled.ports.get(at)
    }

    /// The Service to blame for an op that the store had no room for.
    pub fn blame(&self, op: &Op) -> Option<ServiceKey> {
        use super::Record as _;
        let by_id = |id: u32| self.ids.key(id).map(|key| key.service.clone());
        let using = |key: FrontendKey| {
            let uses =
                |service: &&Installed| service.compiled.ports.iter().flat_map(backend_keys).any(|k| k == key);
            let users = self.services.values().filter(uses).map(|service| &service.compiled.key);
            // The latest by name, so that a retry makes progress in a fixed order.
            users.max().cloned()
        };
        match op.map() {
            map::FRONTENDS => {
                let key = FrontendKey::from_bytes(op.key())?;
                let pinged = || {
                    let has = |service: &&Installed| vips(&service.compiled).any(|vip| vip == key.addr);
                    self.services.values().filter(has).map(|service| service.compiled.key.clone()).max()
                };
                self.claims.owner(&key).cloned().or_else(pinged)
            }
            map::SERVICE_META => by_id(u32::from_bytes(op.key())?),
            map::SET_MEMBERS => by_id(SetMember::from_bytes(op.key())?.service),
            map::SOURCE_RANGES => by_id(SourceRange::from_bytes(op.key())?.service),
            map::BACKEND_ADDRS => using(FrontendKey::from_bytes(op.key())?),
            map::BACKEND_META => {
                let backend = self.tables.backends.get(&u32::from_bytes(op.key())?)?;
                using(FrontendKey::new(backend.addr, backend.port, backend.proto))
            }
            _ => None,
        }
    }
}

/// Whether a UDP port of `new` has a backend, in a set that was empty or through a frontend that was not there.
fn serves_more(old: Option<&Installed>, new: &Installed) -> bool {
    let udp = |port: &&CompiledPort| port.protocol == Protocol::Udp && !port.backends.is_empty();
    new.compiled.ports.iter().zip(&new.ids).filter(|(port, _)| udp(port)).any(|(port, id)| {
        let old = old.and_then(|old| {
            let i = old.ids.iter().position(|other| other == id)?;
            old.compiled.ports.get(i)
        });
        old.is_none_or(|old| {
            old.cluster.is_empty() && !port.cluster.is_empty()
                || old.local.is_empty() && !port.local.is_empty()
                || old.frontends != port.frontends
        })
    })
}

fn port_key(service: &ServiceKey, port: &CompiledPort) -> PortKey {
    PortKey {
        service: service.clone(),
        port_name: port.name.clone(),
        protocol: port.protocol,
        family: port.family,
    }
}

fn backend_key(port: &CompiledPort, i: usize) -> FrontendKey {
    let backend = &port.backends[i];
    FrontendKey::new(backend.address.into(), Port::new(backend.port), port.protocol.number())
}

fn backend_keys(port: &CompiledPort) -> impl Iterator<Item = FrontendKey> + '_ {
    (0..port.backends.len()).map(move |i| backend_key(port, i))
}

fn frontend_key(port: &CompiledPort, frontend: &CompiledFrontend) -> FrontendKey {
    let addr = frontend.address.map_or(unspecified(port.family), Addr::from);
    FrontendKey::new(addr, Port::new(frontend.port), port.protocol.number())
}

fn frontend_keys(compiled: &CompiledService) -> impl Iterator<Item = FrontendKey> + '_ {
    compiled
        .ports
        .iter()
        .flat_map(|port| port.frontends.iter().map(move |frontend| frontend_key(port, frontend)))
}

fn used(port: &CompiledPort, frontend: &CompiledFrontend) -> Use {
    Use { has_endpoints: port.has_endpoints, is_cluster_ip: frontend.kind == FrontendKind::ClusterIp }
}

fn vips(compiled: &CompiledService) -> impl Iterator<Item = Addr> + '_ {
    let frontends = compiled.ports.iter().flat_map(|port| &port.frontends);
    frontends.filter_map(|frontend| frontend.address.map(Addr::from))
}

fn unspecified(family: Family) -> Addr {
    match family {
        Family::V4 => Addr::UNSPECIFIED_V4,
        Family::V6 => Addr::UNSPECIFIED_V6,
    }
}

fn service_meta(service: &ServiceKey, port: &CompiledPort) -> ServiceMeta {
    // The API's validation has refused longer names.
    let name = |text: &str| Name::new(text).unwrap_or(Name::EMPTY);
    ServiceMeta {
        namespace: name(&service.namespace),
        name: name(&service.name),
        port_name: name(&port.name),
        port: Port::new(port.port),
        proto: port.protocol.number(),
        family: port.family.number(),
        flags: 0,
    }
}

/// The port that a value of SERVICE_META names, if it is one of ours.
pub(super) fn port_key_of(meta: &ServiceMeta) -> Option<PortKey> {
    let family = match meta.family {
        4 => Family::V4,
        6 => Family::V6,
        _ => return None,
    };
    Some(PortKey {
        service: ServiceKey::new(meta.namespace.as_str(), meta.name.as_str()),
        port_name: meta.port_name.as_str().into(),
        protocol: Protocol::from_number(meta.proto)?,
        family,
    })
}

fn frontend_value(
    service: u32,
    port: &CompiledPort,
    frontend: &CompiledFrontend,
    ranges: Ranges,
) -> Frontend {
    let flags = [
        (Frontend::EXTERNAL, frontend.kind != FrontendKind::ClusterIp),
        (Frontend::LOCAL, frontend.local),
        (Frontend::HAS_ENDPOINTS, port.has_endpoints && !frontend.refused),
        (Frontend::RANDOM, port.random),
        (
            Frontend::SOURCE_RANGES,
            frontend.kind == FrontendKind::LoadBalancerIp && port.source_ranges.is_some(),
        ),
    ];
    Frontend {
        service,
        flags: flags.into_iter().filter(|(_, set)| *set).fold(0, |all, (flag, _)| all | flag),
        cluster_base: ranges.cluster.base,
        cluster_count: ranges.cluster.len,
        local_base: ranges.local.base,
        local_count: ranges.local.len,
        affinity_seconds: port.affinity_seconds,
        kind: frontend.kind as u32,
    }
}
