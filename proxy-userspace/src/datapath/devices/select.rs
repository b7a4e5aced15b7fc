//! Which devices are hooked, how, and each device's entry in DEVICES: pure functions of [`Devices`].
//!
//! The rule is one hook per path: a packet must pass our ingress hook once and our egress hook once. Of devices that
//! pass packets to each other only one is hooked: a bridge's ports and not the bridge, a bond and not its slaves, but a
//! VLAN as well as its parent (which passes tagged frames).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use proxy_common::{Addr, Device};

use super::{Address, Devices, Link};
use crate::{config::DetectLocal, node::NodeAddress};

const ARPHRD_ETHER: u16 = 1;
const ARPHRD_PPP: u16 = 512;
const ARPHRD_RAWIP: u16 = 519;
const ARPHRD_TUNNEL: u16 = 768;
const ARPHRD_TUNNEL6: u16 = 769;
const ARPHRD_LOOPBACK: u16 = 772;
const ARPHRD_SIT: u16 = 776;
const ARPHRD_IPGRE: u16 = 778;
const ARPHRD_IP6GRE: u16 = 823;
const ARPHRD_NONE: u16 = 0xfffe;

/// Devices that hold VIPs of other proxies and caches; their addresses are not the node's own.
pub(in crate::datapath) const VIP_HOLDERS: [&str; 2] = ["kube-ipvs0", "nodelocaldns"];

/// Whether XDP can serve a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum XdpEligibility {
    Eligible,
    /// Not an uplink: a pod's device, a tunnel, or a device that is not hooked.
    NotUplink,
    /// An uplink that XDP cannot serve, and why.
    Unsupported(&'static str),
}

/// What to do with a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hook {
    /// Attach the programs for Ethernet frames.
    L2,
    /// Attach the programs for bare IP packets.
    L3,
    /// Its packets pass another hooked device, or it has none.
    Not,
    /// Excluded by `--device` or `--exclude-device`.
    Excluded,
    /// Its link type cannot be parsed; to be logged.
    Unknown(u16),
}

/// The user's globs: `--device` and `--exclude-device`.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    pub include: Vec<String>,
    pub exclude: Vec<String>,
}

impl Filter {
    fn admits(&self, name: &str) -> bool {
        (self.include.is_empty() || self.include.iter().any(|glob| glob_matches(glob, name)))
            && !self.exclude.iter().any(|glob| glob_matches(glob, name))
    }
}

/// Whether `name` matches `glob`; `*` matches any characters, `?` exactly one.
pub fn glob_matches(glob: &str, name: &str) -> bool {
    fn matches(glob: &[u8], name: &[u8]) -> bool {
        match (glob.first(), name.first()) {
            (None, None) => true,
            (Some(b'*'), _) => matches(&glob[1..], name) || (!name.is_empty() && matches(glob, &name[1..])),
            (Some(b'?'), Some(_)) => matches(&glob[1..], &name[1..]),
            (Some(g), Some(n)) if g == n => matches(&glob[1..], &name[1..]),
            _ => false,
        }
    }
    matches(glob.as_bytes(), name.as_bytes())
}

impl Devices {
    fn master_of(&self, link: &Link) -> Option<&Link> {
        self.links.get(&link.master?)
    }

    /// What to do with a device.
    pub fn hook(&self, link: &Link, filter: &Filter) -> Hook {
        // Their packets pass their ports or lower devices, or would pass twice (ifb replays ingress).
        let passes_on =
            matches!(link.kind.as_str(), "bridge" | "vrf" | "ifb" | "nlmon" | "dummy" | "openvswitch");
        let on_local_parent =
            matches!(link.kind.as_str(), "macvlan" | "macvtap" | "ipvlan" | "ipvtap") && !link.peer_elsewhere;
        let bonded =
            self.master_of(link).is_some_and(|master| matches!(master.kind.as_str(), "bond" | "team"));
        if link.link_type == ARPHRD_LOOPBACK || passes_on || on_local_parent || bonded {
            return Hook::Not;
        }
        if !filter.admits(&link.name) {
            return Hook::Excluded;
        }
        match link.link_type {
            ARPHRD_ETHER => Hook::L2,
            ARPHRD_NONE | ARPHRD_RAWIP | ARPHRD_PPP | ARPHRD_TUNNEL | ARPHRD_TUNNEL6 | ARPHRD_SIT
            | ARPHRD_IPGRE | ARPHRD_IP6GRE => Hook::L3,
            other => Hook::Unknown(other),
        }
    }

