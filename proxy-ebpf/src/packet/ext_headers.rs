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
        maps::slow_packet,
        protocol_headers::{ETH_P_IPV6, Ipv6},
        scratch::{IpHeaders, fragment_part},
    },
    packet::{
        access::{load, skb, store},
        link::Link,
    },
};

/// The most IPv6 extension headers that are skipped.
const MAX_EXTENSIONS: u32 = 4;

/// IPv6 extension headers, by next-header number.
mod extension {
    pub const HOP_BY_HOP: u32 = 0;
    pub const ROUTING: u32 = 43;
    pub const FRAGMENT: u32 = 44;
    pub const DESTINATION: u32 = 60;
}

/// Reads the headers of the packet at offset `ip`. False: truncated, malformed, or not yet at its final destination
/// (a routing header with segments left). A subprogram, so that the verifier follows its branches once.
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
    // As in `parse.rs`.
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

/// One step along the chain of extension headers.
#[derive(Clone, Copy)]
#[repr(u32)]
enum ChainStep {
    /// Skipped one.
    Skipped,
    /// No further extension header.
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
    // A later fragment does not contain what follows the fragment header.
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
        // A fragment of a fragment is not valid.
        if headers.part != fragment_part::WHOLE {
            return ChainStep::Malformed;
        }
        set_fragment_part(headers, fragment & 0xfff8, fragment & 1);
        return ChainStep::Skipped;
    }
    // Hop-by-hop options come first or not at all (RFC 8200, 4.1).
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

/// Removes the extension headers of a packet that is to be rejected: the answer has none, and its sender recognises
/// the quote without them. A packet without any stays as it is. False: the packet must not be rejected, or the kernel
/// did not allow the change.
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
    // Writes the plain header over the end of the extension headers, then removes everything in front of it.
    let bare = headers.l4 - size_of::<Ipv6>() as u32;
    let gone = bare - ip;
    packet.ipv6.next_header = headers.proto as u8;
    packet.ipv6.payload_len = u16::from_be(packet.ipv6.payload_len).wrapping_sub(gone as u16).to_be();
    if !store(ctx, bare, &packet.ipv6) {
        return false;
    }
    // SAFETY: the kernel's context; no pointer into the packet is used after this call.
    unsafe { bpf_skb_adjust_room(ctx.as_ptr().cast::<__sk_buff>(), -(gone as i32), BPF_ADJ_ROOM_MAC, 0) == 0 }
}
