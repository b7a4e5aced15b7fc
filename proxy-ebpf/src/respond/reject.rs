//! Rejections: turns a packet into the answer that tells its sender "connection refused". TCP gets a reset (RFC 9293,
//! 3.10.7.1), everything else ICMP port unreachable (RFC 792 3/3, RFC 4443 1/4).
//!
//! Checksums are computed from scratch, but the skb keeps its checksum state, which a program cannot read. It can be detected:
//! bpf_l4_csum_replace leaves a CHECKSUM_PARTIAL field alone when the change is not to the pseudo-header.

use core::{hint::black_box, mem::size_of};

use aya_ebpf::{
    EbpfContext as _,
    bindings::{__sk_buff, bpf_adj_room_mode::BPF_ADJ_ROOM_MAC},
    helpers::{bpf_skb_adjust_room, bpf_skb_change_tail},
    programs::TcContext,
};
use proxy_common::{Addr, Half, Proto, csum, tcp::flag};

use crate::{
    base::protocol_headers::{Icmp, Ipv4, Ipv6, Tcp, Udp},
    packet::{
        access::ptr_at,
        checksum::{Word, is_partial, pseudo_header},
        ext_headers,
        link::Link,
        parse::{Packet, parse_for_reject},
    },
    respond::send_back::swap_link_addresses,
};

/// The don't-fragment flag of IPv4.
const DONT_FRAGMENT: u16 = 0x4000_u16.to_be();

/// Hop limit of packets that the node itself sends.
const TTL: u8 = 64;

/// Turns the packet into its rejection, ready to be sent back. False: it must not be answered, or the answer does not
/// fit. A subprogram, so that the verifier follows it once.
#[inline(never)]
pub fn reject<L: Link>(ctx: &TcContext) -> bool {
    // Parses the packet again: depending on nothing else, the subprogram is verified once.
    if !ext_headers::remove::<L>(ctx) {
        return false;
    }
    let Ok(packet) = &parse_for_reject::<L>(ctx, Half::Ingress) else {
        return false;
    };
    let done = if packet.is_tcp() { reset::<L>(ctx, packet) } else { unreachable::<L>(ctx, packet) };
    done.and_then(|()| swap_link_addresses::<L>(ctx)).is_some()
}

/// The length of the IP header.
#[inline(always)]
fn header_len<L: Link>(packet: &Packet) -> usize {
    packet.l4 - L::HEADER
}

#[inline(always)]
fn reset<L: Link>(ctx: &TcContext, packet: &Packet) -> Option<()> {
    if packet.tcp_flags & flag::RST != 0 {
        return None;
    }
    let partial = is_partial(ctx, packet.l4 + 16)?;
    let segment = segment_len::<L>(ctx, packet)?;
    resize(ctx, packet.l4 + size_of::<Tcp>())?;

    swap_addresses::<L>(ctx, packet, size_of::<Tcp>() as u16)?;
    // SAFETY: `ptr_at` checked the bounds.
    let tcp = unsafe { &mut *ptr_at::<Tcp>(ctx, packet.l4)? };
    (tcp.sport, tcp.dport) = (tcp.dport, tcp.sport);
    if tcp.flags & flag::ACK != 0 {
        tcp.seq = tcp.ack;
        tcp.ack = 0;
        tcp.flags = flag::RST;
    } else {
        tcp.ack = u32::from_be(tcp.seq).wrapping_add(segment).to_be();
        tcp.seq = 0;
        tcp.flags = flag::RST | flag::ACK;
    }
    tcp.offset = ((size_of::<Tcp>() / 4) << 4) as u8;
    tcp.window = 0;
    tcp.urgent = 0;
    let sum = pseudo_header(&packet.key.src, &packet.key.dst, packet.v4, Proto::TCP, size_of::<Tcp>() as u16);
    if partial {
        // The final step that completes the sum also complements it.
        tcp.check = csum::fold(sum);
    } else {
        tcp.check = 0;
        // SAFETY: `ptr_at` checked the bounds; the same 20 bytes, as words.
        let words = unsafe { *ptr_at::<[Word; 5]>(ctx, packet.l4)? };
        let sum = words.iter().fold(sum, |sum, word| csum::add(sum, word.0));
        // SAFETY: `ptr_at` checked the bounds.
        unsafe { (*ptr_at::<Tcp>(ctx, packet.l4)?).check = !csum::fold(sum) };
    }
    Some(())
}

