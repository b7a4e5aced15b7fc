//! The devices of this network namespace and their addresses, followed by rtnetlink.
//!
//! [`Devices`] mirrors the kernel's tables: filled by dumps, updated by events, and filled again after lost events.
//! What to hook, and what the datapath must know about a device, are pure functions of it in [`select`]. Nothing is
//! attached here (see [`super::attach`]).

pub mod select;

use std::{collections::BTreeMap, io, net::IpAddr, os::fd::OwnedFd};

use super::netlink::{Events, Message, Socket, attributes, messages, read_str, read_u16, read_u32};

const RTM_NEWLINK: u16 = 16;
const RTM_DELLINK: u16 = 17;
const RTM_GETLINK: u16 = 18;
const RTM_NEWADDR: u16 = 20;
const RTM_DELADDR: u16 = 21;
const RTM_GETADDR: u16 = 22;
const RTM_NEWROUTE: u16 = 24;
const RTM_DELROUTE: u16 = 25;
const RTM_GETROUTE: u16 = 26;
const RTM_NEWRULE: u16 = 32;
const RTM_DELRULE: u16 = 33;
const RTM_NEWNEXTHOP: u16 = 104;
const RTM_DELNEXTHOP: u16 = 105;

const RTMGRP_LINK: u32 = 1;
const RTMGRP_IPV4_IFADDR: u32 = 0x10;
const RTMGRP_IPV4_ROUTE: u32 = 0x40;
const RTMGRP_IPV4_RULE: u32 = 0x80;
const RTMGRP_IPV6_IFADDR: u32 = 0x100;
const RTMGRP_IPV6_ROUTE: u32 = 0x400;
const RTMGRP_IPV6_RULE: u32 = 1 << 18;
const RTMGRP_NEXTHOP: u32 = 1 << 31;

/// A network device as rtnetlink describes it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Link {
    pub index: u32,
    pub name: String,
    /// `ARPHRD_*`.
    pub link_type: u16,
    /// `IFF_*`.
    pub flags: u32,
    /// Kind of virtual device (`veth`, `vxlan`, …); empty for hardware.
    pub kind: String,
    /// The bridge, bond, team or VRF it belongs to.
    pub master: Option<u32>,
    /// Its lower device in this network namespace (a VLAN's parent).
    pub parent: Option<u32>,
    /// Ethernet address; zero if it has none.
    pub mac: [u8; 6],
    /// Its lower device or peer is in another network namespace.
    pub peer_elsewhere: bool,
}

/// An address of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Address {
    pub prefix_len: u8,
    /// `RT_SCOPE_*`: 0 is global.
    pub scope: u8,
    /// `IFA_F_*`.
    pub flags: u32,
}

impl Address {
    const SECONDARY: u32 = 0x01;
    const DEPRECATED: u32 = 0x20;
    const TENTATIVE: u32 = 0x40;

    fn is_global(&self) -> bool {
        self.scope == 0
    }

    /// Usable as a source: neither tentative nor deprecated.
    fn is_usable(&self) -> bool {
        self.flags & (Self::TENTATIVE | Self::DEPRECATED) == 0
    }
}

/// What changed with one event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// A device appeared, or one of its properties changed.
    Link(u32),
    /// A device was removed, or left this namespace.
    LinkGone(u32),
    /// Addresses or default routes changed.
    Addresses,
}

/// All devices, their addresses, and which of them have a default route.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Devices {
    pub links: BTreeMap<u32, Link>,
    pub addresses: BTreeMap<(u32, IpAddr), Address>,
    pub default_routes: std::collections::BTreeSet<u32>,
}

