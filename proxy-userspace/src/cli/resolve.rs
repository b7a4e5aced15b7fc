//! What is meant: turns what was typed ([`super::args`]) and what the machine says into [`Config`]. Pure but
//! for [`Surroundings::of_this_machine`]; called by [`super::run`] and the compile command.

use std::{
    ffi::OsString,
    fs,
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    time::Duration,
};

use ipnet::IpNet;

use super::{
    args::{DetectLocalArg, PolicyArgs, RoutingArg, RunArgs, SchedulerArg, SizeArgs, SocketLbArg, XdpArg},
    durations,
    kube_proxy_args::KubeProxyArgs,
    merge::{Merged, merge},
    source::source,
};
use crate::{
    config::{
        Cluster, CompileConfig, Config, DetectLocal, MapSizes, NodePortAddresses, Origin, Scheduler,
        SocketLb, Source, Xdp,
    },
    kube_proxy_config::{ConfigFileError, Mode, effective},
};

/// Ports that kube-proxy's flags mean when an address has none.
const HEALTHZ_PORT: u16 = 10256;
const METRICS_PORT: u16 = 10249;

/// Between syncs, and between repairs.
const MIN_SYNC: Duration = Duration::from_millis(20);
const REPAIR: Duration = Duration::from_secs(60);
/// kube-proxy's.
const OOM_SCORE_ADJ: i32 = -999;
const CONNTRACK_PER_CPU: i32 = 32 * 1024;
const CONNTRACK_MIN: i32 = 128 * 1024;
/// kube-proxy's bound of what the number of CPUs may come to.
const CONNTRACK_SCALED_MAX: u32 = 1 << 20;

/// Where the kubelet puts a pod's token.
const SERVICE_ACCOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount/token";

/// What the command line's defaults depend on.
#[derive(Clone, Debug, Default)]
pub struct Surroundings {
    /// `$NODE_NAME`.
    pub node_name: Option<String>,
    pub hostname: String,
    /// Where cgroup2 is mounted.
    pub cgroup2: Option<PathBuf>,
    /// `$KUBECONFIG`, where it is not empty.
    pub kubeconfig: Option<OsString>,
    /// `~/.kube/config`, where it exists.
    pub home_kubeconfig: Option<PathBuf>,
    /// Whether the kubelet gave this pod a service account.
    pub has_service_account: bool,
    /// How many CPUs this process may run on.
    pub cpus: u32,
}

/// Why what was typed cannot be meant: exit code 2.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum UsageError {
    #[error(
        "no source of Services: give --kubeconfig FILE (there is no $KUBECONFIG, no ~/.kube/config, and this is no pod \
         with a service account) or --manifests DIR"
    )]
    NoSource,
    #[error(
        "--server is empty, and without it the pod's service account leads to the ClusterIP of default/kubernetes, which \
         shunt itself serves: give an API server's own address, as in https://192.168.8.201:6443 (in shunt's manifests \
         `api-servers` of the ConfigMap shunt, apiServers of the chart's values), or a kubeconfig that has one"
    )]
    EmptyServer,
    #[error(transparent)]
    ConfigFile(#[from] ConfigFileError),
    #[error("{flag} is not built in this version; {instead}")]
    NotBuilt { flag: &'static str, instead: &'static str },
    #[error("{flag}: {value:?} is not {expected}")]
    BadValue { flag: &'static str, value: String, expected: &'static str },
    #[error("--manifests {}: {reason}; give a directory of *.yaml, *.yml or *.json files", path.display())]
    Manifests { path: PathBuf, reason: &'static str },
    #[error("{origin}: {}: {reason}; name a kubeconfig with --kubeconfig FILE", path.display())]
    Kubeconfig { origin: Origin, path: PathBuf, reason: String },
    #[error("--cluster-cidr takes one range of each family at most, got {0}")]
    ClusterCidrs(String),
    #[error("--detect-local-mode {mode} needs {flag}")]
    DetectLocal { mode: &'static str, flag: &'static str },
    #[error("--nodeport-addresses: `primary` stands alone, got {0}")]
    PrimaryNotAlone(String),
    #[error(
        "no cgroup2 mount in /proc/self/mountinfo: mount one (mount -t cgroup2 none /sys/fs/cgroup/unified), name it with --cgroup, \
         or leave the node's own processes without Services (--socket-lb off)"
    )]
    NoCgroup2,
    #[error("--write-config-to {}: {why}; name a file in a directory that can be written to", path.display())]
    WriteConfigTo { path: PathBuf, why: String },
    #[error(
        "`shunt top` draws on a terminal, and this is none; --once prints one look, also as JSON (-o json)"
    )]
    NoTerminal,
    #[error("the host has no name: give --node-name NAME, the name of this node's Node object")]
    NoNodeName,
}

