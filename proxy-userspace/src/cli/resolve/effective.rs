//! The effective configuration as a KubeProxyConfiguration, for `--write-config-to` and `/configz`.

use std::net::SocketAddr;

use crate::{
    config::{Config, DetectLocal, NodePortAddresses, Origin, Source},
    kube_proxy_config::{EXTERNAL_IPS_GATE, KubeProxyConfiguration, Mode, duration::GoDuration},
};

/// `given` (from the file or the flags, without defaults), overwritten with the values that `config` uses. Ignored fields
/// keep the value they were given. The node name is only written if it was given: the result may be for every node.
///
/// Reading the result back yields the same configuration, except for disabled listeners: in the file an empty address
/// selects the default.
pub(super) fn effective(given: &KubeProxyConfiguration, config: &Config) -> KubeProxyConfiguration {
    let mut doc = given.clone().defaulted();
    doc.client_connection.kubeconfig = kubeconfig(&config.source);
    doc.healthz_bind_address = address(config.healthz_bind_address);
    doc.metrics_bind_address = address(config.metrics_bind_address);
    doc.bind_address_hard_fail = config.bind_address_hard_fail;
    doc.logging.verbosity = config.verbosity.into();
    doc.oom_score_adj = Some(config.oom_score_adj);

    let compile = &config.compile;
    doc.bind_address = compile.node_ip.map_or(doc.bind_address, |ip| ip.to_string());
    doc.detect_local = Default::default();
    doc.cluster_cidr.clear();
    doc.detect_local_mode = match &compile.detect_local {
        DetectLocal::Auto => "",
        DetectLocal::ClusterCidr(ranges) => {
            doc.cluster_cidr = ranges.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
            "ClusterCIDR"
        }
        DetectLocal::NodeCidr => "NodeCIDR",
        DetectLocal::BridgeInterface(name) => {
            doc.detect_local.bridge_interface.clone_from(name);
            "BridgeInterface"
        }
        DetectLocal::InterfaceNamePrefix(prefix) => {
            doc.detect_local.interface_name_prefix.clone_from(prefix);
            "InterfaceNamePrefix"
        }
    }
    .to_owned();
    doc.node_port_addresses = match &compile.nodeport_addresses {
        NodePortAddresses::All => Vec::new(),
        NodePortAddresses::Primary => vec!["primary".to_owned()],
        NodePortAddresses::Cidrs(ranges) => ranges.iter().map(ToString::to_string).collect(),
    };
    doc.iptables.localhost_node_ports = Some(!compile.without_localhost_node_ports);
    doc.iptables.masquerade_all = compile.masquerade_all;
    doc.nftables.masquerade_all = compile.masquerade_all;
    if compile.without_external_ips || doc.feature_gates.contains_key(EXTERNAL_IPS_GATE) {
        doc.feature_gates.insert(EXTERNAL_IPS_GATE.to_owned(), !compile.without_external_ips);
    }

    let (sync, min_sync) = (GoDuration(config.repair), GoDuration(config.min_sync));
    match doc.proxy_mode() {
        Mode::IpTables => (doc.iptables.sync_period, doc.iptables.min_sync_period) = (sync, min_sync),
        Mode::Ipvs => (doc.ipvs.sync_period, doc.ipvs.min_sync_period) = (sync, min_sync),
        Mode::NfTables => (doc.nftables.sync_period, doc.nftables.min_sync_period) = (sync, min_sync),
    }
    let conntrack = &mut doc.conntrack;
    if given.conntrack.max_per_core.is_none() && given.conntrack.min.is_none() {
        // The map has shunt's own default size. 0 keeps it when the file is read back.
        conntrack.max_per_core = Some(0);
    }
    let seconds = |seconds: u32| GoDuration::from_secs(seconds.into());
    conntrack.tcp_established_timeout = Some(seconds(config.timeouts.established));
    conntrack.tcp_close_wait_timeout = Some(seconds(config.timeouts.half_closed));
    conntrack.udp_timeout = seconds(config.timeouts.unreplied);
    conntrack.udp_stream_timeout = seconds(config.timeouts.assured);
    doc
}

fn kubeconfig(source: &Source) -> String {
    let Source::Cluster(cluster) = source else { return String::new() };
    let path = match &cluster.origin {
        Origin::Flag(path) | Origin::ConfigFile(path) | Origin::Home(path) => path,
        // Empty: the reader of the file searches in the same places.
        Origin::Environment(_) | Origin::InCluster => return String::new(),
    };
    path.to_string_lossy().into_owned()
}

fn address(addr: Option<SocketAddr>) -> String {
    addr.map_or_else(String::new, |addr| addr.to_string())
}
