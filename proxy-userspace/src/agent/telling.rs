//! What the agent tells of itself: metrics, health and the listeners that show both, and events.

use std::{sync::Arc, time::Duration};

use jiff::Timestamp;

use super::{Agent, AgentError};
use crate::{
    config::{self, Config},
    controller::SyncReport,
    datapath::pins::Pins,
    events::Recorder,
    health::{self, Health, MetricsPages, Page},
    kube_proxy_config,
    metrics::METRICS,
    model::Family,
    source::Event,
};

impl Agent {
    /// Takes one event.
    pub(super) fn apply(&mut self, event: Event) {
        match &event {
            Event::Service(_) | Event::ServiceGone(_) => METRICS.proxy.changed(false),
            Event::Slice(_) | Event::SliceGone(_) => METRICS.proxy.changed(true),
            _ => {}
        }
        self.controller.apply(event);
    }

    /// Whether load balancers may send here, as far as is known now.
    pub(super) fn tell_eligible(&self) {
        self.health.set_eligible(self.controller.is_node_eligible(self.without_nodes()));
    }

    /// Files need not hold Nodes; an API server has one for each node of its cluster.
    fn without_nodes(&self) -> bool {
        matches!(self.config.source, config::Source::Manifests(_))
    }

    /// Once the sources have delivered everything: whose node this is.
    fn tell_own_node(&mut self) {
        let (is_known, is_missing) =
            (self.controller.knows_node(), self.controller.misses_node(self.without_nodes()));
        if let Some(news) = self.own_node.look(is_known, is_missing) {
            news.tell(&self.config.node_name);
        }
    }

    pub(super) fn tell_queued(&self) {
        METRICS.proxy.queued();
        // Before the sources have delivered everything there is nothing that could be late.
        if self.controller.is_synced() {
            self.health.queued(Timestamp::now());
        }
    }

    /// The maps hold all that was known.
    pub(super) fn tell_synced(&mut self, report: &SyncReport, took: Duration) {
        let now = Timestamp::now();
        self.health.synced(now);
        self.health.set_ready();
        METRICS.proxy.synced(took, report.full);
        for trigger in &report.triggers {
            METRICS.proxy.programmed(trigger.family, now.duration_since(trigger.at).as_secs_f64());
        }
        for problem in &report.problems {
            self.recorder.problem(problem, self.controller.service_uid(&problem.service));
        }
        self.tell_own_node();
        self.has_news = true;
    }

    /// What is counted anew once a second at most.
    pub(super) fn tell_state(&mut self) {
        METRICS.own.devices.set(self.devices.count() as i64);
        if !std::mem::take(&mut self.has_news) {
            return;
        }
        METRICS.own.ready.set(self.is_attached.into());
        METRICS.own.services.set(self.controller.service_count() as i64);
        let problems = self.controller.problems().len() + usize::from(self.own_node.is_missing());
        METRICS.own.problems.set(problems as i64);
        for (map, entries) in self.controller.tables().fill() {
            METRICS.own.map_fill(map, entries);
        }
        for family in Family::BOTH {
            for internal in [true, false] {
                let services = self.controller.without_local_endpoints(family, internal);
                METRICS.proxy.no_local_endpoints(family, internal, services as i64);
            }
        }
    }
}

/// Opens the listeners that were asked for.
pub(super) async fn listen(
    config: &Config,
    health: &Arc<Health>,
    pins: &Pins,
    recorder: &Recorder,
) -> Result<(), AgentError> {
    let configz = kube_proxy_config::configz(&config.kube_proxy, &config.node_name).to_string();
    let metrics = MetricsPages {
        pins: pins.clone(),
        services_max: config.service_metrics_max as usize,
        configz: Some(configz),
    };
    let pages = [
        (
            config.healthz_bind_address,
            "health",
            "FailedToStartProxierHealthcheck",
            Page::Health(health.clone()),
        ),
        (
            config.metrics_bind_address,
            "metrics",
            "FailedToStartMetricServer",
            Page::Metrics(Arc::new(metrics)),
        ),
    ];
    for (addr, what, reason, page) in pages {
        let Some(addr) = addr else { continue };
        if config.bind_address_hard_fail {
            let listening = health::listen(addr, page).await;
            listening.map_err(|source| AgentError::Listen { what, addr, source })?;
        } else if let Err(error) = health::keep_listening(addr, what, page).await {
            recorder.node(
                true,
                reason,
                format_args!("cannot listen for {what} at {addr}: {error}; trying again"),
            );
        }
    }
    Ok(())
}