impl Surroundings {
    /// Read from the environment, uname(2) and /proc.
    pub fn of_this_machine() -> Self {
        let hostname = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        let mountinfo = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let home = std::env::home_dir().map(|home| home.join(".kube/config"));
        Self {
            node_name: std::env::var("NODE_NAME").ok(),
            hostname,
            cgroup2: mount_of(&mountinfo, "cgroup2"),
            kubeconfig: std::env::var_os("KUBECONFIG").filter(|value| !value.is_empty()),
            home_kubeconfig: home.filter(|path| path.exists()),
            has_service_account: std::env::var_os("KUBERNETES_SERVICE_HOST").is_some()
                && Path::new(SERVICE_ACCOUNT).exists(),
            cpus: cpus(),
        }
    }

    /// The name given, else `$NODE_NAME`, else the host's name in lower case, as the kubelet registers it.
    pub fn node_name(&self, given: Option<&str>) -> Result<String, UsageError> {
        let given = given.filter(|name| !name.trim().is_empty());
        let name = given.or(self.node_name.as_deref()).unwrap_or(&self.hostname).trim().to_lowercase();
        if name.is_empty() { Err(UsageError::NoNodeName) } else { Ok(name) }
    }
}

/// Those this process may run on, as Go counts them: a quota makes a process slower, not the node smaller.
fn cpus() -> u32 {
    let mine = nix::sched::sched_getaffinity(nix::unistd::Pid::from_raw(0));
    let count = mine
        .map(|set| (0..nix::sched::CpuSet::count()).filter(|cpu| set.is_set(*cpu).unwrap_or(false)).count());
    count.unwrap_or(1).max(1) as u32
}

/// The mount point of the first file system of this type that shows its root, from mountinfo(5)'s text.
pub fn mount_of(mountinfo: &str, fstype: &str) -> Option<PathBuf> {
    mounts_of(mountinfo, fstype).next()
}

/// The mount points of all file systems of this type that show their root.
pub fn mounts_of<'a>(mountinfo: &'a str, fstype: &'a str) -> impl Iterator<Item = PathBuf> + 'a {
    mountinfo.lines().filter_map(move |line| {
        let (fields, rest) = line.split_once(" - ")?;
        let mut fields = fields.split(' ').skip(3);
        let (root, point) = (fields.next()?, fields.next()?);
        (rest.split(' ').next() == Some(fstype) && (root == "/" || fstype != "cgroup2"))
            .then(|| PathBuf::from(unescape(point)))
    })
}

/// Undoes mountinfo's octal escapes (`\040` is a space).
fn unescape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('\\') {
        out.push_str(&rest[..at]);
        match rest.get(at + 1..at + 4).and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(byte) => {
                out.push(byte.into());
                rest = &rest[at + 4..];
            }
            None => {
                out.push('\\');
                rest = &rest[at + 1..];
            }
        }
    }
    out.push_str(rest);
    out
}

/// Everything `shunt run` was told. Reads the file of `--config`.
pub fn run_config(args: &RunArgs, bpffs: &Path, around: &Surroundings) -> Result<Config, UsageError> {
    refuse_what_is_not_built(args)?;
    let merged = merge(args)?;
    let source = source(&merged.args, around)?;
    config_of(merged, source, bpffs, around)
}

