//! Queries the kernel's routes, neighbours and bridges through netlink, to find the devices that a packet uses. Needs no
//! capability.

use std::{collections::BTreeMap, io, net::IpAddr};

use crate::datapath::{
    devices::{Devices, Link},
    netlink::{Request, Socket, attributes, read_u32},
};

const RTM_NEWROUTE: u16 = 24;
const RTM_GETROUTE: u16 = 26;
const RTM_NEWNEIGH: u16 = 28;
const RTM_GETNEIGH: u16 = 30;
const AF_BRIDGE: u8 = 7;

/// The result of a route lookup.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Route {
    /// The destination is an address of the node.
    pub is_own: bool,
    pub device: u32,
    /// The source address that an unbound socket gets.
    pub source: Option<IpAddr>,
}

/// A netlink socket, and the devices of the network namespace.
pub struct Routes {
    netlink: Socket,
    devices: Devices,
}

impl Routes {
    pub fn open() -> io::Result<Self> {
        let mut netlink = Socket::open()?;
        let devices = Devices::dump(&mut netlink)?;
        Ok(Self { netlink, devices })
    }

    pub fn link(&self, ifindex: u32) -> Option<&Link> {
        self.devices.links.get(&ifindex)
    }

    pub fn by_name(&self, name: &str) -> Option<&Link> {
        self.devices.links.values().find(|link| link.name == name)
    }

    /// The name of a device, or its index if the device does not exist.
    pub fn name(&self, ifindex: u32) -> String {
        self.link(ifindex).map_or_else(|| format!("ifindex {ifindex}"), |link| link.name.clone())
    }

    /// The route to `to`, for a packet that arrived with a source address on a device, or for one of the node itself. Without
    /// a route, the error has the reason (EXDEV: reverse path filtering).
    pub fn to(&mut self, to: IpAddr, received: Option<(IpAddr, u32)>) -> io::Result<Route> {
        const RTA_DST: u16 = 1;
        const RTA_SRC: u16 = 2;
        const RTA_IIF: u16 = 3;
        const RTA_OIF: u16 = 4;
        const RTA_PREFSRC: u16 = 7;
        const RTN_LOCAL: u8 = 2;
        let mut body = [0u8; 12];
        body[0] = family(to);
        body[1] = bits(to);
        if let Some((from, _)) = received {
            body[2] = bits(from);
        }
        let mut request = Request::new(RTM_GETROUTE, 0, &body);
        request.attribute(RTA_DST, &octets(to));
        if let Some((from, device)) = received {
            request.attribute(RTA_SRC, &octets(from)).attribute(RTA_IIF, &device.to_ne_bytes());
        }
        let mut found = None;
        self.netlink.ask(request, |message| {
            if message.kind != RTM_NEWROUTE {
                return;
            }
            let is_own = message.body.get(7) == Some(&RTN_LOCAL);
            let mut route = Route { is_own, device: 0, source: None };
            for (kind, payload) in attributes(message.body.get(12..).unwrap_or_default()) {
                match kind {
                    RTA_OIF => route.device = read_u32(payload, 0).unwrap_or(0),
                    RTA_PREFSRC => route.source = ip(payload),
                    _ => {}
                }
            }
            found = Some(route);
        })?;
        found.ok_or_else(|| io::ErrorKind::NetworkUnreachable.into())
    }

    /// The bridge port of an address, if the neighbour table and the forwarding database contain it.
    pub fn port_of(&mut self, bridge: u32, addr: IpAddr) -> io::Result<Option<u32>> {
        const NDA_DST: u16 = 1;
        const NDA_LLADDR: u16 = 2;
        const NDA_MASTER: u16 = 9;
        let mut mac = None;
        let mut body = [0u8; 12];
        body[0] = family(addr);
        self.netlink.dump(RTM_GETNEIGH, &body, |message| {
            if message.kind == RTM_NEWNEIGH && read_u32(message.body, 4) == Some(bridge) {
                let found = fields(message.body);
                if found.get(&NDA_DST).and_then(|bytes| ip(bytes)) == Some(addr) {
                    mac = found.get(&NDA_LLADDR).map(|bytes| bytes.to_vec());
                }
            }
        })?;
        let Some(mac) = mac else {
            return Ok(None);
        };
        body[0] = AF_BRIDGE;
        let mut port = None;
        self.netlink.dump(RTM_GETNEIGH, &body, |message| {
            let found = fields(message.body);
            let is_of_bridge = found.get(&NDA_MASTER).and_then(|bytes| read_u32(bytes, 0)) == Some(bridge);
            if is_of_bridge && found.get(&NDA_LLADDR).is_some_and(|bytes| **bytes == *mac) {
                port = read_u32(message.body, 4);
            }
        })?;
        Ok(port.filter(|port| *port != bridge))
    }

    /// All ports of a bridge.
    pub fn ports(&self, bridge: u32) -> Vec<u32> {
        let ports = self.devices.links.values().filter(|link| link.master == Some(bridge));
        ports.map(|link| link.index).collect()
    }

    /// The device on which the host's stack receives a packet of `device`: for a bridge port, its bridge.
    pub fn stack_device(&self, device: u32) -> u32 {
        let master = self.link(device).and_then(|link| link.master);
        master.filter(|master| self.link(*master).is_some_and(|link| link.kind == "bridge")).unwrap_or(device)
    }
}

/// The attributes of a `struct ndmsg`.
fn fields(body: &[u8]) -> BTreeMap<u16, &[u8]> {
    attributes(body.get(12..).unwrap_or_default()).collect()
}

fn family(ip: IpAddr) -> u8 {
    if ip.is_ipv4() { libc::AF_INET as u8 } else { libc::AF_INET6 as u8 }
}

fn bits(ip: IpAddr) -> u8 {
    if ip.is_ipv4() { 32 } else { 128 }
}

fn octets(ip: IpAddr) -> Vec<u8> {
    match ip {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    }
}

fn ip(bytes: &[u8]) -> Option<IpAddr> {
    match bytes.len() {
        4 => Some(<[u8; 4]>::try_from(bytes).ok()?.into()),
        16 => Some(<[u8; 16]>::try_from(bytes).ok()?.into()),
        _ => None,
    }
}
