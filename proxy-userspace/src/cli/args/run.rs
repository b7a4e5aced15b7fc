//! Flags of `shunt run`, without those that exist for kube-proxy's sake ([`super::kube_proxy`]).

use std::path::PathBuf;

use clap::{ArgAction, Args, ValueEnum, ValueHint};

use super::{kube_proxy::KubeProxyArgs, policy::PolicyArgs, values::path_or_empty};

#[derive(Args, Clone, Debug)]
pub struct RunArgs {
    /// Watch the manifests in this directory
    #[arg(long, value_name = "DIR", conflicts_with = "kubeconfig", value_hint = ValueHint::DirPath)]
    pub manifests: Option<PathBuf>,
    /// Watch the API server of this kubeconfig [default: $KUBECONFIG, else ~/.kube/config, else the pod's service account]
    #[arg(long, value_name = "FILE", value_parser = path_or_empty(), value_hint = ValueHint::FilePath)]
    pub kubeconfig: Option<PathBuf>,
    /// Address of the API server; overrides that of the kubeconfig (repeatable: tried in turn)
    #[arg(
        long = "server",
        visible_alias = "master",
        value_name = "URL",
        value_delimiter = ',',
        conflicts_with = "manifests"
    )]
    pub servers: Vec<String>,
    /// Request streaming lists (KEP-3157), if the API server supports them
    #[arg(long, conflicts_with = "manifests")]
    pub watch_list: bool,
    /// Configuration file of kube-proxy (a KubeProxyConfiguration). It takes precedence over kube-proxy's flags, except
    /// --hostname-override and the flags that select the cluster
    #[arg(long, value_name = "FILE", value_parser = path_or_empty(), value_hint = ValueHint::FilePath)]
    pub config: Option<PathBuf>,
    /// clientConnection.kubeconfig of the file of `--config`.
    #[arg(skip)]
    pub configured_kubeconfig: Option<PathBuf>,
    /// Name of this node's Node object [default: $NODE_NAME, else the host name]
    #[arg(long, visible_alias = "hostname-override", value_name = "NAME")]
    pub node_name: Option<String>,
    /// Attach only to devices with matching names (repeatable) [default: all but loopback]
    #[arg(long = "device", value_name = "GLOB", action = ArgAction::Append)]
    pub devices: Vec<String>,
    /// Never attach to devices with matching names (repeatable)
    #[arg(long = "exclude-device", value_name = "GLOB", action = ArgAction::Append)]
    pub exclude_devices: Vec<String>,
    /// cgroup2 directory whose sockets are translated [default: the cgroup2 mount of /proc/self/mountinfo]
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub cgroup: Option<PathBuf>,
    /// Sockets that are translated at connect and sendmsg
    #[arg(long, value_enum, default_value_t = SocketLbArg::Host, value_name = "WHOSE")]
    pub socket_lb: SocketLbArg,
    #[command(flatten)]
    pub policy: PolicyArgs,
    /// How translated packets are forwarded: by the host's stack, or by BPF redirect
    #[arg(long, value_enum, default_value_t = RoutingArg::Stack, value_name = "LANE")]
    pub routing: RoutingArg,
    /// Serve NodePorts, load balancer addresses and externalIPs in XDP on uplinks; bypasses netfilter
    #[arg(long, value_enum, default_value_t = XdpArg::Off, value_name = "MODE")]
    pub xdp: XdpArg,
    /// Send the replies of a flow by the uplink that its client came in by, on nodes with several uplinks and routing rules by
    /// source address
    #[arg(long)]
    pub symmetric_replies: bool,
    /// Address of /healthz, /livez and /readyz; an empty string disables the listener [default: 0.0.0.0:10256]
    #[arg(long, value_name = "ADDRESS")]
    pub healthz_bind_address: Option<String>,
    /// Address of /metrics; an empty string disables the listener [default: 127.0.0.1:10249]
    #[arg(long, value_name = "ADDRESS")]
    pub metrics_bind_address: Option<String>,
    /// Number of service ports with their own series in /metrics; the rest is summed in `_other`; 0 disables these series
    #[arg(long, value_name = "N", default_value_t = 1000)]
    pub service_metrics_max: u32,
    /// Print a sample of datapath decisions on stderr
    #[arg(long)]
    pub trace: bool,
    #[command(flatten)]
    pub sizes: SizeArgs,
    #[command(flatten)]
    pub timeouts: TimeoutArgs,
    #[command(flatten)]
    pub kube_proxy: KubeProxyArgs,
}

