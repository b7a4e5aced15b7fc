//! IP headers, read into memory: with IPv6's extension headers, of fragments, and of the packet that an ICMP error
//! quotes. Everything is copied out with bpf_skb_load_bytes, so nothing here depends on what is linear.
//!
//! Not for plain packets, which `packet.rs` reads where they are.

use core::{mem::size_of, ptr};

use aya_ebpf::{
    EbpfContext as _,
    bindings::__sk_buff,
    helpers::{bpf_skb_load_bytes, bpf_skb_store_bytes},
    programs::TcContext,
};
use proxy_common::Addr;

use crate::packet::{Ipv4, Ipv6};

/// How many IPv6 extension headers are stepped over.
const MAX_EXTENSIONS: u32 = 4;

/// IPv6 extension headers, as next-header numbers.
mod extension {
    pub const HOP_BY_HOP: u32 = 0;
    pub const ROUTING: u32 = 43;
    pub const FRAGMENT: u32 = 44;
    pub const DESTINATION: u32 = 60;
}

/// Which part of a datagram a packet is.
pub mod part {
    pub const WHOLE: u32 = 0;
    /// The first fragment, which has the ports.
    pub const FIRST: u32 = 1;
    pub const LATER: u32 = 2;
}

/// What the IP headers of a packet say.
#[repr(C)]
pub struct Headers {
    pub src: Addr,
    pub dst: Addr,
    /// Offset of the IP header.
    pub ip: u32,
    /// Offset of what stands behind all IP headers.
    pub l4: u32,
    /// Offset of the packet's end, as its header tells its length.
    pub end: u32,
    /// Protocol number of what stands there.
    pub proto: u32,
    /// One of [`part`].
    pub part: u32,
    /// A fragment's identification, as it lies in the packet.
    pub id: u32,
    /// Where in its datagram a fragment belongs, in bytes.
    pub offset: u32,
    /// More fragments follow.
    pub more: u32,
    v4: Ipv4,
    v6: Ipv6,
    extension: [u8; 8],
}

/// Copies a `T` out of the packet; false where it ends before.
#[inline(always)]
pub fn load<T>(ctx: &TcContext, offset: u32, to: &mut T) -> bool {
    let skb = ctx.as_ptr().cast::<__sk_buff>();
    // SAFETY: `to` is writable for its size, and `T` a type for which any bytes are valid: integers and arrays of them.
    unsafe { bpf_skb_load_bytes(skb.cast(), offset, ptr::from_mut(to).cast(), size_of::<T>() as u32) == 0 }
}

/// Writes a `T` into the packet; false where it ends before. skb->csum is left as it is: the caller mends a checksum
/// in the packet, so the sum over all of it stays.
#[inline(always)]
pub fn store<T>(ctx: &TcContext, offset: u32, from: &T) -> bool {
    let skb = ctx.as_ptr().cast::<__sk_buff>();
    // SAFETY: `from` is readable for its size; no pointer into the packet outlives this call.
    unsafe { bpf_skb_store_bytes(skb, offset, ptr::from_ref(from).cast(), size_of::<T>() as u32, 0) == 0 }
}

/// Reads the headers of the packet at offset `ip`. False: cut short, malformed, or on its way to somewhere else than
/// its destination (a routing header with segments left). A subprogram for the verifier's sake, as `begin`.
#[inline(never)]
pub fn read(ctx: &TcContext, ip: u32, v4: bool, headers: &mut Headers) -> bool {
    headers.ip = ip;
    headers.part = part::WHOLE;
    headers.offset = 0;
    headers.more = 0;
    if v4 { read_v4(ctx, headers) } else { read_v6(ctx, headers) }
}

#[inline(always)]
fn read_v4(ctx: &TcContext, headers: &mut Headers) -> bool {
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
    note_part(headers, (fragment & 0x1fff) * 8, fragment & 0x2000);
    true
}

#[inline(always)]
fn read_v6(ctx: &TcContext, headers: &mut Headers) -> bool {
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
        match step(ctx, headers, i == 0) {
            Step::On => {}
            Step::There => return true,
            Step::Bad => return false,
        }
        i += 1;
    }
    !is_extension(headers.proto)
}

/// One step along the extension headers.
#[derive(Clone, Copy)]
#[repr(u32)]
enum Step {
    /// One stepped over.
    On,
    /// There is none (any more).
    There,
    Bad,
}

#[inline(always)]
pub fn is_extension(proto: u32) -> bool {
    matches!(proto, extension::HOP_BY_HOP | extension::ROUTING | extension::FRAGMENT | extension::DESTINATION)
}

#[inline(always)]
fn step(ctx: &TcContext, headers: &mut Headers, first: bool) -> Step {
    let this = headers.proto;
    // What follows a later fragment's header is not there.
    if headers.part == part::LATER || !is_extension(this) {
        return Step::There;
    }
    if !load(ctx, headers.l4, &mut headers.extension) {
        return Step::Bad;
    }
    let [next, len, high, low, id @ ..] = headers.extension;
    headers.proto = u32::from(next);
    if this == extension::FRAGMENT {
        let fragment = u32::from(u16::from_be_bytes([high, low]));
        headers.id = u32::from_ne_bytes(id);
        headers.l4 += 8;
        // A fragment of a fragment is nobody's.
        if headers.part != part::WHOLE {
            return Step::Bad;
        }
        note_part(headers, fragment & 0xfff8, fragment & 1);
        return Step::On;
    }
    // Hop-by-hop options stand first or nowhere (RFC 8200, 4.1).
    let misplaced = this == extension::HOP_BY_HOP && !first;
    if misplaced || this == extension::ROUTING && low != 0 {
        return Step::Bad;
    }
    headers.l4 += (u32::from(len) + 1) * 8;
    Step::On
}

#[inline(always)]
fn note_part(headers: &mut Headers, offset: u32, more: u32) {
    headers.offset = offset;
    headers.more = u32::from(more != 0);
    headers.part = match (offset, more) {
        (0, 0) => part::WHOLE,
        (0, _) => part::FIRST,
        _ => part::LATER,
    };
}
