//! From the configuration to an agent that is ready to run: loads the programs, reads what an earlier run left, and
//! attaches nothing.

use std::{os::fd::OwnedFd, sync::Arc, time::Instant};

use proxy_common::map;
use tokio::{
    io::{Interest, unix::AsyncFd},
    sync::{mpsc, watch},
};

use super::{
    affinity_gc::AffinityGc,
    device_hooks::{DeviceError, DeviceHooks},
    error::{AgentError, io_error},
    event_loop::Agent,
    flow_threads::FlowSettings,
    heartbeat::Heartbeat,
    listeners,
    programs::Programs,
    schedule::Schedule,
    status::Status,
    trace,
};
use crate::{
    bpf::{
        map::RawMap,
        probe::{self, Features},
    },
    config::{Config, MapSizes, SocketLb, Xdp},
    controller::{Controller, SyncError},
    datapath::{
        DatapathError,
        attach::Method,
        cgroup_attach,
        load::{Globals, Loaded, load},
        pins::Pins,
    },
    health::{self, Health},
    health_checks::Listeners,
    maps::MapStore as _,
    metrics::METRICS,
    sources::{Event, Source},
};

/// Makes tests use the clsact qdisc on kernels that have tcx.
const FORCE_CLSACT: &str = "SHUNT_FORCE_CLSACT";

/// Makes tests use SOURCE_ADDRS on kernels whose bpf_fib_lookup names sources.
const FORCE_SOURCE_TABLE: &str = "SHUNT_FORCE_SOURCE_TABLE";

impl Agent {
    pub(super) async fn start(mut config: Config) -> Result<Self, AgentError> {
        let began = Instant::now();
        let source = Source::open(&config.source, &config.node_name)?;
        let mut features = Features::probe().map_err(|source| DatapathError::Privilege { source })?;
        if is_forced(FORCE_SOURCE_TABLE) {
            features.fib_source = 0;
        }
        features.lacking().map_err(DatapathError::Kernel)?;
        if config.socket_lb != SocketLb::Off {
            cgroup_attach::check_cgroup(&config.cgroup)?;
        }
        let pins = Pins::create(&config.bpffs)?;
        let lock = pins.lock()?;
        let health = Arc::new(Health::new(config.min_sync));
        let recorder = source.recorder();
        recorder.node(false, "Starting", "");
        listeners::open(&config, &health, &pins, &recorder).await?;
        let (health_checks, wanted) = watch::channel(Listeners::new());
        tokio::spawn(health::checks::follow(wanted, health.clone(), recorder.clone()));

        keep_pinned_size(&mut config.sizes, &pins);
        let globals = Globals::new(&features, &config)?;
        let mut loaded = load(&pins, &globals, &config.sizes, config.xdp != Xdp::Off)?;
        METRICS.begin(&pins);
        if config.trace {
            trace::start(loaded.ebpf_mut()).map_err(io_error("starting the trace"))?;
        }
        let method = attach_method(&features);
        let devices = DeviceHooks::open(&config, pins.clone(), method).map_err(DeviceError::Netlink)?;
        let device_events = register(devices.descriptor().map_err(DeviceError::Netlink)?)?;
        let (controller, events) = restore(&config, source, &mut loaded)?;
        tracing::info!(
            node = config.node_name,
            kernel = probe::kernel_release(),
            ?method,
            ?features,
            bpffs = %config.bpffs.display(),
            took = ?began.elapsed(),
            "loaded"
        );
        if config.socket_lb == SocketLb::Off {
            tracing::warn!("--socket-lb off: the node's own processes do not reach Services");
        }
        let mut agent = Self {
            controller,
            programs: Programs::new(&config, pins, lock, loaded, devices),
            device_events,
            events,
            schedule: Schedule::new(config.min_sync, config.repair),
            status: Status::new(&config, health.clone(), recorder, health_checks),
            heartbeat: Heartbeat::new(health),
            affinity_gc: AffinityGc::new(globals.hz),
            flow_threads: None,
            flow_settings: FlowSettings {
                timeouts: config.timeouts,
                hz: globals.hz,
                socket_lb: config.socket_lb,
            },
            is_attached: false,
        };
        agent.update_addresses();
        Ok(agent)
    }
}

/// Whether a test asks for the replacement of a feature that the kernel has.
fn is_forced(variable: &str) -> bool {
    std::env::var_os(variable).is_some_and(|value| value == "1")
}

fn attach_method(features: &Features) -> Method {
    if features.tcx && !is_forced(FORCE_CLSACT) { Method::Tcx } else { Method::Clsact }
}

fn register(descriptor: OwnedFd) -> Result<AsyncFd<OwnedFd>, DeviceError> {
    // SAFETY: an `OwnedFd` keeps one descriptor open for as long as it lives, and the `AsyncFd` owns it.
    let registered = unsafe { AsyncFd::register_with_interest(descriptor, Interest::READABLE) };
    registered.map_err(|e| DeviceError::Netlink(e.into()))
}

/// The controller with what the maps hold, and the events of the source.
fn restore(
    config: &Config,
    source: Source,
    loaded: &mut Loaded,
) -> Result<(Controller, mpsc::Receiver<Vec<Event>>), AgentError> {
    let mut controller = Controller::new(&config.node_name, config.compile.clone(), config.sizes);
    controller.restore(&mut loaded.store)?;
    let populated = !loaded.store.read(map::FRONTENDS).map_err(SyncError)?.is_empty();
    controller.set_taking_over(!populated);
    Ok((controller, source.follow(populated)?))
}

/// A size that was derived from the number of CPUs yields to the size of the map that is pinned.
fn keep_pinned_size(sizes: &mut MapSizes, pins: &Pins) {
    let Ok(pinned) = RawMap::open(&pins.map(map::CONNTRACK)) else { return };
    let has = pinned.info().max_entries;
    if sizes.conntrack_is_scaled && has != sizes.conntrack {
        tracing::warn!(
            wanted = sizes.conntrack,
            has,
            "{} keeps its size: conntrack.maxPerCore and conntrack.min take effect after `shunt cleanup` or a reboot",
            map::CONNTRACK
        );
        sizes.conntrack = has;
    }
}
