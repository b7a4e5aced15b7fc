//! `--config` beside flags: the file's settings take the places of the flags that mean the same, so that what follows
//! ([`super::resolve`]) knows flags only. Reads the file.
//!
//! As in kube-proxy, the file goes before kube-proxy's own flags: those are named and count for nothing. What the file
//! cannot say is said by flags: all of shunt's own. And some are about where the agent runs rather than how
//! it works, and go before the file: the node's name, where the cluster is, and what kube-proxy lets go before it too
//! (`--v`, `--cleanup`, `--init-only`, `--write-config-to`).

use std::path::PathBuf;

use super::{
    args::{DetectLocalArg, RunArgs},
    durations::MAX,
    resolve::UsageError,
};
use crate::kube_proxy_config::{
    self, ConfigFile, EXTERNAL_IPS_GATE, KubeProxyConfiguration, Mode, duration::GoDuration, without_meaning,
};

/// What was typed and what the file says, as if all of it had been typed.
#[derive(Clone, Debug)]
pub struct Merged {
    pub args: RunArgs,
    /// The same in kube-proxy's words, without defaults: also what has no flag here.
    pub given: KubeProxyConfiguration,
    pub file: Option<ConfigFile>,
    /// What the user should know, a line each.
    pub notes: Vec<String>,
}

/// Reads `--config`, where it was given.
pub fn merge(args: &RunArgs) -> Result<Merged, UsageError> {
    let mut notes = Vec::new();
    let silent = &args.kube_proxy.silent.given;
    if !silent.is_empty() {
        notes.push(format!("without a meaning here, passed over: {}", silent.join(", ")));
    }
    let mut args = args.clone();
    // `--config=` is a flag that is not given, as in kube-proxy.
    let is_named = |path: &PathBuf| !path.as_os_str().is_empty();
    args.config = args.config.filter(is_named);
    args.kubeconfig = args.kubeconfig.filter(is_named);
    args.policy.detect_local_mode =
        args.policy.detect_local_mode.filter(|mode| *mode != DetectLocalArg::Unsaid);
    let Some(path) = args.config.clone() else {
        let given = of_flags(&mut args, &mut notes);
        return Ok(Merged { args, given, file: None, notes });
    };
    let file = kube_proxy_config::read(&path)?;
    let said = &file.said;
    let beside = kube_proxy_flags(&args);
    if !beside.is_empty() {
        notes.push(format!(
            "--config {}: these flags beside it count for nothing: {}",
            path.display(),
            beside.join(", ")
        ));
    }
    let nothing = without_meaning(&file.raw, said.proxy_mode());
    if !nothing.is_empty() {
        notes.push(format!(
            "--config {}: fields without a meaning here, passed over: {}",
            path.display(),
            nothing.join(", ")
        ));
    }
    if !file.unknown.is_empty() {
        notes.push(format!(
            "--config {}: fields that this version does not know and that are empty, passed over: {}",
            path.display(),
            file.unknown.join(", ")
        ));
    }
    if !said.mode.is_empty() {
        notes.push(format!(
            "mode {:?}: shunt has one of its own; this only says which section counts",
            said.mode
        ));
    }
    take_over(said, &mut args, &mut notes);
    Ok(Merged { given: said.clone(), args, file: Some(file), notes })
}

/// The document of a command line without a file.
fn of_flags(args: &mut RunArgs, notes: &mut Vec<String>) -> KubeProxyConfiguration {
    let flags = &args.kube_proxy;
    let mut given = KubeProxyConfiguration {
        mode: flags.proxy_mode.clone().unwrap_or_default(),
        feature_gates: flags.gates().cloned().collect(),
        ..KubeProxyConfiguration::default()
    };
    given.conntrack.max_per_core = flags.conntrack_max_per_core;
    given.conntrack.min = flags.conntrack_min;
    let others = given.feature_gates.keys().filter(|name| *name != EXTERNAL_IPS_GATE);
    let others: Vec<_> = others.cloned().collect();
    if !others.is_empty() {
        notes.push(format!("feature gates without a meaning here, passed over: {}", others.join(", ")));
    }
    gate_of(&given, args);
    given
}

