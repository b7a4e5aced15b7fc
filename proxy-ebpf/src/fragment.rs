//! IP fragments of TCP, UDP and SCTP: what becomes of a datagram's first fragment is noted, and the later ones, which
//! have no ports, follow it. `odd.rs` calls: [`first`] and [`decided`] around what it does with a first fragment,
//! [`later`] for the others. Where the fragments that came too early wait is `held.rs`'s.
//!
//! What could concern us is told by addresses alone ([`concerns`]); no other fragment is looked at twice, noted or
//! held. A first fragment that ends inside its transport header is `odd.rs`'s to drop ([`tiny`]).

use core::mem::size_of;

use aya_ebpf::{
    EbpfContext as _,
    bindings::{__sk_buff, BPF_ANY, BPF_F_INGRESS, BPF_F_RECOMPUTE_CSUM, BPF_NOEXIST},
    helpers::{bpf_redirect, bpf_skb_store_bytes},
    programs::TcContext,
};
use proxy_common::{
    Addr, Counter, Fragment, FragmentKey, FrontendKey, Half, Port, Proto, csum, node::port_bits,
};

use crate::{
    atomic,
    count::count,
    flow, globals, held,
    maps::{FRAGMENTS, NODE_ADDRS},
    packet::{Ipv4, Ipv6, Link, at, ifindex},
    service,
    verdict::{DropReason, Verdict},
};

/// Whether the datagram could be to a Service, or an answer, or to one of our translated sources. On ingress its
/// destination is a VIP (which has a ping answer) or the node's; on egress one end may be a backend.
#[inline(always)]
pub fn concerns(key: &FragmentKey) -> bool {
    if key.half == Half::Egress as u8 {
        let ends =
            service::bits_of(Port::new(key.src.low16())) | service::bits_of(Port::new(key.dst.low16()));
        return ends & port_bits::BACKEND_ADDR != 0;
    }
    let echo = if key.dst.is_v4() { Proto::ICMP } else { Proto::ICMPV6 };
    // SAFETY: a map's memory for as long as this program runs; see `flow::lookup` for what may become of it meanwhile.
    let own = unsafe { NODE_ADDRS.get(&key.dst) };
    own.is_some() || service::get(&FrontendKey::new(key.dst, Port::ZERO, echo)).is_some()
}

/// The datagram's entry. The reference is to memory that other CPUs change and, in an LRU, may reuse for another
/// datagram meanwhile: what is done with it stays harmless then (a fragment is lost, or held in vain).
#[inline(always)]
fn lookup(key: &FragmentKey) -> Option<&'static mut Fragment> {
    // SAFETY: a live map value for as long as the program runs (RCU); the aliasing is described above.
    FRAGMENTS.get_ptr_mut(key).map(|entry| unsafe { &mut *entry })
}

/// The datagram's entry, which is made where there is none and it could concern us.
#[inline(always)]
fn entry(key: &FragmentKey) -> Option<&'static mut Fragment> {
    if let Some(entry) = lookup(key) {
        return Some(entry);
    }
    if !concerns(key) {
        return None;
    }
    let awaited = Fragment { addr: Addr::UNSPECIFIED_V6, state: 0, since: flow::now(), reserved: 0 };
    // Another CPU may be faster: its entry serves as well.
    let _there = FRAGMENTS.insert(key, &awaited, u64::from(BPF_NOEXIST));
    lookup(key)
}

#[inline(always)]
pub fn state(entry: &Fragment) -> u64 {
    // SAFETY: a reference; volatile because other CPUs write it.
    unsafe { (&raw const entry.state).read_volatile() }
}

/// Changes the state unless another CPU was faster.
#[inline(always)]
pub fn change(entry: &mut Fragment, old: u64, new: u64) -> bool {
    // SAFETY: a live map value, 8-byte aligned.
    unsafe { atomic::replace(&raw mut entry.state, old, new) }.is_ok()
}

#[inline(always)]
fn is_fresh(entry: &Fragment) -> bool {
    flow::now().wrapping_sub(entry.since) < Fragment::SECONDS * globals::hz()
}

/// A first fragment, before anything is decided about it. Not 0: the list of those that were waiting for it, which
/// nobody else has now.
#[inline(never)]
pub fn first(key: &FragmentKey) -> u64 {
    let Some(entry) = entry(key) else {
        return 0;
    };
    let mut tries = 0;
    while tries < 4 {
        let old = state(entry);
        if old != 0 && old < Fragment::UNDECIDED && is_fresh(entry) {
            if change(entry, old, 0) {
                return old;
            }
        } else {
            entry.since = flow::now();
            if change(entry, old, Fragment::UNDECIDED) {
                return 0;
            }
        }
        tries += 1;
    }
    0
}

