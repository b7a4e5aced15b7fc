//! The agent's task: the only writer of the maps. It does one thing after the other: take events, sync, hook devices,
//! answer the flow threads, repair.

use std::{
    os::fd::OwnedFd,
    time::{Duration, Instant},
};

use proxy_common::map;
use tokio::{
    io::unix::AsyncFd,
    sync::mpsc,
    time::{Instant as TokioInstant, sleep_until},
};

use super::{
    affinity_gc::AffinityGc,
    device_hooks::{DeviceError, Outcome},
    drops_gc,
    error::AgentError,
    flow_threads::{FlowSettings, FlowThreads, Report},
    heartbeat::Heartbeat,
    programs::Programs,
    schedule::Schedule,
    shutdown::Shutdown,
    status::Status,
};
use crate::{controller::Controller, metrics::METRICS, sources::Event};

const HEARTBEAT: Duration = Duration::from_secs(1);

/// Joins the source, the controller, the devices and the kernel.
pub(super) struct Agent {
    pub(super) controller: Controller,
    pub(super) programs: Programs,
    pub(super) device_events: AsyncFd<OwnedFd>,
    pub(super) events: mpsc::Receiver<Vec<Event>>,
    pub(super) schedule: Schedule,
    pub(super) status: Status,
    pub(super) heartbeat: Heartbeat,
    pub(super) affinity_gc: AffinityGc,
    /// Started once the programs are attached.
    pub(super) flow_threads: Option<FlowThreads>,
    pub(super) flow_settings: FlowSettings,
    pub(super) is_attached: bool,
}

impl Agent {
    pub(super) async fn run(&mut self, shutdown: &mut Shutdown) -> Result<(), AgentError> {
        let mut heartbeat = tokio::time::interval(HEARTBEAT);
        loop {
            tokio::select! {
                biased;
                why = shutdown.requested() => {
                    tracing::info!("{why}: stopping; programs, links and maps stay, `shunt cleanup` removes them");
                    return Ok(());
                }
                // Devices first: a new pod waits for its hooks.
                ready = self.device_events.readable() => {
                    ready.map_err(DeviceError::Netlink)?.clear_ready();
                    let outcome = self.programs.on_device_events();
                    self.after_devices(outcome);
                }
                batch = self.events.recv() => {
                    let Some(batch) = batch else { return Err(AgentError::SourceEnded) };
                    self.take(batch);
                }
                () = wait_for(self.schedule.sync_at) => self.sync()?,
                () = wait_for(self.schedule.devices_at) => {
                    self.schedule.devices_at = None;
                    let outcome = self.programs.retry_devices();
                    self.after_devices(outcome);
                }
                report = next_report(&mut self.flow_threads) => {
                    let Some(report) = report else { return Err(AgentError::FlowsEnded) };
                    self.on_flow_report(report);
                }
                () = wait_for(Some(self.affinity_gc.due())), if self.is_attached => {
                    if let Err(error) = self.affinity_gc.run(&self.programs.loaded, &self.controller) {
                        tracing::warn!(%error, "removing expired session affinities failed");
                    }
                }
                _ = heartbeat.tick() => {
                    self.heartbeat.beat(&mut self.programs.loaded.store);
                    self.status.update_gauges(&self.controller, self.programs.devices.count(), self.is_attached);
                }
                () = wait_for(Some(self.schedule.repair_at)), if self.is_attached => self.repair(),
            }
        }
    }

    /// Takes all events that are waiting.
    fn take(&mut self, batch: Vec<Event>) {
        self.apply(batch);
        while let Ok(more) = self.events.try_recv() {
            self.apply(more);
        }
        self.status.update_eligible(&self.controller);
        self.queue_sync();
    }

    fn apply(&mut self, batch: Vec<Event>) {
        for event in batch {
            self.status.count_change(&event);
            self.controller.apply(event);
        }
    }

    pub(super) fn queue_sync(&mut self) {
        self.status.sync_queued(&self.controller);
        self.schedule.sync_soon();
    }

    pub(super) fn update_addresses(&mut self) {
        let (all, primary) = self.programs.devices.addresses();
        self.controller.set_node_addresses(all, &primary);
    }

    fn after_devices(&mut self, outcome: Result<Outcome, DeviceError>) {
        let outcome = match outcome {
            Ok(outcome) => outcome,
            Err(error) => {
                tracing::error!(%error, "following devices failed; reading them again");
                METRICS.own.failed("devices");
                self.schedule.devices_failed();
                return;
            }
        };
        if outcome.addresses {
            self.update_addresses();
            self.queue_sync();
        }
        if let Some(delay) = outcome.retry_in {
            self.schedule.devices_after(delay);
        }
    }

    /// Answers what only this task knows: what the ids mean.
    fn on_flow_report(&mut self, report: Report) {
        match report {
            Report::Ask { mut pairs, answer } => {
                pairs.retain(|(service, backend)| !self.controller.serves(*service, *backend));
                // The thread may have given up: it asks again with its next pass.
                let _late = answer.send(pairs);
            }
            Report::Full { refused, max } => self.status.conntrack_full(refused, max),
            Report::InUse { began, in_use } => {
                if !self.controller.has_retired() {
                    return;
                }
                self.controller.release(began, &in_use);
                self.schedule.sync_sometime();
            }
        }
    }

    /// Compares devices, attachments, pins and maps with what they should be.
    fn repair(&mut self) {
        self.schedule.repair_begins();
        let outcome = self.programs.repair_devices();
        self.after_devices(outcome);
        self.programs.repair_sockets();
        match drops_gc::fold_removed_devices(&self.programs.loaded) {
            Ok(0) => {}
            Ok(entries) => tracing::debug!(entries, "drop counters of removed devices folded"),
            Err(error) => tracing::warn!(%error, "cleaning up {} failed", map::DROPS),
        }
        if let Err(error) = self.programs.repair_pins() {
            tracing::error!(%error, "restoring pins failed");
        }
        if let Err(error) = self.controller.reload(&mut self.programs.loaded.store) {
            tracing::error!(%error, "reading the maps failed");
        }
        self.queue_sync();
    }

    /// Leaves in the maps what `shunt status` shows of a stopped agent.
    pub(super) fn stopped(&mut self) {
        self.heartbeat.stop(&mut self.programs.loaded.store);
        let latency = self.programs.devices.latency;
        tracing::info!(
            devices = self.programs.devices.count(),
            hook_latency_last = ?latency.last,
            hook_latency_max = ?latency.max,
            "stopped"
        );
    }
}

/// Never returns while the threads are not started.
async fn next_report(threads: &mut Option<FlowThreads>) -> Option<Report> {
    match threads {
        Some(threads) => threads.report().await,
        None => std::future::pending().await,
    }
}

/// Never returns for `None`.
async fn wait_for(at: Option<Instant>) {
    match at {
        Some(at) => sleep_until(TokioInstant::from_std(at)).await,
        None => std::future::pending().await,
    }
}
