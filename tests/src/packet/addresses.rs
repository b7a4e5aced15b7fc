//! The hosts around a datapath, their addresses and neighbours, and the identifiers already used in its maps.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::frame::Ip;

/// Pods of this node are [`addr`]`(_, 0x01xx)`.
pub const POD: u16 = 0x0102;
/// A pod of another node.
pub const FAR_POD: u16 = 0x0202;
/// A client outside the cluster.
pub const OUTSIDE: u16 = 0x0902;
/// The first VIP.
pub const VIP: u16 = 0x4401;
/// The node's primary address, which also accepts NodePort traffic.
pub const NODE: u16 = 0xc801;
/// The uplink's own address, the source address of masqueraded flows.
pub const UPLINK: u16 = 0xc802;

/// Another node: a host on the uplink's wire whose MAC address is unknown.
pub const UNKNOWN: u16 = 0x0302;
/// A pod whose route takes packets of at most 1280 bytes (locked: forwarding considers no other route MTU).
pub const NARROW: u16 = 0x0402;
/// MAC addresses of the uplink and of the peer on its wire.
pub const MACS: [[u8; 6]; 2] = [[2, 1, 1, 1, 1, 1], [2, 9, 9, 9, 9, 9]];

/// iproute2 commands: addresses and routes of an uplink whose neighbours are known.
pub fn wiring() -> String {
    let mut lines =
        format!("link set uplink address {}\nlink set pod up\nlink set uplink up\n", text(MACS[0]));
    for (ip, bits) in [(Ip::V4, 32), (Ip::V6, 128)] {
        let own = addr(ip, UPLINK);
        lines += &format!("addr replace {own}/{bits} dev uplink{}\n", if ip.is_v4() { "" } else { " nodad" });
        for host in [OUTSIDE, OUTSIDE + 1, FAR_POD, NARROW, UNKNOWN, VIP] {
            let host_addr = addr(ip, host);
            let narrow = if host == NARROW { " mtu lock 1280" } else { "" };
            lines += &format!("route replace {host_addr}/{bits} dev uplink{narrow}\n");
            if host != UNKNOWN {
                lines += &neighbour(addr(ip, host), MACS[1]);
            }
        }
    }
    lines
}

/// iproute2 commands: the uplink's own MAC address for the neighbours of a wired uplink.
pub fn mirror() -> String {
    let hosts = [Ip::V4, Ip::V6]
        .into_iter()
        .flat_map(|ip| [OUTSIDE, OUTSIDE + 1, FAR_POD, VIP].map(|host| addr(ip, host)));
    hosts.map(|host| neighbour(host, MACS[0])).collect()
}

fn neighbour(host: IpAddr, mac: [u8; 6]) -> String {
    format!("neigh replace {host} lladdr {} dev uplink nud permanent\n", text(mac))
}

fn text(mac: [u8; 6]) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

/// An address of the family with this host number. All are 8.0.x.x and 2001:db8:86dd::x, because BPF_PROG_TEST_RUN
/// reads an EtherType at bytes 12 and 13 regardless of the program's device type: without an Ethernet header these
/// bytes of a source address then mean IPv4 and IPv6.
pub fn addr(ip: Ip, host: u16) -> IpAddr {
    let [high, low] = host.to_be_bytes();
    match ip {
        Ip::V4 | Ip::V4Options => Ipv4Addr::new(8, 0, high, low).into(),
        Ip::V6 => Ipv6Addr::new(0x2001, 0xdb8, 0x86dd, 0, 0, 0, 0, host).into(),
    }
}

/// That address with a port.
pub fn at(ip: Ip, host: u16, port: u16) -> SocketAddr {
    SocketAddr::new(addr(ip, host), port)
}

/// Last identifiers used.
#[derive(Clone, Copy, Debug, Default)]
pub struct Last {
    pub backend: u32,
    pub service: u32,
    pub slot: u32,
}
