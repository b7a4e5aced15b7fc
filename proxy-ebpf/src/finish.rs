//! Final verdicts. The only place that uses tc and XDP action codes, and the only place where drops and rejections of
//! packets are counted. The entry points in `main.rs` call it with what their hook returned.

use aya_ebpf::{
    bindings::{TC_ACT_SHOT, TC_ACT_UNSPEC, xdp_action},
    programs::TcContext,
};
use proxy_common::{Counter, Half};

use crate::{
    base::verdict::{Verdict, XdpVerdict},
    observe::{counters::count, drops},
    packet::link::Link,
    respond::{reject, send_back::send_back},
};

// Verdicts have the numbers of actions, so nothing is converted. UNSPEC (TCX_NEXT has the same number) lets the next program
// on the hook see the packet; OK would skip the CNI's own program.
const _: () = assert!(Verdict::NEXT.number() == TC_ACT_UNSPEC);
const _: () = assert!(Verdict::CONSUMED.number() == TC_ACT_SHOT);

/// What a tc program returns.
#[inline(always)]
pub fn tc<L: Link>(ctx: &TcContext, half: Half, verdict: Verdict) -> i32 {
    if let Some(action) = verdict.action() {
        return action;
    }
    drops::packet::<L>(ctx, half, verdict.reason());
    if verdict.is_rejected() && reject::reject::<L>(ctx) {
        send_back(ctx, half).number()
    } else {
        TC_ACT_SHOT
    }
}

/// What an XDP program returns.
#[inline(always)]
pub fn xdp(verdict: XdpVerdict) -> u32 {
    match verdict {
        XdpVerdict::Pass => xdp_action::XDP_PASS,
        XdpVerdict::LeaveToTc => {
            count(Counter::XdpLeft);
            xdp_action::XDP_PASS
        }
        XdpVerdict::Local => {
            count(Counter::XdpLocal);
            xdp_action::XDP_PASS
        }
        XdpVerdict::Tx => {
            count(Counter::XdpForwarded);
            xdp_action::XDP_TX
        }
        XdpVerdict::Redirect => {
            count(Counter::XdpForwarded);
            xdp_action::XDP_REDIRECT
        }
    }
}