/// How long a flow is kept after its last packet. Durations have the syntax of kube-proxy's flags; 0 selects the default.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Flow timeouts (5s, 10m, 1h30m; 0 selects the default)")]
pub struct TimeoutArgs {
    /// Established TCP connection [default: 24h]
    #[arg(long, value_name = "DURATION")]
    pub conntrack_tcp_timeout_established: Option<String>,
    /// TCP connection that one side has closed [default: 1h]
    #[arg(long, value_name = "DURATION")]
    pub conntrack_tcp_timeout_close_wait: Option<String>,
    /// TCP connection during its handshake [default: 60s]
    #[arg(long, value_name = "DURATION")]
    pub conntrack_tcp_timeout_syn: Option<String>,
    /// TCP connection that is closed or reset [default: 10s]
    #[arg(long, value_name = "DURATION")]
    pub conntrack_tcp_timeout_closed: Option<String>,
    /// Closed TCP connection that its backend may hold in TIME_WAIT (it closed first, or the source is translated): its tuple stays
    /// reserved this long [default: 60s]
    #[arg(long, value_name = "DURATION")]
    pub conntrack_tcp_timeout_time_wait: Option<String>,
    /// UDP flow without a reply, or with one request and one reply [default: 30s]
    #[arg(long, value_name = "DURATION")]
    pub conntrack_udp_timeout: Option<String>,
    /// UDP flow with traffic in both directions [default: 3m]
    #[arg(long, value_name = "DURATION")]
    pub conntrack_udp_timeout_stream: Option<String>,
}

/// Entries of the maps. A map keeps the size it is created with.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Map sizes")]
pub struct SizeArgs {
    /// Conntrack entries (two per flow, four per masqueraded flow) [default: 262144]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1024..=1 << 26))]
    pub conntrack_max: Option<u32>,
    /// Frontends: addresses and ports of Services
    #[arg(long, value_name = "N", default_value_t = 65_536, value_parser = clap::value_parser!(u32).range(64..=1 << 24))]
    pub frontends_max: u32,
    /// Backends: endpoints of Services
    #[arg(long, value_name = "N", default_value_t = 131_072, value_parser = clap::value_parser!(u32).range(64..=1 << 24))]
    pub backends_max: u32,
    /// Slots: uses of a backend by a service port
    #[arg(long, value_name = "N", default_value_t = 524_288, value_parser = clap::value_parser!(u32).range(64..=1 << 26))]
    pub slots_max: u32,
    /// Service ports, per address family
    #[arg(long, value_name = "N", default_value_t = 65_536, value_parser = clap::value_parser!(u32).range(64..=1 << 24))]
    pub services_max: u32,
    /// Service ports, per address family, whose flows, packets and bytes are counted; 0 disables counting. Each takes 40
    /// bytes per possible CPU
    #[arg(long, value_name = "N", default_value_t = 8192, value_parser = clap::value_parser!(u32).range(0..=1 << 24))]
    pub service_stats_max: u32,
    /// Entries of session affinity
    #[arg(long, value_name = "N", default_value_t = 65_536, value_parser = clap::value_parser!(u32).range(64..=1 << 24))]
    pub affinity_max: u32,
    /// Ranges of loadBalancerSourceRanges
    #[arg(long, value_name = "N", default_value_t = 65_536, value_parser = clap::value_parser!(u32).range(64..=1 << 24))]
    pub source_ranges_max: u32,
}

/// `--socket-lb`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum SocketLbArg {
    /// None: processes of the node itself cannot reach Services
    Off,
    /// Those of the host network namespace
    Host,
    /// Those of pods, too
    All,
}

/// `--routing`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum RoutingArg {
    Stack,
    /// Not built in this version
    Bpf,
}

/// `--xdp`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum XdpArg {
    /// Not in XDP: in tc, like all other traffic
    Off,
    /// In the device driver; falls back to generic
    Native,
    /// In the network stack: slower than native, works on any device
    Generic,
}
