//! The control plane as a whole: events in, map writes out.
//!
//! One task (the agent's) owns the [`Controller`] and hands it events, the node's addresses and the store to write to. The
//! controller never blocks and knows no kernel.

mod health_check_ports;
mod node_state;
mod pending;
mod problems;
mod write;

use std::{
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use proxy_common::FrontendKind;

use self::{
    health_check_ports::HealthCheckPorts,
    node_state::NodeState,
    pending::Pending,
    problems::{CompileProblems, Refused},
    write::Unwritten,
};
use crate::{
    compile::{CompiledFrontend, CompiledService, compile},
    config::{CompileConfig, MapSizes},
    health_checks::Listeners,
    maps::{MapError, MapStore},
    model::{Family, Node, ServiceKey, Trigger},
    problem::Problem,
    snapshot::Snapshot,
    sources::Event,
    tables::{ServiceTables, Tables},
};
pub use crate::{node::NodeAddress, tables::InUse};

/// How long after a frontend stopped naming a range of slots a packet may still be reading it. A program runs for
/// microseconds; a second also limits how often Services that do not fit are tried again.
const GRACE: Duration = Duration::from_secs(1);

/// Why the maps are not up to date. What was written stays; the next sync continues.
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
    /// UDP: (service id, backend id) that no longer belong together; their flows are to be flushed.
    pub removed_endpoints: Vec<(u32, u32)>,
    /// A backend left a set that clients have affinity to: they choose again, also when it comes back.
    pub affinity_lost: bool,
    /// UDP frontends have a backend that had none before.
    pub udp_served: bool,
    /// The first sync: flows of an earlier run may belong to no Service any more; [`Controller::serves`] says which.
    pub first: bool,
    /// [`Controller::listeners`] changed.
    pub listeners: bool,
    /// Sync again after this time even without a change.
    pub retry_in: Option<Duration>,
    /// Every Service was compiled, not only those that changed.
    pub full: bool,
    /// What changed the endpoints that this sync wrote.
    pub triggers: Vec<Trigger>,
    /// New problems (logged already).
    pub problems: Vec<Problem>,
}

/// Decides what the maps must hold and writes it.
#[derive(Debug)]
pub struct Controller {
    snapshot: Snapshot,
    config: CompileConfig,
    services: ServiceTables,
    grace: Duration,
    node: NodeState,
    pending: Pending,
    unwritten: Unwritten,
    refused: Refused,
    compile_problems: CompileProblems,
    health_check_ports: HealthCheckPorts,
    has_synced: bool,
}

impl Controller {
    pub fn new(node_name: &str, config: CompileConfig, sizes: MapSizes) -> Self {
        Self {
            snapshot: Snapshot::new(node_name),
            config,
            services: ServiceTables::new(sizes),
            grace: GRACE,
            node: NodeState::new(),
            pending: Pending::default(),
            unwritten: Unwritten::default(),
            refused: Refused::default(),
            compile_problems: CompileProblems::default(),
            health_check_ports: HealthCheckPorts::default(),
            has_synced: false,
        }
    }

    /// Whether another proxy's flows are being recorded ([`proxy_common::NodeConfig::TAKING_OVER`]).
    pub fn set_taking_over(&mut self, taking_over: bool) {
        self.node.set_taking_over(taking_over);
    }

    pub fn is_taking_over(&self) -> bool {
        self.node.is_taking_over()
    }

    /// Replaces [`GRACE`]; tests need not wait.
    pub fn with_grace(mut self, grace: Duration) -> Self {
        self.grace = grace;
        self
    }

    /// Takes over ids and slot ranges from the store, so that a restart without changes writes nothing. Once, before the
    /// first sync.
    pub fn restore(&mut self, store: &mut dyn MapStore) -> Result<(), SyncError> {
        Ok(self.services.restore(store)?)
    }