/// The same for `--write-config-to`, which may be asked for on another machine than the node.
pub fn written_config(args: &RunArgs, bpffs: &Path, around: &Surroundings) -> Result<Config, UsageError> {
    refuse_what_is_not_built(args)?;
    let merged = merge(args)?;
    let args = &merged.args;
    let flag = args.kubeconfig.clone().map(Origin::Flag);
    let origin = flag.or_else(|| args.configured_kubeconfig.clone().map(Origin::ConfigFile));
    // Without a word, it will be looked for where the file is read.
    let origin = origin.unwrap_or(Origin::InCluster);
    let source = Source::Cluster(Cluster { origin, servers: Vec::new(), watch_list: false });
    let around =
        Surroundings { cgroup2: around.cgroup2.clone().or(Some("/sys/fs/cgroup".into())), ..around.clone() };
    config_of(merged, source, bpffs, &around)
}

fn config_of(
    merged: Merged,
    source: Source,
    bpffs: &Path,
    around: &Surroundings,
) -> Result<Config, UsageError> {
    let Merged { args, mut given, file, notes } = merged;
    let socket_lb = match args.socket_lb {
        SocketLbArg::Off => SocketLb::Off,
        SocketLbArg::Host => SocketLb::Host,
        SocketLbArg::All => SocketLb::All,
    };
    let cgroup = match args.cgroup.as_ref().or(around.cgroup2.as_ref()) {
        Some(dir) => dir.clone(),
        None if socket_lb == SocketLb::Off => PathBuf::from("/sys/fs/cgroup"),
        None => return Err(UsageError::NoCgroup2),
    };
    let flags = &args.kube_proxy;
    let (repair, min_sync) = periods(flags)?;
    let mut config = Config {
        source,
        node_name: around.node_name(args.node_name.as_deref())?,
        devices: globs("--device", &args.devices)?,
        exclude_devices: globs("--exclude-device", &args.exclude_devices)?,
        cgroup,
        bpffs: std::path::absolute(bpffs).unwrap_or_else(|_| bpffs.to_owned()),
        socket_lb,
        xdp: match args.xdp {
            XdpArg::Off => Xdp::Off,
            XdpArg::Native => Xdp::Native,
            XdpArg::Generic => Xdp::Generic,
        },
        compile: compile_config_of(&args)?,
        sizes: sizes(&args.sizes, flags, around.cpus),
        timeouts: durations::timeouts(&args.timeouts)?,
        healthz_bind_address: listener(
            "--healthz-bind-address",
            args.healthz_bind_address.as_deref().unwrap_or("0.0.0.0"),
            flags.healthz_port.unwrap_or(HEALTHZ_PORT),
        )?,
        metrics_bind_address: listener(
            "--metrics-bind-address",
            args.metrics_bind_address.as_deref().unwrap_or("127.0.0.1"),
            flags.metrics_port.unwrap_or(METRICS_PORT),
        )?,
        service_metrics_max: args.service_metrics_max,
        bind_address_hard_fail: flags.bind_address_hard_fail == Some(true),
        min_sync,
        repair,
        oom_score_adj: flags.oom_score_adj.unwrap_or(OOM_SCORE_ADJ),
        verbosity: flags.verbosity.unwrap_or(0),
        trace: args.trace,
        notes,
        file,
        kube_proxy: Default::default(),
    };
    // As it was said: $NODE_NAME and the host's name are this machine's alone.
    given.hostname_override = args.node_name.filter(|name| !name.trim().is_empty()).unwrap_or_default();
    config.kube_proxy = effective(&given, &config);
    Ok(config)
}

/// `--proxy-mode`, for what depends on it.
fn mode(flags: &KubeProxyArgs) -> Mode {
    Mode::of(flags.proxy_mode.as_deref().unwrap_or_default()).unwrap_or(Mode::IpTables)
}

