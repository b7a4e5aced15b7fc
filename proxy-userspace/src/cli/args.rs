//! What was typed: the command line as clap parses it, word for word. What it means is worked out in
//! [`super::resolve`]; nothing here has a default that depends on the machine.

use std::path::PathBuf;

use clap::{
    ArgAction, Args, Parser, Subcommand, ValueEnum, ValueHint,
    builder::{OsStringValueParser, PossibleValuesParser, TypedValueParser},
};
use clap_complete::Shell;

use super::{
    kube_proxy_args::{KubeProxyArgs, go_bool},
    monitor_args::MonitorArgs,
};
use crate::{cleanup::DEFAULT_BPFFS, top::sort::SortKey};

/// A Kubernetes Service proxy on eBPF.
#[derive(Clone, Debug, Parser)]
#[command(name = "shunt", version, about, propagate_version = false, disable_help_subcommand = true)]
pub struct Cli {
    #[command(flatten)]
    pub global: GlobalArgs,
    #[command(subcommand)]
    pub command: Command,
}

/// Options that every command takes, before or after its name.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Global options")]
pub struct GlobalArgs {
    /// Directory on a bpffs that holds shunt's pins
    #[arg(long, global = true, value_name = "DIR", default_value = DEFAULT_BPFFS, value_hint = ValueHint::DirPath)]
    pub bpffs: PathBuf,
    /// Output format
    #[arg(short, long, global = true, value_enum, default_value_t = OutputFormat::Table, value_name = "FORMAT")]
    pub output: OutputFormat,
    /// Compact JSON, as bpftool's -j
    #[arg(short = 'j', long, global = true)]
    pub json: bool,
    /// Indented JSON, as bpftool's -p
    #[arg(short = 'p', long, global = true)]
    pub pretty: bool,
    /// Leave out the header line of tables
    #[arg(long, global = true)]
    pub no_headers: bool,
}

/// `--output`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum OutputFormat {
    Table,
    Wide,
    Json,
    Yaml,
}

#[derive(Clone, Debug, Subcommand)]
pub enum Command {
    /// Serve Services on this node until told to stop
    // As Go's flags: of a flag that is given again the last counts; lists go on.
    #[command(args_override_self = true)]
    Run(Box<RunArgs>),
    /// Services and their backends, from the pinned maps
    #[command(subcommand, visible_alias = "services", alias = "svc")]
    Service(ServiceCommand),
    /// Backends and the Services that use them
    #[command(subcommand, visible_alias = "backends")]
    Backend(ListCommand),
    /// Flows
    #[command(subcommand, visible_alias = "ct")]
    Conntrack(ConntrackCommand),
    /// Session affinity by client address
    #[command(subcommand)]
    Affinity(ListCommand),
    /// What the datapath did and why it dropped
    #[command(subcommand, visible_alias = "counters")]
    Counter(ListCommand),
    /// Services by what they carry, refuse and drop just now
    Top(TopArgs),
    /// What would become of a packet, stage by stage; nothing is done
    Explain(ExplainArgs),
    /// Flows that begin, and packets that are refused or dropped, as it happens
    Monitor(Box<MonitorArgs>),
    /// Pinned programs
    #[command(subcommand)]
    Prog(ListCommand),
    /// Where the programs are attached
    #[command(subcommand)]
    Link(ListCommand),
    /// Raw view of the maps, in bpftool's grammar
    #[command(subcommand)]
    Map(MapCommand),
    /// The tables this node would get from manifests; touches no kernel
    Compile(CompileArgs),
    /// Kernel, mounts, capabilities and conflicts, with the fix for each
    Check(CheckArgs),
    /// What the agent last said of itself, and how full the maps are
    Status,
    /// Detach and remove everything under --bpffs
    Cleanup(CleanupArgs),
    /// Shell completion script on stdout
    Completions {
        #[arg(value_enum)]
        shell: Shell,
    },
    /// Version of the binary and of the map contract
    Version,
}

#[derive(Clone, Debug, Subcommand)]
pub enum ListCommand {
    /// All of them
    #[command(visible_alias = "show", alias = "ls")]
    List,
}

