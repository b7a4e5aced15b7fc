//! Takes a packet's IPv6 extension headers out, before it is turned into a refusal: the answer has none, and what it
//! quotes is found by its sender just as well without.

use core::mem::size_of;

use aya_ebpf::{
    EbpfContext as _,
    bindings::{__sk_buff, bpf_adj_room_mode::BPF_ADJ_ROOM_MAC},
    helpers::bpf_skb_adjust_room,
    programs::TcContext,
};

use crate::{
    headers::{self, is_extension, load, part, store},
    odd::odd,
    packet::{ETH_P_IPV6, Ipv6, Link, skb},
};

/// Leaves a packet that has none as it is. False: it is not to be refused, or the kernel did not let it be changed.
#[inline(never)]
pub fn strip<L: Link>(ctx: &TcContext) -> bool {
    if skb(ctx).protocol as u16 != ETH_P_IPV6 {
        return true;
    }
    let Some(odd) = odd() else {
        return false;
    };
    let ip = L::HEADER as u32;
    if !load(ctx, ip, &mut odd.ipv6) {
        return false;
    }
    if !is_extension(u32::from(odd.ipv6.next_header)) {
        return true;
    }
    let headers = &mut odd.headers;
    if !headers::read(ctx, ip, false, headers) || headers.part == part::LATER {
        return false;
    }
    // The bare header in the last ones' place, then what is in front of it goes.
    let bare = headers.l4 - size_of::<Ipv6>() as u32;
    let gone = bare - ip;
    odd.ipv6.next_header = headers.proto as u8;
    odd.ipv6.payload_len = u16::from_be(odd.ipv6.payload_len).wrapping_sub(gone as u16).to_be();
    if !store(ctx, bare, &odd.ipv6) {
        return false;
    }
    // SAFETY: the context the kernel gave; no pointer into the packet outlives this call.
    unsafe { bpf_skb_adjust_room(ctx.as_ptr().cast::<__sk_buff>(), -(gone as i32), BPF_ADJ_ROOM_MAC, 0) == 0 }
}