/// Between repairs, and between syncs; 0 is the default, as in kube-proxy's file.
fn periods(flags: &KubeProxyArgs) -> Result<(Duration, Duration), UsageError> {
    let (sync, min_sync, names) = match mode(flags) {
        Mode::Ipvs => (
            &flags.ipvs_sync_period,
            &flags.ipvs_min_sync_period,
            ["--ipvs-sync-period", "--ipvs-min-sync-period"],
        ),
        _ => (
            &flags.iptables_sync_period,
            &flags.iptables_min_sync_period,
            ["--iptables-sync-period", "--iptables-min-sync-period"],
        ),
    };
    let period = |text: &Option<String>, name, usual| {
        let given = text.as_deref().map(|text| durations::any(name, text)).transpose()?;
        Ok::<_, UsageError>(given.filter(|period| !period.is_zero()).unwrap_or(usual))
    };
    let min = period(min_sync, names[1], MIN_SYNC)?;
    // A file may say one of them only.
    let repair = period(sync, names[0], REPAIR.max(min))?;
    if min <= repair {
        return Ok((repair, min));
    }
    if min_sync.as_deref().is_none_or(|text| text == "0") {
        return Ok((repair, repair));
    }
    Err(UsageError::BadValue {
        flag: names[0],
        value: sync.clone().unwrap_or_default(),
        expected: "at least as long as the time between two syncs (the flag with -min-)",
    })
}

/// Entries of the maps. kube-proxy counts flows, CONNTRACK holds two halves of each.
fn sizes(sizes: &SizeArgs, flags: &KubeProxyArgs, cpus: u32) -> MapSizes {
    let usual = MapSizes::default();
    let scaled = match (flags.conntrack_max_per_core, flags.conntrack_min) {
        // 0 for each core leaves the limit as it is, whatever the minimum.
        (None, None) | (Some(0), _) => None,
        (per_core, min) => {
            let per_core = per_core.unwrap_or(CONNTRACK_PER_CPU).unsigned_abs();
            let flows = per_core.saturating_mul(cpus).min(CONNTRACK_SCALED_MAX);
            let flows = flows.max(min.unwrap_or(CONNTRACK_MIN).unsigned_abs());
            Some(flows.saturating_mul(2).clamp(1024, 1 << 26))
        }
    };
    MapSizes {
        conntrack: sizes.conntrack_max.or(scaled).unwrap_or(usual.conntrack),
        conntrack_is_scaled: sizes.conntrack_max.is_none() && scaled.is_some(),
        frontends: sizes.frontends_max,
        backends: sizes.backends_max,
        slots: sizes.slots_max,
        services: sizes.services_max,
        stats: sizes.service_stats_max.min(sizes.services_max),
        affinity: sizes.affinity_max,
        source_ranges: sizes.source_ranges_max,
    }
}

fn refuse_what_is_not_built(args: &RunArgs) -> Result<(), UsageError> {
    let not_built = |flag, instead| Err(UsageError::NotBuilt { flag, instead });
    if args.routing == RoutingArg::Bpf {
        return not_built("--routing bpf", "use --routing stack");
    }
    Ok(())
}

/// The part of the agent's configuration that decides what the maps hold.
fn compile_config_of(args: &RunArgs) -> Result<CompileConfig, UsageError> {
    let flags = &args.kube_proxy;
    let mut config = compile_config(&args.policy)?;
    config.node_ip = node_ip(flags.bind_address.as_deref())?;
    config.without_localhost_node_ports = flags.iptables_localhost_nodeports == Some(false);
    if config.nodeport_addresses == NodePortAddresses::All && mode(flags) == Mode::NfTables {
        config.nodeport_addresses = NodePortAddresses::Primary;
    }
    Ok(config)
}

/// The unspecified address names none.
fn node_ip(given: Option<&str>) -> Result<Option<IpAddr>, UsageError> {
    let Some(value) = given.filter(|text| !text.is_empty()) else { return Ok(None) };
    let ip: IpAddr = value.parse().map_err(|_| UsageError::BadValue {
        flag: "--bind-address",
        value: value.to_owned(),
        expected: "an IP address",
    })?;
    Ok(Some(ip).filter(|ip| !ip.is_unspecified()))
}

