//! What is meant: turns what was typed ([`super::args`]) and what the machine says into [`Config`]. Pure but
//! for [`Surroundings::of_this_machine`]; called by [`super::run`] and the compile command.

use std::{
    ffi::OsString,
    fs,
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
};

use ipnet::IpNet;

use super::{
    args::{DetectLocalArg, PolicyArgs, RoutingArg, RunArgs, SchedulerArg, SocketLbArg, XdpArg},
    durations,
    source::source,
};
use crate::config::{
    CompileConfig, Config, DetectLocal, MapSizes, NodePortAddresses, Origin, Scheduler, SocketLb, Xdp,
};

/// Ports that kube-proxy's flags mean when an address has none.
const HEALTHZ_PORT: u16 = 10256;
const METRICS_PORT: u16 = 10249;

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
}

/// Why what was typed cannot be meant: exit code 2.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum UsageError {
    #[error(
        "no source of Services: give --kubeconfig FILE (there is no $KUBECONFIG, no ~/.kube/config, and this is no pod \
         with a service account) or --manifests DIR"
    )]
    NoSource,
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
        }
    }

    /// The name given, else `$NODE_NAME`, else the host's name in lower case, as the kubelet registers it.
    pub fn node_name(&self, given: Option<&str>) -> Result<String, UsageError> {
        let name = given.or(self.node_name.as_deref()).unwrap_or(&self.hostname).trim().to_lowercase();
        if name.is_empty() { Err(UsageError::NoNodeName) } else { Ok(name) }
    }
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

/// Everything `shunt run` was told.
pub fn run_config(args: &RunArgs, bpffs: &Path, around: &Surroundings) -> Result<Config, UsageError> {
    refuse_what_is_not_built(args)?;
    let source = source(args, around)?;
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
    let sizes = &args.sizes;
    Ok(Config {
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
        compile: compile_config(&args.policy)?,
        sizes: MapSizes {
            conntrack: sizes.conntrack_max,
            frontends: sizes.frontends_max,
            backends: sizes.backends_max,
            slots: sizes.slots_max,
            services: sizes.services_max,
            affinity: sizes.affinity_max,
            source_ranges: sizes.source_ranges_max,
        },
        timeouts: durations::timeouts(&args.timeouts)?,
        healthz_bind_address: address("--healthz-bind-address", &args.healthz_bind_address, HEALTHZ_PORT)?,
        metrics_bind_address: address("--metrics-bind-address", &args.metrics_bind_address, METRICS_PORT)?,
        trace: args.trace,
    })
}

fn refuse_what_is_not_built(args: &RunArgs) -> Result<(), UsageError> {
    let not_built = |flag, instead| Err(UsageError::NotBuilt { flag, instead });
    if args.config.is_some() {
        return not_built("--config", "give the same settings as flags");
    }
    if args.routing == RoutingArg::Bpf {
        return not_built("--routing bpf", "use --routing stack");
    }
    Ok(())
}

/// The part of the configuration that decides what the maps hold.
pub fn compile_config(args: &PolicyArgs) -> Result<CompileConfig, UsageError> {
    Ok(CompileConfig {
        scheduler: match args.scheduler {
            SchedulerArg::Rr => Scheduler::RoundRobin,
            SchedulerArg::Random => Scheduler::Random,
        },
        detect_local: detect_local(args)?,
        masquerade_all: args.masquerade_all,
        nodeport_addresses: nodeport_addresses(&given(&args.nodeport_addresses))?,
        without_external_ips: args.allow_service_external_ips == Some(false),
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
        None if cidrs.is_empty() => DetectLocal::Auto,
        Some(DetectLocalArg::ClusterCidr) if cidrs.is_empty() => {
            return Err(needs("ClusterCIDR", "--cluster-cidr CIDR[,CIDR]"));
        }
        None | Some(DetectLocalArg::ClusterCidr) => DetectLocal::ClusterCidr(cidrs),
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
fn globs(flag: &'static str, given: &[String]) -> Result<Vec<String>, UsageError> {
    let bad =
        given.iter().find(|glob| glob.is_empty() || glob.contains(|c: char| c == '/' || c.is_whitespace()));
    match bad {
        Some(value) => Err(UsageError::BadValue {
            flag,
            value: value.clone(),
            expected: "a glob of device names such as eth* or veth?",
        }),
        None => Ok(given.to_vec()),
    }
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
            ("--manifests / --config /c", "--config is not built"),
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
