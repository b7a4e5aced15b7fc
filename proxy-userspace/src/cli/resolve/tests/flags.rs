//! Flags without a configuration file.

use std::path::Path;

use clap::Parser as _;

use super::super::run_config;
use crate::{
    cli::{
        args::{Cli, Command},
        environment::Environment,
        usage_error::UsageError,
    },
    config::{
        CompileConfig, Config, DetectLocal, MapSizes, NodePortAddresses, Scheduler, SocketLb, Timeouts, Xdp,
    },
};

fn environment() -> Environment {
    Environment { hostname: "Node-1".into(), cgroup2: Some("/cg".into()), ..Environment::default() }
}

fn config(line: &[&str]) -> Result<Config, UsageError> {
    let line = ["shunt", "run"].iter().chain(line);
    let cli = Cli::try_parse_from(line).expect("the line is well-formed");
    let Command::Run(args) = cli.command else { panic!("not run") };
    run_config(&args, &cli.global.bpffs, &environment())
}

#[test]
fn defaults_come_from_the_environment() {
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
        --nodeport-addresses 192.168.8.0/24,fd08::/64 --nodeport-source-ranges 10.1.2.3/8,fd01::/16 \
        --nodeport-source-ranges 192.0.2.0/24 --healthz-bind-address [::]:1 --metrics-bind-address= \
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
    let ranges = config.compile.nodeport_source_ranges.iter().map(ToString::to_string);
    assert_eq!(ranges.collect::<Vec<_>>(), ["10.0.0.0/8", "fd01::/16", "192.0.2.0/24"]);
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
fn an_empty_list_is_not_given() {
    let flags =
        ["--manifests", "/", "--cluster-cidr=", "--nodeport-addresses=", "--allow-service-external-ips"];
    assert_eq!(config(&flags).unwrap().compile, CompileConfig::default());
}

#[test]
fn usage_errors_explain_themselves() {
    for (line, text) in [
        ("", "give --kubeconfig FILE"),
        ("--manifests / --routing bpf", "--routing bpf is not built"),
        ("--manifests /does/not/exist", "does not exist"),
        ("--manifests /proc/self/mountinfo", "is not a directory"),
        ("--manifests / --cluster-cidr 10.0.0.0/8,11.0.0.0/8", "one range of each family"),
        ("--manifests / --cluster-cidr ten", "\"ten\" is not an address range"),
        ("--manifests / --detect-local-mode clustercidr", "needs --cluster-cidr"),
        ("--manifests / --detect-local-mode BridgeInterface", "needs --pod-bridge-interface"),
        ("--manifests / --nodeport-addresses primary,10.0.0.0/8", "cannot be combined"),
        (
            "--manifests / --nodeport-source-ranges 10.0.0.0/8,10.1.2.3",
            "\"10.1.2.3\" is not an address range",
        ),
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
