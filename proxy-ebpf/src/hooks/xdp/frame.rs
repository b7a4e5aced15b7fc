//! Frames as the XDP hook reads and writes them: headers at fixed offsets, checksums updated in place (RFC 1624).

use core::mem::size_of;

use aya_ebpf::programs::XdpContext;
use proxy_common::{Addr, CtKey, Half, Port, Proto, csum};

use crate::{
    base::headers::{FRAGMENT_MASK, Ipv4, Ipv6, Tcp, Udp},
    hooks::xdp::metadata,
    packet::{
        access::ptr_at,
        checksum::pseudo_header,
        parse::Packet,
        rewrite::{Ports, ports_word},
    },
};

/// Bytes of the Ethernet header.
pub const ETHERNET: usize = 14;

/// One of the two IP families: all offsets are constants.
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

/// `None`: not plain TCP or UDP (options, fragments, extension headers, the last hop), or cut short.
#[inline(always)]
pub fn parse<F: Family>(ctx: &XdpContext) -> Option<Packet> {
    let (src, dst, proto) = if F::V4 {
        // SAFETY: `at` checked the bounds.
        let ip = unsafe { &*ptr_at::<Ipv4>(ctx, ETHERNET)? };
        if ip.version_ihl != 0x45 || ip.fragment & FRAGMENT_MASK != 0 || ip.ttl <= 1 {
            return None;
        }
        (Addr::from_v4_be(ip.src), Addr::from_v4_be(ip.dst), ip.proto)
    } else {
        // SAFETY: `at` checked the bounds.
        let ip = unsafe { &*ptr_at::<Ipv6>(ctx, ETHERNET)? };
        let (src, dst) = (Addr::from_v6_be(ip.src), Addr::from_v6_be(ip.dst));
        if ip.version_class_flow as u8 >> 4 != 6 || ip.hop_limit <= 1 || src.is_v4() || dst.is_v4() {
            return None;
        }
        (src, dst, ip.next_header)
    };
    let (sport, dport, tcp_flags) = match proto {
        Proto::TCP => {
            // SAFETY: `at` checked the bounds.
            let tcp = unsafe { &*ptr_at::<Tcp>(ctx, F::L4)? };
            (tcp.sport, tcp.dport, tcp.flags)
        }
        Proto::UDP => {
            // SAFETY: `at` checked the bounds.
            let udp = unsafe { &*ptr_at::<Udp>(ctx, F::L4)? };
            (udp.sport, udp.dport, 0)
        }
        _ => return None,
    };
    let key = CtKey::new(src, Port::from_be(sport), dst, Port::from_be(dport), proto, Half::Ingress);
    Some(Packet { key, l4: F::L4, tcp_flags, v4: F::V4, echo: false })
}

/// Length of the IP packet as its header says.
#[inline(always)]
pub fn ip_len<F: Family>(ctx: &XdpContext) -> Option<u32> {
    Some(if F::V4 {
        // SAFETY: `at` checked the bounds.
        bounded(u16::from_be(unsafe { (*ptr_at::<Ipv4>(ctx, ETHERNET)?).total_len }))
    } else {
        // SAFETY: `at` checked the bounds.
        let payload = u16::from_be(unsafe { (*ptr_at::<Ipv6>(ctx, ETHERNET)?).payload_len });
        bounded(payload) + size_of::<Ipv6>() as u32
    })
}

/// Tells the verifier what the compiler knows of 16 bits: Debian's kernels 6.1 to 6.18.15 forget a swapped register's
/// bounds ("math between pkt pointer and register with unbounded min value is not allowed").
#[inline(always)]
fn bounded(bits: u16) -> u32 {
    let mut word = u64::from(bits);
    // SAFETY: changes this register and nothing else.
    unsafe { core::arch::asm!("{0} &= 65535", inout(reg) word, options(pure, nomem, nostack)) };
    word as u32
}

/// Offset of the transport checksum.
#[inline(always)]
fn checksum_offset<F: Family>(proto: u8) -> usize {
    if proto == Proto::TCP { F::L4 + 16 } else { F::L4 + 6 }
}

/// Whether the transport checksum may be the pseudo-header's sum alone (CHECKSUM_PARTIAL), or is missing where it
/// must not be: a whole checksum looks so once in 65536 packets, and tc knows how to tell.
#[inline(always)]
pub fn maybe_partial<F: Family>(ctx: &XdpContext, packet: &Packet) -> bool {
    let proto = packet.key.proto;
    let Some((len, field)) = ip_len::<F>(ctx).zip(ptr_at::<[u16; 1]>(ctx, checksum_offset::<F>(proto)))
    else {
        return true;
    };
    // SAFETY: `at` checked the bounds.
    let [field] = unsafe { *field };
    let transport = len.wrapping_sub((F::L4 - ETHERNET) as u32) as u16;
    let seed = csum::fold(pseudo_header(&packet.key.src, &packet.key.dst, F::V4, proto, transport));
    field == seed || field == 0 && !F::V4 && proto == Proto::UDP
}

/// Writes both ends, and one hop less where the packet is forwarded from here.
#[inline(always)]
pub fn rewrite<F: Family>(ctx: &XdpContext, old: &CtKey, to: &Endpoints, forwarded: bool) -> Option<()> {
    let addrs = if F::V4 {
        // SAFETY: `at` checked the bounds.
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
        // SAFETY: `at` checked the bounds.
        let ip = unsafe { &mut *ptr_at::<Ipv6>(ctx, ETHERNET)? };
        (ip.src, ip.dst) = (to.src.words(), to.dst.words());
        if forwarded {
            ip.hop_limit -= 1;
        }
        csum::add(csum::diff4(old.src.words(), to.src.words()), csum::diff4(old.dst.words(), to.dst.words()))
    };
    let (old_ports, new_ports) = (ports_word(old.sport, old.dport), ports_word(to.sport, to.dport));
    // SAFETY: `at` checked the bounds.
    unsafe { (*ptr_at::<Ports>(ctx, F::L4)?).word = new_ports };
    // SAFETY: `at` checked the bounds.
    let [field] = unsafe { &mut *ptr_at::<[u16; 1]>(ctx, checksum_offset::<F>(old.proto))? };
    let is_udp = old.proto == Proto::UDP;
    if is_udp && *field == 0 {
        return Some(());
    }
    let sum = csum::apply(*field, csum::add(addrs, csum::diff(old_ports, new_ports)));
    *field = if is_udp && sum == 0 { 0xffff } else { sum };
    Some(())
}

/// Translates a packet for the host's stack and says so in its metadata; untouched where there is no room for that.
#[inline(always)]
pub fn rewrite_and_mark<F: Family>(ctx: &XdpContext, old: &CtKey, to: &Endpoints) -> Option<()> {
    if !metadata::push(ctx, metadata::TRANSLATED) {
        return None;
    }
    let done = rewrite::<F>(ctx, old, to, false);
    if done.is_none() {
        metadata::pop(ctx);
    }
    done
}
