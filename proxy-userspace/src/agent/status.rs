//! What the agent reports about itself: health, metrics, Events, and the listeners of healthCheckNodePorts.

use std::{sync::Arc, time::Duration};

use jiff::Timestamp;
use tokio::sync::watch;

use super::node_object::NodeObject;
use crate::{
    config::{self, Config},
    controller::{Controller, SyncReport},
    events::Recorder,
    health::Health,
    health_checks::Listeners,
    metrics::METRICS,
    model::Family,
    sources::Event,
};

/// The receivers of reports, and what was reported last.
pub(super) struct Status {
    health: Arc<Health>,
    recorder: Recorder,
    /// To the task that opens the listeners.
    health_checks: watch::Sender<Listeners>,
    node_object: NodeObject,
    node_name: String,
    /// Files need not hold Nodes; an API server has one for each node of its cluster.
    nodes_optional: bool,
    /// The maps changed since the gauges were last updated.
    is_stale: bool,
}

impl Status {
    pub(super) fn new(
        config: &Config,
        health: Arc<Health>,
        recorder: Recorder,
        health_checks: watch::Sender<Listeners>,
    ) -> Self {
        Self {
            health,
            recorder,
            health_checks,
            node_object: NodeObject::default(),
            node_name: config.node_name.clone(),
            nodes_optional: matches!(config.source, config::Source::Manifests(_)),
            is_stale: false,
        }
    }

    /// An event arrived.
    pub(super) fn count_change(&self, event: &Event) {
        match event {
            Event::Service(_) | Event::ServiceGone(_) => METRICS.proxy.changed(false),
            Event::Slice(_) | Event::SliceGone(_) => METRICS.proxy.changed(true),
            _ => {}
        }
    }

    /// Whether load balancers may send to this node, as far as is known now.
    pub(super) fn update_eligible(&self, controller: &Controller) {
        self.health.set_eligible(controller.is_node_eligible(self.nodes_optional));
    }

    /// CONNTRACK has no room for new flows.
    pub(super) fn conntrack_full(&self, refused: u64, max: usize) {
        tracing::warn!(
            refused,
            max,
            "CONNTRACK is full: new flows to Services are refused; see --conntrack-max"
        );
        self.recorder.node(
            true,
            "ConntrackFull",
            format_args!(
                "{refused} new flows to Services were refused: the table of {max} entries is full; see --conntrack-max"
            ),
        );
    }

    /// A change waits for a sync.
    pub(super) fn sync_queued(&self, controller: &Controller) {
        METRICS.proxy.queued();
        // Before the sources have delivered everything, no update can be late.
        if controller.is_synced() {
            self.health.queued(Timestamp::now());
        }
    }

    /// The maps hold everything that was known.
    pub(super) fn synced(&mut self, controller: &Controller, report: &SyncReport, took: Duration) {
        let now = Timestamp::now();
        self.health.synced(now);
        self.health.set_ready();
        METRICS.proxy.synced(took, report.full);
        for trigger in &report.triggers {
            METRICS.proxy.programmed(trigger.family, now.duration_since(trigger.at).as_secs_f64());
        }
        for problem in &report.problems {
            self.recorder.problem(problem, controller.service_uid(&problem.service));
        }
        let is_missing = controller.misses_node(self.nodes_optional);
        if let Some(change) = self.node_object.update(controller.knows_node(), is_missing) {
            change.log(&self.node_name);
        }
        self.is_stale = true;
        if report.listeners {
            self.health_checks.send_replace(controller.listeners().clone());
        }
    }

    /// Gauges that are too expensive for every sync: updated once a second at most.
    pub(super) fn update_gauges(&mut self, controller: &Controller, devices: usize, is_attached: bool) {
        METRICS.own.devices.set(devices as i64);
        if !std::mem::take(&mut self.is_stale) {
            return;
        }
        METRICS.own.ready.set(is_attached.into());
        METRICS.own.services.set(controller.service_count() as i64);
        let problems = controller.problems().len() + usize::from(self.node_object.is_missing());
        METRICS.own.problems.set(problems as i64);
        for (map, entries) in controller.tables().fill() {
            METRICS.own.map_fill(map, entries);
        }
        for family in Family::BOTH {
            for internal in [true, false] {
                let services = controller.without_local_endpoints(family, internal);
                METRICS.proxy.no_local_endpoints(family, internal, services as i64);
            }
        }
    }
}