/// shunt's own flag goes before the gate.
fn gate_of(given: &KubeProxyConfiguration, args: &mut RunArgs) {
    let gate = given.feature_gates.get(EXTERNAL_IPS_GATE).copied();
    args.policy.allow_service_external_ips = args.policy.allow_service_external_ips.or(gate);
}

/// Those of kube-proxy's flags that were typed and that the file stands for.
fn kube_proxy_flags(args: &RunArgs) -> Vec<&'static str> {
    let (policy, timeouts, flags) = (&args.policy, &args.timeouts, &args.kube_proxy);
    let mut typed: Vec<&'static str> = [
        ("--bind-address", flags.bind_address.is_some()),
        ("--bind-address-hard-fail", flags.bind_address_hard_fail.is_some()),
        ("--cluster-cidr", !policy.cluster_cidr.is_empty()),
        ("--conntrack-max-per-core", flags.conntrack_max_per_core.is_some()),
        ("--conntrack-min", flags.conntrack_min.is_some()),
        ("--conntrack-tcp-timeout-close-wait", timeouts.conntrack_tcp_timeout_close_wait.is_some()),
        ("--conntrack-tcp-timeout-established", timeouts.conntrack_tcp_timeout_established.is_some()),
        ("--conntrack-udp-timeout", timeouts.conntrack_udp_timeout.is_some()),
        ("--conntrack-udp-timeout-stream", timeouts.conntrack_udp_timeout_stream.is_some()),
        ("--detect-local-mode", policy.detect_local_mode.is_some()),
        ("--feature-gates", flags.gates().next().is_some()),
        ("--healthz-bind-address", args.healthz_bind_address.is_some()),
        ("--healthz-port", flags.healthz_port.is_some()),
        ("--iptables-localhost-nodeports", flags.iptables_localhost_nodeports.is_some()),
        ("--iptables-min-sync-period", flags.iptables_min_sync_period.is_some()),
        ("--iptables-sync-period", flags.iptables_sync_period.is_some()),
        ("--ipvs-min-sync-period", flags.ipvs_min_sync_period.is_some()),
        ("--ipvs-sync-period", flags.ipvs_sync_period.is_some()),
        ("--masquerade-all", policy.masquerade_all.is_some()),
        ("--metrics-bind-address", args.metrics_bind_address.is_some()),
        ("--metrics-port", flags.metrics_port.is_some()),
        ("--nodeport-addresses", !policy.nodeport_addresses.is_empty()),
        ("--oom-score-adj", flags.oom_score_adj.is_some()),
        ("--pod-bridge-interface", policy.pod_bridge_interface.is_some()),
        ("--pod-interface-name-prefix", policy.pod_interface_name_prefix.is_some()),
        ("--proxy-mode", flags.proxy_mode.is_some()),
    ]
    .into_iter()
    .filter_map(|(flag, is_typed)| is_typed.then_some(flag))
    .collect();
    typed.sort_unstable();
    typed
}