#[derive(Clone, Debug, Subcommand)]
pub enum ServiceCommand {
    /// One line a frontend, then its backends, as `ipvsadm -ln`
    #[command(alias = "ls")]
    List,
    /// Everything about one Service
    Show {
        #[arg(value_name = "NAMESPACE/NAME", value_parser = service_name)]
        service: String,
    },
}

#[derive(Clone, Debug, Subcommand)]
pub enum ConntrackCommand {
    /// One line a flow
    #[command(alias = "ls")]
    List {
        /// Only this Service's flows
        #[arg(long, value_name = "NAMESPACE/NAME", value_parser = service_name)]
        service: Option<String>,
        /// One line a half (request, reply, masquerade, unmasquerade) instead of one a flow
        #[arg(long)]
        halves: bool,
    },
    /// Forget flows: packets that follow are decided anew
    Flush {
        /// Only this Service's flows
        #[arg(long, value_name = "NAMESPACE/NAME", value_parser = service_name)]
        service: Option<String>,
    },
}

#[derive(Clone, Debug, Subcommand)]
pub enum MapCommand {
    /// Every pinned map with its type, sizes and memory
    #[command(visible_alias = "show", alias = "ls")]
    List,
    /// Every entry: `dump [name] NAME`
    Dump {
        /// `NAME`, `name NAME` or `pinned PATH`
        #[arg(required = true, num_args = 1.., value_name = "MAP")]
        words: Vec<String>,
        /// Print array elements that are all zero, too
        #[arg(long)]
        all: bool,
    },
    /// One entry: `lookup [name] NAME key [hex] BYTE...`
    Lookup {
        /// `NAME`, `name NAME` or `pinned PATH`; then `key [hex] BYTE...`
        #[arg(required = true, num_args = 1.., value_name = "MAP key [hex] BYTE")]
        words: Vec<String>,
    },
}

#[derive(Args, Clone, Debug)]
pub struct CompileArgs {
    /// Manifest file, or directory of manifests
    #[arg(short = 'f', long = "filename", value_name = "FILE|DIR", value_hint = ValueHint::AnyPath)]
    pub filename: PathBuf,
    /// The node whose tables to compile [default: $NODE_NAME, else the host's name]
    #[arg(long, value_name = "NAME")]
    pub node_name: Option<String>,
    #[command(flatten)]
    pub policy: PolicyArgs,
}

#[derive(Args, Clone, Debug)]
pub struct TopArgs {
    /// Look once over the interval, print, and end
    #[arg(long)]
    pub once: bool,
    /// Between two looks, from 100ms to 1h
    #[arg(long, value_name = "DURATION", default_value = "1s")]
    pub interval: String,
    /// The column to sort by: the greatest first
    #[arg(long, value_name = "KEY", default_value = "new", value_parser = sort_keys())]
    pub sort: SortKey,
    /// Show so many service ports at most
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub limit: Option<u32>,
    /// Only this Service's ports
    #[arg(long, value_name = "NAMESPACE/NAME", value_parser = service_name)]
    pub service: Option<String>,
}

#[derive(Args, Clone, Debug)]
pub struct ExplainArgs {
    /// Where the packet comes from; without a port one is made up
    #[arg(value_name = "SRC[:PORT]")]
    pub source: String,
    /// Where it goes: tcp (the default), udp or sctp; a ping has no port: ADDRESS/icmp
    #[arg(value_name = "DST:PORT[/PROTO]")]
    pub destination: String,
    /// The device it comes in by [default: the one behind which SRC is; the node itself where SRC is its own]
    #[arg(long, visible_alias = "interface", value_name = "DEVICE")]
    pub from: Option<String>,
}

#[derive(Args, Clone, Debug)]
pub struct CheckArgs {
    /// The cgroup2 directory `run` would use [default: the cgroup2 mount of /proc/self/mountinfo]
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub cgroup: Option<PathBuf>,
}

#[derive(Args, Clone, Debug, Default)]
pub struct CleanupArgs {
    /// What kube-proxy left in iptables, nftables and ipvs instead; shunt's own stays
    #[arg(long)]
    pub kube_proxy: bool,
    /// Also while an agent (with --kube-proxy, a kube-proxy) is alive
    #[arg(long)]
    pub force: bool,
}

