//! The ranges of destinations that routes and rules tell apart, read from the kernel (RTM_GETROUTE, RTM_GETRULE; every table).

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::{IpAddr, Ipv6Addr},
};

use super::super::netlink::{Socket, attributes, read_u16, read_u32};

pub(super) const RTM_NEWROUTE: u16 = 24;
pub(super) const RTM_GETROUTE: u16 = 26;
const RTM_NEWRULE: u16 = 32;
const RTM_GETRULE: u16 = 34;
pub(super) const RTA_DST: u16 = 1;
pub(super) const RTA_OIF: u16 = 4;
const RTA_MULTIPATH: u16 = 9;
const RTA_NH_ID: u16 = 30;
pub(super) const RTN_UNICAST: u8 = 1;

/// Destinations that only a default route leads to (RFC 5737, RFC 3849).
const ELSEWHERE: [u128; 3] = [0xffff_c000_0201, 0xffff_c633_6401, 0x2001_0db8_0000_0000_0000_0000_0000_0001];

/// Ranges whose destinations have labels of their own in the kernel's policy table (RFC 6724, section 2.1): a source with the same
/// label goes before one that is more alike.
const LABELS: [Range; 4] =
    [(7, 0xfc << 120), (16, 0x2002 << 112), (32, 0x2001 << 112), (28, 0x2001_0010 << 96)];

/// A range of destinations: how many bits they share (of 128; IPv4 in v4-mapped form), and those bits.
pub(super) type Range = (u8, u128);

/// `0.0.0.0/0` and `::/0`.
pub(super) const EVERYWHERE: [Range; 2] = [(96, 0xffff << 32), (0, 0)];

/// Which devices routes lead to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Reach {
    pub devices: BTreeSet<u32>,
    /// Any device, as far as can be told: a rule, or a route whose next hop is an object of its own.
    pub any: bool,
}

/// All ranges of destinations that routes (of every table) and rules tell apart; the widest first.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Ranges {
    pub reach: BTreeMap<Range, Reach>,
    lengths: BTreeSet<u8>,
}

impl Ranges {
    pub fn dump(netlink: &mut Socket) -> io::Result<Self> {
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

    pub fn add(&mut self, range: Range) -> &mut Reach {
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
    pub fn split(&mut self, addresses: &[(u128, u8)]) {
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
    pub fn example(&self, range: Range) -> Option<u128> {
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
    pub fn around<T>(&self, (len, bits): Range, get: impl Fn(Range) -> Option<T>) -> Option<T> {
        let least = if is_v4_range((len, bits)) { 96 } else { 0 };
        self.lengths.range(least..len).rev().find_map(|shorter| get((*shorter, bits & mask(*shorter))))
    }
}

fn mask(len: u8) -> u128 {
    u128::MAX.checked_shl(128 - u32::from(len)).unwrap_or(0)
}

pub(super) fn is_v4(bits: u128) -> bool {
    bits >> 32 == 0xffff
}

fn is_v4_range((len, bits): Range) -> bool {
    len >= 96 && is_v4(bits)
}

pub(super) fn ip(bits: u128) -> IpAddr {
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

#[cfg(test)]
pub(super) mod tests {
    use super::{super::super::netlink::Request, *};

    pub fn bits(text: &str) -> u128 {
        match text.parse().unwrap() {
            IpAddr::V4(v4) => v4.to_ipv6_mapped().to_bits(),
            IpAddr::V6(v6) => v6.to_bits(),
        }
    }

    pub fn range(text: &str) -> Range {
        let (base, len) = text.split_once('/').unwrap();
        let offset = if base.contains(':') { 0 } else { 96 };
        (len.parse::<u8>().unwrap() + offset, bits(base))
    }

    pub fn ranges(routes: &[(&str, u32)]) -> Ranges {
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
