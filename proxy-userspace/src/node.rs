//! NODE_CONFIG and NODE_ADDRS: what the datapath must know about the node, computed from its Node object, its addresses
//! and the configuration. Pure functions, called by the controller.

use std::{collections::BTreeMap, net::IpAddr};

use ipnet::IpNet;
use proxy_common::{Addr, NodeConfig, Prefix, node::role};

use crate::{
    config::{CompileConfig, DetectLocal, NodePortAddresses},
    model::{Family, Node},
};

/// One address of the node's network namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeAddress {
    pub addr: IpAddr,
    /// The device that has it.
    pub device: String,
}

/// Devices that hold addresses of Services, not of the node (kube-proxy's IPVS mode, NodeLocal DNSCache).
const VIP_DEVICES: [&str; 2] = ["kube-ipvs0", "nodelocaldns"];

/// The node's address of this family: its InternalIP, else the `fallback` derived from routes.
pub fn primary(node: &Node, fallback: &[IpAddr], family: Family) -> Option<IpAddr> {
    node.primary_ip(family).or_else(|| fallback.iter().copied().find(|ip| Family::from(*ip) == family))
}

/// Ranges that do not fit into NODE_CONFIG.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NoRoom {
    pub pods: Vec<IpNet>,
    pub services: Vec<IpNet>,
}

/// The value of NODE_CONFIG, and the ranges that do not fit.
pub fn node_config(
    node: &Node,
    fallback: &[IpAddr],
    service_cidrs: &[IpNet],
    config: &CompileConfig,
) -> (NodeConfig, NoRoom) {
    let mut value: NodeConfig = bytemuck::Zeroable::zeroed();
    let addr = |family, none| primary(node, fallback, family).map_or(none, Addr::from);
    value.primary_v4 = addr(Family::V4, Addr::UNSPECIFIED_V4);
    value.primary_v6 = addr(Family::V6, Addr::UNSPECIFIED_V6);

    let by_device =
        matches!(config.detect_local, DetectLocal::BridgeInterface(_) | DetectLocal::InterfaceNamePrefix(_));
    let ranges: &[IpNet] = match &config.detect_local {
        DetectLocal::ClusterCidr(ranges) => ranges,
        DetectLocal::Auto | DetectLocal::NodeCidr => &node.pod_cidrs,
        DetectLocal::BridgeInterface(_) | DetectLocal::InterfaceNamePrefix(_) => &[],
    };
    let mut left = NoRoom::default();
    (value.pod_prefix_count, left.pods) = fill(&mut value.pod_prefixes, ranges);
    (value.service_prefix_count, left.services) = fill(&mut value.service_prefixes, service_cidrs);
    let used = &ranges[..value.pod_prefix_count as usize];
    // A dual-stack node may have a pod range of one family only.
    for (family, flag) in
        [(Family::V4, NodeConfig::LOCAL_BY_DEVICE_V4), (Family::V6, NodeConfig::LOCAL_BY_DEVICE_V6)]
    {
        let is_known = used.iter().any(|range| Family::from(range.addr()) == family);
        if by_device || !is_known {
            value.flags |= flag;
        }
    }
    if matches!(config.detect_local, DetectLocal::ClusterCidr(_)) && !ranges.is_empty() {
        value.flags |= NodeConfig::CLUSTER_PREFIXES;
    }
    if config.masquerade_all {
        value.flags |= NodeConfig::MASQUERADE_ALL;
    }
    (value, left)
}

/// Writes ranges into their slots; returns their number and the ranges that do not fit.
fn fill(places: &mut [Prefix], ranges: &[IpNet]) -> (u32, Vec<IpNet>) {
    let room = places.len();
    for (place, range) in places.iter_mut().zip(ranges) {
        *place = prefix(*range);
    }
    (ranges.len().min(room) as u32, ranges.iter().skip(room).copied().collect())
}

/// The contents of NODE_ADDRS. An address on a device is the node's, even if it is also a Service's load balancer
/// address or externalIP. A ClusterIP is not, on whatever device a cache or a proxy has put it.
pub fn node_addrs(
    addresses: &[NodeAddress],
    node: &Node,
    fallback: &[IpAddr],
    config: &CompileConfig,
    is_cluster_ip: impl Fn(IpAddr) -> bool,
) -> BTreeMap<Addr, u32> {
    let (chosen, without_localhost) = (&config.nodeport_addresses, config.without_localhost_node_ports);
    let real =
        addresses.iter().filter(|a| !VIP_DEVICES.contains(&a.device.as_str()) && !is_cluster_ip(a.addr));
    let mut roles = BTreeMap::new();
    for ip in real.map(|a| a.addr) {
        let accepts = match chosen {
            NodePortAddresses::All => true,
            NodePortAddresses::Primary => primary(node, fallback, ip.into()) == Some(ip),
            NodePortAddresses::Cidrs(ranges) => {
                let mut mine =
                    ranges.iter().filter(|range| Family::from(range.addr()) == ip.into()).peekable();
                mine.peek().is_none() || mine.any(|range| range.contains(&ip))
            }
        };
        let role = match accepts {
            false => 0,
            true if ip.is_loopback() && without_localhost => 0,
            true if ip.is_loopback() => role::LOOPBACK,
            true => role::NODEPORT,
        };
        *roles.entry(ip.into()).or_insert(0) |= role | role::OWN;
    }
    roles
}