/// How many sequence numbers the segment occupies.
#[inline(always)]
fn segment_len<L: Link>(ctx: &TcContext, packet: &Packet) -> Option<u32> {
    let total = if packet.v4 {
        // SAFETY: `ptr_at` checked the bounds.
        u32::from(u16::from_be(unsafe { (*ptr_at::<Ipv4>(ctx, L::HEADER)?).total_len }))
    } else {
        // SAFETY: `ptr_at` checked the bounds.
        u32::from(u16::from_be(unsafe { (*ptr_at::<Ipv6>(ctx, L::HEADER)?).payload_len }))
            + size_of::<Ipv6>() as u32
    };
    // SAFETY: `ptr_at` checked the bounds.
    let tcp = unsafe { &*ptr_at::<Tcp>(ctx, packet.l4)? };
    let headers = header_len::<L>(packet) as u32 + u32::from(tcp.offset >> 4) * 4;
    let control = u32::from(tcp.flags & flag::SYN != 0) + u32::from(tcp.flags & flag::FIN != 0);
    Some(total.saturating_sub(headers) + control)
}

/// Truncates the packet to `len` bytes, or pads it.
#[inline(always)]
fn resize(ctx: &TcContext, len: usize) -> Option<()> {
    // SAFETY: the kernel's context; no pointer into the packet is used after this call.
    let failed = unsafe { bpf_skb_change_tail(ctx.as_ptr().cast::<__sk_buff>(), len as u32, 0) };
    if failed == 0 { Some(()) } else { None }
}

/// Rewrites the IP header for the answer: from VIP to client, with `payload` bytes of transport.
#[inline(always)]
fn swap_addresses<L: Link>(ctx: &TcContext, packet: &Packet, payload: u16) -> Option<()> {
    if packet.v4 {
        // SAFETY: `ptr_at` checked the bounds.
        let ip = unsafe { &mut *ptr_at::<Ipv4>(ctx, L::HEADER)? };
        let len = (header_len::<L>(packet) as u16 + payload).to_be();
        let ttl = |ttl: u8| u32::from(u16::from_ne_bytes([ttl, 0]));
        let diff =
            csum::add(csum::diff(u32::from(ip.total_len), u32::from(len)), csum::diff(ttl(ip.ttl), ttl(TTL)));
        // The answer is not a fragment, even if the packet was.
        let whole = ip.fragment & DONT_FRAGMENT;
        let diff = csum::add(diff, csum::diff(u32::from(ip.fragment), u32::from(whole)));
        (ip.total_len, ip.ttl, ip.fragment) = (len, TTL, whole);
        (ip.src, ip.dst) = (ip.dst, ip.src);
        ip.check = csum::apply(ip.check, diff);
    } else {
        // SAFETY: `ptr_at` checked the bounds.
        let ip = unsafe { &mut *ptr_at::<Ipv6>(ctx, L::HEADER)? };
        ip.payload_len = payload.to_be();
        ip.hop_limit = TTL;
        (ip.src, ip.dst) = (ip.dst, ip.src);
    }
    Some(())
}

