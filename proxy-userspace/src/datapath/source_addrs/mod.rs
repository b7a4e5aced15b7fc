//! The source address that the kernel would choose, for each device and each range of destinations that routes and rules
//! tell apart: what SOURCE_ADDRS is to hold, and the source of each device.
//!
//! Nothing is computed here that the kernel decides: of every range one destination is asked for (RTM_GETROUTE with the
//! device), as `ip route get DESTINATION oif DEVICE` does. Nothing is written here either: `agent/source_addrs.rs` does.

mod ranges;

use std::{
    collections::{BTreeMap, HashSet},
    io,
    net::{IpAddr, Ipv6Addr},
};

use proxy_common::{Addr, SourceAddrKey};

use super::{
    devices::{Devices, select::VIP_HOLDERS},
    netlink::{Request, Socket, attributes},
};

use self::ranges::{
    EVERYWHERE, RTA_DST, RTA_OIF, RTM_GETROUTE, RTM_NEWROUTE, RTN_UNICAST, Range, Ranges, ip, is_v4,
};

const RTA_PREFSRC: u16 = 7;

/// How many destinations are asked for at most, the widest ranges first: with a full Internet table the others have their
/// device's source. SOURCE_ADDRS has room for twice as many: new entries come before old ones go.
const MAX_ASKED: usize = 8192;

/// Among how many IPv6 addresses destinations are told apart: each two may make two ranges more.
const MAX_CANDIDATES: usize = 64;

/// A device whose hooks complete translations, and the one that routes name for it: a port's bridge.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Egress {
    pub hooked: u32,
    pub routed: u32,
}

/// What the kernel said.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sources {
    /// Only ranges whose source is another than that of the range or device around them.
    pub ranges: BTreeMap<SourceAddrKey, Addr>,
    /// By device, the source of each family (IPv4 first): towards a destination of no other route.
    pub devices: BTreeMap<u32, [Option<Addr>; 2]>,
    /// How many ranges were left out.
    pub left: usize,
}

impl Sources {
    /// Asks for the sources of these devices.
    pub fn ask(netlink: &mut Socket, devices: &Devices, egress: &[Egress]) -> io::Result<Self> {
        let mut ranges = Ranges::dump(netlink)?;
        ranges.split(&candidates(devices));
        let own = own_addresses(devices);
        let mut asker = |to: u128, device: u32| {
            let source = ask(netlink, ip(to), device)?;
            Ok(source.filter(|source| own.contains(source)).map(Addr::from))
        };
        Self::of(&ranges, egress, &mut asker)
    }

    /// The same, with whoever answers.
    fn of(
        ranges: &Ranges,
        egress: &[Egress],
        ask: &mut impl FnMut(u128, u32) -> io::Result<Option<Addr>>,
    ) -> io::Result<Self> {
        let mut found = Self::default();
        for device in egress {
            let mut sources = [None; 2];
            for (source, everywhere) in sources.iter_mut().zip(EVERYWHERE) {
                if let Some(to) = ranges.example(everywhere) {
                    *source = ask(to, device.routed)?;
                }
            }
            found.devices.insert(device.hooked, sources);
        }
        let mut wanted = Vec::new();
        for (range, reach) in &ranges.reach {
            let leads = |device: &&Egress| reach.any || reach.devices.contains(&device.routed);
            wanted.extend(egress.iter().filter(leads).map(|device| (*range, *device)));
        }
        found.left = wanted.len().saturating_sub(MAX_ASKED);
        wanted.truncate(MAX_ASKED);
        // Wide ranges come first, so what is around a range is known before it.
        let mut answers: BTreeMap<(u32, Range), Addr> = BTreeMap::new();
        for (range, device) in wanted {
            let Some(to) = ranges.example(range) else { continue };
            let Some(source) = ask(to, device.routed)? else { continue };
            answers.insert((device.hooked, range), source);
            let family = usize::from(!is_v4(range.1));
            let around = ranges.around(range, |outer| answers.get(&(device.hooked, outer)).copied());
            let sources = found.devices.entry(device.hooked).or_default();
            // IPv6 has no source where there is no route: then the widest route's.
            let of_device = *sources[family].get_or_insert(source);
            if around.unwrap_or(of_device) != source {
                let key = SourceAddrKey::new(
                    device.hooked,
                    Addr::from(Ipv6Addr::from_bits(range.1)),
                    range.0.into(),
                );
                found.ranges.insert(key, source);
            }
        }
        Ok(found)
    }
}

/// What a translated flow may have as its source: the node's addresses, but those that only another proxy's device
/// holds and link-local ones.
fn own_addresses(devices: &Devices) -> HashSet<IpAddr> {
    let held = devices.addresses.keys().filter(|(index, ip)| {
        let is_vip = devices.links.get(index).is_some_and(|link| VIP_HOLDERS.contains(&link.name.as_str()));
        !is_vip && !matches!(ip, IpAddr::V6(v6) if v6.is_unicast_link_local())
    });
    held.map(|(_, ip)| *ip).collect()
}

