//! `shunt run`: joins the sources, the controller, the devices and the kernel, and keeps them in step.
//!
//! One task writes the maps and does one thing after the other: take events, sync, hook devices, repair. What takes
//! long and only deletes (expired flows, datagrams that must move) is done by two threads beside it ([`flows`]). At start nothing is attached before the maps are complete; at exit programs, links
//! and maps stay, and the node keeps forwarding.

mod clients;
mod drops;
mod flows;
mod hooks;
mod lane;
mod own_node;
mod source_addrs;
mod stop;
mod takeover;
mod telling;
mod trace;

use std::{
    io::{self, IsTerminal as _},
    net::SocketAddr,
    os::fd::{AsFd as _, OwnedFd},
    sync::Arc,
    time::{Duration, Instant},
};

use bytemuck::bytes_of;
use proxy_common::{Agent as AgentState, map};
use tokio::{
    io::{Interest, unix::AsyncFd},
    sync::{mpsc, watch},
    time::{Instant as TokioInstant, sleep_until},
};

use self::{
    clients::Clients,
    flows::{Flows, Report},
    hooks::{DeviceHooks, EventError, Outcome},
    own_node::OwnNode,
    stop::Stop,
    takeover::Taken,
};
use crate::{
    bpf::{
        self,
        map::RawMap,
        probe::{self, Features},
    },
    config::{Config, MapSizes, SocketLb, Xdp},
    controller::{Controller, SyncError},
    datapath::{
        DatapathError,
        attach::{self, Method},
        load::{Globals, Loaded, load},
        pins::{PinLock, Pins},
    },
    events::Recorder,
    health::{self, Health, unix_now},
    health_checks::Listeners,
    kube_proxy_config::WouldStart,
    maps::{MapStore as _, Op},
    metrics::METRICS,
    source::{Event, Source, SourceError},
};

/// After a failed write.
const RETRY: Duration = Duration::from_secs(1);
const HEARTBEAT: Duration = Duration::from_secs(1);

/// Makes tests use the clsact qdisc on kernels that have tcx.
const FORCE_CLSACT: &str = "SHUNT_FORCE_CLSACT";

/// Makes tests use SOURCE_ADDRS on kernels whose bpf_fib_lookup names sources.
const FORCE_SOURCE_TABLE: &str = "SHUNT_FORCE_SOURCE_TABLE";