/// What `run` and `compile` share of it.
pub fn compile_config(args: &PolicyArgs) -> Result<CompileConfig, UsageError> {
    Ok(CompileConfig {
        scheduler: match args.scheduler {
            SchedulerArg::Rr => Scheduler::RoundRobin,
            SchedulerArg::Random => Scheduler::Random,
        },
        detect_local: detect_local(args)?,
        masquerade_all: args.masquerade_all == Some(true),
        nodeport_addresses: nodeport_addresses(&given(&args.nodeport_addresses))?,
        without_external_ips: args.allow_service_external_ips == Some(false),
        ..CompileConfig::default()
    })
}

fn detect_local(args: &PolicyArgs) -> Result<DetectLocal, UsageError> {
    let cidrs = cidrs("--cluster-cidr", &given(&args.cluster_cidr))?;
    let v6 = cidrs.iter().filter(|cidr| cidr.addr().is_ipv6()).count();
    if v6 > 1 || cidrs.len() - v6 > 1 {
        return Err(UsageError::ClusterCidrs(args.cluster_cidr.join(",")));
    }
    let needs = |mode, flag| UsageError::DetectLocal { mode, flag };
    let name = |value: &Option<String>| value.clone().filter(|name| !name.is_empty());
    Ok(match args.detect_local_mode {
        None | Some(DetectLocalArg::Unsaid) if cidrs.is_empty() => DetectLocal::Auto,
        Some(DetectLocalArg::ClusterCidr) if cidrs.is_empty() => {
            return Err(needs("ClusterCIDR", "--cluster-cidr CIDR[,CIDR]"));
        }
        None | Some(DetectLocalArg::Unsaid | DetectLocalArg::ClusterCidr) => DetectLocal::ClusterCidr(cidrs),
        Some(DetectLocalArg::NodeCidr) => DetectLocal::NodeCidr,
        Some(DetectLocalArg::BridgeInterface) => DetectLocal::BridgeInterface(
            name(&args.pod_bridge_interface)
                .ok_or_else(|| needs("BridgeInterface", "--pod-bridge-interface DEVICE"))?,
        ),
        Some(DetectLocalArg::InterfaceNamePrefix) => DetectLocal::InterfaceNamePrefix(
            name(&args.pod_interface_name_prefix)
                .ok_or_else(|| needs("InterfaceNamePrefix", "--pod-interface-name-prefix PREFIX"))?,
        ),
    })
}

/// What a list's flag was given. An empty word is nothing: kubeadm writes `--cluster-cidr=` where there is none.
fn given(words: &[String]) -> Vec<String> {
    words.iter().map(|word| word.trim().to_owned()).filter(|word| !word.is_empty()).collect()
}

fn nodeport_addresses(given: &[String]) -> Result<NodePortAddresses, UsageError> {
    Ok(match given {
        [] => NodePortAddresses::All,
        [only] if only == "primary" => NodePortAddresses::Primary,
        several if several.iter().any(|one| one == "primary") => {
            return Err(UsageError::PrimaryNotAlone(several.join(",")));
        }
        ranges => NodePortAddresses::Cidrs(cidrs("--nodeport-addresses", ranges)?),
    })
}

fn cidrs(flag: &'static str, given: &[String]) -> Result<Vec<IpNet>, UsageError> {
    let bad = |value: &String| UsageError::BadValue {
        flag,
        value: value.clone(),
        expected: "an address range such as 10.244.0.0/16 or fd00:10::/56",
    };
    given.iter().map(|one| one.trim().parse::<IpNet>().map(|net| net.trunc()).map_err(|_| bad(one))).collect()
}

/// Device names hold neither slash nor white space (kernel: dev_valid_name), so such a glob matches nothing.
pub(super) fn is_device_glob(glob: &str) -> bool {
    !glob.is_empty() && !glob.contains(|c: char| c == '/' || c.is_whitespace())
}

