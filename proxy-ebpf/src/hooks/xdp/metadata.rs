//! Packet metadata from the XDP hook to tc's: a word in front of the frame.
//!
//! There are [`LEN`] bytes of metadata, of which the last four are the word. Some kernels (6.9 at least to 6.18) lose the length
//! of the Ethernet header when generic XDP copies a packet to get headroom: tc's programs then find the IP header where they
//! expect the Ethernet header, and the metadata 14 bytes off. With 20 bytes both the word and the Ethernet header can still be
//! found, and `ingress_xdp` restores what the kernel lost, for us and for the programs that follow.

use aya_ebpf::{helpers::bpf_xdp_adjust_meta, programs::XdpContext};

use crate::base::globals;

/// Bytes of metadata.
pub const LEN: usize = 20;

/// The destination is rewritten: tc lets the packet continue.
pub const TRANSLATED: u32 = 0x5348_0001;

/// Generic XDP passed the packet unchanged.
pub const UNTOUCHED: u32 = 0x5348_0002;

/// The word for a meaning. Different on each node, because an skb may keep another node's metadata when it moves
/// between network namespaces.
#[inline(always)]
pub fn word(meaning: u32) -> u32 {
    meaning ^ (globals::host_netns() as u32) << 2
}

/// Puts a word in front of the frame. False: no room, or a driver without metadata.
#[inline(always)]
pub fn push(ctx: &XdpContext, meaning: u32) -> bool {
    // SAFETY: the kernel's context; pointers into the packet are made anew after this.
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
    // SAFETY: just checked.
    unsafe { *((meta + LEN - 4) as *mut u32) = word(meaning) };
    true
}

/// Removes the word.
#[inline(always)]
pub fn pop(ctx: &XdpContext) {
    // SAFETY: the kernel's context; no pointer into the packet is used after this call.
    unsafe { bpf_xdp_adjust_meta(ctx.ctx, LEN as i32) };
}

/// Tags a packet that generic XDP passes unchanged, so that `ingress_xdp` can detect a lost header.
#[inline(always)]
pub fn tag_untouched(ctx: &XdpContext) {
    push(ctx, UNTOUCHED);
}