/// The IPv6 addresses that the kernel chooses from, with their prefix lengths.
fn candidates(devices: &Devices) -> Vec<(u128, u8)> {
    let global = devices.addresses.iter().filter_map(|((_, ip), address)| match ip {
        IpAddr::V6(v6) if address.scope == 0 => Some((v6.to_bits(), address.prefix_len)),
        _ => None,
    });
    global.take(MAX_CANDIDATES).collect()
}

/// The source towards a destination out of a device; `None` where there is no way.
fn ask(netlink: &mut Socket, to: IpAddr, device: u32) -> io::Result<Option<IpAddr>> {
    let mut body = [0u8; 12];
    let octets = match to {
        IpAddr::V4(v4) => {
            (body[0], body[1]) = (libc::AF_INET as u8, 32);
            v4.octets().to_vec()
        }
        IpAddr::V6(v6) => {
            (body[0], body[1]) = (libc::AF_INET6 as u8, 128);
            v6.octets().to_vec()
        }
    };
    let mut request = Request::new(RTM_GETROUTE, 0, &body);
    request.attribute(RTA_DST, &octets).attribute(RTA_OIF, &device.to_ne_bytes());
    let mut found = None;
    let asked = netlink.ask(request, |message| {
        if message.kind == RTM_NEWROUTE && message.body.get(7) == Some(&RTN_UNICAST) {
            let mut fields = attributes(message.body.get(12..).unwrap_or_default());
            found = fields.find_map(|(kind, payload)| (kind == RTA_PREFSRC).then(|| address(payload))?);
        }
    });
    match asked {
        // No answer at all is the socket's failure; every other error is the kernel's answer: no route.
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Err(error),
        Err(_) => Ok(None),
        Ok(()) => Ok(found),
    }
}

fn address(bytes: &[u8]) -> Option<IpAddr> {
    match bytes.len() {
        4 => Some(<[u8; 4]>::try_from(bytes).ok()?.into()),
        16 => Some(<[u8; 16]>::try_from(bytes).ok()?.into()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::{ranges::tests::ranges, *};

    fn addr(text: &str) -> Addr {
        text.parse::<IpAddr>().unwrap().into()
    }

    #[test]
    fn only_what_differs_from_what_is_around_is_kept() {
        let found = ranges(&[
            ("0.0.0.0/0", 2),
            ("10.0.0.0/8", 2),
            ("10.1.0.0/16", 2),
            ("10.1.1.0/24", 2),
            ("172.16.0.0/12", 3),
            ("fd00::/64", 3),
        ]);
        let egress = [Egress { hooked: 2, routed: 2 }, Egress { hooked: 7, routed: 3 }];
        let mut asked = 0;
        let sources = Sources::of(&found, &egress, &mut |to, device| {
            asked += 1;
            Ok(match ip(to) {
                IpAddr::V4(to) if device == 2 && to.octets()[0] == 10 => Some(addr("10.0.0.9")),
                IpAddr::V4(to) if device == 3 && to.octets()[0] == 172 => Some(addr("172.16.0.9")),
                IpAddr::V4(_) if device == 2 => Some(addr("192.168.8.9")),
                IpAddr::V6(to) if device == 3 && to.segments()[0] == 0xfd00 => Some(addr("fd00::9")),
                _ => None,
            })
        })
        .unwrap();
        let of = |device: u32| sources.devices[&device];
        assert_eq!(of(2), [Some(addr("192.168.8.9")), None]);
        assert_eq!(of(7), [Some(addr("172.16.0.9")), Some(addr("fd00::9"))], "the widest route's");
        let ten = SourceAddrKey::new(2, addr("10.0.0.0"), 96 + 8);
        assert_eq!(sources.ranges, BTreeMap::from([(ten, addr("10.0.0.9"))]));
        assert_eq!(asked, 10, "a default and its routes for each device");
    }

    #[test]
    fn a_full_table_is_cut_at_its_narrow_end() {
        let mut table = ranges(&[("0.0.0.0/0", 2)]);
        for net in 0..MAX_ASKED as u32 {
            let base = Ipv4Addr::from_bits((16 << 24) + (net << 8));
            table.add((96 + 24, base.to_ipv6_mapped().to_bits())).devices.insert(2);
        }
        let egress = [Egress { hooked: 2, routed: 2 }];
        let sources = Sources::of(&table, &egress, &mut |_, _| Ok(Some(addr("10.0.0.1")))).unwrap();
        assert_eq!((sources.left, sources.ranges.len()), (1, 0));
    }
}
