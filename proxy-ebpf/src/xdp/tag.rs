//! What the XDP program tells tc's hook of a packet: a word in the packet's metadata.
//!
//! In front of the frame there are [`LEN`] bytes, of which the last four are the word. So many because of kernels (6.9
//! at least to 6.18) that forget the length of the Ethernet header when generic XDP copies a packet to get headroom:
//! tc's programs then find the IP header where they expect the Ethernet header, and the metadata 14 bytes off. With 20
//! bytes the word and the Ethernet header can still be seen, and the hook mends what the kernel forgot, for us and for
//! whoever's programs come behind.

use aya_ebpf::{
    EbpfContext as _,
    bindings::__sk_buff,
    helpers::{bpf_skb_change_head, bpf_skb_store_bytes, bpf_xdp_adjust_meta},
    programs::{TcContext, XdpContext},
};

use super::frame::ETHERNET;
use crate::{globals, maps::INGRESS, packet::skb};

/// Bytes of metadata.
const LEN: usize = 20;

/// The destination is rewritten: tc lets the packet go on.
pub const TRANSLATED: u32 = 0x5348_0001;
/// Generic XDP lets the packet pass as it is.
const UNTOUCHED: u32 = 0x5348_0002;

/// Each node's own: an skb may carry another node's metadata with it from one network namespace to the next.
#[inline(always)]
fn word(meaning: u32) -> u32 {
    meaning ^ (globals::host_netns() as u32) << 2
}

/// Puts a word in front of the frame. False: there is no room, or the driver has no metadata.
#[inline(always)]
pub fn put(ctx: &XdpContext, meaning: u32) -> bool {
    // SAFETY: the context the kernel gave; pointers into the packet are made anew after this.
    if unsafe { bpf_xdp_adjust_meta(ctx.ctx, -(LEN as i32)) } != 0 {
        return false;
    }
    // SAFETY: fields of the context, which is valid while the program runs.
    let (meta, data) = unsafe {
        ((&raw const (*ctx.ctx).data_meta).read_volatile(), (&raw const (*ctx.ctx).data).read_volatile())
    };
    let (meta, data) = (meta as usize, data as usize);
    if meta + LEN > data {
        return false;
    }
    // SAFETY: checked just now.
    unsafe { *((meta + LEN - 4) as *mut u32) = word(meaning) };
    true
}

/// Takes it away again.
#[inline(always)]
pub fn take(ctx: &XdpContext) {
    // SAFETY: the context the kernel gave; no pointer into the packet outlives this call.
    unsafe { bpf_xdp_adjust_meta(ctx.ctx, LEN as i32) };
}

/// In generic mode every packet that passes is tagged, so that a forgotten header can be told.
#[inline(always)]
pub fn tag_generic(ctx: &XdpContext) {
    put(ctx, UNTOUCHED);
}

/// The tc hook of a device in the lane: what is translated goes on; everything else goes to the ingress program, which
/// returns only where INGRESS is empty. Writes nothing in place, for before a program that does, the kernel makes the
/// packet writable, and where it copies it for that (a socket of tcpdump's kind holds a clone) the metadata is lost.
#[inline(always)]
pub fn gate(ctx: &TcContext) {
    let word_at = |back: usize| -> Option<u32> {
        let skb = skb(ctx);
        // SAFETY: fields of the context, which is valid while the program runs.
        let (meta, data) =
            unsafe { ((&raw const skb.data_meta).read_volatile(), (&raw const skb.data).read_volatile()) };
        let (meta, data) = (meta as usize, data as usize);
        if meta + LEN > data {
            return None;
        }
        // SAFETY: in front of `data`, as checked just now; halves, because it may lie two bytes off.
        let halves = unsafe { *((meta + LEN - 4 - back) as *const [u16; 2]) };
        Some(u32::from(halves[0]) | u32::from(halves[1]) << 16)
    };
    let mut found = word_at(0);
    let known = |found: Option<u32>| found == Some(word(TRANSLATED)) || found == Some(word(UNTOUCHED));
    if !known(found) {
        found = word_at(ETHERNET);
        if known(found) && !mend(ctx) {
            return;
        }
    }
    if found != Some(word(TRANSLATED)) {
        // SAFETY: nothing here lives on.
        unsafe { INGRESS.tail_call(ctx, 0) };
    }
}

/// Gives the packet back the Ethernet header in front of its data, and with it the header's length.
#[inline(always)]
fn mend(ctx: &TcContext) -> bool {
    let skb = skb(ctx);
    // SAFETY: fields of the context, which is valid while the program runs.
    let (meta, data) =
        unsafe { ((&raw const skb.data_meta).read_volatile(), (&raw const skb.data).read_volatile()) };
    let (meta, data) = (meta as usize, data as usize);
    if meta + LEN > data {
        return false;
    }
    // SAFETY: in front of `data`, as checked just now.
    let header = unsafe { *((meta + LEN - ETHERNET) as *const [u16; ETHERNET / 2]) };
    let skb = ctx.as_ptr().cast::<__sk_buff>();
    // SAFETY: the context the kernel gave; no pointer into the packet outlives these calls.
    unsafe {
        bpf_skb_change_head(skb, ETHERNET as u32, 0) == 0
            && bpf_skb_store_bytes(skb.cast(), 0, (&raw const header).cast(), ETHERNET as u32, 0) == 0
    }
}
