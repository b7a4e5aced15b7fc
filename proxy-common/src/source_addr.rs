//! SOURCE_ADDRS: the source address that the kernel would choose, by device and destination.

use crate::{Addr, pod};

pod! {
    /// Key of SOURCE_ADDRS (LPM trie, to [`Addr`]): the address that the node sends with, out of a device to a range of
    /// destinations. Read where the routing table cannot be asked for it; a range without an entry has its device's
    /// source.
    pub struct SourceAddrKey [24] {
        /// Bits that must be equal, counted from the beginning of `ifindex`.
        pub prefix_len: u32,
        pub ifindex: u32,
        pub destination: Addr,
    }
}

impl SourceAddrKey {
    /// The destinations that share `len` bits (of 128) with `destination`.
    #[inline(always)]
    pub const fn new(ifindex: u32, destination: Addr, len: u32) -> Self {
        Self { prefix_len: 32 + len, ifindex, destination }
    }

    /// A single destination, to look up.
    #[inline(always)]
    pub const fn destination(ifindex: u32, destination: Addr) -> Self {
        Self::new(ifindex, destination, 128)
    }

    /// How many bits of the destination count: of 128, or of 32 for IPv4.
    pub const fn address_bits(&self) -> u32 {
        let bits = self.prefix_len.saturating_sub(32);
        if self.destination.is_v4() { bits.saturating_sub(96) } else { bits }
    }
}

#[cfg(test)]
mod tests {
    use core::net::Ipv4Addr;

    use super::*;

    #[test]
    fn destinations_count_bits_as_people_write_them() {
        let v4 = SourceAddrKey::new(7, Ipv4Addr::new(10, 0, 0, 0).into(), 96 + 8);
        assert_eq!((v4.prefix_len, v4.address_bits()), (136, 8));
        assert_eq!(SourceAddrKey::destination(7, Addr::UNSPECIFIED_V6).address_bits(), 128);
    }
}
