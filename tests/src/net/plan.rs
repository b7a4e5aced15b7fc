//! The layout of a cluster, and the address plan that all clusters share.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::Lane;

/// How pods are connected to their node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PodNet {
    /// A veth and a host route per pod, the gateway 169.254.1.1 answered by proxy ARP (as Calico does).
    #[default]
    Routed,
    /// All of the node's pods on the bridge `cni0`, which holds the gateway address (as flannel and bridge do).
    Bridged,
}

/// How pod traffic is carried between nodes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Between {
    /// By routes over the underlay.
    #[default]
    Routes,
    /// By the tunnel device `flannel.1`, which has an address of its own (as flannel does).
    Vxlan,
    /// By the device `tun0`, which has an address of its own but no link-layer header (as WireGuard's).
    Tun,
}

/// A cluster to build.
#[derive(Clone, Debug)]
pub struct Plan {
    pub nodes: usize,
    pub pod_net: PodNet,
    pub between: Between,
    /// Whether every node has a CNI's rules: see [`super::cni`].
    pub cni_rules: bool,
    /// The XDP mode for outside traffic, over cables that behave like wires; the environment decides if absent.
    pub xdp: Option<Lane>,
    /// First part of all names: `PREFIX-PID-...`.
    pub prefix: &'static str,
    /// Whether namespaces get names that `ip netns` shows.
    pub published: bool,
}

impl Default for Plan {
    fn default() -> Self {
        Self {
            nodes: 2,
            pod_net: PodNet::default(),
            between: Between::default(),
            cni_rules: false,
            xdp: Lane::of_environment(),
            prefix: "shunt-test",
            published: false,
        }
    }
}

impl Plan {
    pub fn nodes(self, nodes: usize) -> Self {
        Self { nodes, ..self }
    }

    pub fn bridged(self) -> Self {
        Self { pod_net: PodNet::Bridged, ..self }
    }

    pub fn vxlan(self) -> Self {
        Self { between: Between::Vxlan, ..self }
    }

    pub fn tun(self) -> Self {
        Self { between: Between::Tun, ..self }
    }

    /// Pod traffic that leaves the pod range gets the node's address, as with every CNI whose pods are reachable only
    /// through tunnels.
    pub fn masquerades(&self) -> bool {
        self.cni_rules || self.between != Between::Routes
    }

    pub fn xdp(self, lane: Lane) -> Self {
        Self { xdp: Some(lane), ..self }
    }

    pub fn with_cni_rules(self) -> Self {
        Self { cni_rules: true, ..self }
    }
}

/// One address of each family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Dual {
    pub v4: Ipv4Addr,
    pub v6: Ipv6Addr,
}

impl Dual {
    pub fn of(&self, family: Family) -> IpAddr {
        match family {
            Family::V4 => self.v4.into(),
            Family::V6 => self.v6.into(),
        }
    }

    pub fn contains(&self, addr: IpAddr) -> bool {
        addr == IpAddr::from(self.v4) || addr == IpAddr::from(self.v6)
    }
}

/// The two families, for tests that run in both.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    V4,
    V6,
}

pub const BOTH: [Family; 2] = [Family::V4, Family::V6];

impl Family {
    /// `0.0.0.0` or `::`.
    pub fn unspecified(self) -> IpAddr {
        match self {
            Self::V4 => Ipv4Addr::UNSPECIFIED.into(),
            Self::V6 => Ipv6Addr::UNSPECIFIED.into(),
        }
    }
}

/// The underlay's router: every node's default route.
pub const ROUTER: Dual =
    Dual { v4: Ipv4Addr::new(192, 168, 8, 1), v6: Ipv6Addr::new(0xfd00, 8, 0, 0, 0, 0, 0, 1) };

/// The client outside the cluster.
pub const OUTSIDE: Dual =
    Dual { v4: Ipv4Addr::new(192, 168, 8, 100), v6: Ipv6Addr::new(0xfd00, 8, 0, 0, 0, 0, 0, 0x100) };

/// The router with the low MTU, in clusters that have one (see [`super::hop`]).
pub const HOP: Dual =
    Dual { v4: Ipv4Addr::new(192, 168, 8, 99), v6: Ipv6Addr::new(0xfd00, 8, 0, 0, 0, 0, 0, 0x99) };

/// Range of ClusterIPs.
pub const SERVICES_V4: &str = "10.68.0.0/16";
pub const SERVICES_V6: &str = "fd00:10:68::/112";

/// Range of all nodes' pod addresses.
pub const PODS_V4: &str = "172.20.0.0/16";
pub const PODS_V6: &str = "fd00:172:20::/48";

/// Node `index`'s own address on the underlay.
pub fn node_addr(index: usize) -> Dual {
    Dual {
        v4: Ipv4Addr::new(192, 168, 8, 201 + index as u8),
        v6: Ipv6Addr::new(0xfd00, 8, 0, 0, 0, 0, 0, 0x201 + index as u16),
    }
}

/// Address `host` in node `index`'s pod range; 0 names the range itself, 1 the bridge's gateway.
pub fn pod_addr(index: usize, host: u8) -> Dual {
    Dual {
        v4: Ipv4Addr::new(172, 20, index as u8, host),
        v6: Ipv6Addr::new(0xfd00, 0x172, 0x20, index as u16, 0, 0, 0, host.into()),
    }
}

/// A ClusterIP pair.
pub fn vip(last: u8) -> Dual {
    Dual {
        v4: Ipv4Addr::new(10, 68, 0, last),
        v6: Ipv6Addr::new(0xfd00, 0x10, 0x68, 0, 0, 0, 0, last.into()),
    }
}

/// Range of load balancer addresses and externalIPs.
pub const EXTERNAL_V4: &str = "203.0.113.0/24";
pub const EXTERNAL_V6: &str = "2001:db8::/112";

/// A load balancer address or externalIP, in each family.
pub fn external(last: u8) -> Dual {
    Dual {
        v4: Ipv4Addr::new(203, 0, 113, last),
        v6: Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, last.into()),
    }
}