    /// Reads the store again; the next sync repairs what another process changed in it.
    pub fn reload(&mut self, store: &mut dyn MapStore) -> Result<(), SyncError> {
        Ok(self.services.reload(store)?)
    }

    /// Takes one event; nothing is written before [`sync`](Self::sync).
    pub fn apply(&mut self, event: Event) {
        let dirty = self.snapshot.apply(event);
        self.node.mark(&dirty);
        self.pending.add_every_service(dirty.every_service);
        self.pending.add(dirty.services);
    }

    /// All addresses of the node's network namespace. `fallback`: the primary address of a family in which the Node object
    /// has no InternalIP.
    pub fn set_node_addresses(&mut self, addresses: Vec<NodeAddress>, fallback: &[IpAddr]) {
        let is_new_fallback = self.node.set_addresses(addresses, fallback);
        self.pending.add_every_service(is_new_fallback);
    }

    /// Whether every source has delivered its initial list.
    pub fn is_synced(&self) -> bool {
        self.snapshot.is_synced()
    }

    pub fn service_count(&self) -> usize {
        self.snapshot.service_count()
    }

    /// The Service's uid, if the source has one.
    pub fn service_uid(&self, key: &ServiceKey) -> Option<Arc<str>> {
        self.snapshot.service(key)?.uid.clone()
    }

    /// This node; `--bind-address` takes precedence over the Node object's addresses.
    pub fn node(&self) -> Node {
        let mut node = self.snapshot.node();
        if let Some(ip) = self.config.node_ip {
            node.internal_ips.insert(0, ip);
        }
        node
    }

    /// Whether a source delivered this node's object.
    pub fn knows_node(&self) -> bool {
        self.snapshot.knows_node()
    }

    /// Whether this node's object is missing; see [`Snapshot::misses_node`].
    pub fn misses_node(&self, without: bool) -> bool {
        self.snapshot.misses_node(without)
    }

    /// Whether load balancers may send to this node; see [`Snapshot::is_node_eligible`].
    pub fn is_node_eligible(&self, without: bool) -> bool {
        self.snapshot.is_node_eligible(without)
    }

    /// Whether UDP flows of this service id may still use this backend id.
    pub fn serves(&self, service: u32, backend: u32) -> bool {
        self.services.serves(service, backend)
    }

    /// The affinity timeout of this service id, if this backend id is in one of its sets.
    pub fn affinity_seconds(&self, service: u32, backend: u32) -> Option<u32> {
        self.services.affinity_seconds(service, backend)
    }

    /// Whether retired ids wait for [`release`](Self::release).
    pub fn has_retired(&self) -> bool {
        self.services.has_retired()
    }

    /// What the maps must hold.
    pub fn tables(&self) -> &Tables {
        &self.services.tables
    }

    /// The number of Services of this family with policy Local that have endpoints, but no usable one on this node.
    pub fn without_local_endpoints(&self, family: Family, internal: bool) -> usize {
        let has_none = |service: &CompiledService| {
            let ports = service.ports.iter().filter(|port| port.family == family);
            let mut bare = ports.filter(|port| port.has_endpoints && port.local.is_empty());
            let is_asked = |frontend: &CompiledFrontend| {
                frontend.local && (frontend.kind == FrontendKind::ClusterIp) == internal
            };
            bare.any(|port| port.frontends.iter().any(is_asked))
        };
        let installed = self.services.installed_keys().filter_map(|key| self.services.installed(key));
        installed.filter(|service| has_none(service)).count()
    }

    /// The listeners of healthCheckNodePorts, as of the last complete sync.
    pub fn listeners(&self) -> &Listeners {
        self.health_check_ports.listeners()
    }

    /// All current problems, by Service.
    pub fn problems(&self) -> Vec<Problem> {
        let compiled = self.compile_problems.iter().chain(self.health_check_ports.problems());
        let mut all: Vec<_> =
            compiled.chain(self.refused.iter()).cloned().chain(self.services.conflicts()).collect();
        all.sort();
        all
    }

