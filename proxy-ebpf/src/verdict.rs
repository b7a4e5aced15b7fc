//! What becomes of a packet. The only file that knows tc's and XDP's action codes.

use aya_ebpf::{
    bindings::{BPF_F_INGRESS, TC_ACT_SHOT, TC_ACT_UNSPEC, xdp_action},
    helpers::bpf_redirect,
    programs::TcContext,
};
use proxy_common::{Counter, Half};

use crate::{
    count::count,
    packet::{Link, ifindex},
    reject, watch,
};

/// The end of the packet line: tc's action as a number or, above those, why the packet is dropped. One word in all
/// cases: where verdicts with a word of their own met such without, the compiler spilled a register it had never written
/// ("R1 !read_ok").
#[derive(Clone, Copy)]
pub struct Verdict(i32);

/// Above all of tc's actions.
const DROPPED: i32 = 0x100;
/// Above all of those.
const REFUSED: i32 = 0x200;

/// Why a stage gave up on a packet.
pub type DropReason = Counter;

impl Verdict {
    /// Goes on as it is now: none of ours, or translated. The next program on the hook sees it. TCX_NEXT has the same
    /// number. Never OK: it would skip the CNI's own program on this hook.
    pub const NEXT: Self = Self(TC_ACT_UNSPEC);
    /// Ends here, and what there is to count has been counted.
    pub const GONE: Self = Self(TC_ACT_SHOT);

    /// Was turned around or sent elsewhere: what bpf_redirect returned.
    #[inline(always)]
    pub fn redirect(action: i64) -> Self {
        Self(action as i32)
    }

    /// Dropped for a reason: a [`DropReason`] by number.
    #[inline(always)]
    pub fn dropped(reason: u32) -> Self {
        Self(DROPPED + reason as i32)
    }

    /// Refused for a reason, likewise: [`Self::tc_action`] turns the packet into its refusal.
    #[inline(always)]
    pub fn refused(reason: u32) -> Self {
        Self(REFUSED + reason as i32)
    }

    #[inline(always)]
    pub fn is_next(self) -> bool {
        self.0 == Self::NEXT.0
    }

    /// What the program returns. What is refused or dropped is counted here, and nowhere before.
    #[inline(always)]
    pub fn tc_action<L: Link>(self, ctx: &TcContext, half: Half) -> i32 {
        if self.0 < DROPPED {
            return self.0;
        }
        let refused = self.0 >= REFUSED;
        watch::ended::<L>(ctx, half, (self.0 - if refused { REFUSED } else { DROPPED }) as u32);
        if refused && reject::refuse::<L>(ctx) { turn_back(ctx, half).0 } else { TC_ACT_SHOT }
    }
}

impl From<DropReason> for Verdict {
    #[inline(always)]
    fn from(reason: DropReason) -> Self {
        Self::dropped(reason as u32)
    }
}

/// Sends a packet back to where it came from: out of the device that it came in by or, what the node itself sends, into
/// the device it was leaving by.
#[inline(always)]
pub fn turn_back(ctx: &TcContext, half: Half) -> Verdict {
    let flags = if half == Half::Egress { u64::from(BPF_F_INGRESS) } else { 0 };
    // SAFETY: takes numbers.
    Verdict::redirect(unsafe { bpf_redirect(ifindex(ctx), flags) })
}

/// The end of the packet line in the XDP lane, which drops nothing: what is unsure is tc's.
#[derive(Clone, Copy)]
#[repr(u32)]
pub enum Lane {
    /// None of the lane's.
    Pass,
    /// The lane's, but left to tc as it came.
    Left,
    /// Translated, to a backend of this node.
    Local,
    /// Translated, out of the device it came in by.
    Back,
    /// Translated, out of another device: bpf_redirect has been told which.
    Across,
}

impl Lane {
    /// It goes on to tc as it came.
    #[inline(always)]
    pub fn is_untouched(self) -> bool {
        matches!(self, Self::Pass | Self::Left)
    }

    #[inline(always)]
    pub fn xdp_action(self) -> u32 {
        match self {
            Self::Pass => xdp_action::XDP_PASS,
            Self::Left => {
                count(Counter::XdpLeft);
                xdp_action::XDP_PASS
            }
            Self::Local => {
                count(Counter::XdpLocal);
                xdp_action::XDP_PASS
            }
            Self::Back => {
                count(Counter::XdpForwarded);
                xdp_action::XDP_TX
            }
            Self::Across => {
                count(Counter::XdpForwarded);
                xdp_action::XDP_REDIRECT
            }
        }
    }
}
