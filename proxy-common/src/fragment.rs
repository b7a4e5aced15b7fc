//! FRAGMENTS and HELD: IP fragments of translated flows.
//!
//! Only the first fragment of a datagram has ports, so the verdict on it is recorded under the datagram's own tuple,
//! and the later fragments follow it. A fragment that arrives before the first is queued in HELD and released when
//! the first arrives.
//!
//! `Fragment::state` is a single word, so that one compare-and-exchange changes it, whichever fragments two CPUs
//! process at the same time:
//!
//! | state | meaning |
//! |---|---|
//! | below [`Fragment::UNDECIDED`] | the first has not arrived: the ticket of the last queued fragment, 0 for none |
//! | [`Fragment::UNDECIDED`] | the first is being processed |
//! | [`Fragment::PASS`] and the others | the verdict on the first, which the later ones follow |

use crate::{Addr, pod};

/// Bytes of a frame in one element of HELD; a longer frame occupies several consecutive elements.
pub const HELD_BYTES: usize = 2048;

/// The most elements per frame: enough for an MTU of 9000 and more.
pub const HELD_SPAN: u64 = 5;

/// Elements of HELD that hold frames, a power of two. They are a ring, in which a new frame overwrites the oldest.
/// Another element in front of them, at index 0, holds the last ticket only. A little more than a megabyte: eleven
/// datagrams of 64 KiB at a time over an MTU of 1500, in reverse order.
pub const HELD_FRAMES: u64 = 512;

/// The most elements per datagram: a 64 KiB datagram in fragments of IPv6's minimum MTU needs 53.
pub const HELD_OF_DATAGRAM: u32 = 64;

pod! {
    /// Key of FRAGMENTS: a datagram at a hook. The device is not part of it, because the fragments of one datagram
    /// may arrive on two.
    pub struct FragmentKey [40] {
        pub src: Addr,
        pub dst: Addr,
        /// The identification in network order; the upper half is zero for IPv4.
        pub id: u32,
        pub proto: u8,
        /// A [`crate::Half`] as number.
        pub half: u8,
        pub reserved: u16,
    }

    /// Value of FRAGMENTS.
    pub struct Fragment [32] {
        /// In state [`Fragment::TRANSLATE`] the address to write: the destination on ingress, the source on egress.
        pub addr: Addr,
        /// See the table above; changed atomically.
        pub state: u64,
        /// Low 32 bits of the kernel's jiffies when the first fragment arrived or, before that, the first of the
        /// others. Valid for [`Fragment::SECONDS`].
        pub since: u32,
        pub reserved: u32,
    }

    /// Value of HELD (array): a fragment that waits for the first of its datagram, or a further part of one.
    pub struct Held [2144] {
        /// Identifies the frame, or the part of one; the element's index is derived from it. 0 is none,
        /// [`Held::BUSY`] one that is being written.
        pub ticket: u64,
        /// The ticket of the previous queued fragment of the same datagram, or 0.
        pub next: u64,
        pub key: FragmentKey,
        /// The device whose hook queued it.
        pub ifindex: u32,
        /// Length of the frame. This and all fields above are valid in the first part only.
        pub len: u32,
        /// Low 32 bits of the kernel's jiffies when it was queued.
        pub since: u32,
        /// Elements that this fragment and the previous ones occupy.
        pub elements: u32,
        /// Length of the link-layer header.
        pub header_len: u32,
        pub reserved: [u32; 5],
        pub bytes: [u8; HELD_BYTES],
    }
}

impl Fragment {
    /// Another CPU is processing the first fragment.
    pub const UNDECIDED: u64 = 1 << 63;
    /// Not for shunt: the later fragments pass.
    pub const PASS: u64 = Self::UNDECIDED | 1;
    /// The later fragments are translated to `addr`.
    pub const TRANSLATE: u64 = Self::UNDECIDED | 2;
    /// Rejected or dropped: the later fragments are dropped.
    pub const DROP: u64 = Self::UNDECIDED | 3;

    /// How long an entry is valid: well above the delay of one fragment behind another, and well below the 30 seconds
    /// (net.ipv4.ipfrag_time) that a host waits. There are 65536 IPv4 identifications between two hosts, and a
    /// fragment that overtakes its first must not find the entry of an earlier datagram with the same one.
    pub const SECONDS: u32 = 5;
}

impl Held {
    /// Not a ticket: the element is being written.
    pub const BUSY: u64 = u64::MAX;

    /// The index of a ticket's element.
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
    fn queue_limits_fit() {
        assert!(HELD_SPAN as usize * HELD_BYTES > 9000 + 14);
        assert!(u64::from(HELD_OF_DATAGRAM) + HELD_SPAN < HELD_FRAMES);
        assert!(core::mem::size_of::<Held>() * (HELD_FRAMES as usize + 1) < 1_150_000);
    }
}
