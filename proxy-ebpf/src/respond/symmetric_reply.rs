//! `--symmetric-replies`: a reply leaves by the uplink that its client came in by, for nodes with several uplinks whose routing
//! rules go by source address. The host's stack routes a reply by the backend's address, because its source is translated at
//! egress; this asks the routing table again with the translated source. The egress hook and the slow path call, after the
//! packet is rewritten. A redirected packet skips the other programs and the queueing discipline of the first device.

use core::mem::size_of;

use aya_ebpf::{
    EbpfContext as _,
    bindings::{BPF_FIB_LOOKUP_OUTPUT, bpf_redir_neigh},
    helpers::{bpf_fib_lookup, bpf_redirect_neigh},
    programs::TcContext,
};
use proxy_common::{Addr, CtEntry, CtKey};

use crate::{
    base::{
        globals,
        maps::flow_context,
        protocol_headers::{AF_INET, AF_INET6},
        scratch::FibLookup,
        verdict::Verdict,
    },
    packet::access::ifindex,
};

/// BPF_FIB_LKUP_RET_NO_NEIGH: there is a route, and bpf_redirect_neigh resolves the neighbour.
const NO_NEIGHBOUR: i64 = 7;
/// A lookup as of a packet that came in by the device: no flag.
const AS_FORWARDED: u32 = 0;

/// Sends the rewritten packet of this reply half by its client's uplink. [`Verdict::NEXT`]: it goes on where it is, because that
/// is the device, or no route leads out of the other one.
#[inline(always)]
pub fn redirect(ctx: &TcContext, key: &CtKey, entry: &CtEntry) -> Verdict {
    let wanted = u32::from(entry.device);
    if !globals::symmetric_replies() || wanted == 0 || wanted == ifindex(ctx) {
        return Verdict::NEXT;
    }
    by_device(ctx, key, &entry.addr, wanted)
}

/// A subprogram, for its stack and because few packets come here.
#[inline(never)]
fn by_device(ctx: &TcContext, key: &CtKey, source: &Addr, device: u32) -> Verdict {
    let Some(flow) = flow_context() else {
        return Verdict::NEXT;
    };
    let fib = &mut flow.fib;
    // IPv6 matches rules by source only in lookups of forwarded packets (`bpf_ipv6_fib_lookup`, RT6_LOOKUP_F_HAS_SADDR), IPv4 in
    // both kinds.
    let is_found = !source.is_v4() && has_route(ctx, fib, key, source, device, AS_FORWARDED)
        || has_route(ctx, fib, key, source, device, BPF_FIB_LOOKUP_OUTPUT);
    if !is_found {
        return Verdict::NEXT;
    }
    // The next hop may be of the other family (RFC 5549).
    let mut next_hop = NextHop { family: u32::from(fib.family), addr: fib.dst };
    // SAFETY: the structure is the kernel's, of the length given.
    Verdict::redirect(unsafe {
        bpf_redirect_neigh(device, (&raw mut next_hop).cast(), size_of::<NextHop>() as i32, 0)
    })
}

/// Whether a route from `source` to the client leads out of the device; then `fib` holds the next hop.
#[inline(always)]
fn has_route(
    ctx: &TcContext,
    fib: &mut FibLookup,
    key: &CtKey,
    source: &Addr,
    device: u32,
    flags: u32,
) -> bool {
    let v4 = source.is_v4();
    fib.family = if v4 { AF_INET } else { AF_INET6 };
    fib.proto = key.proto;
    fib.sport = 0;
    fib.len = 0;
    fib.ifindex = device;
    fib.class = 0;
    fib.table = 0;
    if v4 {
        fib.src[0] = source.v4_be();
    } else {
        fib.src = source.words();
    }
    fib.set_destination(&key.dst, key.dport, v4);
    // SAFETY: the structure is the kernel's, of the length given.
    let result =
        unsafe { bpf_fib_lookup(ctx.as_ptr(), (&raw mut *fib).cast(), size_of_val(fib) as i32, flags) };
    (result == 0 || result == NO_NEIGHBOUR) && fib.ifindex == device
}

/// `struct bpf_redir_neigh`.
#[repr(C)]
struct NextHop {
    family: u32,
    addr: [u32; 4],
}

const _: () = assert!(size_of::<NextHop>() == size_of::<bpf_redir_neigh>());
