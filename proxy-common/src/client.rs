//! Clients: which backend one of them stays with (session affinity), and which of them a load balancer's address
//! lets in (loadBalancerSourceRanges).

use crate::{Addr, pod};

pod! {
    /// Key of AFFINITY: the client's address per service port, whichever frontend it used. A socket that the socket
    /// hooks translate has no address yet: its client is its network namespace, [`netns`].
    pub struct AffinityKey [20] {
        pub client: Addr,
        pub service: u32,
    }

    /// Value of AFFINITY. Programs replace both halves in one compare-and-exchange of 64 bits, so that CPUs that start
    /// flows of one client at once agree.
    pub struct Affinity [8] {
        pub backend: u32,
        /// Low 32 bits of the kernel's jiffies at the last new flow.
        pub last_used: u32,
    }

    /// Key of SET_MEMBERS (hash, to `u32` of [`set_bits`]): which backends a service port with affinity has. A client's
    /// entry counts only while its backend stands here for the set that the frontend uses.
    pub struct SetMember [8] {
        pub service: u32,
        pub backend: u32,
    }

    /// Key of SOURCE_RANGES (LPM trie, to 1): clients that the load balancer's addresses of a service port let in.
    pub struct SourceRange [24] {
        /// Bits that must be equal, counted from the beginning of `service`.
        pub prefix_len: u32,
        pub service: u32,
        pub addr: Addr,
    }
}

/// Bits of SET_MEMBERS.
pub mod set_bits {
    /// In the cluster-wide set.
    pub const CLUSTER: u32 = 1;
    /// In the local set.
    pub const LOCAL: u32 = 2;
}

/// First word of 100::/64 in network order: the discard prefix (RFC 6666), which no client has.
const DISCARD: u32 = 0x0100_0000_u32.to_be();

/// The sockets of one network namespace as a client, by the namespace's cookie.
#[inline(always)]
pub const fn netns(cookie: u64) -> Addr {
    Addr::from_v6_be([DISCARD, 0, ((cookie >> 32) as u32).to_be(), (cookie as u32).to_be()])
}

/// The cookie, where a client is a network namespace.
pub const fn netns_of(client: &Addr) -> Option<u64> {
    let words = client.words();
    if words[0] != DISCARD || words[1] != 0 {
        return None;
    }
    Some((u32::from_be(words[2]) as u64) << 32 | u32::from_be(words[3]) as u64)
}

impl Affinity {
    /// As one word, the unit in which programs replace it.
    #[inline(always)]
    pub fn word(self) -> u64 {
        bytemuck::cast(self)
    }

    #[inline(always)]
    pub fn from_word(word: u64) -> Self {
        bytemuck::cast(word)
    }

    /// Whether the client's last new flow was less than `seconds` ago. Another CPU's stamp may lie a moment ahead of
    /// this one's `now`: up to a second counts as now.
    #[inline(always)]
    pub const fn is_fresh(&self, now: u32, seconds: u32, hz: u32) -> bool {
        now.wrapping_sub(self.last_used).wrapping_add(hz) < seconds.wrapping_add(1).wrapping_mul(hz)
    }
}

impl SourceRange {
    /// The range of addresses that share `len` bits (of 128) with `addr`.
    #[inline(always)]
    pub const fn new(service: u32, addr: Addr, len: u32) -> Self {
        Self { prefix_len: 32 + len, service, addr }
    }

    /// A single client, to look up.
    #[inline(always)]
    pub const fn client(service: u32, addr: Addr) -> Self {
        Self::new(service, addr, 128)
    }

    /// How many bits of the address count: of 128, or of 32 for IPv4.
    pub const fn address_bits(&self) -> u32 {
        let bits = self.prefix_len.saturating_sub(32);
        if self.addr.is_v4() { bits.saturating_sub(96) } else { bits }
    }
}

#[cfg(test)]
mod tests {
    use core::net::Ipv4Addr;

    use super::*;

    #[test]
    fn namespaces_are_clients_and_addresses_are_not_namespaces() {
        for cookie in [1, 4242, 1 << 40 | 7, u64::MAX] {
            assert_eq!(netns_of(&netns(cookie)), Some(cookie));
        }
        assert_eq!(netns_of(&Ipv4Addr::new(10, 0, 0, 1).into()), None);
        assert_eq!(netns_of(&Addr::UNSPECIFIED_V6), None);
    }

    #[test]
    fn freshness_survives_the_wrap_of_the_clock() {
        let entry = |last_used| Affinity { backend: 1, last_used };
        let (hz, seconds) = (250, 10);
        for last_used in [0, 1000, u32::MAX - 100] {
            let at = |jiffies: u32| entry(last_used).is_fresh(last_used.wrapping_add(jiffies), seconds, hz);
            assert!(at(0) && at(2499) && at(u32::MAX), "{last_used}");
            assert!(!at(2500) && !at(1 << 31) && !at(u32::MAX - 250), "{last_used}");
        }
        // The longest time the API allows, at the fastest clock.
        assert!(
            entry(0).is_fresh(86_400_000 - 1, 86_400, 1000) && !entry(0).is_fresh(86_400_000, 86_400, 1000)
        );
    }

    #[test]
    fn an_entry_is_one_word() {
        let entry = Affinity { backend: 7, last_used: 9 };
        assert_eq!(Affinity::from_word(entry.word()), entry);
    }

    #[test]
    fn ranges_count_bits_as_people_write_them() {
        let v4 = SourceRange::new(1, Ipv4Addr::new(10, 0, 0, 0).into(), 96 + 8);
        assert_eq!((v4.prefix_len, v4.address_bits()), (136, 8));
        assert_eq!(SourceRange::client(1, Addr::UNSPECIFIED_V6).address_bits(), 128);
    }
}
