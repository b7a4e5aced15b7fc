//! What becomes of a packet. The only file that knows tc's and XDP's action codes.

use aya_ebpf::bindings::{TC_ACT_SHOT, TC_ACT_UNSPEC, xdp_action};
use proxy_common::Counter;

use crate::count::count;

/// The end of the packet line.
#[derive(Clone, Copy)]
pub enum Verdict {
    /// Goes on as it is now: none of ours, or translated. The next program on the hook sees it.
    Next,
    /// Was turned around or sent elsewhere; holds what bpf_redirect returned.
    Redirect(i32),
    /// Ends here, already counted.
    Drop,
}

/// Why a stage gave up on a packet.
pub type DropReason = Counter;

impl Verdict {
    #[inline(always)]
    pub fn tc_action(self) -> i32 {
        match self {
            // TCX_NEXT has the same number. Never OK: it would skip the CNI's own program on this hook.
            Self::Next => TC_ACT_UNSPEC,
            Self::Redirect(action) => action,
            Self::Drop => TC_ACT_SHOT,
        }
    }
}

impl From<DropReason> for Verdict {
    #[inline(always)]
    fn from(reason: DropReason) -> Self {
        count(reason);
        Self::Drop
    }
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
