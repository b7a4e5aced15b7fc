//! The source address that the kernel would choose, for each device and each range of destinations that routes and rules
//! tell apart: what SOURCE_ADDRS is to hold, and the source of each device.
//!
//! Nothing is computed here that the kernel decides: of every range one destination is asked for (RTM_GETROUTE with the
//! device), as `ip route get DESTINATION oif DEVICE` does. Nothing is written here either: `agent/source_addrs.rs` does.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    io,
    net::{IpAddr, Ipv6Addr},
};

use proxy_common::{Addr, SourceAddrKey};

use super::{
    devices::{Devices, select::VIP_HOLDERS},
    netlink::{Request, Socket, attributes, read_u16, read_u32},
};

const RTM_NEWROUTE: u16 = 24;
const RTM_GETROUTE: u16 = 26;
const RTM_NEWRULE: u16 = 32;
const RTM_GETRULE: u16 = 34;
const RTA_DST: u16 = 1;
const RTA_OIF: u16 = 4;
const RTA_PREFSRC: u16 = 7;
const RTA_MULTIPATH: u16 = 9;
const RTA_NH_ID: u16 = 30;
const RTN_UNICAST: u8 = 1;

/// How many destinations are asked for at most, the widest ranges first: with a full Internet table the others have their
/// device's source. SOURCE_ADDRS has room for twice as many: new entries come before old ones go.
const MAX_ASKED: usize = 8192;

/// Destinations that only a default route leads to (RFC 5737, RFC 3849).
const ELSEWHERE: [u128; 3] = [0xffff_c000_0201, 0xffff_c633_6401, 0x2001_0db8_0000_0000_0000_0000_0000_0001];

/// Ranges whose destinations have labels of their own in the kernel's policy table (RFC 6724, section 2.1): a source with the same
/// label goes before one that is more alike.
const LABELS: [Range; 4] =
    [(7, 0xfc << 120), (16, 0x2002 << 112), (32, 0x2001 << 112), (28, 0x2001_0010 << 96)];

/// Among how many IPv6 addresses destinations are told apart: each two may make two ranges more.
const MAX_CANDIDATES: usize = 64;

/// A range of destinations: how many bits they share (of 128; IPv4 in v4-mapped form), and those bits.
type Range = (u8, u128);

/// `0.0.0.0/0` and `::/0`.
const EVERYWHERE: [Range; 2] = [(96, 0xffff << 32), (0, 0)];

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

/// Which devices routes lead to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Reach {
    devices: BTreeSet<u32>,
    /// Any device, as far as can be told: a rule, or a route whose next hop is an object of its own.
    any: bool,
}

/// All ranges of destinations that routes (of every table) and rules tell apart; the widest first.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Ranges {
    reach: BTreeMap<Range, Reach>,
    lengths: BTreeSet<u8>,
}

impl Ranges {
    fn dump(netlink: &mut Socket) -> io::Result<Self> {
        let mut ranges = Self::default();
        netlink.dump(RTM_GETROUTE, &[0; 12], |message| {
            if message.kind == RTM_NEWROUTE {
                ranges.take_route(message.body);
            }
        })?;
        netlink.dump(RTM_GETRULE, &[0; 12], |message| {
            if message.kind == RTM_NEWRULE {
                ranges.take_rule(message.body);
            }
        })?;
        Ok(ranges)
    }

    fn add(&mut self, range: Range) -> &mut Reach {
        self.lengths.insert(range.0);
        self.reach.entry(range).or_default()
    }

    /// `struct rtmsg` and its attributes. Of what is no unicast route (the node's own addresses, broadcasts, blackholes)
    /// only the range counts, which no other range's example may be in.
    fn take_route(&mut self, body: &[u8]) {
        let Some(range) = range_of(body, RTA_DST) else { return };
        let reach = self.add(range);
        if body.get(7) != Some(&RTN_UNICAST) {
            return;
        }
        let mut is_named = false;
        for (kind, payload) in attributes(body.get(12..).unwrap_or_default()) {
            match kind {
                RTA_OIF => reach.devices.extend(read_u32(payload, 0)),
                RTA_MULTIPATH => reach.devices.extend(next_hops(payload)),
                RTA_NH_ID => reach.any = true,
                _ => continue,
            }
            is_named = true;
        }
        reach.any |= !is_named;
    }

    /// `struct fib_rule_hdr`, which begins as `struct rtmsg` does, and its attributes.
    fn take_rule(&mut self, body: &[u8]) {
        const FRA_DST: u16 = RTA_DST;
        if let Some(range) = range_of(body, FRA_DST).filter(|range| !EVERYWHERE.contains(range)) {
            self.add(range).any = true;
        }
    }