    /// Whether XDP can serve a hooked device. Only uplinks qualify: XDP forwards from the wire to the wire.
    pub fn xdp_eligibility(&self, link: &Link, hook: Hook, device: &Device) -> XdpEligibility {
        if device.flags & Device::UPLINK == 0 || !matches!(hook, Hook::L2 | Hook::L3) {
            return XdpEligibility::NotUplink;
        }
        if hook == Hook::L3 {
            return XdpEligibility::Unsupported("it has no Ethernet header");
        }
        if link.kind == "vlan" {
            return XdpEligibility::Unsupported("it is a VLAN of another device");
        }
        if self.master_of(link).is_some_and(|master| master.kind == "bridge") {
            return XdpEligibility::Unsupported("it is a port of a bridge, whose routes are not its own");
        }
        if self.links.values().any(|other| other.kind == "vlan" && other.parent == Some(link.index)) {
            return XdpEligibility::Unsupported(
                "it carries VLANs, whose tags may be stripped before XDP sees the frame",
            );
        }
        XdpEligibility::Eligible
    }

    /// The device that routes name for packets that a hooked device sends: the bridge of a port.
    pub fn routed(&self, link: &Link) -> u32 {
        self.master_of(link)
            .filter(|master| master.kind == "bridge")
            .map_or(link.index, |master| master.index)
    }

    /// The entry in DEVICES of a hooked device. `preferred`: the source addresses of the default routes, for devices
    /// without an address of their own.
    pub fn describe(&self, link: &Link, hook: Hook, detect: &DetectLocal, preferred: Preferred) -> Device {
        let pod = self.is_pod_device(link, detect);
        let tunnel = is_tunnel(link);
        let flags = match (pod, tunnel) {
            (true, _) => Device::POD,
            (false, true) => Device::TUNNEL,
            (false, false) => Device::UPLINK,
        };
        let own = |v4: bool| self.source_of(link.index, v4).or_else(|| self.source_of(link.master?, v4));
        Device {
            flags,
            header_len: if hook == Hook::L2 { 14 } else { 0 },
            source_v4: own(true).or(preferred.v4.map(IpAddr::V4)).map_or(Addr::UNSPECIFIED_V4, Addr::from),
            source_v6: own(false).or(preferred.v6.map(IpAddr::V6)).map_or(Addr::UNSPECIFIED_V6, Addr::from),
            mac: bytemuck::cast(link.mac),
            reserved: 0,
        }
    }

    /// Whether local pods are behind a device. Unless configured by name: a veth or netkit into another namespace,
    /// except the node's own uplink on nodes that are containers themselves (it has a default route, or an address with
    /// a subnet; a pod's gateway is a single address).
    fn is_pod_device(&self, link: &Link, detect: &DetectLocal) -> bool {
        match detect {
            DetectLocal::BridgeInterface(bridge) => {
                link.name == *bridge || self.master_of(link).is_some_and(|master| master.name == *bridge)
            }
            DetectLocal::InterfaceNamePrefix(prefix) => link.name.starts_with(prefix.as_str()),
            DetectLocal::Auto | DetectLocal::ClusterCidr(_) | DetectLocal::NodeCidr => {
                let networked = self.addresses_of(link.index).any(|(ip, address)| {
                    address.is_global() && address.prefix_len < if ip.is_ipv4() { 31 } else { 127 }
                });
                matches!(link.kind.as_str(), "veth" | "netkit")
                    && link.peer_elsewhere
                    && !self.default_routes.contains(&link.index)
                    && !networked
            }
        }
    }

    fn addresses_of(&self, index: u32) -> impl Iterator<Item = (IpAddr, &Address)> {
        let first = (index, IpAddr::V4(Ipv4Addr::UNSPECIFIED));
        self.addresses
            .range(first..)
            .take_while(move |((owner, _), _)| *owner == index)
            .map(|((_, ip), a)| (*ip, a))
    }

