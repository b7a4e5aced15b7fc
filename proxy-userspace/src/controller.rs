//! The config line as a whole: events in, map writes out.
//!
//! One task owns the [`Controller`] and hands it events, the node's addresses and the store to write to; the
//! controller itself waits for nothing and knows no kernel.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use proxy_common::{FrontendKind, NodeConfig};

use crate::{
    compile::{CompiledFrontend, CompiledService, compile},
    config::{CompileConfig, MapSizes},
    health_checks::{self, HealthChecks, Listeners},
    maps::{MapError, MapStore},
    model::{Family, Node, ServiceKey, Trigger},
    node::{node_addrs, node_config, primary},
    problem::{Consequence, Problem, ProblemKind},
    snapshot::Snapshot,
    source::Event,
    tables::{Full, Lowering, Tables},
};
pub use crate::{node::NodeAddress, tables::InUse};

/// How long after a frontend stopped naming a range of slots no packet can still be reading it. A program
/// runs for microseconds; a second also bounds how often Services that do not fit are tried again.
const GRACE: Duration = Duration::from_secs(1);

/// Why the maps could not be brought to what the tables say. What was written stays; the next sync goes on.
#[derive(Debug, thiserror::Error)]
#[error("the maps are not up to date: {0}")]
pub struct SyncError(#[from] pub MapError);

/// What a sync did.
#[derive(Clone, Debug, Default)]
pub struct SyncReport {
    /// The maps hold what all sources say; false before the sources have delivered their initial lists.
    pub complete: bool,
    /// Writes carried out.
    pub ops: usize,
    /// Services compiled.
    pub services: usize,
    /// UDP: (service id, backend id) that no longer belong together; their flows are to be forgotten.
    pub removed: Vec<(u32, u32)>,
    /// A backend left a set that clients stay with: who stayed with it may choose anew, also when it comes back.
    pub left: bool,
    /// UDP frontends have a backend that had none before.
    pub udp_served: bool,
    /// After the first sync: flows of former times may belong to no Service any more;
    /// [`Controller::serves`] tells which.
    pub first: bool,
    /// [`Controller::listeners`] are others than before.
    pub listeners: bool,
    /// Sync again after this time even if nothing happens.
    pub retry_in: Option<Duration>,
    /// Every Service was looked at, not only those that changed.
    pub full: bool,
    /// What changed the endpoints that are in the maps since the sync before.
    pub triggers: Vec<Trigger>,
    /// Problems that were not there before (logged already).
    pub problems: Vec<Problem>,
}

/// Decides what the maps must hold and writes it.
#[derive(Debug)]
pub struct Controller {
    snapshot: Snapshot,
    config: CompileConfig,
    lowering: Lowering,
    grace: Duration,
    addresses: Vec<NodeAddress>,
    fallback: Vec<IpAddr>,
    dirty: BTreeSet<ServiceKey>,
    every_service: bool,
    node_dirty: bool,
    cluster_ips_dirty: bool,
    /// What each Service changed since the last complete write was before.
    unwritten: HashMap<ServiceKey, Option<Arc<CompiledService>>>,
    refused: BTreeMap<ServiceKey, Problem>,
    compile_problems: BTreeMap<ServiceKey, Vec<Problem>>,
    health_checks: HealthChecks,
    health_dirty: bool,
    health_problems: Vec<Problem>,
    listeners: Listeners,
    last_retry: Option<Instant>,
    has_synced: bool,
    taking_over: bool,
}

impl Controller {
    pub fn new(node_name: &str, config: CompileConfig, sizes: MapSizes) -> Self {
        Self {
            snapshot: Snapshot::new(node_name),
            config,
            lowering: Lowering::new(sizes),
            grace: GRACE,
            addresses: Vec::new(),
            fallback: Vec::new(),
            dirty: BTreeSet::new(),
            every_service: false,
            node_dirty: true,
            cluster_ips_dirty: true,
            unwritten: HashMap::new(),
            refused: BTreeMap::new(),
            compile_problems: BTreeMap::new(),
            health_checks: HealthChecks::default(),
            health_dirty: false,
            health_problems: Vec::new(),
            listeners: Listeners::new(),
            last_retry: None,
            has_synced: false,
            taking_over: false,
        }
    }

    /// Whether another proxy's flows are being recorded ([`NodeConfig::TAKING_OVER`]).
    pub fn set_taking_over(&mut self, taking_over: bool) {
        self.node_dirty |= self.taking_over != taking_over;
        self.taking_over = taking_over;
    }

    pub fn is_taking_over(&self) -> bool {
        self.taking_over
    }

    /// Another time than [`GRACE`] for what is let go; tests need not wait.
    pub fn with_grace(mut self, grace: Duration) -> Self {
        self.grace = grace;
        self
    }

    /// Takes over ids and slot ranges from what the store holds, so that a restart without changes writes
    /// nothing. Once, before the first sync.
    pub fn restore(&mut self, store: &mut dyn MapStore) -> Result<(), SyncError> {
        Ok(self.lowering.restore(store)?)
    }

    /// Reads the store again; the next sync repairs what somebody else changed in it.
    pub fn reload(&mut self, store: &mut dyn MapStore) -> Result<(), SyncError> {
        Ok(self.lowering.reload(store)?)
    }

    /// Takes one event; nothing is written before [`sync`](Self::sync).
    pub fn apply(&mut self, event: Event) {
        let dirty = self.snapshot.apply(event);
        self.dirty.extend(dirty.services);
        self.every_service |= dirty.every_service;
        self.node_dirty |= dirty.node;
        self.cluster_ips_dirty |= dirty.cluster_ips;
    }

    /// All addresses of the node's network namespace. `fallback` stands in as primary address of a family
    /// in which the Node object has no InternalIP.
    pub fn set_node_addresses(&mut self, addresses: Vec<NodeAddress>, fallback: &[IpAddr]) {
        self.node_dirty |= self.addresses != addresses || self.fallback != fallback;
        self.every_service |= self.fallback != fallback;
        self.addresses = addresses;
        self.fallback = fallback.to_vec();
    }

    /// Whether every source has delivered its initial list.
    pub fn is_synced(&self) -> bool {
        self.snapshot.is_synced()
    }

    pub fn service_count(&self) -> usize {
        self.snapshot.service_count()
    }

    /// The Service's uid, where its source says it.
    pub fn service_uid(&self, key: &ServiceKey) -> Option<Arc<str>> {
        self.snapshot.service(key)?.uid.clone()
    }

    /// This node, as far as its object is known.
    pub fn node(&self) -> Node {
        self.told_address(self.snapshot.node())
    }

    /// `--bind-address` goes before what the Node says.
    fn told_address(&self, mut node: Node) -> Node {
        if let Some(ip) = self.config.node_ip {
            node.internal_ips.insert(0, ip);
        }
        node
    }

    /// Whether a source delivered this node's object.
    pub fn knows_node(&self) -> bool {
        self.snapshot.knows_node()
    }

    /// Whether this node's object should be there and is not; see [`Snapshot::misses_node`].
    pub fn misses_node(&self, without: bool) -> bool {
        self.snapshot.misses_node(without)
    }

    /// Whether load balancers may send to this node; see [`Snapshot::is_node_eligible`].
    pub fn is_node_eligible(&self, without: bool) -> bool {
        self.snapshot.is_node_eligible(without)
    }

    /// Whether UDP flows of this service id to this backend id may live on.
    pub fn serves(&self, service: u32, backend: u32) -> bool {
        self.lowering.serves(service, backend)
    }

    /// For how many seconds a client of this service id stays with this backend id; `None` where it does not.
    pub fn affinity_seconds(&self, service: u32, backend: u32) -> Option<u32> {
        self.lowering.affinity_seconds(service, backend)
    }

    /// Whether ids wait to be freed by [`release`](Self::release).
    pub fn has_retired(&self) -> bool {
        self.lowering.has_retired()
    }

    /// What the maps must hold.
    pub fn tables(&self) -> &Tables {
        &self.lowering.tables
    }

    /// How many Services of this family with policy Local have endpoints, but none of use on this node.
    pub fn without_local_endpoints(&self, family: Family, internal: bool) -> usize {
        let has_none = |service: &CompiledService| {
            let ports = service.ports.iter().filter(|port| port.family == family);
            let mut bare = ports.filter(|port| port.has_endpoints && port.local.is_empty());
            let is_asked = |frontend: &CompiledFrontend| {
                frontend.local && (frontend.kind == FrontendKind::ClusterIp) == internal
            };
            bare.any(|port| port.frontends.iter().any(is_asked))
        };
        let installed = self.lowering.installed_keys().filter_map(|key| self.lowering.installed(key));
        installed.filter(|service| has_none(service)).count()
    }

    /// Where the node answers for healthCheckNodePorts, as of the last complete sync.
    pub fn listeners(&self) -> &Listeners {
        &self.listeners
    }

    /// Every problem there is now, by Service.
    pub fn problems(&self) -> Vec<Problem> {
        let compiled = self.compile_problems.values().flatten().chain(&self.health_problems).cloned();
        let mut all: Vec<_> =
            compiled.chain(self.refused.values().cloned()).chain(self.lowering.conflicts()).collect();
        all.sort();
        all
    }

    /// Tells which ids flows and sockets still name, as read from the datapath's maps since `since`. Ids
    /// retired long enough before that and not named are freed; the next sync deletes their entries.
    pub fn release(&mut self, since: Instant, in_use: &InUse) {
        if let Some(before) = since.checked_sub(self.grace) {
            self.lowering.release(before, in_use);
        }
    }

    /// Writes what changed. Writes nothing before every source has delivered its initial list.
    pub fn sync(&mut self, store: &mut dyn MapStore) -> Result<SyncReport, SyncError> {
        if !self.is_synced() {
            return Ok(SyncReport::default());
        }
        let now = Instant::now();
        self.lowering.reclaim(now, self.grace);
        let first = !self.has_synced;
        let mut report = SyncReport { first, full: first, ..SyncReport::default() };
        self.update_node();
        self.update_services(now, &mut report);
        if !self.has_synced {
            self.lowering.drop_held();
        }
        self.flush(store, &mut report)?;
        self.unwritten.clear();
        self.lowering.flushed(now);
        self.has_synced = true;
        report.complete = true;
        report.triggers = self.snapshot.take_triggers();
        report.removed = self.lowering.take_removed();
        report.left = self.lowering.take_left();
        report.udp_served = self.lowering.take_served();
        report.problems.extend(self.lowering.take_fresh_conflicts());
        self.update_listeners(&mut report);
        for problem in &report.problems {
            tracing::warn!("{problem}");
        }
        let is_waiting = self.lowering.is_aging() || !self.refused.is_empty();
        report.retry_in = is_waiting.then_some(self.grace);
        Ok(report)
    }

    fn update_node(&mut self) {
        let (node_dirty, cluster_ips_dirty) = (self.node_dirty, self.cluster_ips_dirty);
        (self.node_dirty, self.cluster_ips_dirty) = (false, false);
        if !node_dirty && !cluster_ips_dirty {
            return;
        }
        let node = self.node();
        let is_cluster_ip = |ip| self.snapshot.is_cluster_ip(ip);
        let roles = node_addrs(&self.addresses, &node, &self.fallback, &self.config, is_cluster_ip);
        let own = roles.keys().map(|addr| addr.to_ip());
        let nodes: HashSet<IpAddr> = own.chain(self.snapshot.node_addresses()).collect();
        self.health_dirty = true;
        let table = &mut self.lowering.tables.node_addrs;
        let gone: Vec<_> = table
            .entries()
            .into_iter()
            .map(|(addr, _)| *addr)
            .filter(|addr| !roles.contains_key(addr))
            .collect();
        gone.iter().for_each(|addr| table.remove(addr));
        roles.into_iter().for_each(|(addr, role)| table.set(addr, role));
        self.lowering.set_node_addresses(nodes);
        if node_dirty {
            let service_cidrs = self.snapshot.service_cidrs();
            let (mut value, left) = node_config(&node, &self.fallback, &service_cidrs, &self.config);
            if self.taking_over {
                value.flags |= NodeConfig::TAKING_OVER;
            }
            self.lowering.tables.node_config.set(0, value);
            for range in left.pods {
                tracing::warn!("pod range {range} is one too many: its pods count as outside the cluster");
            }
            for range in left.services {
                tracing::warn!(
                    "ServiceCIDR {range} is one too many: packets to its unallocated addresses pass"
                );
            }
        }
    }

    fn update_services(&mut self, now: Instant, report: &mut SyncReport) {
        if std::mem::take(&mut self.every_service) {
            report.full = true;
            self.dirty.extend(self.snapshot.service_keys().cloned());
        }
        let may_retry = self.last_retry.is_none_or(|last| now.duration_since(last) >= self.grace);
        if !self.refused.is_empty() && may_retry && self.lowering.take_made_room() {
            self.dirty.extend(self.refused.keys().cloned());
            self.last_retry = Some(now);
        }
        let mut node = self.node();
        for family in Family::BOTH {
            // Its address, as far as anybody knows.
            if node.primary_ip(family).is_none() {
                node.internal_ips.extend(primary(&node, &self.fallback, family));
            }
        }
        let mut compiled: Vec<_> = std::mem::take(&mut self.dirty)
            .into_iter()
            .map(|key| {
                let service = self.compile(&key, &node, report);
                (key, service)
            })
            .collect();
        report.services = compiled.len();
        // Who goes makes room; who was served before a restart goes before who is new.
        compiled.sort_by_key(|(_, service)| match service {
            None => 0,
            Some(service) if self.lowering.knows(service) => 1,
            Some(_) => 2,
        });
        for (key, service) in compiled {
            let before = self.lowering.installed(&key).cloned();
            match self.lowering.replace(&key, service) {
                Ok(()) => {
                    self.refused.remove(&key);
                    self.unwritten.entry(key).or_insert(before);
                }
                Err(full) => self.refuse(&key, full, report),
            }
        }
    }

    /// Compiles one Service and keeps what is wrong with it.
    fn compile(
        &mut self,
        key: &ServiceKey,
        node: &Node,
        report: &mut SyncReport,
    ) -> Option<Arc<CompiledService>> {
        let compiled = self.snapshot.service(key).map(|service| {
            let (endpoints, refused) = self.snapshot.endpoints(key);
            let mut compiled = compile(service, &endpoints, node, &self.config);
            compiled.problems.extend(refused);
            compiled
        });
        let (created, check) = match &compiled {
            Some(compiled) => (compiled.created.as_ref(), compiled.health_check.clone()),
            None => (None, None),
        };
        self.health_dirty |= self.health_checks.set(key, created, check);
        let problems = compiled.as_ref().map(|compiled| compiled.problems.clone()).unwrap_or_default();
        let known = self.compile_problems.remove(key).unwrap_or_default();
        report.problems.extend(problems.iter().filter(|problem| !known.contains(problem)).cloned());
        if !problems.is_empty() {
            self.compile_problems.insert(key.clone(), problems);
        }
        compiled.map(Arc::new)
    }

    /// What healthCheckNodePorts answer follows what the maps hold.
    fn update_listeners(&mut self, report: &mut SyncReport) {
        if !std::mem::take(&mut self.health_dirty) {
            return;
        }
        let roles = self.lowering.tables.node_addrs.entries();
        let addresses = health_checks::addresses(roles, &self.config.nodeport_addresses);
        let mut listeners = self.health_checks.listeners(&addresses);
        listeners.values_mut().for_each(|answer| answer.uid = self.service_uid(&answer.service));
        report.listeners = listeners != self.listeners;
        self.listeners = listeners;
        let problems: Vec<_> = self.health_checks.problems().collect();
        report.problems.extend(problems.iter().filter(|one| !self.health_problems.contains(one)).cloned());
        self.health_problems = problems;
    }

    fn refuse(&mut self, key: &ServiceKey, full: Full, report: &mut SyncReport) {
        let consequence = match self.lowering.installed(key) {
            None => Consequence::NotServed,
            Some(_) => Consequence::ServedAsBefore,
        };
        let problem = Problem::new(key, ProblemKind::Full { map: full.map, max: full.max, consequence });
        if self.refused.insert(key.clone(), problem.clone()).as_ref() != Some(&problem) {
            report.problems.push(problem);
        }
    }

    /// Writes the diff. A store with less room than it was said to have refuses the Service at fault whole:
    /// that one goes back to what it was, and the rest is written.
    fn flush(&mut self, store: &mut dyn MapStore, report: &mut SyncReport) -> Result<(), SyncError> {
        loop {
            let ops = self.lowering.tables.ops();
            if ops.is_empty() {
                return Ok(());
            }
            let Err((done, error)) = store.write(&ops) else {
                self.lowering.commit(&ops);
                report.ops += ops.len();
                return Ok(());
            };
            self.lowering.commit(&ops[..done]);
            report.ops += done;
            let MapError::Full { map, max } = error else { return Err(error.into()) };
            let blamed = ops.get(done).and_then(|op| self.lowering.blame(op));
            // Only what changed since the last complete write can be undone.
            let Some((key, before)) = blamed.and_then(|key| self.unwritten.remove_entry(&key)) else {
                return Err(error.into());
            };
            // What it was may not fit either by now, where a write that stopped halfway had begun to remove it: then it
            // goes.
            if before.is_some() {
                self.unwritten.insert(key.clone(), None);
            }
            if self.lowering.replace(&key, before).is_err() && self.lowering.replace(&key, None).is_err() {
                return Err(error.into());
            }
            self.refuse(&key, Full { map, max }, report);
        }
    }
}
