//! `--config` together with flags.

use std::{fs, path::PathBuf, time::Duration};

use clap::Parser as _;

use super::super::{effective::effective, run_config, written_config};
use crate::{
    cli::{
        args::{Cli, Command},
        environment::Environment,
    },
    config::{Config, DetectLocal, NodePortAddresses, Origin, Scheduler, Source, Timeouts},
    kube_proxy_config::{parse, read, write},
};

const HEAD: &str = "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n";
/// As kubeadm writes it. Tests replace the kubeconfig by an existing file.
const KUBEADM: &str = include_str!("../../../kube_proxy_config/kubeadm.conf");

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

fn environment() -> Environment {
    Environment { hostname: "host".into(), cgroup2: Some("/cg".into()), cpus: 8, ..Environment::default() }
}

/// The configuration of a file and flags.
fn config(text: &str, flags: &str) -> Config {
    let file = Scratch::new(text);
    let line = format!("shunt run --config {} {flags}", file.0.display());
    let cli = Cli::try_parse_from(line.split_whitespace()).unwrap_or_else(|error| panic!("{line}: {error}"));
    let Command::Run(args) = cli.command else { panic!("not run") };
    run_config(&args, &cli.global.bpffs, &environment()).unwrap_or_else(|error| panic!("{line}: {error}"))
}

#[test]
fn the_config_map_of_kubeadm_works_unchanged() {
    let text = KUBEADM.replace("/var/lib/kube-proxy/kubeconfig.conf", "/proc/self/status");
    let config = config(&text, "--hostname-override=node-1");
    assert!(config.notes.is_empty(), "{:?}", config.notes);
    assert_eq!(config.node_name, "node-1");
    let Source::Cluster(cluster) = &config.source else { panic!("{:?}", config.source) };
    assert_eq!(cluster.origin, Origin::ConfigFile("/proc/self/status".into()));
    assert!(matches!(&config.compile.detect_local, DetectLocal::ClusterCidr(ranges) if ranges.len() == 2));
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
fn every_used_field_reaches_the_configuration() {
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
    // 8 CPUs at 65536 flows are within kube-proxy's bound; two entries per flow.
    assert_eq!((config.sizes.conntrack, config.sizes.conntrack_is_scaled), (2 * 524_288, true));
    assert_eq!(config.compile.scheduler, Scheduler::Random);
}

#[test]
fn the_mode_selects_the_section() {
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
fn the_file_takes_precedence_except_over_flags_about_the_node() {
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
    assert_eq!((config.healthz_bind_address, config.timeouts.unreplied), ("0.0.0.0:10256".parse().ok(), 30));
    assert_eq!((config.sizes.conntrack, config.sizes.conntrack_is_scaled), (4096, false));
    assert_eq!(config.notes[0], "ignored flags: --ipvs-strict-arp, --kube-api-qps");
    let ignored = "overrides these flags: --cluster-cidr, --conntrack-udp-timeout, --healthz-bind-address, --masquerade-all";
    assert!(config.notes[1].ends_with(ignored), "{:?}", config.notes);
    assert_eq!(config.notes.len(), 2, "{:?}", config.notes);
}

#[test]
fn empty_fields_of_a_newer_kubeadm_are_ignored() {
    let text = KUBEADM.replace("/var/lib/kube-proxy/kubeconfig.conf", "/proc/self/status");
    let text = text.replace("conntrack:\n", "conntrack:\n  max: 0\n") + "newSection: {a: '', b: 0s}\n";
    let config = config(&text, "");
    let [note] = config.notes.as_slice() else { panic!("{:?}", config.notes) };
    assert!(
        note.ends_with(": ignored fields, empty and unknown to this version: conntrack.max, newSection"),
        "{note}"
    );
}

#[test]
fn values_out_of_bounds_are_clamped() {
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
        ": ignored fields: logging.format",
        "detectLocalMode ClusterCIDR without a clusterCIDR",
        "conntrack.tcpEstablishedTimeout: 2000h0m0s is clamped to 168h0m0s",
        "conntrack.tcpCloseWaitTimeout: 10ms is clamped to 1s",
        "conntrack.udpStreamTimeout: is raised to 4m10s",
    ]) {
        assert!(note.contains(want), "{note}");
    }
    assert_eq!(config.notes.len(), 5);
}

