//! Fragments that arrived before the first one of their datagram: kept in HELD, and released when the first arrives.
//!
//! HELD is a ring. To queue a fragment a CPU takes the next tickets, one for each 2 KiB of the frame, and writes the elements
//! that they name; an element stores its own ticket, so a reader of an overwritten element finds another ticket. The fragments
//! of one datagram are a linked list, newest first. Its head is in the datagram's entry in FRAGMENTS and is replaced by
//! compare-and-exchange: if the first fragment has arrived meanwhile, the queued one follows its verdict instead.
//!
//! Release: the first fragment's skb is sent through the hook again unchanged; then it is overwritten with one queued fragment
//! after the other, each of which is sent as well. On ingress these queue up behind this packet (netif_rx). On egress each
//! passes the hook within this program before the next is written: nothing in per-CPU memory may be kept across that. Taps see
//! queued fragments of ingress twice.

use core::{ffi::c_void, hint::black_box};

use aya_ebpf::{
    EbpfContext as _,
    bindings::{__sk_buff, BPF_F_RECOMPUTE_CSUM},
    helpers::{
        bpf_clone_redirect, bpf_loop, bpf_redirect, bpf_skb_change_tail, bpf_skb_load_bytes,
        bpf_skb_pull_data, bpf_skb_store_bytes,
    },
    programs::TcContext,
};
use proxy_common::{
    Counter, Fragment, FragmentKey, Held,
    fragment::{HELD_BYTES, HELD_OF_DATAGRAM, HELD_SPAN},
};

use crate::{
    base::{atomic, clock, maps::HELD, verdict::Verdict},
    observe::counters::count,
    packet::{access::ifindex, link::Link},
    slow_path::fragment_table,
};

/// Result of [`enqueue`]: the fragment is queued. Not a state of an entry.
pub const QUEUED: u64 = 0;

/// The element of a ticket. The reference is to memory that other CPUs may overwrite, as the module head describes.
#[inline(always)]
fn element(ticket: u64) -> Option<&'static mut Held> {
    // SAFETY: a live map value; the aliasing is described above.
    HELD.get_ptr_mut(Held::index(ticket)).map(|element| unsafe { &mut *element })
}

#[inline(always)]
fn ticket_of(element: &Held) -> u64 {
    // SAFETY: a valid reference; volatile because other CPUs write it.
    unsafe { (&raw const element.ticket).read_volatile() }
}

/// Bytes of the part of a frame that begins at `at`, in a form that the verifier bounds: 1 to `HELD_BYTES`.
#[inline(always)]
fn part_len(len: u32, at: u32) -> u32 {
    let rest = len - at;
    let part = if rest > HELD_BYTES as u32 { HELD_BYTES as u32 } else { rest };
    (black_box(part.wrapping_sub(1)) & (HELD_BYTES as u32 - 1)) + 1
}

/// Queues a fragment until the first one arrives. Returns [`QUEUED`], or the state that the fragment has to follow:
/// that of the first, if it arrived meanwhile, or PASS if the fragment could not be queued.
#[inline(never)]
pub fn enqueue<L: Link>(ctx: &TcContext, key: &FragmentKey, entry: &mut Fragment) -> u64 {
    let len = ctx.len();
    let span = u64::from(len).div_ceil(HELD_BYTES as u64);
    if span <= HELD_SPAN
        && let Some(last) = HELD.get_ptr_mut(0)
    {
        // SAFETY: a live map value, 8-byte aligned.
        let ticket = unsafe { atomic::add(&raw mut (*last).ticket, span) } + 1;
        if store_frame::<L>(ctx, key, ticket) {
            let after = link(entry, ticket, span as u32);
            if after != Fragment::PASS {
                return after;
            }
        }
    }
    if fragment_table::state(entry) < Fragment::UNDECIDED {
        count(Counter::FragmentNotHeld);
    }
    Fragment::PASS
}

/// Copies the frame to the elements from `ticket` on.
#[inline(always)]
fn store_frame<L: Link>(ctx: &TcContext, key: &FragmentKey, ticket: u64) -> bool {
    let len = ctx.len();
    let (mut part, mut at) = (0, 0);
    while part < HELD_SPAN && at < len {
        let Some(element) = element(ticket + part) else {
            return false;
        };
        let old = ticket_of(element);
        // SAFETY: a live map value, 8-byte aligned.
        if old == Held::BUSY || unsafe { atomic::replace(&raw mut element.ticket, old, Held::BUSY) }.is_err()
        {
            return false;
        }
        if part == 0 {
            element.key = *key;
            element.ifindex = ifindex(ctx);
            element.len = len;
            element.since = clock::now();
            element.header_len = L::HEADER as u32;
        }
        // SAFETY: the kernel's context, and as many bytes of a map value.
        let failed = unsafe {
            bpf_skb_load_bytes(ctx.as_ptr().cast(), at, element.bytes.as_mut_ptr().cast(), part_len(len, at))
        };
        // SAFETY: a live map value.
        unsafe {
            (&raw mut element.ticket).write_volatile(if failed == 0 { ticket + part } else { 0 });
        }
        if failed != 0 {
            return false;
        }
        part += 1;
        at += HELD_BYTES as u32;
    }
    true
}

