//! FRAGMENTS and HELD: IP fragments of translated flows.
//!
//! Only the first fragment of a datagram has ports, so what became of it is noted under the datagram's own tuple,
//! and the later ones follow. One that comes before its first is kept in HELD and let go when the first is there.
//!
//! `Fragment::state` is one word, so that it is changed by one compare-and-exchange whichever fragments two CPUs have
//! in their hands at once:
//!
//! | state | meaning |
//! |---|---|
//! | below [`Fragment::UNDECIDED`] | the first has not come yet: the ticket of the fragment held last, 0 for none |
//! | [`Fragment::UNDECIDED`] | it is being looked at |
//! | [`Fragment::PASS`] and the others | what became of it: the later ones follow |

use crate::{Addr, pod};

/// Bytes of a frame that one element of HELD takes; a longer frame takes several in a row.
pub const HELD_BYTES: usize = 2048;

/// Elements one frame may take: enough for an MTU of 9000 and more.
pub const HELD_SPAN: u64 = 5;

/// Elements of HELD that hold frames, a power of two: a ring, in which what is held next overwrites what was held
/// longest ago. One more in front of them, at index 0, holds the last ticket alone. A little more than a megabyte:
/// eleven datagrams of 64 KiB at a time over an MTU of 1500, all backwards.
pub const HELD_FRAMES: u64 = 512;

/// Elements that one datagram may have held: a 64 KiB datagram in fragments of IPv6's least MTU has 53.
pub const HELD_OF_DATAGRAM: u32 = 64;

pod! {
    /// Key of FRAGMENTS: a datagram at a hook. Not by device, because the fragments of one datagram may come by two.
    pub struct FragmentKey [40] {
        pub src: Addr,
        pub dst: Addr,
        /// The identification as it lies in the packet; of IPv4 the upper half is zero.
        pub id: u32,
        pub proto: u8,
        /// A [`crate::Half`] as number.
        pub half: u8,
        pub reserved: u16,
    }

    /// Value of FRAGMENTS.
    pub struct Fragment [32] {
        /// In state [`Fragment::TRANSLATE`] what to write: the destination on ingress, the source on egress.
        pub addr: Addr,
        /// See the table above; changed atomically.
        pub state: u64,
        /// Low 32 bits of the kernel's jiffies when the first fragment came, or while it is awaited the first of the
        /// others. Counts for [`Fragment::SECONDS`].
        pub since: u32,
        pub reserved: u32,
    }

    /// Value of HELD (array): a fragment that waits for its first, or a further part of one.
    pub struct Held [2144] {
        /// Which frame, or part of one, this is: the element's index is a part of it. 0 is none, [`Held::BUSY`] one
        /// that is being written.
        pub ticket: u64,
        /// The fragment of the same datagram that was held before: its ticket, or 0.
        pub next: u64,
        pub key: FragmentKey,
        /// The device whose hook it met.
        pub ifindex: u32,
        /// Length of the frame; the first part alone has it, and all above.
        pub len: u32,
        /// Low 32 bits of the kernel's jiffies when it was held.
        pub since: u32,
        /// Elements that this fragment and those before it take.
        pub elements: u32,
        /// Bytes of link-layer header.
        pub header_len: u32,
        pub reserved: [u32; 5],
        pub bytes: [u8; HELD_BYTES],
    }
}

impl Fragment {
    /// The first fragment is being looked at, by another CPU.
    pub const UNDECIDED: u64 = 1 << 63;
    /// None of ours: the later ones pass.
    pub const PASS: u64 = Self::UNDECIDED | 1;
    /// The later ones get `addr`.
    pub const TRANSLATE: u64 = Self::UNDECIDED | 2;
    /// Refused or dropped: the later ones are dropped.
    pub const DROP: u64 = Self::UNDECIDED | 3;

    /// How long an entry counts. Well above what a network delays one fragment behind another, well below the 30
    /// seconds (net.ipv4.ipfrag_time) that a host waits: IPv4 has 65536 identifications between two hosts, and a
    /// fragment that overtakes its first must not find the entry of an earlier datagram with the same one.
    pub const SECONDS: u32 = 5;
}

impl Held {
    /// A ticket that is none: the element is being written.
    pub const BUSY: u64 = u64::MAX;

    /// The element of a ticket.
    #[inline(always)]
    pub const fn index(ticket: u64) -> u32 {
        1 + (ticket & (HELD_FRAMES - 1)) as u32
    }
}

impl FragmentKey {
    /// Equality without branches, each of which the verifier would follow.
    #[inline(always)]
    pub fn is(&self, other: &Self) -> bool {
        let (a, b): (&[u32; 10], &[u32; 10]) = (bytemuck::cast_ref(self), bytemuck::cast_ref(other));
        let mut differs = 0;
        let mut i = 0;
        while i < 10 {
            differs |= a[i] ^ b[i];
            i += 1;
        }
        differs == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_ticket_has_an_element_and_neighbours_have_neighbours() {
        for ticket in 1..=2 * HELD_FRAMES {
            let index = Held::index(ticket);
            assert!((1..=HELD_FRAMES as u32).contains(&index));
            let next = Held::index(ticket + 1);
            assert!(next == index + 1 || next == 1 && index == HELD_FRAMES as u32);
        }
    }

    #[test]
    fn what_may_be_held_fits() {
        assert!(HELD_SPAN as usize * HELD_BYTES > 9000 + 14);
        assert!(u64::from(HELD_OF_DATAGRAM) + HELD_SPAN < HELD_FRAMES);
        assert!(core::mem::size_of::<Held>() * (HELD_FRAMES as usize + 1) < 1_150_000);
    }
}