    /// Tells destinations apart that one route leads to and that the kernel chooses different sources for: IPv6 prefers
    /// the address that shares the most bits with the destination, up to its own prefix (rule 8 of RFC 6724).
    fn split(&mut self, addresses: &[(u128, u8)]) {
        let mut apart: BTreeSet<Range> = BTreeSet::new();
        for (own, _) in addresses {
            for (other, other_len) in addresses.iter().filter(|(other, _)| other != own) {
                // From here on `own` is more like the destination than `other`.
                let len = ((own ^ other).leading_zeros() as u8).min(*other_len) + 1;
                apart.insert((len, own & mask(len)));
            }
        }
        if !apart.is_empty() {
            apart.extend(LABELS);
        }
        let new = apart.into_iter().filter(|range| !self.reach.contains_key(range)).map(|(len, bits)| {
            let mut reach = Reach::default();
            for outer in
                self.lengths.range(..len).filter_map(|outer| self.reach.get(&(*outer, bits & mask(*outer))))
            {
                reach.devices.extend(&outer.devices);
                reach.any |= outer.any;
            }
            ((len, bits), reach)
        });
        let new: Vec<_> = new.collect();
        for (range, reach) in new {
            *self.add(range) = reach;
        }
    }

    /// A destination in this range and in none within it.
    fn example(&self, range: Range) -> Option<u128> {
        let (len, bits) = range;
        let host = !mask(len);
        let mut tried = match len {
            128 => vec![bits],
            127 => vec![bits, bits | 1],
            _ => ELSEWHERE.to_vec(),
        };
        if len < 127 {
            // The last but one, the first, and some in between.
            let patterns =
                [host.wrapping_sub(1), 1, 2, u128::MAX / 3, u128::MAX / 5, u128::MAX / 7, u128::MAX / 11];
            tried.extend(patterns.map(|pattern| bits | pattern & host));
        }
        tried.into_iter().find(|to| {
            to & mask(len) == bits
                && is_v4(*to) == is_v4_range(range)
                && is_unicast(*to)
                && !self.is_inside(len, *to)
        })
    }

    /// Whether a longer range than `len` bits has this destination.
    fn is_inside(&self, len: u8, to: u128) -> bool {
        self.lengths.range(len + 1..).any(|longer| self.reach.contains_key(&(*longer, to & mask(*longer))))
    }

    /// What `get` knows of the narrowest range around this one.
    fn around<T>(&self, (len, bits): Range, get: impl Fn(Range) -> Option<T>) -> Option<T> {
        let least = if is_v4_range((len, bits)) { 96 } else { 0 };
        self.lengths.range(least..len).rev().find_map(|shorter| get((*shorter, bits & mask(*shorter))))
    }
}

fn mask(len: u8) -> u128 {
    u128::MAX.checked_shl(128 - u32::from(len)).unwrap_or(0)
}

fn is_v4(bits: u128) -> bool {
    bits >> 32 == 0xffff
}

fn is_v4_range((len, bits): Range) -> bool {
    len >= 96 && is_v4(bits)
}

fn ip(bits: u128) -> IpAddr {
    Ipv6Addr::from_bits(bits).to_canonical()
}

/// Whether packets of Services can go there.
fn is_unicast(bits: u128) -> bool {
    match ip(bits) {
        IpAddr::V4(v4) => !matches!(v4.octets()[0], 0 | 127 | 224..),
        IpAddr::V6(v6) => {
            !(v6.is_multicast() || v6.is_loopback() || v6.is_unspecified() || v6.is_unicast_link_local())
        }
    }
}

/// The destinations of a message of IPv4 or IPv6 that begins with family and prefix length.
fn range_of(body: &[u8], attribute: u16) -> Option<Range> {
    let (family, len) = (i32::from(*body.first()?), *body.get(1)?);
    let to = attributes(body.get(12..)?).find(|(kind, _)| *kind == attribute).map(|(_, payload)| payload);
    match (family, to) {
        (libc::AF_INET, None) => Some(EVERYWHERE[0]),
        (libc::AF_INET6, None) => Some(EVERYWHERE[1]),
        (libc::AF_INET, Some(to)) => {
            let bits = 0xffff << 32 | u128::from(u32::from_be_bytes(to.try_into().ok()?));
            let len = len.checked_add(96).filter(|len| *len <= 128)?;
            Some((len, bits & mask(len)))
        }
        (libc::AF_INET6, Some(to)) if len <= 128 => {
            Some((len, u128::from_be_bytes(to.try_into().ok()?) & mask(len)))
        }
        _ => None,
    }
}

