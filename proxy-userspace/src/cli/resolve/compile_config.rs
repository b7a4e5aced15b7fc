//! The part of the configuration that decides the contents of the maps, for `run` and `compile`.

use std::net::IpAddr;

use ipnet::IpNet;

use crate::{
    cli::{
        args::{
            kube_proxy::KubeProxyArgs,
            policy::{DetectLocalArg, PolicyArgs, SchedulerArg},
        },
        usage_error::UsageError,
    },
    config::{CompileConfig, DetectLocal, NodePortAddresses, Scheduler},
    kube_proxy_config::Mode,
};

/// The flags that `run` and `compile` share.
pub fn compile_config(args: &PolicyArgs) -> Result<CompileConfig, UsageError> {
    Ok(CompileConfig {
        scheduler: match args.scheduler {
            SchedulerArg::Rr => Scheduler::RoundRobin,
            SchedulerArg::Random => Scheduler::Random,
        },
        detect_local: detect_local(args)?,
        masquerade_all: args.masquerade_all == Some(true),
        nodeport_addresses: nodeport_addresses(&non_empty(&args.nodeport_addresses))?,
        nodeport_source_ranges: cidrs("--nodeport-source-ranges", &non_empty(&args.nodeport_source_ranges))?,
        without_external_ips: args.allow_service_external_ips == Some(false),
        ..CompileConfig::default()
    })
}

/// The same with kube-proxy's flags, which only `run` accepts.
pub(super) fn run_compile_config(
    args: &PolicyArgs,
    flags: &KubeProxyArgs,
    mode: Mode,
) -> Result<CompileConfig, UsageError> {
    let mut config = compile_config(args)?;
    config.node_ip = node_ip(flags.bind_address.as_deref())?;
    config.without_localhost_node_ports = flags.iptables_localhost_nodeports == Some(false);
    if config.nodeport_addresses == NodePortAddresses::All && mode == Mode::NfTables {
        config.nodeport_addresses = NodePortAddresses::Primary;
    }
    Ok(config)
}

/// `--bind-address`; an unspecified address selects the Node's.
fn node_ip(given: Option<&str>) -> Result<Option<IpAddr>, UsageError> {
    let Some(value) = given.filter(|text| !text.is_empty()) else { return Ok(None) };
    let ip: IpAddr = value.parse().map_err(|_| UsageError::BadValue {
        flag: "--bind-address",
        value: value.to_owned(),
        expected: "an IP address",
    })?;
    Ok(Some(ip).filter(|ip| !ip.is_unspecified()))
}

fn detect_local(args: &PolicyArgs) -> Result<DetectLocal, UsageError> {
    let cidrs = cidrs("--cluster-cidr", &non_empty(&args.cluster_cidr))?;
    let v6 = cidrs.iter().filter(|cidr| cidr.addr().is_ipv6()).count();
    if v6 > 1 || cidrs.len() - v6 > 1 {
        return Err(UsageError::ClusterCidrs(args.cluster_cidr.join(",")));
    }
    let needs = |mode, flag| UsageError::DetectLocal { mode, flag };
    let name = |value: &Option<String>| value.clone().filter(|name| !name.is_empty());
    Ok(match args.detect_local_mode {
        None | Some(DetectLocalArg::Unset) if cidrs.is_empty() => DetectLocal::Auto,
        Some(DetectLocalArg::ClusterCidr) if cidrs.is_empty() => {
            return Err(needs("ClusterCIDR", "--cluster-cidr CIDR[,CIDR]"));
        }
        None | Some(DetectLocalArg::Unset | DetectLocalArg::ClusterCidr) => DetectLocal::ClusterCidr(cidrs),
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

/// The values of a list flag without empty ones: kubeadm writes `--cluster-cidr=` if there is no range.
fn non_empty(values: &[String]) -> Vec<String> {
    values.iter().map(|value| value.trim().to_owned()).filter(|value| !value.is_empty()).collect()
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