    /// The source address of translated flows on a device: its first global one, primary before secondary.
    fn source_of(&self, index: u32, v4: bool) -> Option<IpAddr> {
        self.addresses_of(index)
            .filter(|(ip, address)| ip.is_ipv4() == v4 && address.is_global() && address.is_usable())
            .min_by_key(|(ip, address)| {
                let is_alone = address.prefix_len == if ip.is_ipv4() { 32 } else { 128 };
                (address.flags & Address::SECONDARY, is_alone)
            })
            .map(|(ip, _)| ip)
    }

    /// Every address of this namespace with its device, except IPv6 link-local ones, which do not identify a node
    /// outside their link. The controller decides which are the node's own.
    pub fn node_addresses(&self) -> Vec<NodeAddress> {
        let lasting = self
            .addresses
            .keys()
            .filter(|(_, ip)| !matches!(ip, IpAddr::V6(v6) if v6.is_unicast_link_local()));
        lasting
            .filter_map(|(index, addr)| {
                Some(NodeAddress { addr: *addr, device: self.links.get(index)?.name.clone() })
            })
            .collect()
    }

    /// The node's address in each family according to its devices: the source of the default route, else the first
    /// global address of a device without pods.
    pub fn primary_addresses(&self, detect: &DetectLocal, preferred: Preferred) -> Vec<IpAddr> {
        let first = |v4: bool| {
            self.links
                .values()
                .filter(|link| {
                    link.link_type != ARPHRD_LOOPBACK && !VIP_HOLDERS.contains(&link.name.as_str())
                })
                .filter(|link| !self.is_pod_device(link, detect))
                .find_map(|link| self.source_of(link.index, v4))
        };
        let v4 = preferred.v4.map(IpAddr::V4).or_else(|| first(true));
        let v6 = preferred.v6.map(IpAddr::V6).or_else(|| first(false));
        v4.into_iter().chain(v6).collect()
    }
}

fn is_tunnel(link: &Link) -> bool {
    matches!(
        link.kind.as_str(),
        "vxlan"
            | "geneve"
            | "gre"
            | "gretap"
            | "ip6gre"
            | "ip6gretap"
            | "erspan"
            | "ip6erspan"
            | "ipip"
            | "ip6tnl"
            | "sit"
            | "vti"
            | "vti6"
            | "xfrm"
            | "wireguard"
            | "tun"
            | "bareudp"
    ) || matches!(link.link_type, ARPHRD_TUNNEL | ARPHRD_TUNNEL6 | ARPHRD_SIT | ARPHRD_IPGRE | ARPHRD_IP6GRE)
}

/// The preferred source of each family's default route.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Preferred {
    pub v4: Option<Ipv4Addr>,
    pub v6: Option<Ipv6Addr>,
}

