//! Addresses, ports and protocols as they are stored in packets and in map keys.

use core::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use crate::pod;

pod! {
    /// An IP address in network order. IPv4 addresses are v4-mapped (`::ffff:a.b.c.d`), so both families share one
    /// code path. Words and not bytes: the verifier and the CPU both prefer aligned 32-bit access.
    pub struct Addr [16] {
        words: [u32; 4],
    }

    /// A transport port in network order.
    pub struct Port [2] {
        be: u16,
    }
}

/// The second half of the v4-mapped prefix, in network order.
const V4_MAPPED: u32 = 0x0000_ffff_u32.to_be();

impl Addr {
    /// `::`, the address of IPv6 NodePorts in FRONTENDS.
    pub const UNSPECIFIED_V6: Self = Self { words: [0; 4] };
    /// `::ffff:0.0.0.0`, the address of IPv4 NodePorts in FRONTENDS.
    pub const UNSPECIFIED_V4: Self = Self::from_v4_be(0);

    /// From the four bytes of an IPv4 address in a packet, read as one native word.
    #[inline(always)]
    pub const fn from_v4_be(be: u32) -> Self {
        Self { words: [0, 0, V4_MAPPED, be] }
    }

    /// From the sixteen bytes of an IPv6 address in a packet, read as four native words.
    #[inline(always)]
    pub const fn from_v6_be(words: [u32; 4]) -> Self {
        Self { words }
    }

    /// The four words, each in network order.
    #[inline(always)]
    pub const fn words(&self) -> [u32; 4] {
        self.words
    }

    /// The last word, in network order: the whole address if [`is_v4`](Self::is_v4).
    #[inline(always)]
    pub const fn v4_be(&self) -> u32 {
        self.words[3]
    }

    /// The last 16 bits as a number: an index into PORTS.
    #[inline(always)]
    pub const fn low16(&self) -> u16 {
        u32::from_be(self.words[3]) as u16
    }

    /// Whether this is an IPv4 address.
    #[inline(always)]
    pub const fn is_v4(&self) -> bool {
        self.words[0] == 0 && self.words[1] == 0 && self.words[2] == V4_MAPPED
    }

    /// 127.0.0.0/8 or `::1`.
    #[inline(always)]
    pub const fn is_loopback(&self) -> bool {
        let [a, b, c, d] = self.words;
        if self.is_v4() { d.to_ne_bytes()[0] == 127 } else { a | b | c == 0 && d == 1u32.to_be() }
    }

    /// `0.0.0.0` or `::`.
    #[inline(always)]
    pub const fn is_unspecified(&self) -> bool {
        self.words[0] == 0
            && self.words[1] == 0
            && (self.words[2] == 0 || self.words[2] == V4_MAPPED)
            && self.words[3] == 0
    }

    /// The unspecified address of the same family: the address of its NodePorts in FRONTENDS.
    #[inline(always)]
    pub const fn unspecified_alike(&self) -> Self {
        if self.is_v4() { Self::UNSPECIFIED_V4 } else { Self::UNSPECIFIED_V6 }
    }

    /// Equality without branches, each of which the verifier would follow.
    #[inline(always)]
    pub const fn is(&self, other: &Self) -> bool {
        let (a, b) = (self.words, other.words);
        (a[0] ^ b[0]) | (a[1] ^ b[1]) | (a[2] ^ b[2]) | (a[3] ^ b[3]) == 0
    }

    /// The address as `core::net` represents it: v4-mapped becomes IPv4.
    pub const fn to_ip(self) -> IpAddr {
        let w = self.words;
        if self.is_v4() {
            IpAddr::V4(Ipv4Addr::from_bits(u32::from_be(w[3])))
        } else {
            let hi = ((u32::from_be(w[0]) as u128) << 96) | ((u32::from_be(w[1]) as u128) << 64);
            IpAddr::V6(Ipv6Addr::from_bits(
                hi | ((u32::from_be(w[2]) as u128) << 32) | u32::from_be(w[3]) as u128,
            ))
        }
    }
}

impl From<IpAddr> for Addr {
    fn from(ip: IpAddr) -> Self {
        match ip {
            IpAddr::V4(v4) => v4.into(),
            IpAddr::V6(v6) => v6.into(),
        }
    }
}

impl From<Ipv4Addr> for Addr {
    fn from(ip: Ipv4Addr) -> Self {
        Self::from_v4_be(ip.to_bits().to_be())
    }
}

impl From<Ipv6Addr> for Addr {
    fn from(ip: Ipv6Addr) -> Self {
        let bits = ip.to_bits();
        Self {
            words: [
                ((bits >> 96) as u32).to_be(),
                ((bits >> 64) as u32).to_be(),
                ((bits >> 32) as u32).to_be(),
                (bits as u32).to_be(),
            ],
        }
    }
}

impl fmt::Display for Addr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.to_ip(), f)
    }
}

impl Port {
    pub const ZERO: Self = Self { be: 0 };

    /// From a port in host order.
    #[inline(always)]
    pub const fn new(host: u16) -> Self {
        Self { be: host.to_be() }
    }

    /// From two bytes in a packet, read as one native half-word.
    #[inline(always)]
    pub const fn from_be(be: u16) -> Self {
        Self { be }
    }

    /// As stored in a packet.
    #[inline(always)]
    pub const fn be(self) -> u16 {
        self.be
    }

    /// In host order.
    #[inline(always)]
    pub const fn host(self) -> u16 {
        u16::from_be(self.be)
    }
}

impl fmt::Display for Port {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.host(), f)
    }
}

/// IP protocol numbers (IANA) that shunt knows; a plain `u8` in map keys.
#[derive(Debug)]
pub struct Proto;

impl Proto {
    pub const ICMP: u8 = 1;
    pub const TCP: u8 = 6;
    pub const UDP: u8 = 17;
    pub const ICMPV6: u8 = 58;
    pub const SCTP: u8 = 132;

    /// The name Kubernetes uses, or `None` for a protocol it does not know.
    pub const fn name(proto: u8) -> Option<&'static str> {
        Some(match proto {
            Self::TCP => "TCP",
            Self::UDP => "UDP",
            Self::SCTP => "SCTP",
            Self::ICMP => "ICMP",
            Self::ICMPV6 => "ICMPv6",
            _ => return None,
        })
    }
}

#[cfg(test)]
mod tests {
    use core::net::{Ipv4Addr, Ipv6Addr};

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn v4_round_trip(bits: u32) {
            let ip = IpAddr::V4(Ipv4Addr::from_bits(bits));
            prop_assert!(Addr::from(ip).is_v4());
            prop_assert_eq!(Addr::from(ip).to_ip(), ip);
        }

        #[test]
        fn v6_round_trip(bits: u128) {
            let ip = Ipv6Addr::from_bits(bits);
            prop_assume!(ip.to_ipv4_mapped().is_none());
            prop_assert_eq!(Addr::from(ip).to_ip(), IpAddr::V6(ip));
        }

        #[test]
        fn port_round_trip(host: u16) {
            prop_assert_eq!(Port::new(host).host(), host);
            prop_assert_eq!(Port::new(host).be().to_ne_bytes(), host.to_be_bytes());
        }
    }

    #[test]
    fn bytes_are_network_order() {
        let addr = Addr::from(Ipv4Addr::new(10, 68, 0, 1));
        assert_eq!(bytemuck::bytes_of(&addr)[10..], [0xff, 0xff, 10, 68, 0, 1]);
        assert!(Addr::UNSPECIFIED_V4.is_unspecified() && Addr::UNSPECIFIED_V6.is_unspecified());
        assert!(!addr.is_unspecified());
    }
}
