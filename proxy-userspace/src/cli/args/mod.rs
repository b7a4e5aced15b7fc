//! The command line as clap parses it. [`super::resolve`] turns it into a configuration; no default here depends on the
//! machine.

pub mod kube_proxy;
pub mod monitor;
pub mod policy;
pub mod run;
pub mod values;

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum, ValueHint};
use clap_complete::Shell;

use self::{
    monitor::MonitorArgs,
    policy::PolicyArgs,
    run::RunArgs,
    values::{service_name, sort_key},
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

/// Options that every command accepts, before or after its name.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Global options")]
pub struct GlobalArgs {
    /// Directory on a bpffs with shunt's pinned maps, programs and links
    #[arg(long, global = true, value_name = "DIR", default_value = DEFAULT_BPFFS, value_hint = ValueHint::DirPath)]
    pub bpffs: PathBuf,
    /// Output format
    #[arg(short, long, global = true, value_enum, default_value_t = OutputFormat::Table, value_name = "FORMAT")]
    pub output: OutputFormat,
    /// Compact JSON, like bpftool -j
    #[arg(short = 'j', long, global = true)]
    pub json: bool,
    /// Indented JSON, like bpftool -p
    #[arg(short = 'p', long, global = true)]
    pub pretty: bool,
    /// Print tables without their header line
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
    /// Serve Services on this node until stopped
    // Like Go's flags: the last occurrence of a flag takes effect; lists accumulate.
    #[command(args_override_self = true)]
    Run(Box<RunArgs>),
    /// Services and their backends, from the pinned maps
    #[command(subcommand, visible_alias = "services", alias = "svc")]
    Service(ServiceCommand),
    /// Backends and the Services that use them
    #[command(subcommand, visible_alias = "backends")]
    Backend(ListCommand),
    /// Tracked flows
    #[command(subcommand, visible_alias = "ct")]
    Conntrack(ConntrackCommand),
    /// Session affinity by client address
    #[command(subcommand)]
    Affinity(ListCommand),
    /// Datapath counters, including the reasons for refusals and drops
    #[command(subcommand, visible_alias = "counters")]
    Counter(ListCommand),
    /// Current rates of each Service: flows, traffic, refusals and drops
    Top(TopArgs),
    /// Trace a hypothetical packet through the datapath, without side effects
    Explain(ExplainArgs),
    /// New flows and refused or dropped packets, as they happen
    Monitor(Box<MonitorArgs>),
    /// Pinned programs
    #[command(subcommand)]
    Prog(ListCommand),
    /// Attachments of the programs to devices and cgroups
    #[command(subcommand)]
    Link(ListCommand),
    /// Raw contents of the maps, in bpftool's syntax
    #[command(subcommand)]
    Map(MapCommand),
    /// Compile manifests to the tables of a node, without touching the kernel
    Compile(CompileArgs),
    /// Check kernel, mounts, capabilities and conflicts, with a fix for each problem
    Check(CheckArgs),
    /// Last reported state of the agent, and fill of the maps
    Status,
    /// Detach the programs and remove everything under --bpffs
    Cleanup(CleanupArgs),
    /// Print a shell completion script
    Completions {
        #[arg(value_enum)]
        shell: Shell,
    },
    /// Version of the binary and of the map contract
    Version,
}

#[derive(Clone, Debug, Subcommand)]
pub enum ListCommand {
    /// List all
    #[command(visible_alias = "show", alias = "ls")]
    List,
}

#[derive(Clone, Debug, Subcommand)]
pub enum ServiceCommand {
    /// One line per frontend, followed by its backends, like `ipvsadm -ln`
    #[command(alias = "ls")]
    List,
    /// All details of one Service
    Show {
        #[arg(value_name = "NAMESPACE/NAME", value_parser = service_name)]
        service: String,
    },
}

#[derive(Clone, Debug, Subcommand)]
pub enum ConntrackCommand {
    /// One line per flow
    #[command(alias = "ls")]
    List {
        /// Only this Service's flows
        #[arg(long, value_name = "NAMESPACE/NAME", value_parser = service_name)]
        service: Option<String>,
        /// One line per conntrack entry (request, reply, masquerade, unmasquerade) instead of one per flow
        #[arg(long)]
        halves: bool,
    },
    /// Delete flows; their next packets are handled as new flows
    Flush {
        /// Only this Service's flows
        #[arg(long, value_name = "NAMESPACE/NAME", value_parser = service_name)]
        service: Option<String>,
    },
}

#[derive(Clone, Debug, Subcommand)]
pub enum MapCommand {
    /// Pinned maps with type, sizes and memory
    #[command(visible_alias = "show", alias = "ls")]
    List,
    /// All entries of a map: `dump [name] NAME`
    Dump {
        /// `NAME`, `name NAME` or `pinned PATH`
        #[arg(required = true, num_args = 1.., value_name = "MAP")]
        words: Vec<String>,
        /// Include array elements that are all zero
        #[arg(long)]
        all: bool,
    },
    /// One entry of a map: `lookup [name] NAME key [hex] BYTE...`
    Lookup {
        /// `NAME`, `name NAME` or `pinned PATH`; then `key [hex] BYTE...`
        #[arg(required = true, num_args = 1.., value_name = "MAP key [hex] BYTE")]
        words: Vec<String>,
    },
}

#[derive(Args, Clone, Debug)]
pub struct CompileArgs {
    /// Manifest file or directory of manifests
    #[arg(short = 'f', long = "filename", value_name = "FILE|DIR", value_hint = ValueHint::AnyPath)]
    pub filename: PathBuf,
    /// Node whose tables are compiled [default: $NODE_NAME, else the host name]
    #[arg(long, value_name = "NAME")]
    pub node_name: Option<String>,
    #[command(flatten)]
    pub policy: PolicyArgs,
}

#[derive(Args, Clone, Debug)]
pub struct TopArgs {
    /// Measure over one interval, print the result and exit
    #[arg(long)]
    pub once: bool,
    /// Time between two samples, from 100ms to 1h
    #[arg(long, value_name = "DURATION", default_value = "1s")]
    pub interval: String,
    /// Column to sort by, in descending order
    #[arg(long, value_name = "KEY", default_value = "new", value_parser = sort_key())]
    pub sort: SortKey,
    /// Show at most N service ports
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub limit: Option<u32>,
    /// Only this Service's ports
    #[arg(long, value_name = "NAMESPACE/NAME", value_parser = service_name)]
    pub service: Option<String>,
}

#[derive(Args, Clone, Debug)]
pub struct ExplainArgs {
    /// Source of the packet; without a port, an ephemeral one is chosen
    #[arg(value_name = "SRC[:PORT]")]
    pub source: String,
    /// Destination: tcp (the default), udp or sctp; a ping has no port: ADDRESS/icmp
    #[arg(value_name = "DST:PORT[/PROTO]")]
    pub destination: String,
    /// Ingress device [default: the device that routes to SRC; none (sent by the node) if SRC is a node address]
    #[arg(long, visible_alias = "interface", value_name = "DEVICE")]
    pub from: Option<String>,
}

#[derive(Args, Clone, Debug)]
pub struct CheckArgs {
    /// The cgroup2 directory that `run` would use [default: the cgroup2 mount of /proc/self/mountinfo]
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub cgroup: Option<PathBuf>,
}

#[derive(Args, Clone, Debug, Default)]
pub struct CleanupArgs {
    /// Remove the rules that kube-proxy left in iptables, nftables and ipvs, instead of shunt's state
    #[arg(long)]
    pub kube_proxy: bool,
    /// Proceed even if an agent (with --kube-proxy: a kube-proxy) is running
    #[arg(long)]
    pub force: bool,
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
