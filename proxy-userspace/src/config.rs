//! The resolved configuration: typed, complete, without open defaults. Read by the controller and the loader;
//! independent of clap and of the kernel.

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

use ipnet::IpNet;

use crate::kube_proxy_config::{ConfigFile, KubeProxyConfiguration};

/// The configuration of `shunt run`.
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
    /// Maximum number of service ports with their own metric series.
    pub service_metrics_max: u32,
    /// Exit if a listener cannot be opened.
    pub bind_address_hard_fail: bool,
    /// Minimum time between two syncs: the first change is written at once, later ones are batched.
    pub min_sync: Duration,
    /// Interval at which programs, pins and maps are checked and repaired.
    pub repair: Duration,
    /// Written to /proc/self/oom_score_adj.
    pub oom_score_adj: i32,
    /// klog's level: 4 is debug, 5 and above trace.
    pub verbosity: u8,
    /// Warnings about the command line, one per line.
    pub notes: Vec<String>,
    /// `--config`: when it changes, the agent exits.
    pub file: Option<ConfigFile>,
    /// The same as a KubeProxyConfiguration, for `--write-config-to` and `/configz`
    /// ([`crate::kube_proxy_config::configz`]).
    pub kube_proxy: KubeProxyConfiguration,
    /// Replies leave by the uplink that their client came in by.
    pub symmetric_replies: bool,
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
    /// Request streaming lists (KEP-3157).
    pub watch_list: bool,
}

/// Where the API server's address and credentials come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// `--kubeconfig`.
    Flag(PathBuf),
    /// clientConnection.kubeconfig of `--config`.
    ConfigFile(PathBuf),
    /// `$KUBECONFIG`: several files are merged.
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
    /// `--nodeport-source-ranges`: clients that NodePorts accept; a family without ranges accepts all.
    pub nodeport_source_ranges: Vec<IpNet>,
    /// `--allow-service-external-ips false`: spec.externalIPs are ignored.
    pub without_external_ips: bool,
    /// `--bind-address`: the node's primary address of its family; takes precedence over the Node object.
    pub node_ip: Option<IpAddr>,
    /// `--iptables-localhost-nodeports false`: no NodePorts at 127.0.0.1.
    pub without_localhost_node_ports: bool,
}

/// `--socket-lb`: which sockets are translated at connect and sendmsg.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SocketLb {
    /// None: the node's own processes cannot use Services.
    Off,
    /// Sockets of the host's network namespace.
    #[default]
    Host,
    /// Pods' sockets too.
    All,
}

/// `--xdp`: what serves external traffic to NodePorts, load balancer addresses and externalIPs on uplinks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Xdp {
    /// tc, as all other traffic.
    #[default]
    Off,
    /// XDP in the device's driver, with a fallback to generic XDP.
    Native,
    /// Generic XDP (on skbs).
    Generic,
}

/// `--scheduler`: how a new flow's backend is chosen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Scheduler {
    #[default]
    RoundRobin,
    Random,
}

/// How local pods are recognised: `--detect-local-mode` and `--cluster-cidr` as in kube-proxy.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum DetectLocal {
    /// The Node's podCIDRs; if there are none, packets from a pod device of this node.
    #[default]
    Auto,
    /// Sources inside these.
    ClusterCidr(Vec<IpNet>),
    /// Sources inside the Node's podCIDRs.
    NodeCidr,
    /// Packets received on this bridge or one of its ports.
    BridgeInterface(String),
    /// Packets received on a device with this name prefix.
    InterfaceNamePrefix(String),
}

/// `--nodeport-addresses`: which of the node's addresses accept NodePort traffic.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum NodePortAddresses {
    /// All addresses of the node.
    #[default]
    All,
    /// The primary InternalIP of each family.
    Primary,
    /// Addresses in these ranges; a family without a range accepts on all.
    Cidrs(Vec<IpNet>),
}

/// Configurable map sizes, in entries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MapSizes {
    pub conntrack: u32,
    /// CONNTRACK's size was derived from the number of CPUs (kube-proxy's maxPerCore): a pinned map may keep another
    /// size.
    pub conntrack_is_scaled: bool,
    pub frontends: u32,
    pub backends: u32,
    pub slots: u32,
    pub services: u32,
    /// Elements of SERVICE_STATS: service ids below this have statistics; 0 and 1 disable them, because no id is 0.
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

/// Idle timeouts of flows in seconds, by state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timeouts {
    /// TCP before the handshake is complete.
    pub opening: u32,
    pub established: u32,
    /// One side has sent FIN, or both have and not both are acknowledged, as when they are forged. An hour, like kube-proxy's CLOSE_WAIT timeout: a client that has sent its request and
    /// shut down its side may wait that long for the response.
    pub half_closed: u32,
    /// Both FINs are acknowledged, or one side has sent RST.
    pub closed: u32,
    /// Both FINs are acknowledged, and the backend did so first or the source is translated: the backend may keep the tuple in
    /// TIME_WAIT for a minute, and reusing it earlier costs a reset, sometimes a second.
    pub time_wait: u32,
    /// UDP without a reply, or one request and its reply.
    pub unreplied: u32,
    /// UDP in both directions for longer than one request and its reply.
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