/// Puts the file's settings into the flags' places.
fn take_over(said: &KubeProxyConfiguration, args: &mut RunArgs, notes: &mut Vec<String>) {
    let some = |text: &String| Some(text.clone()).filter(|text| !text.is_empty());
    let whole = said.clone().defaulted();
    args.node_name =
        args.node_name.take().filter(|name| !name.is_empty()).or_else(|| some(&said.hostname_override));
    args.configured_kubeconfig = some(&said.client_connection.kubeconfig).map(Into::into);
    args.healthz_bind_address = Some(whole.healthz_bind_address);
    args.metrics_bind_address = Some(whole.metrics_bind_address);

    let policy = &mut args.policy;
    policy.cluster_cidr =
        some(&said.cluster_cidr).iter().flat_map(|list| list.split(',')).map(str::to_owned).collect();
    policy.detect_local_mode = match said.detect_local_mode.as_str() {
        "ClusterCIDR" if policy.cluster_cidr.is_empty() => {
            notes.push(
                "detectLocalMode ClusterCIDR without a clusterCIDR: a local pod is told by the Node's podCIDRs, else by its device"
                    .to_owned(),
            );
            None
        }
        "ClusterCIDR" => Some(DetectLocalArg::ClusterCidr),
        "NodeCIDR" => Some(DetectLocalArg::NodeCidr),
        "BridgeInterface" => Some(DetectLocalArg::BridgeInterface),
        "InterfaceNamePrefix" => Some(DetectLocalArg::InterfaceNamePrefix),
        // kube-proxy's default is ClusterCIDR, which without a range is nothing.
        _ => None,
    };
    policy.pod_bridge_interface = some(&said.detect_local.bridge_interface);
    policy.pod_interface_name_prefix = some(&said.detect_local.interface_name_prefix);
    policy.masquerade_all = Some(said.masquerade_all());
    policy.nodeport_addresses.clone_from(&said.node_port_addresses);
    gate_of(said, args);

    let flags = &mut args.kube_proxy;
    flags.proxy_mode = Some(said.mode.clone());
    flags.bind_address = some(&said.bind_address);
    flags.bind_address_hard_fail = Some(said.bind_address_hard_fail);
    flags.oom_score_adj = said.oom_score_adj;
    flags.conntrack_max_per_core = said.conntrack.max_per_core;
    flags.conntrack_min = said.conntrack.min;
    flags.iptables_localhost_nodeports =
        said.iptables.localhost_node_ports.filter(|_| said.proxy_mode() == Mode::IpTables);
    flags.healthz_port = None;
    flags.metrics_port = None;
    flags.verbosity = flags.verbosity.or(Some(said.logging.verbosity.min(u8::MAX.into()) as u8));
    let period = |period: GoDuration| (!period.is_zero()).then(|| period.to_string());
    let (sync, min_sync) = said.periods();
    for (place, value) in [
        (&mut flags.iptables_sync_period, sync),
        (&mut flags.ipvs_sync_period, sync),
        (&mut flags.iptables_min_sync_period, min_sync),
        (&mut flags.ipvs_min_sync_period, min_sync),
    ] {
        *place = period(value);
    }
    timeouts(said, args, notes);
}

/// kube-proxy hands these to the kernel, which takes any: what our bounds do not allow is brought within them.
fn timeouts(said: &KubeProxyConfiguration, args: &mut RunArgs, notes: &mut Vec<String>) {
    let conntrack = &said.conntrack;
    let mut bounded = |path: &str, value: GoDuration| {
        if value.is_zero() {
            return None;
        }
        let bounded =
            GoDuration(value.0.clamp(GoDuration::from_secs(1).0, GoDuration::from_secs(MAX.into()).0));
        if bounded != value {
            notes.push(format!("{path}: {value} is taken for {bounded}"));
        }
        Some(bounded)
    };
    let established =
        bounded("conntrack.tcpEstablishedTimeout", conntrack.tcp_established_timeout.unwrap_or_default());
    let close_wait =
        bounded("conntrack.tcpCloseWaitTimeout", conntrack.tcp_close_wait_timeout.unwrap_or_default());
    let udp = bounded("conntrack.udpTimeout", conntrack.udp_timeout);
    let mut stream = bounded("conntrack.udpStreamTimeout", conntrack.udp_stream_timeout);
    let usual = GoDuration::from_secs(crate::config::Timeouts::default().assured.into());
    // Whoever has been answered is not forgotten before those who have not.
    if let Some(udp) = udp.filter(|udp| *udp > stream.unwrap_or(usual)) {
        notes.push(format!("conntrack.udpStreamTimeout: is taken for {udp}, as conntrack.udpTimeout"));
        stream = Some(udp);
    }
    let text = |value: Option<GoDuration>| value.map(|value| value.to_string());
    args.timeouts.conntrack_tcp_timeout_established = text(established);
    args.timeouts.conntrack_tcp_timeout_close_wait = text(close_wait);
    args.timeouts.conntrack_udp_timeout = text(udp);
    args.timeouts.conntrack_udp_timeout_stream = text(stream);
}

#[cfg(test)]
mod tests {
    use std::{fs, path::PathBuf, time::Duration};

    use clap::Parser as _;

