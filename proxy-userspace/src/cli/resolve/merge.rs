//! `--config` merged with flags: the settings of the file replace the flags with the same meaning, so that the rest of
//! [`super`] handles flags only. Reads the file.
//!
//! As in kube-proxy, the file takes precedence over kube-proxy's flags, which are then ignored and logged. shunt's own flags
//! apply in addition. Some flags take precedence over the file: those that tell where the agent runs (node name, cluster),
//! and those that take precedence in kube-proxy, too (`--v`, `--cleanup`, `--init-only`, `--write-config-to`).

use std::path::PathBuf;

use crate::{
    cli::{
        args::{policy::DetectLocalArg, run::RunArgs},
        durations::MAX_SECONDS,
        usage_error::UsageError,
    },
    config::Timeouts,
    kube_proxy_config::{
        self, ConfigFile, EXTERNAL_IPS_GATE, KubeProxyConfiguration, Mode, duration::GoDuration,
        ignored_fields,
    },
};

/// Flags and file, as if all settings were flags.
#[derive(Clone, Debug)]
pub(super) struct Merged {
    pub args: RunArgs,
    /// The same settings as a KubeProxyConfiguration without defaults, including fields that have no flag.
    pub given: KubeProxyConfiguration,
    pub file: Option<ConfigFile>,
    /// Notices for the log, one per line.
    pub notes: Vec<String>,
}

/// Merges the flags with the file of `--config`, if one is given.
pub(super) fn merge(args: &RunArgs) -> Result<Merged, UsageError> {
    let mut notes = Vec::new();
    let ignored = &args.kube_proxy.ignored.given;
    if !ignored.is_empty() {
        notes.push(format!("ignored flags: {}", ignored.join(", ")));
    }
    let mut args = args.clone();
    // As in kube-proxy, an empty value means that the flag is not given.
    let is_named = |path: &PathBuf| !path.as_os_str().is_empty();
    args.config = args.config.filter(is_named);
    args.kubeconfig = args.kubeconfig.filter(is_named);
    args.policy.detect_local_mode =
        args.policy.detect_local_mode.filter(|mode| *mode != DetectLocalArg::Unset);
    let Some(path) = args.config.clone() else {
        let given = config_of_flags(&mut args, &mut notes);
        return Ok(Merged { args, given, file: None, notes });
    };
    let file = kube_proxy_config::read(&path)?;
    let given = &file.config;
    let fields = ignored_fields(&file.raw, given.proxy_mode());
    for (what, names) in [
        ("overrides these flags", overridden_flags(&args).join(", ")),
        ("ignored fields", fields.join(", ")),
        ("ignored fields, empty and unknown to this version", file.unknown.join(", ")),
    ] {
        if !names.is_empty() {
            notes.push(format!("--config {}: {what}: {names}", path.display()));
        }
    }
    if !given.mode.is_empty() {
        notes.push(format!(
            "mode {:?}: shunt has its own datapath; the mode only selects the section that takes effect",
            given.mode
        ));
    }
    apply_file(given, &mut args, &mut notes);
    Ok(Merged { given: given.clone(), args, file: Some(file), notes })
}

/// The KubeProxyConfiguration of a command line without a file.
fn config_of_flags(args: &mut RunArgs, notes: &mut Vec<String>) -> KubeProxyConfiguration {
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
        notes.push(format!("ignored feature gates: {}", others.join(", ")));
    }
    apply_gate(&given, args);
    given
}

/// The feature gate, unless shunt's own flag overrides it.
fn apply_gate(given: &KubeProxyConfiguration, args: &mut RunArgs) {
    let gate = given.feature_gates.get(EXTERNAL_IPS_GATE).copied();
    args.policy.allow_service_external_ips = args.policy.allow_service_external_ips.or(gate);
}

/// kube-proxy's flags on the command line that the file overrides.
fn overridden_flags(args: &RunArgs) -> Vec<&'static str> {
    let (policy, timeouts, flags) = (&args.policy, &args.timeouts, &args.kube_proxy);
    let mut given: Vec<&'static str> = [
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
    .filter_map(|(flag, is_given)| is_given.then_some(flag))
    .collect();
    given.sort_unstable();
    given
}