fn globs(flag: &'static str, given: &[String]) -> Result<Vec<String>, UsageError> {
    match given.iter().find(|glob| !is_device_glob(glob)) {
        Some(value) => Err(UsageError::BadValue {
            flag,
            value: value.clone(),
            expected: "a glob of device names such as eth* or veth?",
        }),
        None => Ok(given.to_vec()),
    }
}

/// Port 0 turns a listener off where the address names no port itself.
fn listener(flag: &'static str, given: &str, port: u16) -> Result<Option<SocketAddr>, UsageError> {
    let addr = address(flag, given, port)?;
    Ok(addr.filter(|addr| port != 0 || addr.port() != 0))
}

/// `IP:PORT`, `[IPv6]:PORT`, or an address alone with the flag's usual port; empty is off.
fn address(flag: &'static str, given: &str, port: u16) -> Result<Option<SocketAddr>, UsageError> {
    if given.is_empty() {
        return Ok(None);
    }
    let alone = || given.trim_matches(['[', ']']).parse::<IpAddr>().map(|ip| SocketAddr::new(ip, port));
    given.parse().or_else(|_| alone()).map(Some).map_err(|_| UsageError::BadValue {
        flag,
        value: given.to_owned(),
        expected: "an address such as 0.0.0.0:10256 or [::]:10256",
    })
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::{
        cli::args::{Cli, Command},
        config::Timeouts,
    };

    fn around() -> Surroundings {
        Surroundings { hostname: "Node-1".into(), cgroup2: Some("/cg".into()), ..Surroundings::default() }
    }

    fn config(line: &[&str]) -> Result<Config, UsageError> {
        let line = ["shunt", "run"].iter().chain(line);
        let cli = Cli::try_parse_from(line).expect("the line is well-formed");
        let Command::Run(args) = cli.command else { panic!("not run") };
        run_config(&args, &cli.global.bpffs, &around())
    }

    #[test]
    fn defaults_come_from_the_machine() {
        let config = config(&["--manifests", "/"]).unwrap();
        assert_eq!(config.node_name, "node-1");
        assert_eq!(config.cgroup, Path::new("/cg"));
        assert_eq!(config.bpffs, Path::new("/sys/fs/bpf/shunt"));
        assert_eq!(config.sizes, MapSizes::default());
        assert_eq!(config.timeouts, Timeouts::default());
        assert_eq!(config.compile, CompileConfig::default());
        assert_eq!(config.socket_lb, SocketLb::Host);
        assert_eq!(config.xdp, Xdp::Off);
        assert_eq!(config.healthz_bind_address, "0.0.0.0:10256".parse().ok());
    }

    #[test]
    fn every_flag_reaches_the_configuration() {
        let line = "--manifests / --node-name n2 --device eth* --device veth* --exclude-device eth9 --cgroup /c --bpffs /b \
            --socket-lb all --scheduler random --cluster-cidr 172.20.0.0/16,fd00::/64 --masquerade-all \
            --nodeport-addresses 192.168.8.0/24,fd08::/64 --healthz-bind-address [::]:1 --metrics-bind-address= \
            --allow-service-external-ips=false --xdp native --conntrack-max 4096 \
            --conntrack-tcp-timeout-established 2h --conntrack-tcp-timeout-close-wait 30m \
            --conntrack-tcp-timeout-syn 20s --conntrack-tcp-timeout-closed 5s --conntrack-tcp-timeout-time-wait 45s \
            --conntrack-udp-timeout 15s --conntrack-udp-timeout-stream 2m --trace";
        let config = config(&line.split_whitespace().collect::<Vec<_>>()).unwrap();
        assert_eq!(config.node_name, "n2");
        assert_eq!(config.devices, ["eth*", "veth*"]);
        assert_eq!(config.exclude_devices, ["eth9"]);
        assert_eq!((config.cgroup.as_path(), config.bpffs.as_path()), (Path::new("/c"), Path::new("/b")));
        assert_eq!(config.socket_lb, SocketLb::All);
        assert_eq!(config.xdp, Xdp::Native);
        assert_eq!(config.compile.scheduler, Scheduler::Random);
        assert!(matches!(&config.compile.detect_local, DetectLocal::ClusterCidr(cidrs) if cidrs.len() == 2));
        assert!(
            matches!(&config.compile.nodeport_addresses, NodePortAddresses::Cidrs(cidrs) if cidrs.len() == 2)
        );
        assert!(config.compile.masquerade_all && config.compile.without_external_ips && config.trace);
        assert_eq!(config.healthz_bind_address, "[::]:1".parse().ok());
        assert_eq!(config.metrics_bind_address, None);
        assert_eq!(config.sizes.conntrack, 4096);
        let timeouts = Timeouts {
            established: 7200,
            half_closed: 1800,
            opening: 20,
            closed: 5,
            time_wait: 45,
            unreplied: 15,
            assured: 120,
        };
        assert_eq!(config.timeouts, timeouts);
    }

    #[test]
    fn an_empty_list_is_no_list() {
        let flags =
            ["--manifests", "/", "--cluster-cidr=", "--nodeport-addresses=", "--allow-service-external-ips"];
        assert_eq!(config(&flags).unwrap().compile, CompileConfig::default());
    }

    #[test]
    fn what_is_not_built_or_not_meant_says_so() {
        for (line, text) in [
            ("", "give --kubeconfig FILE"),
            ("--manifests / --routing bpf", "--routing bpf is not built"),
            ("--manifests /does/not/exist", "does not exist"),
            ("--manifests /proc/self/mountinfo", "is not a directory"),
            ("--manifests / --cluster-cidr 10.0.0.0/8,11.0.0.0/8", "one range of each family"),
            ("--manifests / --cluster-cidr ten", "\"ten\" is not an address range"),
            ("--manifests / --detect-local-mode clustercidr", "needs --cluster-cidr"),
            ("--manifests / --detect-local-mode BridgeInterface", "needs --pod-bridge-interface"),
            ("--manifests / --nodeport-addresses primary,10.0.0.0/8", "stands alone"),
            ("--manifests / --device a/b", "--device"),
            ("--manifests / --conntrack-udp-timeout soon", "\"soon\" is not a duration"),
            ("--manifests / --conntrack-tcp-timeout-syn 200h", "--conntrack-tcp-timeout-syn"),
            ("--manifests / --conntrack-udp-timeout 5m", "at least as long as --conntrack-udp-timeout"),
            ("--manifests / --healthz-bind-address here", "--healthz-bind-address"),
        ] {
            let error = config(&line.split_whitespace().collect::<Vec<_>>()).unwrap_err().to_string();
            assert!(error.contains(text), "{line}: {error}");
        }
    }

    #[test]
    fn an_address_without_a_port_takes_the_usual_one() {
        assert_eq!(address("--x", "::1", 7), Ok("[::1]:7".parse().ok()));
        assert_eq!(address("--x", "127.0.0.1", 7), Ok("127.0.0.1:7".parse().ok()));
    }

    #[test]
    fn node_name_prefers_the_flag_then_the_environment() {
        let around = Surroundings { node_name: Some("env".into()), ..around() };
        assert_eq!(around.node_name(Some("flag")), Ok("flag".into()));
        assert_eq!(around.node_name(None), Ok("env".into()));
        assert_eq!(Surroundings::default().node_name(None), Err(UsageError::NoNodeName));
    }

    #[test]
    fn mountinfo_with_bind_mounts_and_escapes() {
        let text = "30 25 0:26 /kubepods /sys/fs/cgroup ro - cgroup2 cgroup2 rw\n\
                    41 31 0:38 / /mnt/with\\040space rw,relatime shared:1 master:2 - cgroup2 cgroup2 rw\n\
                    42 31 0:39 / /sys/fs/bpf rw - bpf bpf rw,mode=700\n";
        assert_eq!(mount_of(text, "cgroup2"), Some("/mnt/with space".into()));
        assert_eq!(mount_of(text, "bpf"), Some("/sys/fs/bpf".into()));
        assert_eq!(mount_of(text, "xfs"), None);
    }
}
