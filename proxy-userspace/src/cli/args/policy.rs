//! Flags that decide the contents of the maps: `run` and `compile` share them.

use clap::{ArgAction, Args, ValueEnum};

use super::values::go_bool;

/// Flags of both `run` and `compile`.
#[derive(Args, Clone, Debug, Default)]
pub struct PolicyArgs {
    /// How the backend of a new flow is chosen
    #[arg(long, value_enum, default_value_t, value_name = "SCHEDULER")]
    pub scheduler: SchedulerArg,
    /// Pod address ranges of the cluster, at most one per family
    // In kube-proxy a single value that contains a list: the last occurrence takes effect.
    #[arg(long, value_name = "CIDR", value_delimiter = ',', action = ArgAction::Set, num_args = 1)]
    pub cluster_cidr: Vec<String>,
    /// How local pods are detected [default: ClusterCIDR with --cluster-cidr, else by the Node's podCIDRs, else by pod devices]
    #[arg(long, value_enum, ignore_case = true, value_name = "MODE")]
    pub detect_local_mode: Option<DetectLocalArg>,
    /// Bridge of the pods, for --detect-local-mode BridgeInterface
    #[arg(long, value_name = "DEVICE")]
    pub pod_bridge_interface: Option<String>,
    /// Prefix of the names of pod devices, for --detect-local-mode InterfaceNamePrefix
    #[arg(long, value_name = "PREFIX")]
    pub pod_interface_name_prefix: Option<String>,
    /// Masquerade the source of all Service traffic, like kube-proxy's flag
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true", value_parser = go_bool)]
    pub masquerade_all: Option<bool>,
    /// Node addresses that accept NodePorts: `primary`, or address ranges [default: all addresses of the node]
    #[arg(long, value_name = "CIDR|primary", value_delimiter = ',')]
    pub nodeport_addresses: Vec<String>,
    /// Clients that NodePorts accept; a family without a range accepts all. The annotation shunt.dev/nodeport-source-ranges of a
    /// Service takes precedence [default: all clients]
    #[arg(long, value_name = "CIDR", value_delimiter = ',')]
    pub nodeport_source_ranges: Vec<String>,
    /// Serve spec.externalIPs, like the feature gate AllowServiceExternalIPs (KEP-5707) [default: true]
    #[arg(long, value_name = "BOOL", num_args = 0..=1, default_missing_value = "true")]
    pub allow_service_external_ips: Option<bool>,
}

/// `--scheduler`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum SchedulerArg {
    /// Round robin
    #[default]
    Rr,
    Random,
}

/// `--detect-local-mode`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum DetectLocalArg {
    /// `--detect-local-mode=`: as if not given
    #[value(name = "", hide = true)]
    Unset,
    /// Source addresses in --cluster-cidr
    #[value(name = "ClusterCIDR")]
    ClusterCidr,
    /// Source addresses in the Node's podCIDRs
    #[value(name = "NodeCIDR")]
    NodeCidr,
    /// Packets that arrive on --pod-bridge-interface
    #[value(name = "BridgeInterface")]
    BridgeInterface,
    /// Packets that arrive on a device whose name starts with --pod-interface-name-prefix
    #[value(name = "InterfaceNamePrefix")]
    InterfaceNamePrefix,
}
