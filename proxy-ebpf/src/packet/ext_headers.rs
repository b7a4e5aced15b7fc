//! IP headers read into memory: IPv6 extension headers, fragments, and the packet that an ICMP error quotes. Everything is
//! copied with bpf_skb_load_bytes, so nothing depends on which part of the packet is linear. Also removes extension headers,
//! for `respond/reject.rs`.
//!
//! Plain packets do not come here: `parse.rs` reads them in place.

use core::mem::size_of;

use aya_ebpf::{
    EbpfContext as _,
    bindings::{__sk_buff, bpf_adj_room_mode::BPF_ADJ_ROOM_MAC},
    helpers::bpf_skb_adjust_room,
    programs::TcContext,
};
use proxy_common::Addr;

use crate::{
    base::{
        headers::{ETH_P_IPV6, Ipv6},
        maps::slow_packet,
        scratch::{IpHeaders, fragment_part},
    },
    packet::{
        access::{load, skb, store},
        link::Link,
    },
};

/// How many IPv6 extension headers are stepped over.
const MAX_EXTENSIONS: u32 = 4;

/// IPv6 extension headers, as next-header numbers.
mod extension {
    pub const HOP_BY_HOP: u32 = 0;
    pub const ROUTING: u32 = 43;
    pub const FRAGMENT: u32 = 44;
    pub const DESTINATION: u32 = 60;
}

/// Reads the headers of the packet at offset `ip`. False: cut short, malformed, or on its way to somewhere else than
/// its destination (a routing header with segments left). A subprogram for the verifier's sake, as `begin`.
#[inline(never)]
pub fn read(ctx: &TcContext, ip: u32, v4: bool, headers: &mut IpHeaders) -> bool {
    headers.ip = ip;
    headers.part = fragment_part::WHOLE;
    headers.offset = 0;
    headers.more = 0;
    if v4 { read_v4(ctx, headers) } else { read_v6(ctx, headers) }
}

#[inline(always)]
fn read_v4(ctx: &TcContext, headers: &mut IpHeaders) -> bool {
    if !load(ctx, headers.ip, &mut headers.v4) {
        return false;
    }
    let ip = &headers.v4;
    let words = u32::from(ip.version_ihl & 0x0f);
    if ip.version_ihl >> 4 != 4 || words < 5 {
        return false;
    }
    headers.src = Addr::from_v4_be(ip.src);
    headers.dst = Addr::from_v4_be(ip.dst);
    headers.l4 = headers.ip + words * 4;
    headers.end = headers.ip + u32::from(u16::from_be(ip.total_len));
    headers.proto = u32::from(ip.proto);
    headers.id = u32::from(ip.id);
    let fragment = u32::from(u16::from_be(ip.fragment));
    set_fragment_part(headers, (fragment & 0x1fff) * 8, fragment & 0x2000);
    true
}

#[inline(always)]
fn read_v6(ctx: &TcContext, headers: &mut IpHeaders) -> bool {
    if !load(ctx, headers.ip, &mut headers.v6) {
        return false;
    }
    let ip = &headers.v6;
    if ip.version_class_flow as u8 >> 4 != 6 {
        return false;
    }
    headers.src = Addr::from_v6_be(ip.src);
    headers.dst = Addr::from_v6_be(ip.dst);
    // As in `packet.rs`.
    if headers.src.is_v4() || headers.dst.is_v4() {
        return false;
    }
    headers.l4 = headers.ip + size_of::<Ipv6>() as u32;
    headers.end = headers.l4 + u32::from(u16::from_be(ip.payload_len));
    headers.proto = u32::from(ip.next_header);
    let mut i = 0;
    while i < MAX_EXTENSIONS {
        match skip_header(ctx, headers, i == 0) {
            ChainStep::Skipped => {}
            ChainStep::End => return true,
            ChainStep::Malformed => return false,
        }
        i += 1;
    }
    !is_extension(headers.proto)
}

/// One step along the extension headers.
#[derive(Clone, Copy)]
#[repr(u32)]
enum ChainStep {
    /// One stepped over.
    Skipped,
    /// There is none (any more).
    End,
    Malformed,
}

#[inline(always)]
fn is_extension(proto: u32) -> bool {
    matches!(proto, extension::HOP_BY_HOP | extension::ROUTING | extension::FRAGMENT | extension::DESTINATION)
}

#[inline(always)]
fn skip_header(ctx: &TcContext, headers: &mut IpHeaders, first: bool) -> ChainStep {
    let this = headers.proto;
    // What follows a later fragment's header is not there.
    if headers.part == fragment_part::LATER || !is_extension(this) {
        return ChainStep::End;
    }
    if !load(ctx, headers.l4, &mut headers.extension) {
        return ChainStep::Malformed;
    }
    let [next, len, high, low, id @ ..] = headers.extension;
    headers.proto = u32::from(next);
    if this == extension::FRAGMENT {
        let fragment = u32::from(u16::from_be_bytes([high, low]));
        headers.id = u32::from_ne_bytes(id);
        headers.l4 += 8;
        // A fragment of a fragment is nobody's.
        if headers.part != fragment_part::WHOLE {
            return ChainStep::Malformed;
        }
        set_fragment_part(headers, fragment & 0xfff8, fragment & 1);
        return ChainStep::Skipped;
    }
    // Hop-by-hop options stand first or nowhere (RFC 8200, 4.1).
    let misplaced = this == extension::HOP_BY_HOP && !first;
    if misplaced || this == extension::ROUTING && low != 0 {
        return ChainStep::Malformed;
    }
    headers.l4 += (u32::from(len) + 1) * 8;
    ChainStep::Skipped
}

#[inline(always)]
fn set_fragment_part(headers: &mut IpHeaders, offset: u32, more: u32) {
    headers.offset = offset;
    headers.more = u32::from(more != 0);
    headers.part = match (offset, more) {
        (0, 0) => fragment_part::WHOLE,
        (0, _) => fragment_part::FIRST,
        _ => fragment_part::LATER,
    };
}

/// Leaves a packet that has none as it is. False: it is not to be refused, or the kernel did not let it be changed.
#[inline(never)]
pub fn remove<L: Link>(ctx: &TcContext) -> bool {
    if skb(ctx).protocol as u16 != ETH_P_IPV6 {
        return true;
    }
    let Some(packet) = slow_packet() else {
        return false;
    };
    let ip = L::HEADER as u32;
    if !load(ctx, ip, &mut packet.ipv6) {
        return false;
    }
    if !is_extension(u32::from(packet.ipv6.next_header)) {
        return true;
    }
    let headers = &mut packet.headers;
    if !read(ctx, ip, false, headers) || headers.part == fragment_part::LATER {
        return false;
    }
    // The bare header in the last ones' place, then what is in front of it goes.
    let bare = headers.l4 - size_of::<Ipv6>() as u32;
    let gone = bare - ip;
    packet.ipv6.next_header = headers.proto as u8;
    packet.ipv6.payload_len = u16::from_be(packet.ipv6.payload_len).wrapping_sub(gone as u16).to_be();
    if !store(ctx, bare, &packet.ipv6) {
        return false;
    }
    // SAFETY: the context the kernel gave; no pointer into the packet outlives this call.
    unsafe { bpf_skb_adjust_room(ctx.as_ptr().cast::<__sk_buff>(), -(gone as i32), BPF_ADJ_ROOM_MAC, 0) == 0 }
}
