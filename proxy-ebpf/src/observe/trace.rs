//! The sampled trace of new flows. Off by default, and then dead code to the verifier.

use aya_ebpf::helpers::bpf_get_prandom_u32;

use aya_log_ebpf::info;
use proxy_common::Addr;

use crate::base::{globals, scratch::FlowContext, verdict::DropReason};

/// Logs the decision on a new flow to a frontend. A subprogram, for its stack frame.
#[inline(never)]
pub fn decision(flow: &FlowContext, result: &Result<(), DropReason>) {
    let one_in = globals::trace();
    // SAFETY: takes no arguments and has no effect.
    if one_in == 0 || unsafe { bpf_get_prandom_u32() } % one_in != 0 {
        return;
    }
    let (key, to) = (&flow.request, &flow.rewrite);
    let (sport, dport) = (key.sport.host(), key.dport.host());
    match result {
        Ok(()) => info!(
            (),
            "proto {} [{:i}]:{} -> [{:i}]:{} to [{:i}]:{} client port {}",
            key.proto,
            octets(&key.src),
            sport,
            octets(&key.dst),
            dport,
            octets(&to.addr),
            to.port.host(),
            to.peer_port.host()
        ),
        Err(reason) => info!(
            (),
            "proto {} [{:i}]:{} -> [{:i}]:{} refused or dropped, counter {}",
            key.proto,
            octets(&key.src),
            sport,
            octets(&key.dst),
            dport,
            *reason as u32
        ),
    }
}

#[inline(always)]
fn octets(addr: &Addr) -> [u8; 16] {
    bytemuck::cast(addr.words())
}