/// Why `shunt run` ended.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    #[error(transparent)]
    Datapath(#[from] DatapathError),
    #[error(transparent)]
    Source(#[from] SourceError),
    #[error(transparent)]
    Sync(#[from] SyncError),
    #[error(transparent)]
    Devices(#[from] EventError),
    #[error("the source of Services and endpoints has ended")]
    SourceEnded,
    #[error("the threads that collect flows have ended")]
    FlowsEnded,
    #[error("cannot listen for {what} at {addr}, and --bind-address-hard-fail asks to end then: {source}")]
    Listen { what: &'static str, addr: SocketAddr, source: io::Error },
    #[error("{action}: {source}")]
    Io { action: &'static str, source: io::Error },
}

fn io_error(action: &'static str) -> impl FnOnce(io::Error) -> AgentError {
    move |source| AgentError::Io { action, source }
}

/// Runs until SIGTERM or SIGINT, or until the file of `--config` says something else that an agent `would_start` with.
pub fn run(config: Config, would_start: WouldStart) -> Result<(), AgentError> {
    start_logging(config.verbosity);
    config.notes.iter().for_each(|note| tracing::warn!("{note}"));
    stop::set_oom_score(config.oom_score_adj);
    stop::raise_open_files();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .map_err(io_error("starting the runtime"))?;
    // The agent's own task runs on this thread; the listeners on the other.
    runtime.block_on(async {
        let mut stop =
            Stop::new(config.file.clone(), would_start).map_err(io_error("waiting for signals"))?;
        let mut agent = Agent::start(config).await?;
        let result = agent.run(&mut stop).await;
        agent.say_goodbye();
        result
    })
}

/// Logs on stderr; SHUNT_LOG takes tracing's filter syntax, and goes before klog's `--v`.
fn start_logging(verbosity: u8) {
    let usual = match verbosity {
        0..4 => "info",
        4 => "info,shunt=debug",
        5.. => "info,shunt=trace",
    };
    let filter = tracing_subscriber::EnvFilter::try_from_env("SHUNT_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new(usual));
    let colour = io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    // Somebody who embeds the agent may have a subscriber already.
    let _already = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr)
        .with_ansi(colour)
        .with_target(false)
        .try_init();
}

/// Whether a test asks for what older kernels make do with.
fn is_forced(variable: &str) -> bool {
    std::env::var_os(variable).is_some_and(|value| value == "1")
}

struct Agent {
    config: Config,
    pins: Pins,
    _lock: PinLock,
    loaded: Loaded,
    controller: Controller,
    devices: DeviceHooks,
    device_events: AsyncFd<OwnedFd>,
    events: mpsc::Receiver<Vec<Event>>,
    /// Once attached.
    flows: Option<Flows>,
    hz: u32,
    clients: Clients,
    health: Arc<Health>,
    own_node: OwnNode,
    recorder: Recorder,
    /// To the task that keeps the listeners of healthCheckNodePorts.
    listeners: watch::Sender<Listeners>,
    state: AgentState,
    is_attached: bool,
    /// The maps changed since the metrics were last told.
    has_news: bool,
    /// Next time to sync, and to try devices again; `None` when there is no need.
    sync_at: Option<Instant>,
    devices_at: Option<Instant>,
    repair_at: Instant,
    last_sync: Instant,
}

impl Agent {
    /// Loads the programs and reads what is there; attaches nothing.
    async fn start(mut config: Config) -> Result<Self, AgentError> {
        let began = Instant::now();
        let source = Source::open(&config.source, &config.node_name)?;
        let mut features = Features::probe().map_err(|source| DatapathError::Privilege { source })?;
        if is_forced(FORCE_SOURCE_TABLE) {
            features.fib_source = 0;
        }
        features.lacking().map_err(DatapathError::Kernel)?;
        if config.socket_lb != SocketLb::Off {
            attach::check_cgroup(&config.cgroup)?;
        }
        let pins = Pins::create(&config.bpffs)?;
        let lock = pins.lock()?;
        let health = Arc::new(Health::new(config.min_sync));
        let recorder = source.recorder();
        recorder.node(false, "Starting", "");
        telling::listen(&config, &health, &pins, &recorder).await?;
        let (listeners, wanted) = watch::channel(Listeners::new());
        tokio::spawn(health::checks::follow(wanted, health.clone(), recorder.clone()));

        keep_size(&mut config.sizes, &pins);
        let globals = Globals::new(&features, &config)?;
        let mut loaded = load(&pins, &globals, &config.sizes, config.xdp != Xdp::Off)?;
        METRICS.begin(&pins);
        if config.trace {
            trace::start(loaded.ebpf_mut()).map_err(io_error("starting the trace"))?;
        }
        let method = if features.tcx && !is_forced(FORCE_CLSACT) { Method::Tcx } else { Method::Clsact };
        let devices = DeviceHooks::open(&config, pins.clone(), method).map_err(EventError::Netlink)?;
        let descriptor = devices.descriptor().map_err(EventError::Netlink)?;
        // SAFETY: an `OwnedFd` keeps one descriptor open for as long as it lives, and the `AsyncFd` owns it.
        let device_events = unsafe { AsyncFd::register_with_interest(descriptor, Interest::READABLE) }
            .map_err(|e| EventError::Netlink(e.into()))?;
        let mut controller = Controller::new(&config.node_name, config.compile.clone(), config.sizes);
        controller.restore(&mut loaded.store)?;
        let populated = !loaded.store.read(map::FRONTENDS).map_err(SyncError)?.is_empty();
        controller.set_taking_over(!populated);
        let events = source.follow(populated)?;
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
            tracing::warn!("--socket-lb off: processes of the node itself do not reach Services");
        }
        let now = Instant::now();
        let state =
            AgentState { started: unix_now(), pid: std::process::id(), ..bytemuck::Zeroable::zeroed() };
        let repair = config.repair;
        let mut agent = Self {
            flows: None,
            hz: globals.hz,
            clients: Clients::new(globals.hz),
            config,
            pins,
            _lock: lock,
            loaded,
            controller,
            devices,
            device_events,
            events,
            health,
            own_node: OwnNode::default(),
            recorder,
            listeners,
            state,
            is_attached: false,
            has_news: false,
            sync_at: None,
            devices_at: None,
            repair_at: now + repair,
            last_sync: now,
        };
        agent.tell_addresses();
        Ok(agent)
    }

    async fn run(&mut self, stop: &mut Stop) -> Result<(), AgentError> {
        let mut heartbeat = tokio::time::interval(HEARTBEAT);
        loop {
            tokio::select! {
                biased;
                why = stop.recv() => {
                    tracing::info!("{why}: stopping; programs, links and maps stay, `shunt cleanup` removes them");
                    return Ok(());
                }
                // Devices before anything else: a new pod waits for its hooks.
                ready = self.device_events.readable() => {
                    ready.map_err(EventError::Netlink)?.clear_ready();
                    let outcome = self.devices.on_events(&mut self.loaded);
                    self.after_devices(outcome);
                }
                batch = self.events.recv() => {
                    let Some(batch) = batch else { return Err(AgentError::SourceEnded) };
                    self.take(batch);
                }
                () = wait_for(self.sync_at) => self.sync()?,
                () = wait_for(self.devices_at) => {
                    self.devices_at = None;
                    let outcome = self.devices.retry(&mut self.loaded).map_err(EventError::Map);
                    self.after_devices(outcome);
                }
                report = next_report(&mut self.flows) => {
                    let Some(report) = report else { return Err(AgentError::FlowsEnded) };
                    self.on_flows(report);
                }
                () = wait_for(self.clients.due()), if self.is_attached => {
                    if let Err(error) = self.clients.collect(&self.loaded, &self.controller) {
                        tracing::warn!(%error, "removing old session affinities failed");
                    }
                }
                _ = heartbeat.tick() => {
                    self.beat();
                    self.tell_state();
                }
                () = wait_for(Some(self.repair_at)), if self.is_attached => self.repair(),
            }
        }
    }

    /// Takes all events that are there.
    fn take(&mut self, batch: Vec<Event>) {
        batch.into_iter().for_each(|event| self.apply(event));
        while let Ok(more) = self.events.try_recv() {
            more.into_iter().for_each(|event| self.apply(event));
        }
        self.tell_eligible();
        self.queue_sync();
    }

    fn queue_sync(&mut self) {
        self.tell_queued();
        // Sooner than a sync that only waits to clear up after the last one.
        let soon = self.last_sync + self.config.min_sync;
        self.sync_at = Some(self.sync_at.map_or(soon, |at| at.min(soon)));
    }

    fn tell_addresses(&mut self) {
        let (all, primary) = self.devices.addresses();
        self.controller.set_node_addresses(all, &primary);
    }

    fn after_devices(&mut self, outcome: Result<Outcome, EventError>) {
        let outcome = match outcome {
            Ok(outcome) => outcome,
            Err(error) => {
                tracing::error!(%error, "following devices failed; reading them anew");
                METRICS.own.failed("devices");
                self.repair_at = Instant::now() + RETRY;
                return;
            }
        };
        if outcome.addresses {
            self.tell_addresses();
            self.queue_sync();
        }
        if let Some(after) = outcome.again {
            self.devices_at.get_or_insert(Instant::now() + after);
        }
    }

    /// Brings the maps to what the controller says; the first complete time attaches the programs.
    fn sync(&mut self) -> Result<(), AgentError> {
        self.sync_at = None;
        let began = Instant::now();
        let report = match self.controller.sync(&mut self.loaded.store) {
            Ok(report) => report,
            Err(error) => {
                tracing::error!(%error, "writing the maps failed; trying again");
                METRICS.own.failed("sync");
                self.last_sync = Instant::now();
                self.sync_at = Some(self.last_sync + RETRY);
                return Ok(());
            }
        };
        self.last_sync = Instant::now();
        if !report.complete {
            return Ok(());
        }
        if report.ops > 0 {
            tracing::debug!(ops = report.ops, services = report.services, took = ?began.elapsed(), "synced");
        }
        if !self.is_attached {
            self.take_over();
            self.attach()?;
            self.take_over();
            self.controller.set_taking_over(false);
            self.queue_sync();
        }
        self.tell_synced(&report, began.elapsed());
        if report.listeners {
            self.listeners.send_replace(self.controller.listeners().clone());
        }
        self.state.last_sync = unix_now();
        self.state.services = self.controller.service_count() as u32;
        self.beat();
        match &self.flows {
            Some(flows) => {
                flows.left(report.removed);
                if report.udp_served {
                    flows.served();
                }
            }
            None => self.start_flows()?,
        }
        if report.first || report.left {
            self.clients.hurry();
        }
        if let Some(after) = report.retry_in {
            self.sync_at = Some(self.last_sync + after);
        }
        Ok(())
    }

    /// On a node where no shunt served before: lets another proxy's connections live.
    fn take_over(&self) {
        if !self.controller.is_taking_over() {
            return;
        }
        let began = Instant::now();
        match takeover::record(&self.loaded, self.controller.tables()) {
            Ok(Taken { new: 0, left: 0 }) => {}
            Ok(Taken { new, left: 0 }) => {
                tracing::info!(flows = new, took = ?began.elapsed(), "connections of another proxy go on");
            }
            Ok(Taken { new, left }) => tracing::warn!(
                flows = new,
                left,
                "connections of another proxy go on, but not all: they may take three quarters of CONNTRACK \
                 (--conntrack-max), and the others will be reset"
            ),
            Err(error) => {
                tracing::warn!(%error, "reading netfilter's connections failed: another proxy's will be reset");
            }
        }
    }

    /// The maps are complete: puts the programs to work, in place of those of an earlier run.
    fn attach(&mut self) -> Result<(), AgentError> {
        let began = Instant::now();
        let outcome = self.devices.attach_all(&mut self.loaded).map_err(EventError::Map)?;
        self.attach_sockets()?;
        attach::pin_programs(&self.pins, &self.loaded)?;
        self.is_attached = true;
        self.state.ready = 1;
        self.devices_at = outcome.again.map(|after| Instant::now() + after);
        tracing::info!(
            devices = self.devices.count(),
            services = self.controller.service_count(),
            took = ?began.elapsed(),
            "ready"
        );
        Ok(())
    }

    /// What happened to flows and sockets while no agent was there is looked at first.
    fn start_flows(&mut self) -> Result<(), AgentError> {
        let flows = Flows::start(&self.loaded, self.config.timeouts, self.hz, self.config.socket_lb);
        self.flows = Some(flows.map_err(io_error("starting to collect flows"))?);
        Ok(())
    }

    fn attach_sockets(&self) -> Result<(), AgentError> {
        match self.config.socket_lb {
            SocketLb::Off => {
                attach::detach_sockets(&self.pins).map_err(io_error("detaching the socket programs"))
            }
            SocketLb::Host | SocketLb::All => {
                Ok(attach::attach_sockets(&self.pins, &self.loaded, &self.config.cgroup)?)
            }
        }
    }

    /// Answers what only this task knows: what the ids mean.
    fn on_flows(&mut self, report: Report) {
        match report {
            Report::Ask { mut pairs, answer } => {
                pairs.retain(|(service, backend)| !self.controller.serves(*service, *backend));
                // The thread has lost patience: it asks again with its next look.
                let _late = answer.send(pairs);
            }
            Report::Looked { began, in_use } => {
                if !self.controller.has_retired() {
                    return;
                }
                self.controller.release(began, &in_use);
                self.sync_at.get_or_insert(self.last_sync + self.config.min_sync);
            }
        }
    }

    /// Says in AGENT that we live.
    fn beat(&mut self) {
        self.health.beat();
        self.state.heartbeat = unix_now();
        let op = Op::Put { map: map::AGENT, key: vec![0; 4], value: bytes_of(&self.state).to_vec() };
        if let Err((_, error)) = self.loaded.store.write(&[op]) {
            tracing::warn!(%error, "cannot write the heartbeat");
        }
    }

    /// Compares devices, attachments, pins and maps with what they should be.
    fn repair(&mut self) {
        self.repair_at = Instant::now() + self.config.repair;
        let outcome = self.devices.repair(&mut self.loaded);
        self.after_devices(outcome);
        let sockets = self.config.socket_lb == SocketLb::Off
            || attach::sockets_attached(&self.pins, &self.loaded).unwrap_or(false);
        if !sockets {
            tracing::warn!("the socket programs were gone: attaching them again");
            if let Err(error) = self.attach_sockets() {
                tracing::error!(%error, "attaching the socket programs failed");
            }
        }
        match drops::forget_gone(&self.loaded) {
            Ok(0) => {}
            Ok(entries) => tracing::debug!(entries, "drops of devices that are gone folded"),
            Err(error) => tracing::warn!(%error, "clearing up {} failed", map::DROPS),
        }
        if let Err(error) = self.repair_pins() {
            tracing::error!(%error, "pinning again failed");
        }
        if let Err(error) = self.controller.reload(&mut self.loaded.store) {
            tracing::error!(%error, "reading the maps failed");
        }
        self.queue_sync();
    }

    /// Pins again what somebody removed.
    fn repair_pins(&self) -> Result<(), DatapathError> {
        Pins::create(&self.config.bpffs)?;
        for name in map::ALL {
            let path = self.pins.map(name);
            if !path.exists()
                && let Ok(open) = self.loaded.store.map(name)
            {
                tracing::warn!(map = name, "its pin was gone");
                bpf::obj_pin(open.as_fd(), &path).map_err(|source| DatapathError::Pin { path, source })?;
            }
        }
        for (name, open) in
            [(map::INGRESS, self.loaded.ingress()), (map::EVENTS, self.loaded.monitor_events())]
        {
            let path = self.pins.map(name);
            if !path.exists() {
                tracing::warn!(map = name, "its pin was gone");
                bpf::obj_pin(open.as_fd(), &path).map_err(|source| DatapathError::Pin { path, source })?;
            }
        }
        let programs_gone = self.loaded.programs().any(|(name, _)| !self.pins.prog(name).exists());
        if programs_gone || !self.pins.map(map::GLOBALS).exists() {
            attach::pin_programs(&self.pins, &self.loaded)?;
        }
        Ok(())
    }

    /// What stays in the maps for `shunt status` once we are gone.
    fn say_goodbye(&mut self) {
        self.state.ready = 0;
        // Nobody's: `shunt status` need not wait for the heartbeat to grow stale.
        self.state.pid = 0;
        self.beat();
        let latency = self.devices.latency;
        tracing::info!(
            devices = self.devices.count(),
            hook_latency_last = ?latency.last,
            hook_latency_max = ?latency.max,
            "stopped"
        );
    }
}

/// A size that came from the number of CPUs is no reason to end where the map is there already, in another one.
fn keep_size(sizes: &mut MapSizes, pins: &Pins) {
    let Ok(pinned) = RawMap::open(&pins.map(map::CONNTRACK)) else { return };
    let has = pinned.info().max_entries;
    if sizes.conntrack_is_scaled && has != sizes.conntrack {
        tracing::warn!(
            wanted = sizes.conntrack,
            has,
            "{} keeps the size it has: conntrack.maxPerCore and conntrack.min count after `shunt cleanup`, or a reboot",
            map::CONNTRACK
        );
        sizes.conntrack = has;
    }
}

/// For ever while nothing is attached.
async fn next_report(flows: &mut Option<Flows>) -> Option<Report> {
    match flows {
        Some(flows) => flows.report().await,
        None => std::future::pending().await,
    }
}

/// Until then; for ever when there is no time.
async fn wait_for(at: Option<Instant>) {
    match at {
        Some(at) => sleep_until(TokioInstant::from_std(at)).await,
        None => std::future::pending().await,
    }
}
