//! The address that a translated flow leaves the node with: the one that the kernel itself would choose for the flow's
//! route. Called by `snat` for the first packet of a flow; the flow keeps what was chosen then.
//!
//! bpf_fib_lookup names the source of a route where the kernel can ([`globals::fib_source`]). Where it cannot, or finds no
//! route, the source comes from SOURCE_ADDRS, which user space fills with the kernel's answers, then from DEVICES (the
//! device's address) and NODE_CONFIG (the node's primary address).

use core::{mem::size_of, ptr};

use aya_ebpf::{
    bindings::{
        BPF_FIB_LKUP_RET_FRAG_NEEDED, BPF_FIB_LKUP_RET_SUCCESS, BPF_FIB_LOOKUP_OUTPUT,
        bpf_fib_lookup as FibParams,
    },
    helpers::bpf_fib_lookup,
    maps::lpm_trie::Key,
};
use proxy_common::{Addr, CtKey, SourceAddrKey, node::role};

use crate::{
    base::{
        globals,
        maps::{DEVICES, NODE_ADDRS, NODE_CONFIG, SOURCE_ADDRS},
        protocol_headers::{AF_INET, AF_INET6},
        scratch::FibLookup,
    },
    packet::access::RouteContext,
};

/// The source of the packets of `key` (client to backend) that leave by the device `ifindex`.
#[inline(always)]
pub fn select<C: RouteContext>(ctx: &C, key: &CtKey, ifindex: u32, fib: &mut FibLookup) -> Option<Addr> {
    if globals::fib_source() != 0 && routed(ctx, key, ifindex, fib) != 0 {
        let addr = if key.src.is_v4() { Addr::from_v4_be(fib.src[0]) } else { Addr::from_v6_be(fib.src) };
        // Refuses addresses that only another proxy's device has (kube-ipvs0), and link-local ones.
        // SAFETY: map memory, valid while the program runs (RCU); `entry::lookup` says what another CPU may do to it.
        if unsafe { NODE_ADDRS.get(addr) }.is_some_and(|roles| roles & role::OWN != 0) {
            return Some(addr);
        }
    }
    if known(key, ifindex, fib) == 0 { None } else { Some(Addr::from_v6_be(fib.src)) }
}

/// Looks up the route that the packet took, with the inputs of policy rules. If the answer is another device (a rule
/// by a mark that was changed since), looks up the route that leaves by this device, as `ip route get DESTINATION oif
/// DEVICE` does. Returns not 0 if `fib.src` is the source. A subprogram, so that the verifier follows it once.
#[inline(never)]
fn routed<C: RouteContext>(ctx: &C, key: &CtKey, ifindex: u32, fib: &mut FibLookup) -> u32 {
    let flags = globals::fib_source();
    let came_in = ctx.ingress_ifindex();
    // 0: the node itself sent the packet.
    if came_in != 0 {
        fill(fib, key, came_in);
        fib.set_mark(ctx.mark());
        // A route by a device without our hooks passes the packet on to this one: a port's bridge, a macvlan's parent.
        // SAFETY: map memory, valid while the program runs (RCU); `entry::lookup` says what another CPU may do to it.
        if ask(ctx, fib, flags) && (fib.ifindex == ifindex || unsafe { DEVICES.get(&fib.ifindex) }.is_none())
        {
            return 1;
        }
    }
    fill(fib, key, ifindex);
    fib.set_mark(ctx.mark());
    u32::from(ask(ctx, fib, flags | BPF_FIB_LOOKUP_OUTPUT))
}

#[inline(always)]
fn fill(fib: &mut FibLookup, key: &CtKey, ifindex: u32) {
    fib.proto = key.proto;
    fib.sport = key.sport.be();
    // 0 skips the check of the route's MTU.
    fib.len = 0;
    fib.ifindex = ifindex;
    fib.class = 0;
    fib.table = 0;
    let v4 = key.src.is_v4();
    fib.set_destination(&key.dst, key.dport, v4);
    if v4 {
        fib.family = AF_INET;
        fib.src[0] = key.src.v4_be();
    } else {
        fib.family = AF_INET6;
        fib.src = key.src.words();
    }
}

#[inline(always)]
fn ask<C: RouteContext>(ctx: &C, fib: &mut FibLookup, flags: u32) -> bool {
    let params = ptr::from_mut(fib).cast::<FibParams>();
    // SAFETY: the structure is the kernel's, of the length given.
    let answer = unsafe { bpf_fib_lookup(ctx.as_ptr(), params, size_of::<FibLookup>() as i32, flags) };
    // FRAG_NEEDED (the packet exceeds the device's MTU) is returned after the source was filled in.
    answer == i64::from(BPF_FIB_LKUP_RET_SUCCESS) || answer == i64::from(BPF_FIB_LKUP_RET_FRAG_NEEDED)
}

/// The source that user space wrote: for this destination, else for the device, else the node's primary address. Over
/// a tunnel the node's own address would fail the peer's strict rp_filter. Returns not 0 if `fib.src` is the source, as
/// the words of an [`Addr`]. A subprogram, so that its key is not on the stack while [`routed`] runs.
#[inline(never)]
fn known(key: &CtKey, ifindex: u32, fib: &mut FibLookup) -> u32 {
    let v4 = key.src.is_v4();
    let [a, b, c, d] = key.dst.words();
    let SourceAddrKey { prefix_len, .. } = SourceAddrKey::destination(ifindex, key.dst);
    if let Some(addr) = SOURCE_ADDRS.get(&Key::new(prefix_len, [ifindex, a, b, c, d])) {
        fib.src = addr.words();
        return 1;
    }
    // SAFETY: map memory, valid while the program runs (RCU); `entry::lookup` says what another CPU may do to it.
    if let Some(device) = unsafe { DEVICES.get(ifindex) } {
        let own = if v4 { &device.source_v4 } else { &device.source_v6 };
        if !own.is_unspecified() {
            fib.src = own.words();
            return 1;
        }
    }
    let Some(config) = NODE_CONFIG.get(0) else {
        return 0;
    };
    let primary = if v4 { &config.primary_v4 } else { &config.primary_v6 };
    fib.src = primary.words();
    u32::from(!primary.is_unspecified())
}