impl Preferred {
    /// Asks the kernel: connecting a UDP socket selects its source and sends nothing. The destinations are
    /// documentation addresses (RFC 5737, RFC 3849), so only a default route matches.
    pub fn ask() -> Self {
        let source = |bind: &str, to: &str| {
            let socket = std::net::UdpSocket::bind(bind).ok()?;
            socket.connect(to).ok()?;
            Some(socket.local_addr().ok()?.ip())
        };
        Self {
            v4: source("0.0.0.0:0", "192.0.2.1:9").and_then(|ip| match ip {
                IpAddr::V4(v4) => Some(v4),
                IpAddr::V6(_) => None,
            }),
            v6: source("[::]:0", "[2001:db8::1]:9").and_then(|ip| match ip {
                IpAddr::V6(v6) if !v6.is_unicast_link_local() => Some(v6),
                _ => None,
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link(index: u32, name: &str, kind: &str) -> Link {
        Link { index, name: name.into(), link_type: ARPHRD_ETHER, kind: kind.into(), ..Link::default() }
    }

    fn devices(links: impl IntoIterator<Item = Link>) -> Devices {
        Devices { links: links.into_iter().map(|l| (l.index, l)).collect(), ..Devices::default() }
    }

    fn add(devices: &mut Devices, index: u32, ip: &str, prefix_len: u8) {
        devices.addresses.insert((index, ip.parse().unwrap()), Address { prefix_len, scope: 0, flags: 0 });
    }

    fn hooks(devices: &Devices) -> Vec<(&str, Hook)> {
        let filter = Filter::default();
        devices.links.values().map(|l| (l.name.as_str(), devices.hook(l, &filter))).collect()
    }

    #[test]
    fn one_hook_per_path() {
        let found = devices([
            Link { link_type: ARPHRD_LOOPBACK, ..link(1, "lo", "") },
            link(2, "eth0", ""),
            link(3, "cni0", "bridge"),
            Link { master: Some(3), peer_elsewhere: true, ..link(4, "veth4", "veth") },
            link(5, "bond0", "bond"),
            Link { master: Some(5), ..link(6, "eth1", "") },
            link(7, "vrf1", "vrf"),
            Link { master: Some(7), ..link(8, "eth2", "") },
            link(9, "eth0.5", "vlan"),
            Link { link_type: ARPHRD_NONE, ..link(10, "wg0", "wireguard") },
            Link { link_type: ARPHRD_TUNNEL, ..link(11, "tunl0", "ipip") },
            Link { link_type: 32, ..link(12, "ib0", "ipoib") },
            link(13, "macvlan0", "macvlan"),
            Link { peer_elsewhere: true, ..link(14, "eth9", "macvlan") },
            link(15, "ifb0", "ifb"),
        ]);
        let want = [
            ("lo", Hook::Not),
            ("eth0", Hook::L2),
            ("cni0", Hook::Not),
            ("veth4", Hook::L2),
            ("bond0", Hook::L2),
            ("eth1", Hook::Not),
            ("vrf1", Hook::Not),
            ("eth2", Hook::L2),
            ("eth0.5", Hook::L2),
            ("wg0", Hook::L3),
            ("tunl0", Hook::L3),
            ("ib0", Hook::Unknown(32)),
            ("macvlan0", Hook::Not),
            ("eth9", Hook::L2),
            ("ifb0", Hook::Not),
        ];
        assert_eq!(hooks(&found), want);
    }

    #[test]
    fn the_lane_is_where_packets_come_from_the_wire() {
        let found = devices([
            link(2, "eth0", ""),
            link(3, "br0", "bridge"),
            Link { master: Some(3), ..link(4, "eth1", "") },
            link(5, "eth2", ""),
            Link { parent: Some(5), ..link(6, "eth2.7", "vlan") },
            link(7, "vxlan7", "vxlan"),
            Link { link_type: ARPHRD_PPP, ..link(8, "ppp8", "") },
            Link { peer_elsewhere: true, ..link(9, "cali9", "veth") },
        ]);
        let eligibility = |index: u32| {
            let link = &found.links[&index];
            let hook = found.hook(link, &Filter::default());
            found.xdp_eligibility(
                link,
                hook,
                &found.describe(link, hook, &DetectLocal::Auto, Preferred::default()),
            )
        };
        assert_eq!(eligibility(2), XdpEligibility::Eligible);
        for index in [4, 5, 6, 8] {
            assert!(matches!(eligibility(index), XdpEligibility::Unsupported(_)), "{index}");
        }
        for index in [3, 7, 9] {
            assert_eq!(eligibility(index), XdpEligibility::NotUplink, "{index}");
        }
    }

    #[test]
    fn globs_include_and_exclude() {
        let found = devices([link(2, "eth0", ""), link(3, "eth1", ""), link(4, "docker0", "veth")]);
        let filter = Filter { include: vec!["eth*".into()], exclude: vec!["*1".into()] };
        let hooked: Vec<_> = found.links.values().map(|l| found.hook(l, &filter)).collect();
        assert_eq!(hooked, [Hook::L2, Hook::Excluded, Hook::Excluded]);
        for (glob, name, want) in [
            ("*", "", true),
            ("a?c", "abc", true),
            ("a?c", "ac", false),
            ("*b*d", "abcd", true),
            ("a*", "ba", false),
        ] {
            assert_eq!(glob_matches(glob, name), want, "{glob} {name}");
        }
    }

    #[test]
    fn pods_tunnels_and_uplinks_are_told_apart() {
        let mut found = devices([
            Link { peer_elsewhere: true, ..link(2, "eth0", "veth") },
            Link { peer_elsewhere: true, ..link(3, "cali3", "veth") },
            Link { peer_elsewhere: true, ..link(4, "ptp4", "veth") },
            Link { peer_elsewhere: true, ..link(5, "other", "veth") },
            link(6, "vxlan6", "vxlan"),
            link(7, "ens7", ""),
        ]);
        add(&mut found, 4, "10.1.0.1", 32);
        add(&mut found, 5, "10.9.0.1", 24);
        found.default_routes.insert(2);
        let flags = |detect: &DetectLocal| -> Vec<u32> {
            let each = |l| found.describe(l, Hook::L2, detect, Preferred::default()).flags;
            found.links.values().map(each).collect()
        };
        let (pod, up) = (Device::POD, Device::UPLINK);
        assert_eq!(flags(&DetectLocal::Auto), [up, pod, pod, up, Device::TUNNEL, up]);
        let by_prefix = DetectLocal::InterfaceNamePrefix("en".into());
        assert_eq!(flags(&by_prefix), [up, up, up, up, Device::TUNNEL, pod]);
    }

    #[test]
    fn a_bridge_named_by_the_user_makes_its_ports_pod_devices() {
        let found = devices([link(2, "cni0", "bridge"), Link { master: Some(2), ..link(3, "v3", "veth") }]);
        let detect = DetectLocal::BridgeInterface("cni0".into());
        let device = found.describe(&found.links[&3], Hook::L2, &detect, Preferred::default());
        assert_eq!(device.flags, Device::POD);
    }

    #[test]
    fn sources_are_the_devices_own_then_its_masters_then_the_preferred() {
        let mut found = devices([
            link(2, "eth0", ""),
            link(3, "br0", "bridge"),
            Link { master: Some(3), ..link(4, "port", "") },
            link(5, "bare", ""),
            Link { link_type: ARPHRD_NONE, ..link(6, "wg0", "wireguard") },
        ]);
        add(&mut found, 2, "192.168.8.9", 24);
        add(&mut found, 2, "192.168.8.5", 24);
        let nine = (2, "192.168.8.5".parse().unwrap());
        found.addresses.get_mut(&nine).unwrap().flags = Address::SECONDARY;
        add(&mut found, 3, "10.0.0.1", 24);
        add(&mut found, 3, "fd00::1", 64);
        let preferred = Preferred { v4: Some(Ipv4Addr::new(192, 168, 8, 9)), v6: None };
        let of = |index: u32, hook| found.describe(&found.links[&index], hook, &DetectLocal::Auto, preferred);
        let ip = |text: &str| Addr::from(text.parse::<IpAddr>().unwrap());
        assert_eq!(of(2, Hook::L2).source_v4, ip("192.168.8.9"), "the primary one");
        assert_eq!((of(4, Hook::L2).source_v4, of(4, Hook::L2).source_v6), (ip("10.0.0.1"), ip("fd00::1")));
        assert_eq!(of(5, Hook::L2).source_v4, ip("192.168.8.9"));
        assert_eq!(of(5, Hook::L2).source_v6, Addr::UNSPECIFIED_V6);
        assert_eq!((of(5, Hook::L2).header_len, of(6, Hook::L3).header_len), (14, 0));
    }

    #[test]
    fn the_nodes_addresses_and_its_primary_ones() {
        let mut found = devices([
            Link { link_type: ARPHRD_LOOPBACK, ..link(1, "lo", "") },
            link(2, "kube-ipvs0", "dummy"),
            link(3, "eth0", ""),
        ]);
        for (index, ip) in [(1, "127.0.0.1"), (2, "10.68.0.1"), (3, "192.168.8.201"), (3, "fe80::1")] {
            add(&mut found, index, ip, 32);
        }
        let all: Vec<_> =
            found.node_addresses().into_iter().map(|a| format!("{} {}", a.device, a.addr)).collect();
        assert_eq!(all, ["lo 127.0.0.1", "kube-ipvs0 10.68.0.1", "eth0 192.168.8.201"]);
        let primary = |preferred| found.primary_addresses(&DetectLocal::Auto, preferred);
        assert_eq!(primary(Preferred::default())[0], "192.168.8.201".parse::<IpAddr>().unwrap());
        let routed = Preferred { v4: Some(Ipv4Addr::new(10, 1, 1, 1)), v6: None };
        assert_eq!(primary(routed)[0], "10.1.1.1".parse::<IpAddr>().unwrap());
    }
}