impl Devices {
    /// Reads the current state.
    pub fn dump(netlink: &mut Socket) -> io::Result<Self> {
        let mut devices = Self::default();
        let mut take = |message: Message<'_>| {
            devices.apply(message);
        };
        netlink.dump(RTM_GETLINK, &[0; 16], &mut take)?;
        netlink.dump(RTM_GETADDR, &[0; 8], &mut take)?;
        devices.dump_default_routes(netlink)?;
        Ok(devices)
    }

    /// Reads the default routes again; returns whether they changed.
    pub fn dump_default_routes(&mut self, netlink: &mut Socket) -> io::Result<bool> {
        let mut found = std::collections::BTreeSet::new();
        netlink.dump(RTM_GETROUTE, &[0; 12], |message| {
            if message.kind == RTM_NEWROUTE {
                found.extend(default_route_devices(message.body));
            }
        })?;
        let changed = found != self.default_routes;
        self.default_routes = found;
        Ok(changed)
    }

    /// Applies one event or one message of a dump; `None` if nothing changed.
    pub fn apply(&mut self, message: Message<'_>) -> Option<Change> {
        match message.kind {
            RTM_NEWLINK => {
                let link = parse_link(message.body)?;
                let index = link.index;
                (self.links.insert(index, link.clone()).as_ref() != Some(&link))
                    .then_some(Change::Link(index))
            }
            RTM_DELLINK => {
                // A device that leaves a bridge is "deleted" from the bridge's view, in its own family.
                if message.body.first() != Some(&0) {
                    return None;
                }
                let index = read_u32(message.body, 4)?;
                self.links.remove(&index)?;
                self.addresses.retain(|(owner, _), _| *owner != index);
                self.default_routes.remove(&index);
                Some(Change::LinkGone(index))
            }
            RTM_NEWADDR => {
                let (key, address) = parse_address(message.body)?;
                (self.addresses.insert(key, address) != Some(address)).then_some(Change::Addresses)
            }
            RTM_DELADDR => {
                let (key, _) = parse_address(message.body)?;
                self.addresses.remove(&key).map(|_| Change::Addresses)
            }
            _ => None,
        }
    }
}

/// Events of links, addresses and default routes.
#[derive(Debug)]
pub struct Follow {
    events: Events,
    buffer: Vec<u8>,
}

/// The result of reading the event socket.
#[derive(Debug, Default)]
pub struct Happened {
    pub changes: Vec<Change>,
    /// Default routes changed: read them again.
    pub routes: bool,
    /// Something changed that source addresses may depend on: a link, an address, a route, a rule, a next hop.
    pub sources: bool,
    /// Events were lost: read everything again.
    pub lost: bool,
}

impl Follow {
    /// Subscribes to events. Dump afterwards, so that no change is missed.
    pub fn open() -> io::Result<Self> {
        let groups = RTMGRP_LINK
            | RTMGRP_IPV4_IFADDR
            | RTMGRP_IPV6_IFADDR
            | RTMGRP_IPV4_ROUTE
            | RTMGRP_IPV6_ROUTE
            | RTMGRP_IPV4_RULE
            | RTMGRP_IPV6_RULE
            | RTMGRP_NEXTHOP;
        Ok(Self { events: Events::open(groups)?, buffer: vec![0; 64 * 1024] })
    }

    /// A descriptor for the reactor that becomes readable with the next event.
    pub fn descriptor(&self) -> io::Result<OwnedFd> {
        std::os::fd::AsFd::as_fd(&self.events).try_clone_to_owned()
    }