/// ICMP port unreachable, quoting the IP header and the first 8 bytes behind it.
#[inline(always)]
fn unreachable<L: Link>(ctx: &TcContext, packet: &Packet) -> Option<()> {
    // For SCTP the whole common header: the kernel does not truncate a packet inside a checksum that it will
    // complete.
    let is_sctp = packet.key.proto == Proto::SCTP;
    let quoted = header_len::<L>(packet) + size_of::<Udp>() + if is_sctp { 4 } else { 0 };
    let outer = if packet.v4 { size_of::<Ipv4>() } else { size_of::<Ipv6>() };
    let front = outer + size_of::<Icmp>();
    // SAFETY: `ptr_at` checked the bounds.
    let no_sum = packet.key.proto != Proto::UDP
        || packet.v4 && unsafe { (*ptr_at::<Udp>(ctx, packet.l4)?).check } == 0;
    let partial = !no_sum && is_partial(ctx, packet.l4 + 6)?;
    resize(ctx, L::HEADER + quoted)?;
    // SAFETY: the kernel's context; no pointer into the packet is used after this call.
    let failed =
        unsafe { bpf_skb_adjust_room(ctx.as_ptr().cast::<__sk_buff>(), front as i32, BPF_ADJ_ROOM_MAC, 0) };
    if failed != 0 {
        return None;
    }

    let message = (size_of::<Icmp>() + quoted) as u16;
    let (src, dst) = (packet.key.dst, packet.key.src);
    let (kind, code, mut sum) = if packet.v4 {
        outer_v4::<L>(ctx, &src, &dst, message)?;
        (3, 3, 0)
    } else {
        outer_v6::<L>(ctx, &src, &dst, message)?;
        (1, 4, pseudo_header(&src, &dst, false, Proto::ICMPV6, message))
    };
    let icmp_at = L::HEADER + outer;
    // SAFETY: `ptr_at` checked the bounds.
    let icmp = unsafe { &mut *ptr_at::<Icmp>(ctx, icmp_at)? };
    *icmp = Icmp { kind, code, check: 0, rest: 0 };

    sum = csum::add(sum, u32::from(u16::from_ne_bytes([kind, code])));
    let mut at_word = icmp_at + size_of::<Icmp>();
    let end = at_word + header_len::<L>(packet);
    // A separate value for the verifier (the mask covers any end): kernel 6.1 follows the loop along an impossible
    // path, on which `end` has umin above umax, and then rejects pointers made from it: "R1 invalid mem access
    // 'scalar'".
    let udp_at = black_box(end) & 0x7f;
    let mut i = 0;
    // 15 words are the longest IPv4 header.
    while i < 15 && at_word < end {
        // SAFETY: `ptr_at` checked the bounds.
        sum = csum::add(sum, unsafe { (*ptr_at::<Word>(ctx, at_word)?).0 });
        at_word += 4;
        i += 1;
    }
    // SAFETY: `ptr_at` checked the bounds.
    let udp = unsafe { *ptr_at::<[Word; 2]>(ctx, udp_at)? };
    let udp_sum = csum::add(udp[0].0, udp[1].0);
    sum = csum::add(sum, udp_sum);
    if is_sctp {
        // SAFETY: `ptr_at` checked the bounds.
        sum = csum::add(sum, unsafe { (*ptr_at::<Word>(ctx, udp_at + 8)?).0 });
    }
    if partial {
        // The kernel will complete the quoted datagram's checksum (skb_checksum_help): it sums up just these 8 bytes
        // with the seed in place, and writes the complement there. Use the value that will be there then.
        let seed = if cfg!(target_endian = "little") { udp[1].0 >> 16 } else { udp[1].0 & 0xffff };
        let completed = match !csum::fold(udp_sum) {
            0 => 0xffff,
            completed => completed,
        };
        sum = csum::add(sum, csum::diff(seed, u32::from(completed)));
    }
    // SAFETY: `ptr_at` checked the bounds.
    unsafe { (*ptr_at::<Icmp>(ctx, icmp_at)?).check = !csum::fold(sum) };
    Some(())
}

#[inline(always)]
fn outer_v4<L: Link>(ctx: &TcContext, src: &Addr, dst: &Addr, message: u16) -> Option<()> {
    // SAFETY: `ptr_at` checked the bounds.
    let ip = unsafe { &mut *ptr_at::<Ipv4>(ctx, L::HEADER)? };
    *ip = Ipv4 {
        version_ihl: 0x45,
        // Precedence "internetwork control" (RFC 1812, 4.3.2.5).
        tos: 0xc0,
        total_len: (size_of::<Ipv4>() as u16 + message).to_be(),
        id: 0,
        fragment: DONT_FRAGMENT,
        ttl: TTL,
        proto: Proto::ICMP,
        check: 0,
        src: src.v4_be(),
        dst: dst.v4_be(),
    };
    // SAFETY: `ptr_at` checked the bounds; the same 20 bytes, as words.
    let words = unsafe { *ptr_at::<[Word; 5]>(ctx, L::HEADER)? };
    let sum = words.iter().fold(0, |sum, word| csum::add(sum, word.0));
    ip.check = !csum::fold(sum);
    Some(())
}

#[inline(always)]
fn outer_v6<L: Link>(ctx: &TcContext, src: &Addr, dst: &Addr, message: u16) -> Option<()> {
    // SAFETY: `ptr_at` checked the bounds.
    let ip = unsafe { &mut *ptr_at::<Ipv6>(ctx, L::HEADER)? };
    *ip = Ipv6 {
        version_class_flow: 0x6000_0000_u32.to_be(),
        payload_len: message.to_be(),
        next_header: Proto::ICMPV6,
        hop_limit: TTL,
        src: src.words(),
        dst: dst.words(),
    };
    Some(())
}
