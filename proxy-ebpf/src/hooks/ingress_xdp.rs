//! The tc ingress hook of a device with our XDP program: packets that XDP has translated continue, everything else goes to
//! `ingress_l2` by tail call.

use aya_ebpf::{
    EbpfContext as _,
    bindings::__sk_buff,
    helpers::{bpf_skb_change_head, bpf_skb_store_bytes},
    programs::TcContext,
};

use crate::{
    base::{maps::INGRESS, verdict::Verdict},
    hooks::xdp::{frame::ETHERNET, metadata},
    packet::access::skb,
};

/// Returns only for packets that XDP has translated, or if INGRESS is empty. Writes nothing in place: before a
/// program that does, the kernel makes the packet writable, and if that takes a copy (tcpdump holds a clone) the
/// metadata is lost.
#[inline(always)]
pub fn ingress_xdp(ctx: &TcContext) -> Verdict {
    let word_at = |back: usize| -> Option<u32> {
        let skb = skb(ctx);
        // SAFETY: fields of the context, which is valid while the program runs.
        let (meta, data) =
            unsafe { ((&raw const skb.data_meta).read_volatile(), (&raw const skb.data).read_volatile()) };
        let (meta, data) = (meta as usize, data as usize);
        if meta + metadata::LEN > data {
            return None;
        }
        // SAFETY: in front of `data`, as just checked; as halves, because it may be aligned to two bytes only.
        let halves = unsafe { *((meta + metadata::LEN - 4 - back) as *const [u16; 2]) };
        Some(u32::from(halves[0]) | u32::from(halves[1]) << 16)
    };
    let mut found = word_at(0);
    let known = |found: Option<u32>| {
        found == Some(metadata::word(metadata::TRANSLATED))
            || found == Some(metadata::word(metadata::UNTOUCHED))
    };
    if !known(found) {
        found = word_at(ETHERNET);
        if known(found) && !restore_ethernet_header(ctx) {
            return Verdict::NEXT;
        }
    }
    if found != Some(metadata::word(metadata::TRANSLATED)) {
        // SAFETY: no local state is used after the call.
        unsafe { INGRESS.tail_call(ctx, 0) };
    }
    Verdict::NEXT
}

/// Restores the Ethernet header in front of the packet's data, and with it the header's length.
#[inline(always)]
fn restore_ethernet_header(ctx: &TcContext) -> bool {
    let skb = skb(ctx);
    // SAFETY: fields of the context, which is valid while the program runs.
    let (meta, data) =
        unsafe { ((&raw const skb.data_meta).read_volatile(), (&raw const skb.data).read_volatile()) };
    let (meta, data) = (meta as usize, data as usize);
    if meta + metadata::LEN > data {
        return false;
    }
    // SAFETY: in front of `data`, as just checked.
    let header = unsafe { *((meta + metadata::LEN - ETHERNET) as *const [u16; ETHERNET / 2]) };
    let skb = ctx.as_ptr().cast::<__sk_buff>();
    // SAFETY: the kernel's context; no pointer into the packet is used after these calls.
    unsafe {
        bpf_skb_change_head(skb, ETHERNET as u32, 0) == 0
            && bpf_skb_store_bytes(skb.cast(), 0, (&raw const header).cast(), ETHERNET as u32, 0) == 0
    }
}