    use crate::{
        cli::{
            args::{Cli, Command},
            resolve::{Surroundings, run_config, written_config},
        },
        config::{Config, DetectLocal, NodePortAddresses, Origin, Source, Timeouts},
        kube_proxy_config::{effective, parse, read, write},
    };

    const HEAD: &str = "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n";
    /// As kubeadm writes it, but for a kubeconfig that is there.
    const KUBEADM: &str = include_str!("../kube_proxy_config/kubeadm.conf");

    struct Scratch(PathBuf);

    impl Scratch {
        fn new(text: &str) -> Self {
            let name = format!("shunt-merge-{}-{:?}", std::process::id(), std::thread::current().id());
            let path = std::env::temp_dir().join(name);
            fs::write(&path, text).unwrap();
            Self(path)
        }
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            let _ = fs::remove_file(&self.0);
        }
    }

    fn around() -> Surroundings {
        Surroundings {
            hostname: "host".into(),
            cgroup2: Some("/cg".into()),
            cpus: 8,
            ..Surroundings::default()
        }
    }

    /// What a file with flags beside it means.
    fn config(text: &str, flags: &str) -> Config {
        let file = Scratch::new(text);
        let line = format!("shunt run --config {} {flags}", file.0.display());
        let cli =
            Cli::try_parse_from(line.split_whitespace()).unwrap_or_else(|error| panic!("{line}: {error}"));
        let Command::Run(args) = cli.command else { panic!("not run") };
        run_config(&args, &cli.global.bpffs, &around()).unwrap_or_else(|error| panic!("{line}: {error}"))
    }

    #[test]
    fn kubeadms_config_map_is_taken_unchanged() {
        let text = KUBEADM.replace("/var/lib/kube-proxy/kubeconfig.conf", "/proc/self/status");
        let config = config(&text, "--hostname-override=node-1");
        assert!(config.notes.is_empty(), "{:?}", config.notes);
        assert_eq!(config.node_name, "node-1");
        let Source::Cluster(cluster) = &config.source else { panic!("{:?}", config.source) };
        assert_eq!(cluster.origin, Origin::ConfigFile("/proc/self/status".into()));
        assert!(
            matches!(&config.compile.detect_local, DetectLocal::ClusterCidr(ranges) if ranges.len() == 2)
        );
        assert_eq!(config.compile.nodeport_addresses, NodePortAddresses::All);
        assert_eq!(
            (config.healthz_bind_address, config.metrics_bind_address),
            ("0.0.0.0:10256".parse().ok(), "127.0.0.1:10249".parse().ok())
        );
        assert_eq!((config.timeouts, config.sizes.conntrack), (Timeouts::default(), 262_144));
        assert_eq!((config.min_sync, config.repair), (Duration::from_millis(20), Duration::from_secs(60)));
        assert_eq!((config.oom_score_adj, config.compile.node_ip), (-999, None));
    }

    #[test]
    fn every_field_that_means_something_reaches_the_configuration() {
        let text = format!(
            "{HEAD}hostnameOverride: Node-7\nbindAddress: 192.168.8.201\nhealthzBindAddress: 127.0.0.1:1\n\
             metricsBindAddress: '[::]:2'\nbindAddressHardFail: true\nnodePortAddresses: [192.168.8.0/24]\n\
             clusterCIDR: 10.244.0.0/16\ndetectLocalMode: BridgeInterface\ndetectLocal: {{bridgeInterface: cni0}}\n\
             iptables: {{masqueradeAll: true, localhostNodePorts: false, syncPeriod: 45s, minSyncPeriod: 2s}}\n\
             oomScoreAdj: 0\nlogging: {{verbosity: 4}}\nfeatureGates: {{AllowServiceExternalIPs: false}}\n\
             conntrack: {{maxPerCore: 65536, tcpEstablishedTimeout: 2h, tcpCloseWaitTimeout: 30m, udpTimeout: 15s, \
             udpStreamTimeout: 2m}}\n"
        );
        let config = config(&text, "--manifests / --scheduler random");
        assert_eq!((config.node_name.as_str(), config.verbosity, config.oom_score_adj), ("node-7", 4, 0));
        assert_eq!(config.compile.node_ip, "192.168.8.201".parse().ok());
        assert_eq!(
            (config.healthz_bind_address, config.metrics_bind_address),
            ("127.0.0.1:1".parse().ok(), "[::]:2".parse().ok())
        );
        assert!(config.bind_address_hard_fail && config.compile.masquerade_all);
        assert!(config.compile.without_localhost_node_ports && config.compile.without_external_ips);
        assert_eq!(config.compile.detect_local, DetectLocal::BridgeInterface("cni0".into()));
        assert!(
            matches!(&config.compile.nodeport_addresses, NodePortAddresses::Cidrs(ranges) if ranges.len() == 1)
        );
        assert_eq!((config.repair, config.min_sync), (Duration::from_secs(45), Duration::from_secs(2)));
        let Timeouts { established, half_closed, unreplied, assured, .. } = config.timeouts;
        assert_eq!((established, half_closed, unreplied, assured), (7200, 1800, 15, 120));
        // 8 CPUs' 65536 flows are within kube-proxy's bound, at two halves each.
        assert_eq!((config.sizes.conntrack, config.sizes.conntrack_is_scaled), (2 * 524_288, true));
        assert_eq!(config.compile.scheduler, crate::config::Scheduler::Random);
    }

    #[test]
    fn the_mode_says_which_section_counts() {
        let text = format!(
            "{HEAD}iptables: {{masqueradeAll: true, minSyncPeriod: 2s}}\nnftables: {{minSyncPeriod: 3s, syncPeriod: 20s}}\n\
             ipvs: {{minSyncPeriod: 4s, syncPeriod: 10s}}\n"
        );
        let of = |mode: &str| {
            let config = config(&format!("{text}mode: {mode}\n"), "--manifests /");
            let named = config.notes.iter().any(|note| note.contains(&format!("mode \"{mode}\"")));
            assert!(named, "{:?}", config.notes);
            let compile = config.compile;
            (
                config.min_sync.as_secs(),
                config.repair.as_secs(),
                compile.masquerade_all,
                compile.nodeport_addresses,
            )
        };
        assert_eq!(of("iptables"), (2, 60, true, NodePortAddresses::All));
        assert_eq!(of("ipvs"), (4, 10, true, NodePortAddresses::All));
        assert_eq!(of("nftables"), (3, 20, false, NodePortAddresses::Primary));
    }

    #[test]
    fn the_file_goes_before_kube_proxys_flags_and_after_those_about_the_node() {
        let text = format!(
            "{HEAD}hostnameOverride: of-the-file\nclusterCIDR: 10.244.0.0/16\nconntrack: {{maxPerCore: 1}}\n"
        );
        let flags = "--manifests / --node-name of-the-flag --cluster-cidr 10.0.0.0/8 --masquerade-all --v 5 \
                     --healthz-bind-address 127.0.0.1:1 --conntrack-max 4096 --conntrack-udp-timeout 9s \
                     --kube-api-qps 7 --ipvs-strict-arp";
        let config = config(&text, flags);
        assert_eq!((config.node_name.as_str(), config.verbosity), ("of-the-flag", 5));
        assert!(
            matches!(&config.compile.detect_local, DetectLocal::ClusterCidr(ranges) if ranges[0].to_string() == "10.244.0.0/16")
        );
        assert!(!config.compile.masquerade_all);
        assert_eq!(
            (config.healthz_bind_address, config.timeouts.unreplied),
            ("0.0.0.0:10256".parse().ok(), 30)
        );
        assert_eq!((config.sizes.conntrack, config.sizes.conntrack_is_scaled), (4096, false));
        assert_eq!(config.notes[0], "without a meaning here, passed over: --ipvs-strict-arp, --kube-api-qps");
        let ignored = "these flags beside it count for nothing: --cluster-cidr, --conntrack-udp-timeout, --healthz-bind-address, --masquerade-all";
        assert!(config.notes[1].ends_with(ignored), "{:?}", config.notes);
        assert_eq!(config.notes.len(), 2, "{:?}", config.notes);
    }

    #[test]
    fn kubeadm_of_a_newer_release_writes_fields_that_nobody_knows() {
        let text = KUBEADM.replace("/var/lib/kube-proxy/kubeconfig.conf", "/proc/self/status");
        let text = text.replace("conntrack:\n", "conntrack:\n  max: 0\n") + "newSection: {a: '', b: 0s}\n";
        let config = config(&text, "");
        let [note] = config.notes.as_slice() else { panic!("{:?}", config.notes) };
        assert!(note.ends_with("and that are empty, passed over: conntrack.max, newSection"), "{note}");
    }

    #[test]
    fn what_kube_proxy_would_take_is_brought_within_bounds() {
        let text = format!(
            "{HEAD}detectLocalMode: ClusterCIDR\nconntrack: {{tcpEstablishedTimeout: 2000h, tcpCloseWaitTimeout: 10ms, \
             udpTimeout: 250s, maxPerCore: 0, min: 7}}\nlogging: {{format: json}}\n"
        );
        let config = config(&text, "--manifests /");
        let Timeouts { established, half_closed, unreplied, assured, .. } = config.timeouts;
        assert_eq!((established, half_closed, unreplied, assured), (7 * 86_400, 1, 250, 250));
        assert_eq!(config.compile.detect_local, DetectLocal::Auto);
        assert_eq!((config.sizes.conntrack, config.sizes.conntrack_is_scaled), (262_144, false));
        for (note, want) in config.notes.iter().zip([
            "fields without a meaning here, passed over: logging.format",
            "detectLocalMode ClusterCIDR without a clusterCIDR",
            "conntrack.tcpEstablishedTimeout: 2000h0m0s is taken for 168h0m0s",
            "conntrack.tcpCloseWaitTimeout: 10ms is taken for 1s",
            "conntrack.udpStreamTimeout: is taken for 4m10s",
        ]) {
            assert!(note.contains(want), "{note}");
        }
        assert_eq!(config.notes.len(), 5);
    }

    #[test]
    fn an_empty_value_is_a_flag_that_is_not_given() {
        let line = "shunt run --kubeconfig= --config= --feature-gates= --detect-local-mode= --cluster-cidr= --node-name=";
        let Command::Run(args) = Cli::try_parse_from(line.split_whitespace()).unwrap().command else {
            panic!("not run")
        };
        let around = Surroundings { kubeconfig: Some("/proc/self/status".into()), ..around() };
        let config = run_config(&args, "/b".as_ref(), &around).unwrap();
        let Source::Cluster(cluster) = config.source else { panic!("{:?}", config.source) };
        assert_eq!(cluster.origin, Origin::Environment(vec!["/proc/self/status".into()]));
        assert!(config.file.is_none() && config.notes.is_empty(), "{:?}", config.notes);
        assert_eq!((config.compile.detect_local, config.node_name.as_str()), (DetectLocal::Auto, "host"));
        let beside = self::config(HEAD, "--manifests / --detect-local-mode= --feature-gates=");
        assert!(beside.notes.is_empty(), "{:?}", beside.notes);
    }

    #[test]
    fn kube_proxys_command_line_without_a_file() {
        let line = "shunt run --manifests / --proxy-mode=nftables --conntrack-min=200000 --bind-address=fd08::1 --healthz-port=0 \
                    --metrics-port=9 --iptables-min-sync-period=3s --feature-gates=AllowServiceExternalIPs=false,AllAlpha=true";
        let cli = Cli::try_parse_from(line.split_whitespace()).unwrap();
        let Command::Run(args) = cli.command else { panic!("not run") };
        let config = run_config(&args, &cli.global.bpffs, &around()).unwrap();
        assert_eq!(
            (config.healthz_bind_address, config.metrics_bind_address),
            (None, "127.0.0.1:9".parse().ok())
        );
        assert_eq!(config.compile.nodeport_addresses, NodePortAddresses::Primary);
        assert_eq!(
            (config.compile.node_ip, config.min_sync),
            ("fd08::1".parse().ok(), Duration::from_secs(3))
        );
        // 8 CPUs' 32768 are more than the minimum.
        assert_eq!((config.sizes.conntrack, config.compile.without_external_ips), (2 * 262_144, true));
        assert_eq!(config.notes, ["feature gates without a meaning here, passed over: AllAlpha"]);
        for (flags, want) in [
            ("--iptables-sync-period=1s --iptables-min-sync-period=2s", "--iptables-sync-period"),
            ("--bind-address=here", "--bind-address"),
            ("--ipvs-sync-period=soon --proxy-mode=ipvs", "--ipvs-sync-period"),
        ] {
            let line = format!("shunt run --manifests / {flags}");
            let Command::Run(args) = Cli::try_parse_from(line.split_whitespace()).unwrap().command else {
                panic!()
            };
            let error = run_config(&args, &cli.global.bpffs, &around()).unwrap_err().to_string();
            assert!(error.contains(want), "{flags}: {error}");
        }
    }

    #[test]
    fn a_name_is_written_where_somebody_said_it() {
        let around = Surroundings { node_name: Some("of-this-pod".into()), ..around() };
        let named = format!("{HEAD}hostnameOverride: of-the-file\n");
        for (text, flags, want) in [
            (HEAD, "", ""),
            (KUBEADM, "", ""),
            (HEAD, "--hostname-override=", ""),
            (HEAD, "--node-name of-the-flag", "of-the-flag"),
            (&named, "", "of-the-file"),
            (&named, "--hostname-override=", "of-the-file"),
            (&named, "--node-name of-the-flag", "of-the-flag"),
        ] {
            let file = Scratch::new(text);
            let line = format!("shunt run --config {} {flags}", file.0.display());
            let Command::Run(mut args) = Cli::try_parse_from(line.split_whitespace()).unwrap().command else {
                panic!()
            };
            let config = written_config(&args, "/b".as_ref(), &around).unwrap();
            assert_eq!(config.kube_proxy.hostname_override, want, "{line}");
            let resolved = if want.is_empty() { "of-this-pod" } else { want };
            assert_eq!(config.node_name, resolved, "{line}");
            args.config = None;
            let config = written_config(&args, "/b".as_ref(), &around).unwrap();
            let want = if want == "of-the-file" { "" } else { want };
            assert_eq!(config.kube_proxy.hostname_override, want, "without the file: {line}");
        }
    }

    #[test]
    fn what_is_written_is_read_as_the_same() {
        let text = format!(
            "{HEAD}mode: nftables\nclusterCIDR: 10.244.0.0/16\nbindAddress: 192.168.8.201\noomScoreAdj: 5\n\
             nftables: {{masqueradeAll: true, syncPeriod: 2m}}\nclientConnection: {{qps: 50}}\nipvs: {{strictARP: true}}\n\
             conntrack: {{min: 300000}}\nfeatureGates: {{AllowServiceExternalIPs: false}}\n"
        );
        for text in [text.as_str(), HEAD, KUBEADM] {
            let file = Scratch::new(text);
            let line = format!("shunt run --config {} --write-config-to x", file.0.display());
            let Command::Run(args) = Cli::try_parse_from(line.split_whitespace()).unwrap().command else {
                panic!()
            };
            let first = written_config(&args, "/b".as_ref(), &around()).unwrap();
            let copy = std::env::temp_dir().join(format!("shunt-written-{}.json", std::process::id()));
            for path in [&file.0, &copy] {
                write(path, &first.kube_proxy).unwrap();
                let again = read(path).unwrap_or_else(|error| panic!("{error}"));
                let mut args = args.clone();
                args.config = Some(path.clone());
                let second = written_config(&args, "/b".as_ref(), &around()).unwrap();
                assert_eq!(second.kube_proxy, first.kube_proxy);
                assert_eq!(again.said.hostname_override, "", "of no machine: every node may read it");
                assert_eq!(effective(&again.said, &second), first.kube_proxy);
                assert_eq!(
                    (second.compile, second.sizes, second.timeouts),
                    (first.compile.clone(), first.sizes, first.timeouts)
                );
                assert_eq!((second.repair, second.min_sync), (first.repair, first.min_sync));
            }
            fs::remove_file(copy).unwrap();
        }
        assert!(parse(KUBEADM).is_ok());
    }
}
