//! One sync: the controller writes the maps, then everything that depends on it: the first complete one attaches the
//! programs and starts the flow threads.

use std::time::Instant;

use super::{
    error::{AgentError, io_error},
    event_loop::Agent,
    flow_threads::FlowThreads,
    node_flows::{self, NodeFlowStore},
    takeover::{self, Recorded},
};
use crate::{controller::SyncReport, metrics::METRICS};

impl Agent {
    /// Brings the maps up to date.
    pub(super) fn sync(&mut self) -> Result<(), AgentError> {
        self.schedule.sync_begins();
        let began = Instant::now();
        let report = match self.controller.sync(&mut NodeFlowStore::new(&mut self.programs.loaded)) {
            Ok(report) => report,
            Err(error) => {
                tracing::error!(%error, "writing the maps failed; trying again");
                METRICS.own.failed("sync");
                self.schedule.sync_failed();
                return Ok(());
            }
        };
        self.schedule.sync_ended();
        if !report.complete {
            return Ok(());
        }
        if report.ops > 0 {
            tracing::debug!(ops = report.ops, services = report.services, took = ?began.elapsed(), "synced");
        }
        if !self.is_attached {
            self.attach_first()?;
        }
        self.status.synced(&self.controller, &report, began.elapsed());
        self.heartbeat.synced(self.controller.service_count(), &mut self.programs.loaded.store);
        self.update_flows(&report)?;
        if let Some(delay) = report.retry_in {
            self.schedule.sync_after(delay);
        }
        Ok(())
    }

    /// The maps are complete for the first time.
    fn attach_first(&mut self) -> Result<(), AgentError> {
        self.take_over();
        self.attach()?;
        self.take_over();
        self.record_node_flows();
        self.controller.set_taking_over(false);
        self.queue_sync();
        Ok(())
    }

    /// On a node without an earlier run: keeps another proxy's connections.
    fn take_over(&self) {
        if !self.controller.is_taking_over() {
            return;
        }
        let began = Instant::now();
        match takeover::record(&self.programs.loaded, self.controller.tables()) {
            Ok(Recorded { new: 0, left_out: 0 }) => {}
            Ok(Recorded { new, left_out: 0 }) => {
                tracing::info!(flows = new, took = ?began.elapsed(), "connections of another proxy go on");
            }
            Ok(Recorded { new, left_out }) => tracing::warn!(
                flows = new,
                left_out,
                "not all connections of another proxy go on: three quarters of CONNTRACK (--conntrack-max) are used, the \
                 others will be reset"
            ),
            Err(error) => {
                tracing::warn!(%error, "reading nf_conntrack failed: connections of another proxy will be reset");
            }
        }
    }

    /// Flows that began at a frontend's address and port since the frontends were written, while no program recorded them.
    fn record_node_flows(&self) {
        let frontends = self.controller.tables().frontends.entries();
        let at_node = frontends.iter().map(|(key, _)| **key).collect();
        if let Err(error) = node_flows::record(&self.programs.loaded, &at_node) {
            tracing::warn!(%error, "the node's open flows cannot be read: some at a Service's port may break");
        }
    }

    fn attach(&mut self) -> Result<(), AgentError> {
        let began = Instant::now();
        let outcome = self.programs.attach_devices()?;
        self.programs.attach_sockets()?;
        self.programs.pin_programs()?;
        self.is_attached = true;
        self.heartbeat.set_ready();
        self.schedule.devices_at = outcome.retry_in.map(|delay| Instant::now() + delay);
        tracing::info!(
            devices = self.programs.devices.count(),
            services = self.controller.service_count(),
            took = ?began.elapsed(),
            "ready"
        );
        Ok(())
    }

    /// Hands over what concerns existing flows and clients.
    fn update_flows(&mut self, report: &SyncReport) -> Result<(), AgentError> {
        match &self.flow_threads {
            Some(threads) => {
                threads.endpoints_removed(&report.removed_endpoints);
                if report.udp_served {
                    threads.udp_served();
                }
            }
            // They begin with a look at what happened while no agent ran.
            None => {
                let threads = FlowThreads::start(&self.programs.loaded, self.flow_settings);
                self.flow_threads = Some(threads.map_err(io_error("starting the conntrack-gc thread"))?);
            }
        }
        if report.first || report.affinity_lost {
            self.affinity_gc.hurry();
        }
        Ok(())
    }
}
