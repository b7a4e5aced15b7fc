//! Frames as the XDP hook reads and writes them: headers at fixed offsets, checksums updated in place (RFC 1624).

use core::mem::size_of;

use aya_ebpf::programs::XdpContext;
use proxy_common::{Addr, CtKey, Half, Port, Proto, csum};

use crate::{
    base::protocol_headers::{FRAGMENT_MASK, Ipv4, Ipv6, Tcp, Udp},
    hooks::xdp::metadata,
    packet::{
        access::ptr_at,
        checksum::pseudo_header,
        parse::{Packet, tcp_end},
        rewrite::{Ports, ports_word},
    },
};

/// Length of the Ethernet header.
pub const ETHERNET: usize = 14;

/// An IP family, for which all offsets are constants.
pub trait Family {
    const V4: bool;
    /// Offset of the transport header.
    const L4: usize;
}

pub struct V4;

pub struct V6;

impl Family for V4 {
    const V4: bool = true;
    const L4: usize = ETHERNET + size_of::<Ipv4>();
}

impl Family for V6 {
    const V4: bool = false;
    const L4: usize = ETHERNET + size_of::<Ipv6>();
}

/// Both ends of a packet.
pub struct Endpoints {
    pub src: Addr,
    pub sport: Port,
    pub dst: Addr,
    pub dport: Port,
}

/// Parses a plain TCP or UDP packet. `None`: options, fragments, extension headers, an expiring hop limit, or
/// truncated.
#[inline(always)]
pub fn parse<F: Family>(ctx: &XdpContext) -> Option<Packet> {
    let (src, dst, proto, len) = if F::V4 {
        // SAFETY: `ptr_at` checked the bounds.
        let ip = unsafe { &*ptr_at::<Ipv4>(ctx, ETHERNET)? };
        if ip.version_ihl != 0x45 || ip.fragment & FRAGMENT_MASK != 0 || ip.ttl <= 1 {
            return None;
        }
        let len = u32::from(u16::from_be(ip.total_len)).wrapping_sub(size_of::<Ipv4>() as u32);
        (Addr::from_v4_be(ip.src), Addr::from_v4_be(ip.dst), ip.proto, len)
    } else {
        // SAFETY: `ptr_at` checked the bounds.
        let ip = unsafe { &*ptr_at::<Ipv6>(ctx, ETHERNET)? };
        let (src, dst) = (Addr::from_v6_be(ip.src), Addr::from_v6_be(ip.dst));
        if ip.version_class_flow as u8 >> 4 != 6 || ip.hop_limit <= 1 || src.is_v4() || dst.is_v4() {
            return None;
        }
        (src, dst, ip.next_header, u32::from(u16::from_be(ip.payload_len)))
    };
    let (sport, dport, tcp_flags, tcp_end) = match proto {
        Proto::TCP => {
            // SAFETY: `ptr_at` checked the bounds.
            let tcp = unsafe { &*ptr_at::<Tcp>(ctx, F::L4)? };
            (tcp.sport, tcp.dport, tcp.flags, tcp_end(tcp, len))
        }
        Proto::UDP => {
            // SAFETY: `ptr_at` checked the bounds.
            let udp = unsafe { &*ptr_at::<Udp>(ctx, F::L4)? };
            (udp.sport, udp.dport, 0, 0)
        }
        _ => return None,
    };
    let key = CtKey::new(src, Port::from_be(sport), dst, Port::from_be(dport), proto, Half::Ingress);
    Some(Packet { key, l4: F::L4, tcp_flags, tcp_end, v4: F::V4, echo: false })
}

/// Length of the IP packet according to its header.
#[inline(always)]
pub fn ip_len<F: Family>(ctx: &XdpContext) -> Option<u32> {
    Some(if F::V4 {
        // SAFETY: `ptr_at` checked the bounds.
        bounded(u16::from_be(unsafe { (*ptr_at::<Ipv4>(ctx, ETHERNET)?).total_len }))
    } else {
        // SAFETY: `ptr_at` checked the bounds.
        let payload = u16::from_be(unsafe { (*ptr_at::<Ipv6>(ctx, ETHERNET)?).payload_len });
        bounded(payload) + size_of::<Ipv6>() as u32
    })
}