fn prefix(range: IpNet) -> Prefix {
    let len = match range {
        IpNet::V4(v4) => 96 + u32::from(v4.prefix_len()),
        IpNet::V6(v6) => u32::from(v6.prefix_len()),
    };
    Prefix::new(range.network().into(), len)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn node() -> Node {
        Node {
            name: "n1".into(),
            internal_ips: vec![ip("192.168.8.201"), ip("fd00::201")],
            pod_cidrs: vec!["172.20.1.0/24".parse().unwrap()],
            ..Node::default()
        }
    }

    fn roles(chosen: NodePortAddresses) -> Vec<(String, u32)> {
        roles_with(&CompileConfig { nodeport_addresses: chosen, ..CompileConfig::default() })
    }

    fn roles_with(config: &CompileConfig) -> Vec<(String, u32)> {
        let address = |(addr, device): (&str, &str)| NodeAddress { addr: ip(addr), device: device.into() };
        let addresses = [
            ("127.0.0.1", "lo"),
            ("::1", "lo"),
            ("192.168.8.201", "eth0"),
            ("10.9.0.1", "eth1"),
            ("fd00::201", "eth0"),
            ("10.68.0.10", "kube-ipvs0"),
            ("10.68.0.11", "dummy0"),
        ];
        let found = node_addrs(&addresses.map(address), &node(), &[], config, |a| a == ip("10.68.0.11"));
        found.into_iter().map(|(addr, role)| (addr.to_string(), role)).collect()
    }

    fn accepting(chosen: NodePortAddresses) -> Vec<String> {
        let accepts = |role: u32| role & (role::NODEPORT | role::LOOPBACK) != 0;
        let mut found: Vec<_> =
            roles(chosen).into_iter().filter(|(_, role)| accepts(*role)).map(|(addr, _)| addr).collect();
        found.sort();
        found
    }

    #[test]
    fn nodeport_addresses_as_chosen() {
        let all = ["10.9.0.1", "127.0.0.1", "192.168.8.201", "::1", "fd00::201"];
        assert_eq!(accepting(NodePortAddresses::All), all);
        assert_eq!(accepting(NodePortAddresses::Primary), ["192.168.8.201", "fd00::201"]);
        let v4_only = NodePortAddresses::Cidrs(vec!["10.9.0.0/16".parse().unwrap()]);
        assert_eq!(accepting(v4_only), ["10.9.0.1", "::1", "fd00::201"]);
    }

    #[test]
    fn localhost_node_ports_can_be_switched_off() {
        let config = CompileConfig { without_localhost_node_ports: true, ..CompileConfig::default() };
        let found = roles_with(&config);
        let role_of = |addr: &str| found.iter().find(|(found, _)| found == addr).unwrap().1;
        assert_eq!((role_of("127.0.0.1"), role_of("192.168.8.201")), (role::OWN, role::OWN | role::NODEPORT));
    }

    #[test]
    fn loopback_is_never_served_on_the_wire() {
        let found = roles(NodePortAddresses::All);
        let loopback = found.iter().find(|(addr, _)| addr == "127.0.0.1").unwrap();
        assert_eq!(loopback.1, role::OWN | role::LOOPBACK);
        let of_vip_devices = found.iter().filter(|(addr, _)| addr.starts_with("10.68."));
        assert_eq!(of_vip_devices.count(), 0);
    }

    #[test]
    fn pod_ranges_or_pod_devices() {
        let config = CompileConfig::default();
        let (value, left) = node_config(&node(), &[], &[], &config);
        let v6_by_device = NodeConfig::LOCAL_BY_DEVICE_V6;
        assert_eq!((value.pod_prefix_count, value.flags), (1, v6_by_device));
        assert_eq!((value.service_prefix_count, left), (0, NoRoom::default()));
        assert!(value.pod_prefixes[0].contains(&ip("172.20.1.77").into()));
        assert!(!value.pod_prefixes[0].contains(&ip("172.20.2.77").into()));

        let whole = DetectLocal::ClusterCidr(vec!["172.20.0.0/16".parse().unwrap()]);
        let (value, _) =
            node_config(&node(), &[], &[], &CompileConfig { detect_local: whole, ..config.clone() });
        assert_eq!((value.pod_prefix_count, value.flags), (1, NodeConfig::CLUSTER_PREFIXES | v6_by_device));

        let mut dual = node();
        dual.pod_cidrs.push("fd00:20:1::/64".parse().unwrap());
        let (value, _) = node_config(&dual, &[], &[], &config);
        assert_eq!((value.pod_prefix_count, value.flags), (2, 0));
        let bridge = DetectLocal::BridgeInterface("cni0".into());
        let (value, _) =
            node_config(&dual, &[], &[], &CompileConfig { detect_local: bridge, ..config.clone() });
        assert_eq!((value.pod_prefix_count, value.flags), (0, NodeConfig::LOCAL_BY_DEVICE));

        let bare = Node { name: "n1".into(), ..Node::default() };
        let (value, _) = node_config(&bare, &[ip("10.0.0.9")], &[], &config);
        assert_eq!(value.flags, NodeConfig::LOCAL_BY_DEVICE);
        assert_eq!(value.primary_v4, Addr::from(ip("10.0.0.9")));
        assert_eq!(value.primary_v6, Addr::UNSPECIFIED_V6);
    }

    #[test]
    fn service_ranges_as_far_as_there_is_room() {
        let ranges: Vec<IpNet> = (0..5).map(|i| format!("10.{i}.0.0/16").parse().unwrap()).collect();
        let (value, left) = node_config(&node(), &[], &ranges, &CompileConfig::default());
        assert_eq!(value.service_prefix_count, 4);
        assert!(value.service_prefixes[3].contains(&ip("10.3.255.1").into()));
        assert_eq!(left.services, ranges[4..]);
    }
}
