//! SOURCE_RANGES: the clients that a load balancer address serves (loadBalancerSourceRanges).

use crate::{Addr, pod};

pod! {
    /// Key of SOURCE_RANGES (LPM trie, to 1): clients for which a service port's load balancer addresses accept
    /// flows.
    pub struct SourceRange [24] {
        /// Bits that must match, counted from the beginning of `service`.
        pub prefix_len: u32,
        pub service: u32,
        pub addr: Addr,
    }
}

impl SourceRange {
    /// The range of addresses with the same first `len` bits (of 128) as `addr`.
    #[inline(always)]
    pub const fn new(service: u32, addr: Addr, len: u32) -> Self {
        Self { prefix_len: 32 + len, service, addr }
    }

    /// A single client, for lookups.
    #[inline(always)]
    pub const fn client(service: u32, addr: Addr) -> Self {
        Self::new(service, addr, 128)
    }

    /// How many bits of the address must match: of 128, or of 32 for IPv4.
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
    fn prefix_lengths_are_in_the_usual_notation() {
        let v4 = SourceRange::new(1, Ipv4Addr::new(10, 0, 0, 0).into(), 96 + 8);
        assert_eq!((v4.prefix_len, v4.address_bits()), (136, 8));
        assert_eq!(SourceRange::client(1, Addr::UNSPECIFIED_V6).address_bits(), 128);
    }
}