/// Flags that decide what the maps hold: the same for `run` and `compile`.
#[derive(Args, Clone, Debug, Default)]
pub struct PolicyArgs {
    /// How a new flow's backend is chosen
    #[arg(long, value_enum, default_value_t, value_name = "SCHEDULER")]
    pub scheduler: SchedulerArg,
    /// Address ranges of the cluster's pods, one of each family
    // One flag of kube-proxy's with a list in it: given again, the last counts.
    #[arg(long, value_name = "CIDR", value_delimiter = ',', action = ArgAction::Set, num_args = 1)]
    pub cluster_cidr: Vec<String>,
    /// Who is a local pod [default: ClusterCIDR with --cluster-cidr, else the Node's podCIDRs, else its pod devices]
    #[arg(long, value_enum, ignore_case = true, value_name = "MODE")]
    pub detect_local_mode: Option<DetectLocalArg>,
    /// The bridge of pods, for --detect-local-mode BridgeInterface
    #[arg(long, value_name = "DEVICE")]
    pub pod_bridge_interface: Option<String>,
    /// Beginning of pod devices' names, for --detect-local-mode InterfaceNamePrefix
    #[arg(long, value_name = "PREFIX")]
    pub pod_interface_name_prefix: Option<String>,
    /// Translate the source of every Service flow, as kube-proxy does
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true", value_parser = go_bool)]
    pub masquerade_all: Option<bool>,
    /// Node addresses that accept NodePorts: `primary`, or ranges [default: all of the node's own]
    #[arg(long, value_name = "CIDR|primary", value_delimiter = ',')]
    pub nodeport_addresses: Vec<String>,
    /// Serve spec.externalIPs, as the feature gate AllowServiceExternalIPs does (KEP-5707) [default: true]
    #[arg(long, value_name = "BOOL", num_args = 0..=1, default_missing_value = "true")]
    pub allow_service_external_ips: Option<bool>,
}

#[derive(Args, Clone, Debug)]
pub struct RunArgs {
    /// Follow the manifests in this directory
    #[arg(long, value_name = "DIR", conflicts_with = "kubeconfig", value_hint = ValueHint::DirPath)]
    pub manifests: Option<PathBuf>,
    /// Follow the cluster's API server [default: $KUBECONFIG, else ~/.kube/config, else the pod's service account]
    #[arg(long, value_name = "FILE", value_parser = path_or_nothing(), value_hint = ValueHint::FilePath)]
    pub kubeconfig: Option<PathBuf>,
    /// Address of the API server, instead of the kubeconfig's (may be given again: tried in turn)
    #[arg(
        long = "server",
        visible_alias = "master",
        value_name = "URL",
        value_delimiter = ',',
        conflicts_with = "manifests"
    )]
    pub servers: Vec<String>,
    /// Ask the API server for streaming lists, where it has them
    #[arg(long, conflicts_with = "manifests")]
    pub watch_list: bool,
    /// Read kube-proxy's configuration, a KubeProxyConfiguration; kube-proxy's flags beside it count for nothing, but for
    /// --hostname-override and those that say where the cluster is
    #[arg(long, value_name = "FILE", value_parser = path_or_nothing(), value_hint = ValueHint::FilePath)]
    pub config: Option<PathBuf>,
    /// clientConnection.kubeconfig of that file.
    #[arg(skip)]
    pub configured_kubeconfig: Option<PathBuf>,
    /// Name of this node's Node object [default: $NODE_NAME, else the host's name]
    #[arg(long, visible_alias = "hostname-override", value_name = "NAME")]
    pub node_name: Option<String>,
    /// Attach to devices with such names only (may be given again) [default: all but loopback]
    #[arg(long = "device", value_name = "GLOB", action = ArgAction::Append)]
    pub devices: Vec<String>,
    /// Never attach to devices with such names (may be given again)
    #[arg(long = "exclude-device", value_name = "GLOB", action = ArgAction::Append)]
    pub exclude_devices: Vec<String>,
    /// The cgroup2 directory whose sockets are translated [default: the cgroup2 mount of /proc/self/mountinfo]
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub cgroup: Option<PathBuf>,
    /// Whose sockets are translated at connect and sendmsg
    #[arg(long, value_enum, default_value_t = SocketLbArg::Host, value_name = "WHOSE")]
    pub socket_lb: SocketLbArg,
    #[command(flatten)]
    pub policy: PolicyArgs,
    /// How translated packets go on: through the host's stack, or redirected
    #[arg(long, value_enum, default_value_t = RoutingArg::Stack, value_name = "LANE")]
    pub routing: RoutingArg,
    /// Serve NodePorts, load balancer addresses and externalIPs in XDP on uplinks, past netfilter
    #[arg(long, value_enum, default_value_t = XdpArg::Off, value_name = "MODE")]
    pub xdp: XdpArg,
    /// Address of /healthz, /livez and /readyz; an empty string turns it off [default: 0.0.0.0:10256]
    #[arg(long, value_name = "ADDRESS")]
    pub healthz_bind_address: Option<String>,
    /// Address of /metrics; an empty string turns it off [default: 127.0.0.1:10249]
    #[arg(long, value_name = "ADDRESS")]
    pub metrics_bind_address: Option<String>,
    /// Service ports that have series of their own in /metrics; the others are one together, `_other`; 0: no such series
    #[arg(long, value_name = "N", default_value_t = 1000)]
    pub service_metrics_max: u32,
    /// Print sampled datapath decisions on stderr
    #[arg(long)]
    pub trace: bool,
    #[command(flatten)]
    pub sizes: SizeArgs,
    #[command(flatten)]
    pub timeouts: TimeoutArgs,
    #[command(flatten)]
    pub kube_proxy: KubeProxyArgs,
}

