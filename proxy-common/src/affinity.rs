//! AFFINITY and SET_MEMBERS: session affinity.

use crate::{Addr, pod};

pod! {
    /// Key of AFFINITY: the client's address and the service port, independent of the frontend. A socket at the
    /// socket hooks has no address yet: its network namespace is the client, [`crate::socket::netns_addr`].
    pub struct AffinityKey [20] {
        pub client: Addr,
        pub service: u32,
    }

    /// Value of AFFINITY. Programs replace both fields in one 64-bit compare-and-exchange, so that CPUs that create
    /// flows of one client at the same time agree.
    pub struct Affinity [8] {
        pub backend: u32,
        /// Low 32 bits of the kernel's jiffies at the last new flow.
        pub last_used: u32,
    }

    /// Key of SET_MEMBERS (hash, to `u32` of [`set_bits`]): the backends of a service port with affinity. A client's
    /// entry is valid only while its backend is here, in the set that the frontend uses.
    pub struct SetMember [8] {
        pub service: u32,
        pub backend: u32,
    }
}

/// Bits of SET_MEMBERS.
pub mod set_bits {
    /// In the cluster-wide set.
    pub const CLUSTER: u32 = 1;
    /// In the local set.
    pub const LOCAL: u32 = 2;
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

    /// Whether the client's last new flow was less than `seconds` ago. Another CPU's time stamp may be slightly ahead
    /// of `now`: up to one second counts as now.
    #[inline(always)]
    pub const fn is_fresh(&self, now: u32, seconds: u32, hz: u32) -> bool {
        now.wrapping_sub(self.last_used).wrapping_add(hz) < seconds.wrapping_add(1).wrapping_mul(hz)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn freshness_survives_the_wrap_of_the_clock() {
        let entry = |last_used| Affinity { backend: 1, last_used };
        let (hz, seconds) = (250, 10);
        for last_used in [0, 1000, u32::MAX - 100] {
            let at = |jiffies: u32| entry(last_used).is_fresh(last_used.wrapping_add(jiffies), seconds, hz);
            assert!(at(0) && at(2499) && at(u32::MAX), "{last_used}");
            assert!(!at(2500) && !at(1 << 31) && !at(u32::MAX - 250), "{last_used}");
        }
        // The longest timeout that the API allows, at the fastest clock.
        assert!(
            entry(0).is_fresh(86_400_000 - 1, 86_400, 1000) && !entry(0).is_fresh(86_400_000, 86_400, 1000)
        );
    }

    #[test]
    fn an_entry_is_one_word() {
        let entry = Affinity { backend: 7, last_used: 9 };
        assert_eq!(Affinity::from_word(entry.word()), entry);
    }
}