/// Replaces flags by the settings of the file.
fn apply_file(given: &KubeProxyConfiguration, args: &mut RunArgs, notes: &mut Vec<String>) {
    let some = |text: &String| Some(text.clone()).filter(|text| !text.is_empty());
    let whole = given.clone().defaulted();
    args.node_name =
        args.node_name.take().filter(|name| !name.is_empty()).or_else(|| some(&given.hostname_override));
    args.configured_kubeconfig = some(&given.client_connection.kubeconfig).map(Into::into);
    args.healthz_bind_address = Some(whole.healthz_bind_address);
    args.metrics_bind_address = Some(whole.metrics_bind_address);

    let policy = &mut args.policy;
    policy.cluster_cidr =
        some(&given.cluster_cidr).iter().flat_map(|list| list.split(',')).map(str::to_owned).collect();
    policy.detect_local_mode = match given.detect_local_mode.as_str() {
        "ClusterCIDR" if policy.cluster_cidr.is_empty() => {
            notes.push(
                "detectLocalMode ClusterCIDR without a clusterCIDR: local pods are detected by the Node's podCIDRs, else by device"
                    .to_owned(),
            );
            None
        }
        "ClusterCIDR" => Some(DetectLocalArg::ClusterCidr),
        "NodeCIDR" => Some(DetectLocalArg::NodeCidr),
        "BridgeInterface" => Some(DetectLocalArg::BridgeInterface),
        "InterfaceNamePrefix" => Some(DetectLocalArg::InterfaceNamePrefix),
        // kube-proxy's default is ClusterCIDR, which detects nothing without a range.
        _ => None,
    };
    policy.pod_bridge_interface = some(&given.detect_local.bridge_interface);
    policy.pod_interface_name_prefix = some(&given.detect_local.interface_name_prefix);
    policy.masquerade_all = Some(given.masquerade_all());
    policy.nodeport_addresses.clone_from(&given.node_port_addresses);
    apply_gate(given, args);

    let flags = &mut args.kube_proxy;
    flags.proxy_mode = Some(given.mode.clone());
    flags.bind_address = some(&given.bind_address);
    flags.bind_address_hard_fail = Some(given.bind_address_hard_fail);
    flags.oom_score_adj = given.oom_score_adj;
    flags.conntrack_max_per_core = given.conntrack.max_per_core;
    flags.conntrack_min = given.conntrack.min;
    flags.iptables_localhost_nodeports =
        given.iptables.localhost_node_ports.filter(|_| given.proxy_mode() == Mode::IpTables);
    flags.healthz_port = None;
    flags.metrics_port = None;
    flags.verbosity = flags.verbosity.or(Some(given.logging.verbosity.min(u8::MAX.into()) as u8));
    let period = |period: GoDuration| (!period.is_zero()).then(|| period.to_string());
    let (sync, min_sync) = given.periods();
    for (place, value) in [
        (&mut flags.iptables_sync_period, sync),
        (&mut flags.ipvs_sync_period, sync),
        (&mut flags.iptables_min_sync_period, min_sync),
        (&mut flags.ipvs_min_sync_period, min_sync),
    ] {
        *place = period(value);
    }
    timeouts(given, args, notes);
}

/// Flow timeouts. kube-proxy passes any value on to the kernel; values outside shunt's bounds are clamped.
fn timeouts(given: &KubeProxyConfiguration, args: &mut RunArgs, notes: &mut Vec<String>) {
    let conntrack = &given.conntrack;
    let mut bounded = |path: &str, value: GoDuration| {
        if value.is_zero() {
            return None;
        }
        let bounded = GoDuration(
            value.0.clamp(GoDuration::from_secs(1).0, GoDuration::from_secs(MAX_SECONDS.into()).0),
        );
        if bounded != value {
            notes.push(format!("{path}: {value} is clamped to {bounded}"));
        }
        Some(bounded)
    };
    let established =
        bounded("conntrack.tcpEstablishedTimeout", conntrack.tcp_established_timeout.unwrap_or_default());
    let close_wait =
        bounded("conntrack.tcpCloseWaitTimeout", conntrack.tcp_close_wait_timeout.unwrap_or_default());
    let udp = bounded("conntrack.udpTimeout", conntrack.udp_timeout);
    let mut stream = bounded("conntrack.udpStreamTimeout", conntrack.udp_stream_timeout);
    let default = GoDuration::from_secs(Timeouts::default().assured.into());
    // A flow with replies must not expire earlier than one without.
    if let Some(udp) = udp.filter(|udp| *udp > stream.unwrap_or(default)) {
        notes.push(format!(
            "conntrack.udpStreamTimeout: is raised to {udp}, the value of conntrack.udpTimeout"
        ));
        stream = Some(udp);
    }
    let text = |value: Option<GoDuration>| value.map(|value| value.to_string());
    args.timeouts.conntrack_tcp_timeout_established = text(established);
    args.timeouts.conntrack_tcp_timeout_close_wait = text(close_wait);
    args.timeouts.conntrack_udp_timeout = text(udp);
    args.timeouts.conntrack_udp_timeout_stream = text(stream);
}
