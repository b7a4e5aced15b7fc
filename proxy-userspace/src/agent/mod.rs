//! `shunt run`: joins the source, the controller, the devices and the kernel, and keeps them in step.
//!
//! [`event_loop`] is the agent's task and the only writer of the maps. Two threads beside it ([`flow_threads`]) only read
//! and delete: expired flows, and UDP flows to removed endpoints. At start nothing is attached before the maps are
//! complete; at exit programs, links and maps stay, and the node keeps forwarding.

mod affinity_gc;
mod device_entries;
mod device_hooks;
mod device_watch;
mod drops_gc;
mod error;
mod event_loop;
mod flow_threads;
mod heartbeat;
mod listeners;
mod logging;
mod node_flows;
mod node_object;
mod process_limits;
mod programs;
mod schedule;
mod shutdown;
mod source_addrs;
mod start;
mod status;
mod sync;
mod takeover;
mod trace;
mod xdp_devices;

pub use self::error::AgentError;
use self::{error::io_error, event_loop::Agent, shutdown::Shutdown};
use crate::{config::Config, kube_proxy_config::DryRun};

/// Runs until SIGTERM or SIGINT, or until the file of `--config` changes to something that an agent `would_start` with.
pub fn run(config: Config, would_start: DryRun) -> Result<(), AgentError> {
    logging::start(config.verbosity);
    config.notes.iter().for_each(|note| tracing::warn!("{note}"));
    process_limits::set_oom_score(config.oom_score_adj);
    process_limits::raise_open_files();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .map_err(io_error("starting the runtime"))?;
    // The agent's own task runs on this thread; the listeners on the other.
    runtime.block_on(async {
        let mut shutdown =
            Shutdown::new(config.file.clone(), would_start).map_err(io_error("waiting for signals"))?;
        let mut agent = Agent::start(config).await?;
        let result = agent.run(&mut shutdown).await;
        agent.stopped();
        result
    })
}
