//! What becomes of a packet. The only file that knows tc's action codes.

use aya_ebpf::bindings::{TC_ACT_SHOT, TC_ACT_UNSPEC};
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