#[test]
fn a_flag_with_an_empty_value_is_not_given() {
    let line = "shunt run --kubeconfig= --config= --feature-gates= --detect-local-mode= --cluster-cidr= --node-name=";
    let Command::Run(args) = Cli::try_parse_from(line.split_whitespace()).unwrap().command else {
        panic!("not run")
    };
    let environment = Environment { kubeconfig: Some("/proc/self/status".into()), ..environment() };
    let config = run_config(&args, "/b".as_ref(), &environment).unwrap();
    let Source::Cluster(cluster) = config.source else { panic!("{:?}", config.source) };
    assert_eq!(cluster.origin, Origin::Environment(vec!["/proc/self/status".into()]));
    assert!(config.file.is_none() && config.notes.is_empty(), "{:?}", config.notes);
    assert_eq!((config.compile.detect_local, config.node_name.as_str()), (DetectLocal::Auto, "host"));
    let beside = self::config(HEAD, "--manifests / --detect-local-mode= --feature-gates=");
    assert!(beside.notes.is_empty(), "{:?}", beside.notes);
}

#[test]
fn a_kube_proxy_command_line_without_a_file() {
    let line = "shunt run --manifests / --proxy-mode=nftables --conntrack-min=200000 --bind-address=fd08::1 --healthz-port=0 \
                --metrics-port=9 --iptables-min-sync-period=3s --feature-gates=AllowServiceExternalIPs=false,AllAlpha=true";
    let cli = Cli::try_parse_from(line.split_whitespace()).unwrap();
    let Command::Run(args) = cli.command else { panic!("not run") };
    let config = run_config(&args, &cli.global.bpffs, &environment()).unwrap();
    assert_eq!(
        (config.healthz_bind_address, config.metrics_bind_address),
        (None, "127.0.0.1:9".parse().ok())
    );
    assert_eq!(config.compile.nodeport_addresses, NodePortAddresses::Primary);
    assert_eq!((config.compile.node_ip, config.min_sync), ("fd08::1".parse().ok(), Duration::from_secs(3)));
    // 8 CPUs at 32768 flows exceed the minimum.
    assert_eq!((config.sizes.conntrack, config.compile.without_external_ips), (2 * 262_144, true));
    assert_eq!(config.notes, ["ignored feature gates: AllAlpha"]);
    for (flags, want) in [
        ("--iptables-sync-period=1s --iptables-min-sync-period=2s", "--iptables-sync-period"),
        ("--bind-address=here", "--bind-address"),
        ("--ipvs-sync-period=soon --proxy-mode=ipvs", "--ipvs-sync-period"),
    ] {
        let line = format!("shunt run --manifests / {flags}");
        let Command::Run(args) = Cli::try_parse_from(line.split_whitespace()).unwrap().command else {
            panic!()
        };
        let error = run_config(&args, &cli.global.bpffs, &environment()).unwrap_err().to_string();
        assert!(error.contains(want), "{flags}: {error}");
    }
}

#[test]
fn only_a_given_node_name_is_written() {
    let environment = Environment { node_name: Some("of-this-pod".into()), ..environment() };
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
        let config = written_config(&args, "/b".as_ref(), &environment).unwrap();
        assert_eq!(config.kube_proxy.hostname_override, want, "{line}");
        let resolved = if want.is_empty() { "of-this-pod" } else { want };
        assert_eq!(config.node_name, resolved, "{line}");
        args.config = None;
        let config = written_config(&args, "/b".as_ref(), &environment).unwrap();
        let want = if want == "of-the-file" { "" } else { want };
        assert_eq!(config.kube_proxy.hostname_override, want, "without the file: {line}");
    }
}

#[test]
fn a_written_configuration_reads_back_the_same() {
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
        let first = written_config(&args, "/b".as_ref(), &environment()).unwrap();
        let copy = std::env::temp_dir().join(format!("shunt-written-{}.json", std::process::id()));
        for path in [&file.0, &copy] {
            write(path, &first.kube_proxy).unwrap();
            let again = read(path).unwrap_or_else(|error| panic!("{error}"));
            let mut args = args.clone();
            args.config = Some(path.clone());
            let second = written_config(&args, "/b".as_ref(), &environment()).unwrap();
            assert_eq!(second.kube_proxy, first.kube_proxy);
            assert_eq!(again.config.hostname_override, "", "the file is for every node");
            assert_eq!(effective(&again.config, &second), first.kube_proxy);
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