/// How long a flow is remembered after its last packet. Durations as kube-proxy's flags take them; 0 is the default.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Time-outs of flows (5s, 10m, 1h30m; 0 is the default)")]
pub struct TimeoutArgs {
    /// An established TCP connection [default: 24h]
    #[arg(long, value_name = "DURATION")]
    pub conntrack_tcp_timeout_established: Option<String>,
    /// A TCP connection that one side has ended [default: 1h]
    #[arg(long, value_name = "DURATION")]
    pub conntrack_tcp_timeout_close_wait: Option<String>,
    /// A TCP connection whose handshake is not complete [default: 60s]
    #[arg(long, value_name = "DURATION")]
    pub conntrack_tcp_timeout_syn: Option<String>,
    /// A TCP connection that is over, or reset [default: 10s]
    #[arg(long, value_name = "DURATION")]
    pub conntrack_tcp_timeout_closed: Option<String>,
    /// A TCP connection that is over, where a port of the node stands for the client's [default: 60s]
    #[arg(long, value_name = "DURATION")]
    pub conntrack_tcp_timeout_time_wait: Option<String>,
    /// Datagrams without an answer, or a question and its answer [default: 30s]
    #[arg(long, value_name = "DURATION")]
    pub conntrack_udp_timeout: Option<String>,
    /// Datagrams to and fro [default: 3m]
    #[arg(long, value_name = "DURATION")]
    pub conntrack_udp_timeout_stream: Option<String>,
}

