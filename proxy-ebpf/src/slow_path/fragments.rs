//! IP fragments of TCP, UDP and SCTP: the verdict on a datagram's first fragment is recorded, and the later fragments, which
//! have no ports, follow it. Fragments that arrive before their first wait in `fragment_queue.rs`.
//!
//! Whether a datagram may be for a Service is decided by addresses alone ([`fragment_table::may_match`]); other fragments are
//! neither recorded nor queued.

use core::mem::size_of;

use aya_ebpf::{
    EbpfContext as _,
    bindings::{__sk_buff, BPF_ANY, BPF_F_RECOMPUTE_CSUM},
    helpers::{bpf_redirect, bpf_skb_store_bytes},
    programs::TcContext,
};
use proxy_common::{Addr, Counter, Fragment, FragmentKey, Half, csum};

use crate::{
    base::{
        clock,
        maps::FRAGMENTS,
        protocol_headers::{Ipv4, Ipv6},
        verdict::{DropReason, Verdict},
    },
    observe::counters::count,
    packet::{
        access::{ifindex, ptr_at},
        link::Link,
    },
    slow_path::{fragment_queue, fragment_table},
};

/// Registers a first fragment, before a verdict on it. Non-zero: the list of fragments that were waiting for it, now
/// owned by the caller.
#[inline(never)]
pub fn first(key: &FragmentKey) -> u64 {
    let Some(entry) = fragment_table::find_or_create(key) else {
        return 0;
    };
    let mut tries = 0;
    while tries < 4 {
        let old = fragment_table::state(entry);
        if old != 0 && old < Fragment::UNDECIDED && fragment_table::is_fresh(entry) {
            if fragment_table::replace_state(entry, old, 0) {
                return old;
            }
        } else {
            entry.since = clock::now();
            if fragment_table::replace_state(entry, old, Fragment::UNDECIDED) {
                return 0;
            }
        }
        tries += 1;
    }
    0
}

/// Records the verdict on a first fragment: `went` if it continues, with the address that the packet has now.
#[inline(never)]
pub fn record_verdict<L: Link>(ctx: &TcContext, key: &FragmentKey, went: bool) {
    let mut new =
        Fragment { addr: Addr::UNSPECIFIED_V6, state: Fragment::DROP, since: clock::now(), reserved: 0 };
    if went {
        let Some(addr) = address::<L>(ctx, key) else { return };
        let old = if key.half == Half::Egress as u8 { &key.src } else { &key.dst };
        new.state = if addr.is(old) { Fragment::PASS } else { Fragment::TRANSLATE };
        new.addr = addr;
    }
    if let Some(entry) = fragment_table::lookup(key) {
        entry.addr = new.addr;
        entry.since = new.since;
        // SAFETY: a live map value. Nothing was hung on the entry since `first`.
        unsafe { (&raw mut entry.state).write_volatile(new.state) };
    } else if new.state != Fragment::PASS {
        // Of a flow whose Service or backend is gone: its addresses alone do not match any more.
        let _full = FRAGMENTS.insert(key, &new, u64::from(BPF_ANY));
    }
}

/// Drops a first fragment that ends inside its transport header (RFC 1858, RFC 7112), where it may be for shunt: such
/// fragments exist only to evade inspection.
#[inline(never)]
pub fn tiny(key: &FragmentKey) -> Verdict {
    if !fragment_table::may_match(key) {
        return Verdict::NEXT;
    }
    let dropped =
        Fragment { addr: Addr::UNSPECIFIED_V6, state: Fragment::DROP, since: clock::now(), reserved: 0 };
    let _full = FRAGMENTS.insert(key, &dropped, u64::from(BPF_ANY));
    Counter::FragmentTiny.into()
}

/// Handles a fragment that is not the first.
#[inline(never)]
pub fn later<L: Link>(ctx: &TcContext, key: &FragmentKey) -> Verdict {
    let Some(entry) = fragment_table::find_or_create(key) else {
        return Verdict::NEXT;
    };
    let mut now = fragment_table::state(entry);
    if !fragment_table::is_fresh(entry) && fragment_table::replace_state(entry, now, 0) {
        // The entry is an earlier datagram's.
        entry.since = clock::now();
        now = 0;
    }
    if now < Fragment::UNDECIDED {
        now = fragment_queue::enqueue::<L>(ctx, key, entry);
    }
    match now {
        fragment_queue::QUEUED => {
            count(Counter::FragmentHeld);
            Verdict::CONSUMED
        }
        Fragment::DROP => Counter::FragmentDropped.into(),
        Fragment::TRANSLATE => match translate::<L>(ctx, key, &entry.addr) {
            Ok(()) => Verdict::NEXT,
            Err(reason) => reason.into(),
        },
        // Another CPU is processing the first fragment: run the hook again a moment later.
        Fragment::UNDECIDED if clock::now().wrapping_sub(entry.since) < 2 => repeat_hook(ctx, key),
        _ => Verdict::NEXT,
    }
}

#[inline(always)]
fn repeat_hook(ctx: &TcContext, key: &FragmentKey) -> Verdict {
    // SAFETY: takes numbers only.
    Verdict::redirect(unsafe { bpf_redirect(ifindex(ctx), fragment_table::same_hook_flags(key)) })
}

/// The address that the hook translates, read from the packet.
#[inline(always)]
fn address<L: Link>(ctx: &TcContext, key: &FragmentKey) -> Option<Addr> {
    let egress = key.half == Half::Egress as u8;
    if key.src.is_v4() {
        // SAFETY: `ptr_at` checked the bounds.
        let ip = unsafe { &*ptr_at::<Ipv4>(ctx, L::HEADER)? };
        Some(Addr::from_v4_be(if egress { ip.src } else { ip.dst }))
    } else {
        // SAFETY: `ptr_at` checked the bounds.
        let ip = unsafe { &*ptr_at::<Ipv6>(ctx, L::HEADER)? };
        Some(Addr::from_v6_be(if egress { ip.src } else { ip.dst }))
    }
}

/// Writes the address into a later fragment. The transport checksum of the datagram is in the first fragment.
#[inline(always)]
fn translate<L: Link>(ctx: &TcContext, key: &FragmentKey, to: &Addr) -> Result<(), DropReason> {
    let egress = key.half == Half::Egress as u8;
    if key.src.is_v4() {
        let ip = ptr_at::<Ipv4>(ctx, L::HEADER).ok_or(Counter::RewriteFailed)?;
        // SAFETY: `ptr_at` checked the bounds.
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
    // No checksum in the packet makes up for the new address: the sum that a device may have computed over it
    // changes.
    let offset = L::HEADER + if egress { 8 } else { 24 };
    // SAFETY: the kernel's context; no pointer into the packet is used after this call.
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
