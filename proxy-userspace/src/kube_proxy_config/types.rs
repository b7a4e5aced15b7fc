//! The fields of a KubeProxyConfiguration, `kubeproxy.config.k8s.io/v1alpha1`, and kube-proxy's defaults.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::duration::GoDuration;

pub const API_VERSION: &str = "kubeproxy.config.k8s.io/v1alpha1";
pub const KIND: &str = "KubeProxyConfiguration";
/// The feature gate that `--allow-service-external-ips` corresponds to (KEP-5707).
pub const EXTERNAL_IPS_GATE: &str = "AllowServiceExternalIPs";

/// A document. [`Default`] has no field set; [`Self::defaulted`] adds kube-proxy's defaults.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct KubeProxyConfiguration {
    pub api_version: String,
    pub kind: String,
    pub feature_gates: BTreeMap<String, bool>,
    pub client_connection: ClientConnection,
    pub logging: Logging,
    pub hostname_override: String,
    pub bind_address: String,
    pub healthz_bind_address: String,
    pub metrics_bind_address: String,
    pub bind_address_hard_fail: bool,
    pub enable_profiling: bool,
    pub show_hidden_metrics_for_version: String,
    pub mode: String,
    pub iptables: IpTables,
    pub ipvs: Ipvs,
    pub nftables: NfTables,
    pub winkernel: Winkernel,
    pub detect_local_mode: String,
    pub detect_local: DetectLocal,
    #[serde(rename = "clusterCIDR")]
    pub cluster_cidr: String,
    pub node_port_addresses: Vec<String>,
    pub oom_score_adj: Option<i32>,
    pub conntrack: Conntrack,
    pub config_sync_period: GoDuration,
    pub port_range: String,
    pub windows_run_as_service: bool,
    /// A setting of the userspace mode, removed in 1.26. ConfigMaps of older clusters still contain it.
    #[serde(skip_serializing)]
    pub udp_idle_timeout: Option<GoDuration>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct ClientConnection {
    pub kubeconfig: String,
    pub accept_content_types: String,
    pub content_type: String,
    pub qps: f32,
    pub burst: i32,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Logging {
    pub format: String,
    /// Nanoseconds or a duration: kube-proxy accepts both.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub flush_frequency: Option<serde_json::Value>,
    pub verbosity: u32,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub vmodule: Vec<VModule>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub options: Option<serde_json::Value>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct VModule {
    pub file_pattern: String,
    pub verbosity: u32,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct IpTables {
    pub masquerade_bit: Option<i32>,
    pub masquerade_all: bool,
    pub localhost_node_ports: Option<bool>,
    pub sync_period: GoDuration,
    pub min_sync_period: GoDuration,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Ipvs {
    pub sync_period: GoDuration,
    pub min_sync_period: GoDuration,
    pub scheduler: String,
    #[serde(rename = "excludeCIDRs")]
    pub exclude_cidrs: Vec<String>,
    #[serde(rename = "strictARP")]
    pub strict_arp: bool,
    pub tcp_timeout: GoDuration,
    pub tcp_fin_timeout: GoDuration,
    pub udp_timeout: GoDuration,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct NfTables {
    pub masquerade_bit: Option<i32>,
    pub masquerade_all: bool,
    pub sync_period: GoDuration,
    pub min_sync_period: GoDuration,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Winkernel {
    pub network_name: String,
    pub source_vip: String,
    #[serde(rename = "enableDSR")]
    pub enable_dsr: bool,
    pub root_hns_endpoint_name: String,
    pub forward_health_check_vip: bool,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct DetectLocal {
    pub bridge_interface: String,
    pub interface_name_prefix: String,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Conntrack {
    pub max_per_core: Option<i32>,
    pub min: Option<i32>,
    pub tcp_established_timeout: Option<GoDuration>,
    pub tcp_close_wait_timeout: Option<GoDuration>,
    pub tcp_be_liberal: bool,
    pub udp_timeout: GoDuration,
    pub udp_stream_timeout: GoDuration,
}

/// kube-proxy's modes on Linux. In shunt the mode only selects the section of the configuration that takes effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    IpTables,
    Ipvs,
    NfTables,
}

impl Mode {
    /// `None` if kube-proxy has no such mode on Linux.
    pub fn of(text: &str) -> Option<Self> {
        Some(match text {
            "" | "iptables" => Self::IpTables,
            "ipvs" => Self::Ipvs,
            "nftables" => Self::NfTables,
            _ => return None,
        })
    }
}

impl KubeProxyConfiguration {
    /// Sets kube-proxy's default in every field that is not set.
    pub fn defaulted(mut self) -> Self {
        let or = |field: &mut GoDuration, seconds| {
            if field.is_zero() {
                *field = GoDuration::from_secs(seconds);
            }
        };
        let or_text = |field: &mut String, text: &str| {
            if field.is_empty() {
                text.clone_into(field);
            }
        };
        or_text(&mut self.api_version, API_VERSION);
        or_text(&mut self.kind, KIND);
        let client = &mut self.client_connection;
        or_text(&mut client.content_type, "application/vnd.kubernetes.protobuf");
        if client.qps == 0.0 {
            client.qps = 5.0;
        }
        if client.burst == 0 {
            client.burst = 10;
        }
        or_text(&mut self.logging.format, "text");
        or_text(&mut self.bind_address, "0.0.0.0");
        let (any, loopback) =
            if self.bind_address.contains(':') { ("[::]", "[::1]") } else { ("0.0.0.0", "127.0.0.1") };
        or_text(&mut self.healthz_bind_address, &format!("{any}:10256"));
        or_text(&mut self.metrics_bind_address, &format!("{loopback}:10249"));
        self.iptables.masquerade_bit.get_or_insert(14);
        self.iptables.localhost_node_ports.get_or_insert(true);
        or(&mut self.iptables.sync_period, 30);
        or(&mut self.iptables.min_sync_period, 1);
        or(&mut self.ipvs.sync_period, 30);
        self.nftables.masquerade_bit.get_or_insert(14);
        or(&mut self.nftables.sync_period, 30);
        or(&mut self.nftables.min_sync_period, 1);
        or_text(&mut self.detect_local_mode, "ClusterCIDR");
        self.oom_score_adj.get_or_insert(-999);
        self.conntrack.max_per_core.get_or_insert(32 * 1024);
        self.conntrack.min.get_or_insert(128 * 1024);
        self.conntrack.tcp_established_timeout.get_or_insert(GoDuration::from_secs(24 * 3600));
        self.conntrack.tcp_close_wait_timeout.get_or_insert(GoDuration::from_secs(3600));
        or(&mut self.config_sync_period, 15 * 60);
        self
    }

    /// The validated mode.
    pub fn proxy_mode(&self) -> Mode {
        Mode::of(&self.mode).unwrap_or(Mode::IpTables)
    }

    /// syncPeriod and minSyncPeriod of the mode's section; zero means not set.
    pub fn periods(&self) -> (GoDuration, GoDuration) {
        match self.proxy_mode() {
            Mode::IpTables => (self.iptables.sync_period, self.iptables.min_sync_period),
            Mode::Ipvs => (self.ipvs.sync_period, self.ipvs.min_sync_period),
            Mode::NfTables => (self.nftables.sync_period, self.nftables.min_sync_period),
        }
    }

    /// masqueradeAll of the mode's section. The ipvs mode uses that of the iptables section, as in kube-proxy.
    pub fn masquerade_all(&self) -> bool {
        match self.proxy_mode() {
            Mode::IpTables | Mode::Ipvs => self.iptables.masquerade_all,
            Mode::NfTables => self.nftables.masquerade_all,
        }
    }
}