/// Links the fragment of `ticket` into the datagram's list; returns the same as [`enqueue`].
#[inline(always)]
fn link(entry: &mut Fragment, ticket: u64, span: u32) -> u64 {
    let Some(element) = element(ticket) else {
        return Fragment::PASS;
    };
    let mut tries = 0;
    while tries < 4 {
        let before = fragment_table::state(entry);
        if before >= Fragment::UNDECIDED {
            return before;
        }
        element.next = before;
        element.elements = span + queued_elements(before);
        if element.elements > HELD_OF_DATAGRAM {
            return Fragment::PASS;
        }
        if fragment_table::replace_state(entry, before, ticket) {
            return QUEUED;
        }
        tries += 1;
    }
    Fragment::PASS
}

/// How many elements the list that begins at `ticket` occupies. An overwritten element ends a list.
#[inline(always)]
fn queued_elements(ticket: u64) -> u32 {
    match element(ticket) {
        Some(before) if ticket != 0 && ticket_of(before) == ticket => before.elements,
        _ => 0,
    }
}

/// State shared by the iterations of [`release`].
#[repr(C)]
struct Release {
    skb: *mut __sk_buff,
    /// The fragment that is being written into the skb, and the position in it.
    ticket: u64,
    part: u64,
    at: u64,
    /// Flags of the redirect.
    flags: u64,
    header_len: u64,
    /// What bpf_redirect returned for the last fragment; [`UNSENT`] before.
    action: i64,
}

/// Not an action of tc.
const UNSENT: i64 = i64::MIN;

/// Sends the first fragment `key` and the list that waited for it through the hook again. `None`: the first continues
/// as it is, and the others are lost.
#[inline(never)]
pub fn release<L: Link>(ctx: &TcContext, key: &FragmentKey, list: u64) -> Option<Verdict> {
    let skb = ctx.as_ptr().cast::<__sk_buff>();
    let mut release = Release {
        skb,
        ticket: list,
        part: 0,
        at: 0,
        flags: fragment_table::same_hook_flags(key),
        header_len: L::HEADER as u64,
        action: UNSENT,
    };
    // `key` is scratch memory that the hook reuses for what is sent: it must not be read from here on.
    // SAFETY: the kernel's context; no pointer into the packet is used after this call.
    if unsafe { bpf_clone_redirect(skb, ifindex(ctx), release.flags) } != 0 {
        count(Counter::FragmentLost);
        return None;
    }
    // Makes the skb writable and linear: bpf_skb_change_tail cannot extend one that has pages.
    // SAFETY: as above.
    unsafe { bpf_skb_pull_data(skb, ctx.len()) };
    let release_part: unsafe extern "C" fn(u32, *mut Release) -> i64 = release_part;
    // bpf_loop, so that the verifier follows one iteration instead of all.
    // SAFETY: `release_part` gets the type that it expects, which outlives the call.
    unsafe { bpf_loop(HELD_OF_DATAGRAM, release_part as *mut c_void, (&raw mut release).cast(), 0) };
    if release.action == UNSENT {
        // The list was overwritten; its other fragments cannot be found.
        return Some(Counter::FragmentLost.into());
    }
    Some(Verdict::redirect(release.action))
}

/// Copies one part of a queued fragment into the skb, and sends the skb after the last part. Returns 1 to end the
/// loop.
///
/// # Safety
/// `release` points to the state of [`release`]; its skb is the program's context.
unsafe extern "C" fn release_part(_nth: u32, release: *mut Release) -> i64 {
    // SAFETY: guaranteed by the caller.
    let release = unsafe { &mut *release };
    let (Some(head), Some(element)) = (element(release.ticket), element(release.ticket + release.part))
    else {
        return 1;
    };
    let at = release.at as u32;
    let len = head.len;
    if ticket_of(head) != release.ticket || u64::from(head.header_len) != release.header_len || at >= len {
        return 1;
    }
    // SAFETY: the kernel's context; no pointer into the packet is used after this call.
    if at == 0 && unsafe { bpf_skb_change_tail(release.skb, len, 0) } != 0 {
        return 1;
    }
    // SAFETY: as above, and as many bytes of a map value.
    let failed = unsafe {
        bpf_skb_store_bytes(
            release.skb,
            at,
            element.bytes.as_ptr().cast(),
            part_len(len, at),
            u64::from(BPF_F_RECOMPUTE_CSUM),
        )
    };
    if failed != 0 || ticket_of(element) != release.ticket + release.part {
        return 1;
    }
    release.part += 1;
    release.at += HELD_BYTES as u64;
    if release.at < u64::from(len) {
        return 0;
    }
    let (next, device) = (head.next, head.ifindex);
    if next == 0 {
        // The last fragment needs no clone.
        // SAFETY: takes numbers only.
        release.action = unsafe { bpf_redirect(device, release.flags) };
        return 1;
    }
    // SAFETY: as above.
    unsafe { bpf_clone_redirect(release.skb, device, release.flags) };
    (release.ticket, release.part, release.at) = (next, 0, 0);
    0
}
