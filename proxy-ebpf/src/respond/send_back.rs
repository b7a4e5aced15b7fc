//! Sending a packet back to where it came from.

use aya_ebpf::{bindings::BPF_F_INGRESS, helpers::bpf_redirect, programs::TcContext};
use proxy_common::Half;

use crate::{
    base::verdict::Verdict,
    packet::{
        access::{ifindex, ptr_at},
        link::Link,
    },
};

/// Sends a packet back: out of the device that it arrived on or, if the node itself sent it, into the device that it
/// was leaving by.
#[inline(always)]
pub fn send_back(ctx: &TcContext, half: Half) -> Verdict {
    let flags = if half == Half::Egress { u64::from(BPF_F_INGRESS) } else { 0 };
    // SAFETY: takes numbers only.
    Verdict::redirect(unsafe { bpf_redirect(ifindex(ctx), flags) })
}

/// Swaps the Ethernet addresses, if there are any.
#[inline(always)]
pub fn swap_link_addresses<L: Link>(ctx: &TcContext) -> Option<()> {
    if L::HEADER == 0 {
        return Some(());
    }
    // SAFETY: `ptr_at` checked the bounds.
    let macs = unsafe { &mut *ptr_at::<[[u16; 3]; 2]>(ctx, 0)? };
    let [to, from] = *macs;
    *macs = [from, to];
    Some(())
}