/// Bounds a value for the verifier to the 16 bits that the compiler knows it has: Debian's kernels 6.1 to 6.18.15
/// lose the bounds of a byte-swapped register ("math between pkt pointer and register with unbounded min value is not
/// allowed").
#[inline(always)]
fn bounded(bits: u16) -> u32 {
    let mut word = u64::from(bits);
    // SAFETY: changes this register only.
    unsafe { core::arch::asm!("{0} &= 65535", inout(reg) word, options(pure, nomem, nostack)) };
    word as u32
}

/// Offset of the transport checksum.
#[inline(always)]
fn checksum_offset<F: Family>(proto: u8) -> usize {
    if proto == Proto::TCP { F::L4 + 16 } else { F::L4 + 6 }
}

/// Whether the transport checksum may be just the pseudo-header's sum (CHECKSUM_PARTIAL), or is missing although
/// mandatory. A complete checksum looks like that once in 65536 packets; tc can tell.
#[inline(always)]
pub fn maybe_partial<F: Family>(ctx: &XdpContext, packet: &Packet) -> bool {
    let proto = packet.key.proto;
    let Some((len, field)) = ip_len::<F>(ctx).zip(ptr_at::<[u16; 1]>(ctx, checksum_offset::<F>(proto)))
    else {
        return true;
    };
    // SAFETY: `ptr_at` checked the bounds.
    let [field] = unsafe { *field };
    let transport = len.wrapping_sub((F::L4 - ETHERNET) as u32) as u16;
    let seed = csum::fold(pseudo_header(&packet.key.src, &packet.key.dst, F::V4, proto, transport));
    field == seed || field == 0 && !F::V4 && proto == Proto::UDP
}

/// Writes both ends, and decrements the hop limit if the packet is forwarded.
#[inline(always)]
pub fn rewrite<F: Family>(ctx: &XdpContext, old: &CtKey, to: &Endpoints, forwarded: bool) -> Option<()> {
    let addrs = if F::V4 {
        // SAFETY: `ptr_at` checked the bounds.
        let ip = unsafe { &mut *ptr_at::<Ipv4>(ctx, ETHERNET)? };
        let addrs = csum::add(
            csum::diff(old.src.v4_be(), to.src.v4_be()),
            csum::diff(old.dst.v4_be(), to.dst.v4_be()),
        );
        (ip.src, ip.dst) = (to.src.v4_be(), to.dst.v4_be());
        let mut header = addrs;
        if forwarded {
            let word = |ttl: u8| u32::from(u16::from_ne_bytes([ttl, 0]));
            header = csum::add(header, csum::diff(word(ip.ttl), word(ip.ttl - 1)));
            ip.ttl -= 1;
        }
        ip.check = csum::apply(ip.check, header);
        addrs
    } else {
        // SAFETY: `ptr_at` checked the bounds.
        let ip = unsafe { &mut *ptr_at::<Ipv6>(ctx, ETHERNET)? };
        (ip.src, ip.dst) = (to.src.words(), to.dst.words());
        if forwarded {
            ip.hop_limit -= 1;
        }
        csum::add(csum::diff4(old.src.words(), to.src.words()), csum::diff4(old.dst.words(), to.dst.words()))
    };
    let (old_ports, new_ports) = (ports_word(old.sport, old.dport), ports_word(to.sport, to.dport));
    // SAFETY: `ptr_at` checked the bounds.
    unsafe { (*ptr_at::<Ports>(ctx, F::L4)?).word = new_ports };
    // SAFETY: `ptr_at` checked the bounds.
    let [field] = unsafe { &mut *ptr_at::<[u16; 1]>(ctx, checksum_offset::<F>(old.proto))? };
    let is_udp = old.proto == Proto::UDP;
    if is_udp && *field == 0 {
        return Some(());
    }
    let sum = csum::apply(*field, csum::add(addrs, csum::diff(old_ports, new_ports)));
    *field = if is_udp && sum == 0 { 0xffff } else { sum };
    Some(())
}

/// Translates a packet for the host's stack and tags it in its metadata. Without room for metadata the packet stays
/// unchanged.
#[inline(always)]
pub fn rewrite_and_tag<F: Family>(ctx: &XdpContext, old: &CtKey, to: &Endpoints) -> Option<()> {
    if !metadata::push(ctx, metadata::TRANSLATED) {
        return None;
    }
    let done = rewrite::<F>(ctx, old, to, false);
    if done.is_none() {
        metadata::pop(ctx);
    }
    done
}
