//! Fragments: only the first one of a datagram has ports.
//!
//! Called by `odd.rs` alone, at both hooks, with the headers read and `odd.key` filled in but for the ports of a later
//! fragment. What is let go on is looked up, decided about and rewritten like any other packet; a later fragment only
//! has its addresses rewritten.

use aya_ebpf::programs::TcContext;

use crate::odd::Odd;

/// What becomes of a fragment.
#[derive(Clone, Copy)]
#[repr(u32)]
pub enum Fate {
    /// None of ours.
    Pass,
}

/// The first fragment of a datagram; `odd.key` has its ports.
#[inline(always)]
pub fn first(_ctx: &TcContext, _odd: &mut Odd) -> Fate {
    Fate::Pass
}

/// Any other fragment; `odd.key` gets the ports of its datagram where they are known.
#[inline(always)]
pub fn later(_ctx: &TcContext, _odd: &mut Odd) -> Fate {
    Fate::Pass
}