    /// Applies all waiting events to `devices`.
    pub fn drain(&mut self, devices: &mut Devices) -> io::Result<Happened> {
        let mut happened = Happened::default();
        loop {
            match self.events.receive(&mut self.buffer) {
                Ok(data) => {
                    for message in messages(data) {
                        match message.kind {
                            RTM_NEWROUTE | RTM_DELROUTE => {
                                happened.routes |= is_default_route(message.body);
                                happened.sources = true;
                            }
                            RTM_NEWRULE | RTM_DELRULE | RTM_NEWNEXTHOP | RTM_DELNEXTHOP => {
                                happened.sources = true;
                            }
                            _ => happened.changes.extend(devices.apply(message)),
                        }
                    }
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                    happened.sources |= !happened.changes.is_empty();
                    return Ok(happened);
                }
                Err(e) if e.raw_os_error() == Some(libc::ENOBUFS) => happened.lost = true,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
    }
}

/// `struct ifinfomsg` and its attributes; only messages of the general family, since a bridge describes its
/// ports in one of its own with few attributes.
fn parse_link(body: &[u8]) -> Option<Link> {
    const IFLA_ADDRESS: u16 = 1;
    const IFLA_IFNAME: u16 = 3;
    const IFLA_LINK: u16 = 5;
    const IFLA_MASTER: u16 = 10;
    const IFLA_LINKINFO: u16 = 18;
    const IFLA_LINK_NETNSID: u16 = 37;
    const IFLA_INFO_KIND: u16 = 1;
    if body.first() != Some(&0) {
        return None;
    }
    let mut link = Link {
        index: read_u32(body, 4)?,
        link_type: read_u16(body, 2)?,
        flags: read_u32(body, 8)?,
        ..Link::default()
    };
    for (kind, payload) in attributes(body.get(16..)?) {
        match kind {
            IFLA_ADDRESS => link.mac = payload.try_into().unwrap_or_default(),
            IFLA_LINK => link.parent = read_u32(payload, 0),
            IFLA_IFNAME => link.name = read_str(payload),
            IFLA_MASTER => link.master = read_u32(payload, 0).filter(|master| *master != 0),
            IFLA_LINK_NETNSID => link.peer_elsewhere = true,
            IFLA_LINKINFO => {
                if let Some((_, name)) = attributes(payload).find(|a| a.0 == IFLA_INFO_KIND) {
                    link.kind = read_str(name);
                }
            }
            _ => {}
        }
    }
    if link.peer_elsewhere {
        link.parent = None;
    }
    Some(link)
}

/// `struct ifaddrmsg` and its attributes.
fn parse_address(body: &[u8]) -> Option<((u32, IpAddr), Address)> {
    const IFA_ADDRESS: u16 = 1;
    const IFA_LOCAL: u16 = 2;
    const IFA_FLAGS: u16 = 8;
    let (family, prefix_len, flags, scope) = (body.first()?, *body.get(1)?, *body.get(2)?, *body.get(3)?);
    let index = read_u32(body, 4)?;
    let mut address = Address { prefix_len, scope, flags: flags.into() };
    let (mut ip, mut local) = (None, None);
    for (kind, payload) in attributes(body.get(8..)?) {
        match kind {
            IFA_ADDRESS => ip = parse_ip(*family, payload),
            // On a point-to-point device IFA_ADDRESS is the other end's.
            IFA_LOCAL => local = parse_ip(*family, payload),
            IFA_FLAGS => address.flags = read_u32(payload, 0)?,
            _ => {}
        }
    }
    Some(((index, local.or(ip)?), address))
}

fn parse_ip(family: u8, bytes: &[u8]) -> Option<IpAddr> {
    match i32::from(family) {
        libc::AF_INET => Some(IpAddr::from(<[u8; 4]>::try_from(bytes).ok()?)),
        libc::AF_INET6 => Some(IpAddr::from(<[u8; 16]>::try_from(bytes).ok()?)),
        _ => None,
    }
}

/// Whether a `struct rtmsg` is a unicast default route.
fn is_default_route(body: &[u8]) -> bool {
    const RTN_UNICAST: u8 = 1;
    body.get(1) == Some(&0) && body.get(7) == Some(&RTN_UNICAST)
}

/// The devices of a default route, including multipath next hops.
fn default_route_devices(body: &[u8]) -> Vec<u32> {
    const RTA_OIF: u16 = 4;
    const RTA_MULTIPATH: u16 = 9;
    if !is_default_route(body) {
        return Vec::new();
    }
    let mut found = Vec::new();
    for (kind, payload) in attributes(body.get(12..).unwrap_or_default()) {
        match kind {
            RTA_OIF => found.extend(read_u32(payload, 0)),
            RTA_MULTIPATH => {
                // A row of `struct rtnexthop`: length (16 bits), flags, hops, ifindex, attributes.
                let mut rest = payload;
                while let (Some(len), Some(index)) = (read_u16(rest, 0), read_u32(rest, 4)) {
                    found.push(index);
                    rest = rest.get(usize::from(len.max(8)).next_multiple_of(4)..).unwrap_or_default();
                }
            }
            _ => {}
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::datapath::netlink::Request;

    fn deliver(
        devices: &mut Devices,
        kind: u16,
        fixed: &[u8],
        fill: impl FnOnce(&mut Request),
    ) -> Option<Change> {
        let mut request = Request::new(kind, 0, fixed);
        fill(&mut request);
        let bytes = request.encoded();
        devices.apply(messages(&bytes).next().unwrap())
    }

    fn ifinfo(family: u8, link_type: u16, index: u32) -> [u8; 16] {
        let mut body = [0; 16];
        body[0] = family;
        body[2..4].copy_from_slice(&link_type.to_ne_bytes());
        body[4..8].copy_from_slice(&index.to_ne_bytes());
        body
    }

    #[test]
    fn a_device_comes_changes_and_goes() {
        let mut devices = Devices::default();
        let new = |devices: &mut Devices, master: u32| {
            deliver(devices, RTM_NEWLINK, &ifinfo(0, 1, 7), |r| {
                r.attribute(3, b"veth7\0").attribute(10, &master.to_ne_bytes()).attribute(37, &[0; 4]);
                r.nested(18, |info| {
                    info.attribute(1, b"veth\0");
                });
            })
        };
        assert_eq!(new(&mut devices, 0), Some(Change::Link(7)));
        assert_eq!(new(&mut devices, 0), None, "the same again is no change");
        assert_eq!(new(&mut devices, 3), Some(Change::Link(7)));
        let link = &devices.links[&7];
        assert_eq!((link.name.as_str(), link.kind.as_str(), link.master), ("veth7", "veth", Some(3)));
        assert!(link.peer_elsewhere);

        let mut address = [0u8; 8];
        (address[0], address[1], address[4]) = (libc::AF_INET as u8, 24, 7);
        let local = |r: &mut Request| {
            r.attribute(1, &[10, 0, 0, 9]).attribute(2, &[10, 0, 0, 1]);
        };
        assert_eq!(deliver(&mut devices, RTM_NEWADDR, &address, local), Some(Change::Addresses));
        assert!(devices.addresses.contains_key(&(7, "10.0.0.1".parse().unwrap())), "our own end");

        assert_eq!(deliver(&mut devices, RTM_DELLINK, &ifinfo(7, 1, 7), |_| {}), None, "a bridge's view");
        assert_eq!(deliver(&mut devices, RTM_DELLINK, &ifinfo(0, 1, 7), |_| {}), Some(Change::LinkGone(7)));
        assert_eq!(devices, Devices::default(), "its addresses go with it");
    }

    #[test]
    fn default_routes_name_all_their_devices() {
        let mut rtmsg = [0u8; 12];
        rtmsg[7] = 1;
        let mut route = Request::new(RTM_NEWROUTE, 0, &rtmsg);
        let hop = |index: u8| [16, 0, 0, 0, index, 0, 0, 0, 8, 0, 5, 0, 10, 0, 0, 1];
        route.attribute(9, &[hop(4), hop(6)].concat());
        let bytes = route.encoded();
        assert_eq!(default_route_devices(messages(&bytes).next().unwrap().body), [4, 6]);
        rtmsg[1] = 24;
        assert!(!is_default_route(&rtmsg));
    }
}
