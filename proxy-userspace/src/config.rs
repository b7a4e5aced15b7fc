//! What the user asked for, after the command line was understood: typed, complete, no defaults left open.
//! Read by the controller and the datapath's loader; knows neither clap nor the kernel.

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

use ipnet::IpNet;

use crate::kube_proxy_config::{ConfigFile, KubeProxyConfiguration};

/// Everything `shunt run` is told.
#[derive(Clone, Debug)]
pub struct Config {
    pub source: Source,
    pub node_name: String,
    /// Globs of device names to attach to; empty means every device but loopback.
    pub devices: Vec<String>,
    /// Globs of device names never to attach to.
    pub exclude_devices: Vec<String>,
    /// The cgroup2 directory whose sockets are translated.
    pub cgroup: PathBuf,
    /// Directory on a bpffs under which `v<SCHEMA>/` holds maps, programs and links.
    pub bpffs: PathBuf,
    pub socket_lb: SocketLb,
    pub xdp: Xdp,
    pub compile: CompileConfig,
    pub sizes: MapSizes,
    pub timeouts: Timeouts,
    pub healthz_bind_address: Option<SocketAddr>,
    pub metrics_bind_address: Option<SocketAddr>,
    /// Service ports that have series of their own in the metrics.
    pub service_metrics_max: u32,
    /// A listener that cannot be opened ends the agent.
    pub bind_address_hard_fail: bool,
    /// Between the end of one sync and the begin of the next: the first change is written at once, those that
    /// follow closely together.
    pub min_sync: Duration,
    /// How often what nobody else should touch is compared with what it should be.
    pub repair: Duration,
    /// Written to /proc/self/oom_score_adj.
    pub oom_score_adj: i32,
    /// klog's: 4 logs what shunt does, 5 every step.
    pub verbosity: u8,
    /// What the user should know about how the command line was understood, a line each.
    pub notes: Vec<String>,
    /// `--config`: its change ends the agent.
    pub file: Option<ConfigFile>,
    /// All of this in kube-proxy's words, for `--write-config-to` and `/configz`
    /// ([`crate::kube_proxy_config::configz`]).
    pub kube_proxy: KubeProxyConfiguration,
    /// Print sampled datapath decisions.
    pub trace: bool,
}

/// Where Services and endpoints come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// Directory of manifests to follow.
    Manifests(PathBuf),
    Cluster(Cluster),
}

/// How to reach a cluster's API server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cluster {
    pub origin: Origin,
    /// Addresses to use instead of the origin's, in turn.
    pub servers: Vec<String>,
    /// Ask for streaming lists (KEP-3157).
    pub watch_list: bool,
}

/// Who says where the API server is and as whom to speak to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// `--kubeconfig`.
    Flag(PathBuf),
    /// clientConnection.kubeconfig of `--config`.
    ConfigFile(PathBuf),
    /// `$KUBECONFIG`: several files count as one.
    Environment(Vec<PathBuf>),
    /// `~/.kube/config`.
    Home(PathBuf),
    /// The pod's service account.
    InCluster,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Flag(path) => write!(f, "--kubeconfig {}", path.display()),
            Self::ConfigFile(path) => write!(f, "clientConnection.kubeconfig {}", path.display()),
            Self::Environment(paths) => {
                let paths: Vec<_> = paths.iter().map(|path| path.display().to_string()).collect();
                write!(f, "KUBECONFIG={}", paths.join(":"))
            }
            Self::Home(path) => write!(f, "{}", path.display()),
            Self::InCluster => f.write_str("the pod's service account"),
        }
    }
}

/// The part of the configuration that decides what the maps hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CompileConfig {
    pub scheduler: Scheduler,
    pub detect_local: DetectLocal,
    pub masquerade_all: bool,
    pub nodeport_addresses: NodePortAddresses,
    /// `--allow-service-external-ips false`: spec.externalIPs count for nothing.
    pub without_external_ips: bool,
    /// The node's primary address of its family, whatever the Node says (`--bind-address`).
    pub node_ip: Option<IpAddr>,
    /// `--iptables-localhost-nodeports false`: no NodePorts at 127.0.0.1.
    pub without_localhost_node_ports: bool,
}

/// `--socket-lb`: whose sockets are translated at connect and sendmsg.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SocketLb {
    /// Nobody's: the node's own processes have no Services.
    Off,
    /// Sockets of the host's network namespace.
    #[default]
    Host,
    /// Pods' sockets too.
    All,
}

/// `--xdp`: who serves outside traffic to NodePorts, load balancer addresses and externalIPs on uplinks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Xdp {
    /// tc, as all other traffic.
    #[default]
    Off,
    /// XDP in the device's driver; where that does not work, on skbs.
    Native,
    /// XDP on skbs.
    Generic,
}

/// `--scheduler`: how a new flow's backend is chosen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Scheduler {
    #[default]
    RoundRobin,
    Random,
}

/// Who is a local pod: `--detect-local-mode` and `--cluster-cidr` as in kube-proxy.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum DetectLocal {
    /// The Node's podCIDRs; without those, whatever comes in by a pod device of this node.
    #[default]
    Auto,
    /// Sources inside these.
    ClusterCidr(Vec<IpNet>),
    /// Sources inside the Node's podCIDRs.
    NodeCidr,
    /// Packets that come in by this bridge (or one of its ports).
    BridgeInterface(String),
    /// Packets that come in by a device whose name begins so.
    InterfaceNamePrefix(String),
}

/// `--nodeport-addresses`: which of the node's addresses accept NodePort traffic.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum NodePortAddresses {
    /// All of the node's own.
    #[default]
    All,
    /// The primary InternalIP of each family.
    Primary,
    /// Those inside these ranges; a family without a range accepts on all.
    Cidrs(Vec<IpNet>),
}

/// Entries of the maps whose size is the user's to choose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MapSizes {
    pub conntrack: u32,
    /// CONNTRACK's size comes from the number of CPUs (kube-proxy's maxPerCore): a pinned map may keep another one.
    pub conntrack_is_scaled: bool,
    pub frontends: u32,
    pub backends: u32,
    pub slots: u32,
    pub services: u32,
    /// Elements of SERVICE_STATS: ids below it have statistics; 0 and 1 are none, as no id is 0.
    pub stats: u32,
    pub affinity: u32,
    pub source_ranges: u32,
}

impl Default for MapSizes {
    fn default() -> Self {
        Self {
            conntrack: 262_144,
            conntrack_is_scaled: false,
            frontends: 65_536,
            backends: 131_072,
            slots: 524_288,
            services: 65_536,
            stats: 8192,
            affinity: 65_536,
            source_ranges: 65_536,
        }
    }
}

/// Seconds a flow may be silent, by its state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timeouts {
    /// TCP before the handshake is complete.
    pub opening: u32,
    pub established: u32,
    /// One side has sent FIN. An hour, as kube-proxy sets it for CLOSE_WAIT: a client that has sent its
    /// request and shut down its side may wait that long for the answer.
    pub half_closed: u32,
    /// Both sides have, or one has sent RST.
    pub closed: u32,
    /// Both sides have sent FIN, and the node's port stands for the client's: the backend remembers that port for a
    /// minute (TIME_WAIT), and what is begun from it meanwhile costs a reset, and sometimes a second.
    pub time_wait: u32,
    /// Datagrams that nobody answered, or one question and its answer.
    pub unreplied: u32,
    /// Datagrams in both directions, for longer than a question and its answer.
    pub assured: u32,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            opening: 60,
            established: 24 * 3600,
            half_closed: 3600,
            closed: 10,
            time_wait: 60,
            unreplied: 30,
            assured: 180,
        }
    }
}