/// The devices in rows of `struct rtnexthop`: length (16 bits), flags, hops, ifindex, attributes.
fn next_hops(mut rows: &[u8]) -> Vec<u32> {
    let mut found = Vec::new();
    while let (Some(len), Some(index)) = (read_u16(rows, 0), read_u32(rows, 4)) {
        found.push(index);
        rows = rows.get(usize::from(len.max(8)).next_multiple_of(4)..).unwrap_or_default();
    }
    found
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

    use super::*;

    fn bits(text: &str) -> u128 {
        match text.parse().unwrap() {
            IpAddr::V4(v4) => v4.to_ipv6_mapped().to_bits(),
            IpAddr::V6(v6) => v6.to_bits(),
        }
    }

    fn range(text: &str) -> Range {
        let (base, len) = text.split_once('/').unwrap();
        let offset = if base.contains(':') { 0 } else { 96 };
        (len.parse::<u8>().unwrap() + offset, bits(base))
    }

    fn addr(text: &str) -> Addr {
        text.parse::<IpAddr>().unwrap().into()
    }

    fn ranges(routes: &[(&str, u32)]) -> Ranges {
        let mut ranges = Ranges::default();
        for (text, device) in routes {
            let reach = ranges.add(range(text));
            // 0: no unicast route.
            reach.devices.extend(Some(*device).filter(|device| *device != 0));
        }
        ranges
    }

    #[test]
    fn an_example_is_in_its_range_and_in_none_within() {
        let found = ranges(&[
            ("0.0.0.0/0", 2),
            ("192.0.2.0/24", 2),
            ("10.0.0.0/24", 2),
            ("10.0.0.254/32", 0),
            ("10.0.0.1/32", 0),
            ("10.9.0.0/31", 2),
            ("10.9.0.0/32", 2),
            ("10.8.0.0/31", 2),
            ("10.8.0.0/32", 2),
            ("10.8.0.1/32", 2),
            ("fe80::/64", 2),
            ("fd00:1::/64", 2),
            ("::/0", 2),
        ]);
        let example = |text| found.example(range(text)).map(|to| ip(to).to_string());
        assert_eq!(example("0.0.0.0/0").as_deref(), Some("198.51.100.1"), "not what another route leads to");
        assert_eq!(example("10.0.0.0/24").as_deref(), Some("10.0.0.2"), "not an address of the node");
        assert_eq!(example("10.9.0.0/31").as_deref(), Some("10.9.0.1"));
        assert_eq!(example("10.8.0.0/31"), None, "all of it is in other ranges");
        assert_eq!(example("fe80::/64"), None);
        assert_eq!(example("::/0").as_deref(), Some("2001:db8::1"));
        assert!(example("fd00:1::/64").unwrap().starts_with("fd00:1::"));
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
    fn destinations_of_one_route_are_told_apart_by_the_addresses() {
        let mut found = ranges(&[("::/0", 2), ("fd00:3::/64", 3)]);
        found.split(&[(bits("fd00:8::1"), 64), (bits("fc00::5"), 128), (bits("fd00:90::1"), 20)]);
        let devices =
            |text| found.reach.get(&range(text)).map(|r| r.devices.iter().copied().collect::<Vec<_>>());
        // fc and fd differ in their eighth bit; of the third address only 20 bits count.
        for text in ["fd00::/8", "fc00::/8", "fd00::/21", "fd00:80::/25", "fc00::/7"] {
            assert_eq!(devices(text), Some(vec![2]), "{text}");
        }
        assert_eq!(found.reach.len(), 2 + 4 + LABELS.len());
        let mut alone = ranges(&[("::/0", 2)]);
        alone.split(&[(bits("fd00:8::1"), 64)]);
        assert_eq!(alone, ranges(&[("::/0", 2)]), "one address leaves no choice");
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

    #[test]
    fn routes_and_rules_are_read() {
        let mut ranges = Ranges::default();
        let message = |family: i32, len: u8, kind: u8, fill: &dyn Fn(&mut Request)| {
            let mut body = [0u8; 12];
            (body[0], body[1], body[7]) = (family as u8, len, kind);
            let mut request = Request::new(RTM_NEWROUTE, 0, &body);
            fill(&mut request);
            request.encoded()[16..].to_vec()
        };
        let hop = |index: u8| [8, 0, 0, 0, index, 0, 0, 0];
        let dst = [10u8, 1, 0, 0];
        let hops = [hop(4), hop(6)].concat();
        ranges.take_route(&message(libc::AF_INET, 16, RTN_UNICAST, &|r| {
            r.attribute(RTA_DST, &dst).attribute(RTA_MULTIPATH, &hops);
        }));
        ranges.take_route(&message(libc::AF_INET6, 0, RTN_UNICAST, &|r| {
            r.attribute(RTA_NH_ID, &[1, 0, 0, 0]);
        }));
        ranges.take_route(&message(libc::AF_INET, 32, 2, &|r| {
            r.attribute(RTA_DST, &[10, 1, 0, 1]).attribute(RTA_OIF, &[1, 0, 0, 0]);
        }));
        ranges.take_rule(&message(libc::AF_INET, 24, 0, &|r| {
            r.attribute(RTA_DST, &[10, 2, 0, 0]);
        }));
        ranges.take_rule(&message(libc::AF_INET, 0, 0, &|_| {}));
        let reach = |text: &str| ranges.reach.get(&range(text)).map(|r| (r.any, r.devices.len()));
        assert_eq!(reach("10.1.0.0/16"), Some((false, 2)));
        assert_eq!(reach("::/0"), Some((true, 0)));
        assert_eq!(reach("10.1.0.1/32"), Some((false, 0)), "the node's own");
        assert_eq!(reach("10.2.0.0/24"), Some((true, 0)));
        assert_eq!(reach("0.0.0.0/0"), None, "a rule for everything tells nothing apart");
    }
}