    /// Takes the ids that flows and sockets still name, as read from the datapath's maps since `since`. Ids that were
    /// retired long enough before and are not named are freed; the next sync deletes their entries.
    pub fn release(&mut self, since: Instant, in_use: &InUse) {
        if let Some(before) = since.checked_sub(self.grace) {
            self.services.release(before, in_use);
        }
    }

    /// Writes what changed. Writes nothing before every source has delivered its initial list.
    pub fn sync(&mut self, store: &mut dyn MapStore) -> Result<SyncReport, SyncError> {
        if !self.is_synced() {
            return Ok(SyncReport::default());
        }
        let now = Instant::now();
        self.services.reclaim(now, self.grace);
        let first = !self.has_synced;
        let mut report = SyncReport { first, full: first, ..SyncReport::default() };
        let node = self.node();
        let recomputed = self.node.update(&node, &self.snapshot, &self.config, &mut self.services);
        self.health_check_ports.mark(recomputed);
        self.update_services(&node, now, &mut report);
        if first {
            self.services.drop_unclaimed();
        }
        let (written, result) =
            write::write(&mut self.services, store, &mut self.unwritten, &mut self.refused);
        result?;
        self.unwritten.clear();
        self.services.flushed(now);
        self.has_synced = true;
        report.complete = true;
        report.ops = written.ops;
        report.problems.extend(written.problems);
        self.report_changes(&mut report);
        for problem in &report.problems {
            tracing::warn!("{problem}");
        }
        Ok(report)
    }

    /// After a complete write: what the agent must know of it.
    fn report_changes(&mut self, report: &mut SyncReport) {
        let changes = self.services.take_changes();
        report.removed_endpoints = changes.removed_endpoints;
        report.affinity_lost = changes.affinity_lost;
        report.udp_served = changes.udp_served;
        report.triggers = self.snapshot.take_triggers();
        report.problems.extend(self.services.take_fresh_conflicts());
        let uid = |service: &ServiceKey| self.snapshot.service(service)?.uid.clone();
        let (listeners, problems) =
            self.health_check_ports.update(&self.services.tables, &self.config.nodeport_addresses, uid);
        report.listeners = listeners;
        report.problems.extend(problems);
        let is_waiting = self.services.is_aging() || !self.refused.is_empty();
        report.retry_in = is_waiting.then_some(self.grace);
    }

    fn update_services(&mut self, node: &Node, now: Instant, report: &mut SyncReport) {
        let services = &mut self.services;
        self.pending.add(self.refused.retry(now, self.grace, || services.take_made_room()));
        let (pending, is_full) = self.pending.take(&self.snapshot);
        report.full |= is_full;
        let node = self.node.compile_node(node.clone());
        let mut compiled: Vec<_> = pending
            .into_iter()
            .map(|key| {
                let service = self.compile(&key, &node, report);
                (key, service)
            })
            .collect();
        report.services = compiled.len();
        // Removals first, because they make room; then Services that were served before a restart; new ones last.
        compiled.sort_by_key(|(_, service)| match service {
            None => 0,
            Some(service) if self.services.knows(service) => 1,
            Some(_) => 2,
        });
        for (key, service) in compiled {
            let before = self.services.installed(&key).cloned();
            match self.services.replace(&key, service) {
                Ok(()) => {
                    self.refused.remove(&key);
                    self.unwritten.note(key, before);
                }
                Err(full) => report.problems.extend(self.refused.insert(&key, full, before.is_some())),
            }
        }
    }

    /// Compiles one Service and keeps its problems and its health check.
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
        self.health_check_ports.set(key, compiled.as_ref());
        let problems = compiled.as_ref().map(|compiled| compiled.problems.clone()).unwrap_or_default();
        report.problems.extend(self.compile_problems.replace(key, problems));
        compiled.map(Arc::new)
    }
}
