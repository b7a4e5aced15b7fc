//! The agent's side of a test: the real source, and a snapshot of the objects it delivered.

use std::{
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::{Result, bail, ensure};
use shunt::{
    config::{Cluster, Origin},
    model::ServiceKey,
    snapshot::Snapshot,
    sources::{
        Event,
        kube::{KubeSource, Timing},
    },
};
use tests::{api_server::Api, net::scratch::Scratch};
use tokio::{runtime::Runtime, sync::mpsc, time::timeout};

pub const SECOND: Duration = Duration::from_secs(1);
pub const NODE: &str = "node-1";

/// Follows a server; checks at the end that it made no request without permission.
pub struct Follower<'a> {
    server: &'a dyn Api,
    pub snapshot: Snapshot,
    /// Removals delivered so far.
    pub gone: usize,
    events: mpsc::Receiver<Vec<Event>>,
    runtime: Runtime,
    _files: Scratch,
}

/// Options for following.
#[derive(Clone, Debug, Default)]
pub struct Options {
    pub watch_list: bool,
    pub populated: bool,
    pub timing: Option<Timing>,
    pub servers: Vec<String>,
    /// The fields of the kubeconfig's user, instead of the agent's token.
    pub user: Option<String>,
    /// Kubeconfigs to use instead of the one written for this test.
    pub origin: Option<Origin>,
}

/// A directory for this test only.
pub fn files(name: &str) -> Result<Scratch> {
    Scratch::new(std::env::temp_dir().join(format!("shunt-api-{}-{name}", std::process::id())))
}

impl<'a> Follower<'a> {
    pub fn new(server: &'a dyn Api, name: &str) -> Result<Self> {
        Self::with(server, name, Options::default())
    }

    pub fn with(server: &'a dyn Api, name: &str, options: Options) -> Result<Self> {
        let files = files(name)?;
        let path: PathBuf = files.path().join("kubeconfig");
        match &options.user {
            Some(user) => server.kubeconfig_as(&path, user)?,
            None => server.kubeconfig(&path)?,
        };
        let origin = options.origin.unwrap_or(Origin::Flag(path));
        let cluster = Cluster { origin, servers: options.servers, watch_list: options.watch_list };
        let runtime = Runtime::new()?;
        let entered = runtime.enter();
        let source = KubeSource::open(&cluster, NODE)?.with_timing(options.timing.unwrap_or_default());
        let events = source.follow(options.populated);
        drop(entered);
        let snapshot = Snapshot::new(NODE);
        Ok(Self { server, snapshot, gone: 0, events, runtime, _files: files })
    }

    /// Processes events until the snapshot is as wanted; returns how long that took.
    pub fn until(&mut self, within: Duration, wanted: impl Fn(&Snapshot) -> bool) -> Result<Duration> {
        let begun = Instant::now();
        while !wanted(&self.snapshot) {
            let left = within.saturating_sub(begun.elapsed());
            if left.is_zero() || !self.take(left)? {
                bail!("not so within {within:?}; requests were {:?}", self.server.requests());
            }
        }
        Ok(begun.elapsed())
    }

    /// Processes all events for this duration.
    pub fn listen(&mut self, duration: Duration) -> Result<()> {
        let begun = Instant::now();
        while begun.elapsed() < duration {
            self.take(duration.saturating_sub(begun.elapsed()))?;
        }
        Ok(())
    }

    /// Waits until all initial lists have arrived.
    pub fn synced(&mut self) -> Result<Duration> {
        self.until(SECOND * 20, Snapshot::is_synced)
    }

    /// Processes one batch; false if none arrived.
    fn take(&mut self, patience: Duration) -> Result<bool> {
        let events = &mut self.events;
        let batch = self.runtime.block_on(async { timeout(patience, events.recv()).await });
        let Ok(batch) = batch else { return Ok(false) };
        let Some(batch) = batch else { bail!("the source has ended") };
        for event in batch {
            let is_gone = matches!(event, Event::ServiceGone(_) | Event::SliceGone(_) | Event::NodeGone(_));
            self.gone += usize::from(is_gone);
            self.snapshot.apply(event);
        }
        Ok(true)
    }

    /// Called at the end of each test.
    pub fn finish(self) -> Result<()> {
        let complaints = self.server.complaints();
        ensure!(complaints.is_empty(), "{complaints:?}");
        Ok(())
    }
}

pub fn key(name: &str) -> ServiceKey {
    ServiceKey::new("default", name)
}

/// A Service and its slice with this endpoint.
pub fn service(name: &str, last: u8, endpoint: u8) -> String {
    format!("{}---\n{}", alone(name, last, ""), slice(name, endpoint, ""))
}

pub fn alone(name: &str, last: u8, labels: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: default, labels: {{{labels}}}}}\n\
         spec: {{clusterIP: 10.68.0.{last}, clusterIPs: [10.68.0.{last}], ports: [{{port: 80}}]}}\n"
    )
}

pub fn slice(name: &str, endpoint: u8, labels: &str) -> String {
    format!(
        "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\n\
         metadata: {{name: {name}-1, namespace: default, labels: {{kubernetes.io/service-name: {name}{labels}}}}}\n\
         addressType: IPv4\nports: [{{name: '', port: 8080}}]\n\
         endpoints: [{{addresses: [172.20.0.{endpoint}], conditions: {{ready: true}}}}]\n"
    )
}

/// The objects of every cluster, and the node.
pub fn cluster(server: &dyn Api) -> Result<()> {
    if !server.makes_kubernetes() {
        server.apply(&service("kubernetes", 1, 1))?;
    }
    server.apply(
        "apiVersion: v1\nkind: Node\nmetadata: {name: node-1}\n\
         status: {addresses: [{type: InternalIP, address: 192.168.8.201}]}\n---\n\
         apiVersion: v1\nkind: Node\nmetadata: {name: node-2}\n",
    )
}

/// Whether the Service exists with exactly this endpoint.
pub fn has(snapshot: &Snapshot, name: &str, endpoint: u8) -> bool {
    let (endpoints, _) = snapshot.endpoints(&key(name));
    let address = std::net::IpAddr::from([172, 20, 0, endpoint]);
    snapshot.service(&key(name)).is_some() && endpoints.len() == 1 && endpoints[0].address == address
}