/// Notes what became of a first fragment, which is read from the packet.
#[inline(never)]
pub fn decided<L: Link>(ctx: &TcContext, key: &FragmentKey, went: bool) {
    let mut new =
        Fragment { addr: Addr::UNSPECIFIED_V6, state: Fragment::DROP, since: flow::now(), reserved: 0 };
    if went {
        let Some(addr) = address::<L>(ctx, key) else { return };
        let old = if key.half == Half::Egress as u8 { &key.src } else { &key.dst };
        new.state = if addr.is(old) { Fragment::PASS } else { Fragment::TRANSLATE };
        new.addr = addr;
    }
    if let Some(entry) = lookup(key) {
        entry.addr = new.addr;
        entry.since = new.since;
        // SAFETY: a live map value. Nothing was hung on the entry since `first`.
        unsafe { (&raw mut entry.state).write_volatile(new.state) };
    } else if new.state != Fragment::PASS {
        // Of a flow whose Service or backend is gone: told by its ports alone.
        let _full = FRAGMENTS.insert(key, &new, u64::from(BPF_ANY));
    }
}

/// A first fragment that ends inside its transport header (RFC 1858, RFC 7112): no sender makes one but to deceive
/// whoever looks at headers.
#[inline(never)]
pub fn tiny(key: &FragmentKey) -> Verdict {
    if !concerns(key) {
        return Verdict::NEXT;
    }
    let dropped =
        Fragment { addr: Addr::UNSPECIFIED_V6, state: Fragment::DROP, since: flow::now(), reserved: 0 };
    let _full = FRAGMENTS.insert(key, &dropped, u64::from(BPF_ANY));
    Counter::FragmentTiny.into()
}

/// A fragment that is not the first.
#[inline(never)]
pub fn later<L: Link>(ctx: &TcContext, key: &FragmentKey) -> Verdict {
    let Some(entry) = entry(key) else {
        return Verdict::NEXT;
    };
    let mut now = state(entry);
    if !is_fresh(entry) && change(entry, now, 0) {
        // An earlier datagram's.
        entry.since = flow::now();
        now = 0;
    }
    if now < Fragment::UNDECIDED {
        now = held::hold::<L>(ctx, key, entry);
    }
    match now {
        held::HELD => {
            count(Counter::FragmentHeld);
            Verdict::GONE
        }
        Fragment::DROP => Counter::FragmentDropped.into(),
        Fragment::TRANSLATE => match translate::<L>(ctx, key, &entry.addr) {
            Ok(()) => Verdict::NEXT,
            Err(reason) => reason.into(),
        },
        // Another CPU is looking at the first: ask again a moment later.
        Fragment::UNDECIDED if flow::now().wrapping_sub(entry.since) < 2 => again(ctx, key),
        _ => Verdict::NEXT,
    }
}

/// What sends a packet through this hook once more: flags of the redirect to the same device.
#[inline(always)]
pub fn same_hook(key: &FragmentKey) -> u64 {
    if key.half == Half::Egress as u8 { 0 } else { u64::from(BPF_F_INGRESS) }
}

#[inline(always)]
fn again(ctx: &TcContext, key: &FragmentKey) -> Verdict {
    // SAFETY: takes numbers.
    Verdict::redirect(unsafe { bpf_redirect(ifindex(ctx), same_hook(key)) })
}

/// The address that the hook translates, as it stands in the packet.
#[inline(always)]
fn address<L: Link>(ctx: &TcContext, key: &FragmentKey) -> Option<Addr> {
    let egress = key.half == Half::Egress as u8;
    if key.src.is_v4() {
        // SAFETY: `at` checked the bounds.
        let ip = unsafe { &*at::<Ipv4>(ctx, L::HEADER)? };
        Some(Addr::from_v4_be(if egress { ip.src } else { ip.dst }))
    } else {
        // SAFETY: `at` checked the bounds.
        let ip = unsafe { &*at::<Ipv6>(ctx, L::HEADER)? };
        Some(Addr::from_v6_be(if egress { ip.src } else { ip.dst }))
    }
}

/// Writes the address into a later fragment. No transport checksum: the one of the whole datagram is in the first.
#[inline(always)]
fn translate<L: Link>(ctx: &TcContext, key: &FragmentKey, to: &Addr) -> Result<(), DropReason> {
    let egress = key.half == Half::Egress as u8;
    if key.src.is_v4() {
        let ip = at::<Ipv4>(ctx, L::HEADER).ok_or(Counter::RewriteFailed)?;
        // SAFETY: `at` checked the bounds.
        let ip = unsafe { &mut *ip };
        let old = if egress { ip.src } else { ip.dst };
        ip.check = csum::apply(ip.check, csum::diff(old, to.v4_be()));
        if egress {
            ip.src = to.v4_be();
        } else {
            ip.dst = to.v4_be();
        }
        return Ok(());
    }
    // Nothing in such a packet makes up for the new address: the sum that the device may have made of it changes.
    let offset = L::HEADER + if egress { 8 } else { 24 };
    // SAFETY: the context the kernel gave; no pointer into the packet outlives this call.
    let failed = unsafe {
        bpf_skb_store_bytes(
            ctx.as_ptr().cast::<__sk_buff>(),
            offset as u32,
            (&raw const *to).cast(),
            size_of::<Addr>() as u32,
            u64::from(BPF_F_RECOMPUTE_CSUM),
        )
    };
    if failed == 0 { Ok(()) } else { Err(Counter::RewriteFailed) }
}
