//! The result of a hook: a value that names no stage. `finish.rs` turns it into an action.

use proxy_common::Counter;

/// What happens to a packet at a tc hook: an action of tc as a number or, above those, the reason why the packet is
/// dropped or rejected. A single word in all cases: with an enum that carries a reason in some variants only, the compiler
/// spilled a register that it had never written ("R1 !read_ok").
#[derive(Clone, Copy)]
pub struct Verdict(i32);

/// Added to the reason of a drop or a rejection; greater than every action of tc.
const ENDED: i32 = 0x100;

/// Why a stage gave up on a packet.
pub type DropReason = Counter;

impl Verdict {
    /// The packet continues as it is: not for a Service, or translated.
    pub const NEXT: Self = Self(-1);
    /// The packet ends here, and whatever there is to count has been counted.
    pub const CONSUMED: Self = Self(2);

    /// The packet was sent elsewhere; `action` is what bpf_redirect returned.
    #[inline(always)]
    pub fn redirect(action: i64) -> Self {
        Self(action as i32)
    }

    /// Dropped or, if the reason is a refusal (`Kind::Refusal`), rejected: the sender gets a reset or an ICMP error. `reason` is a
    /// [`DropReason`] by number.
    #[inline(always)]
    pub fn ended(reason: u32) -> Self {
        Self(ENDED + reason as i32)
    }

    #[inline(always)]
    pub fn is_next(self) -> bool {
        self.0 == Self::NEXT.0
    }

    /// The tc action, of a packet that is neither dropped nor rejected for a reason.
    #[inline(always)]
    pub fn action(self) -> Option<i32> {
        if self.0 < ENDED { Some(self.0) } else { None }
    }

    #[inline(always)]
    pub fn is_rejected(self) -> bool {
        self.0 >= ENDED && Counter::is_refusal(self.reason())
    }

    /// The reason, of a packet that is dropped or rejected: a [`DropReason`] by number.
    #[inline(always)]
    pub fn reason(self) -> u32 {
        (self.0 - ENDED) as u32
    }

    /// The value as a number, for `finish.rs` to compare with tc's actions at compile time.
    pub const fn number(self) -> i32 {
        self.0
    }
}

impl From<DropReason> for Verdict {
    #[inline(always)]
    fn from(reason: DropReason) -> Self {
        Self::ended(reason as u32)
    }
}

/// What happens to a packet at an XDP hook, which drops nothing: what it is not sure of is left to tc.
#[derive(Clone, Copy)]
#[repr(u32)]
pub enum XdpVerdict {
    /// Not for XDP.
    Pass,
    /// Of a flow or frontend that XDP serves, but left to tc unchanged.
    LeaveToTc,
    /// Translated, to a backend of this node.
    Local,
    /// Translated, out of the device that it arrived on.
    Tx,
    /// Translated, out of another device, which bpf_redirect has been given.
    Redirect,
}

impl XdpVerdict {
    /// The packet continues to tc unchanged.
    #[inline(always)]
    pub fn is_unchanged(self) -> bool {
        matches!(self, Self::Pass | Self::LeaveToTc)
    }
}