/// Entries of the maps, fixed when they are first made.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Map sizes")]
pub struct SizeArgs {
    /// Halves of flows (two a flow, four with a translated source) [default: 262144]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1024..=1 << 26))]
    pub conntrack_max: Option<u32>,
    /// Addresses and ports of Services
    #[arg(long, value_name = "N", default_value_t = 65_536, value_parser = clap::value_parser!(u32).range(64..=1 << 24))]
    pub frontends_max: u32,
    /// Endpoints
    #[arg(long, value_name = "N", default_value_t = 131_072, value_parser = clap::value_parser!(u32).range(64..=1 << 24))]
    pub backends_max: u32,
    /// Places of backends in Services
    #[arg(long, value_name = "N", default_value_t = 524_288, value_parser = clap::value_parser!(u32).range(64..=1 << 26))]
    pub slots_max: u32,
    /// Service ports, by family
    #[arg(long, value_name = "N", default_value_t = 65_536, value_parser = clap::value_parser!(u32).range(64..=1 << 24))]
    pub services_max: u32,
    /// Service ports, by family, whose flows, packets and bytes are counted; 0 is none. Each takes 40 bytes for every CPU
    /// that the machine may have
    #[arg(long, value_name = "N", default_value_t = 8192, value_parser = clap::value_parser!(u32).range(0..=1 << 24))]
    pub service_stats_max: u32,
    /// Clients with session affinity
    #[arg(long, value_name = "N", default_value_t = 65_536, value_parser = clap::value_parser!(u32).range(64..=1 << 24))]
    pub affinity_max: u32,
    /// Ranges of loadBalancerSourceRanges
    #[arg(long, value_name = "N", default_value_t = 65_536, value_parser = clap::value_parser!(u32).range(64..=1 << 24))]
    pub source_ranges_max: u32,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum SchedulerArg {
    /// In turn, exactly
    #[default]
    Rr,
    Random,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum SocketLbArg {
    /// Nobody's: the node's own processes have no Services
    Off,
    /// The host network's
    Host,
    /// Pods' too
    All,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum RoutingArg {
    Stack,
    /// Not built in this version
    Bpf,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum XdpArg {
    /// In tc, as all other traffic
    Off,
    /// In the device's driver; where that does not work, generic
    Native,
    /// On packets that the kernel has already taken in: slower than native, on any device
    Generic,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum DetectLocalArg {
    /// `--detect-local-mode=`: not given
    #[value(name = "", hide = true)]
    Unsaid,
    /// Sources inside --cluster-cidr
    #[value(name = "ClusterCIDR")]
    ClusterCidr,
    /// Sources inside the Node's podCIDRs
    #[value(name = "NodeCIDR")]
    NodeCidr,
    /// What comes in by --pod-bridge-interface
    #[value(name = "BridgeInterface")]
    BridgeInterface,
    /// What comes in by a device named --pod-interface-name-prefix...
    #[value(name = "InterfaceNamePrefix")]
    InterfaceNamePrefix,
}

/// kube-proxy's flags with a file may be empty: clap's own parser of paths refuses that. [`super::merge`] takes it for
/// not given.
fn path_or_nothing() -> impl TypedValueParser<Value = PathBuf> {
    OsStringValueParser::new().map(PathBuf::from)
}

/// The columns of `shunt top` by name.
fn sort_keys() -> impl TypedValueParser<Value = SortKey> {
    let names = PossibleValuesParser::new(SortKey::ALL.map(SortKey::name));
    names.try_map(|name| SortKey::from_name(&name).ok_or("no such column"))
}

/// Refuses what cannot name a Service before anything is read.
pub(super) fn service_name(text: &str) -> Result<String, String> {
    match crate::inspect::services::split_name(text) {
        Ok(_) => Ok(text.to_owned()),
        Err(error) => Err(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_definition_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn bpftools_word_order_and_options() {
        let cli =
            Cli::parse_from(["shunt", "-j", "map", "lookup", "name", "SLOTS", "key", "hex", "0a", "00"]);
        assert!(cli.global.json);
        let Command::Map(MapCommand::Lookup { words }) = cli.command else { panic!("not a lookup") };
        assert_eq!(words, ["name", "SLOTS", "key", "hex", "0a", "00"]);
        let cli = Cli::parse_from(["shunt", "map", "dump", "name", "SLOTS", "-p"]);
        assert!(cli.global.pretty);
    }

    #[test]
    fn usage_errors_name_the_flag() {
        for (line, word) in [
            (vec!["shunt", "run", "--socket-lb", "some"], "--socket-lb"),
            (vec!["shunt", "run", "--conntrack-max", "0"], "--conntrack-max"),
            (vec!["shunt", "run", "--manifests", "a", "--kubeconfig", "b"], "--kubeconfig"),
            (vec!["shunt", "compile"], "--filename"),
            (vec!["shunt", "top", "--sort", "size"], "bytes-out"),
            (vec!["shunt", "service", "show", "web"], "NAMESPACE/NAME"),
            (vec!["shunt", "conntrack", "list", "--service", "a/b/c"], "NAMESPACE/NAME"),
            (vec!["shunt", "monitor", "--service", "web"], "NAMESPACE/NAME"),
            (vec!["shunt", "monitor", "--kind", "flow,lost"], "possible values: flow, refused, dropped"),
        ] {
            let error = Cli::try_parse_from(&line).unwrap_err();
            assert_eq!(error.exit_code(), 2);
            assert!(error.to_string().contains(word), "{error}");
        }
    }
}
