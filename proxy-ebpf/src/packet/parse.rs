//! Parsing: from an skb to the tuple that conntrack and frontends are looked up with.
//!
//! A whole TCP or UDP packet or an ICMP echo request directly behind an IPv4 or IPv6 header is plain and becomes a
//! [`Packet`]. Fragments, IPv6 extension headers, ICMP errors and redirects, and other protocols are
//! [`NotPlain::SlowPath`], for `slow_path/`. The rest is [`NotPlain::Foreign`] and passes unchanged: other EtherTypes, VLAN
//! tags (the VLAN device's own hook sees the packet untagged), truncated headers, other ICMP.

use core::mem::size_of;

use aya_ebpf::programs::TcContext;
use proxy_common::{Addr, CtKey, Half, Port, Proto, tcp};

use crate::{
    base::protocol_headers::{
        ETH_P_IP, ETH_P_IPV6, FRAGMENT_MASK, FRAGMENT_OFFSET_MASK, Icmp, Ipv4, Ipv6, Tcp, Udp,
    },
    packet::{
        access::{pull_at, skb},
        link::Link,
    },
};

/// A plain packet.
pub struct Packet {
    /// The tuple of the packet, keyed for the hook. For an echo request both ports are zero.
    pub key: CtKey,
    /// Offset of the transport header.
    pub l4: usize,
    /// TCP flags; 0 for other protocols.
    pub tcp_flags: u8,
    /// See [`tcp_end`].
    pub tcp_end: u32,
    pub v4: bool,
    /// An ICMP or ICMPv6 echo request.
    pub echo: bool,
}

/// The number behind a TCP segment, in `len` bytes of header and payload: SYN and FIN count as a byte each. BIG TCP writes no length
/// for what is longer than 65,535 bytes: it counts as that long.
#[inline(always)]
pub fn tcp_end(header: &Tcp, len: u32) -> u32 {
    const LONGEST: u32 = u16::MAX as u32;
    let payload = len.wrapping_sub(u32::from(header.offset >> 4) * 4);
    let payload = if payload > LONGEST { LONGEST } else { payload };
    tcp::end(u32::from_be(header.seq), header.flags, payload)
}

impl Packet {
    #[inline(always)]
    pub fn is_tcp(&self) -> bool {
        self.key.proto == Proto::TCP
    }

    /// Whether this is the first segment of a connection.
    #[inline(always)]
    pub fn is_syn(&self) -> bool {
        tcp::is_syn(self.tcp_flags)
    }
}

/// Why a packet is not plain.
#[derive(Clone, Copy)]
pub enum NotPlain {
    /// For the slow path.
    SlowPath,
    /// Not for shunt; passes unchanged.
    Foreign,
}

/// Parses a plain packet, keyed for this hook.
#[inline(always)]
pub fn parse<L: Link>(ctx: &TcContext, half: Half) -> Result<Packet, NotPlain> {
    parse_as::<L, false>(ctx, half)
}

/// Like [`parse`], but accepts first fragments and any protocol too: a rejection needs 8 bytes behind the IP header
/// and no more.
#[inline(always)]
pub fn parse_for_reject<L: Link>(ctx: &TcContext, half: Half) -> Result<Packet, NotPlain> {
    parse_as::<L, true>(ctx, half)
}

#[inline(always)]
fn parse_as<L: Link, const LOOSE: bool>(ctx: &TcContext, half: Half) -> Result<Packet, NotPlain> {
    let skb = skb(ctx);
    if skb.vlan_present != 0 {
        return Err(NotPlain::Foreign);
    }
    match skb.protocol as u16 {
        ETH_P_IP => parse_v4::<L, LOOSE>(ctx, half),
        ETH_P_IPV6 => parse_v6::<L, LOOSE>(ctx, half),
        _ => Err(NotPlain::Foreign),
    }
}

#[inline(always)]
fn parse_v4<L: Link, const LOOSE: bool>(ctx: &TcContext, half: Half) -> Result<Packet, NotPlain> {
    let ip = pull_at::<Ipv4>(ctx, L::HEADER).ok_or(NotPlain::Foreign)?;
    // SAFETY: `pull_at` checked the bounds; the fields are plain integers.
    let ip = unsafe { &*ip };
    let header = usize::from(ip.version_ihl & 0x0f) * 4;
    if ip.version_ihl >> 4 != 4 || header < size_of::<Ipv4>() {
        return Err(NotPlain::Foreign);
    }
    let fragment = if LOOSE { FRAGMENT_OFFSET_MASK } else { FRAGMENT_MASK };
    if ip.fragment & fragment != 0 {
        return Err(NotPlain::SlowPath);
    }
    let (src, dst) = (Addr::from_v4_be(ip.src), Addr::from_v4_be(ip.dst));
    let len = u32::from(u16::from_be(ip.total_len)).wrapping_sub(header as u32);
    let key = CtKey::new(src, Port::ZERO, dst, Port::ZERO, ip.proto, half);
    parse_transport::<LOOSE>(ctx, key, L::HEADER + header, len, true)
}

#[inline(always)]
fn parse_v6<L: Link, const LOOSE: bool>(ctx: &TcContext, half: Half) -> Result<Packet, NotPlain> {
    let ip = pull_at::<Ipv6>(ctx, L::HEADER).ok_or(NotPlain::Foreign)?;
    // SAFETY: `pull_at` checked the bounds; the fields are plain integers.
    let ip = unsafe { &*ip };
    if ip.version_class_flow as u8 >> 4 != 6 {
        return Err(NotPlain::Foreign);
    }
    let (src, dst) = (Addr::from_v6_be(ip.src), Addr::from_v6_be(ip.dst));
    // v4-mapped addresses never appear on the wire (RFC 4291, 2.5.5.2): such a packet must not match IPv4 state.
    if src.is_v4() || dst.is_v4() {
        return Err(NotPlain::Foreign);
    }
    let len = u32::from(u16::from_be(ip.payload_len));
    let key = CtKey::new(src, Port::ZERO, dst, Port::ZERO, ip.next_header, half);
    parse_transport::<LOOSE>(ctx, key, L::HEADER + size_of::<Ipv6>(), len, false)
}

#[inline(always)]
fn parse_transport<const LOOSE: bool>(
    ctx: &TcContext,
    key: CtKey,
    l4: usize,
    len: u32,
    v4: bool,
) -> Result<Packet, NotPlain> {
    let proto = key.proto;
    let mut packet = Packet { key, l4, tcp_flags: 0, tcp_end: 0, v4, echo: false };
    match proto {
        Proto::TCP => {
            // SAFETY: `pull_at` checked the bounds; the fields are plain integers.
            let tcp = unsafe { &*pull_at::<Tcp>(ctx, l4).ok_or(NotPlain::Foreign)? };
            packet.tcp_flags = tcp.flags;
            packet.tcp_end = tcp_end(tcp, len);
            packet.key.sport = Port::from_be(tcp.sport);
            packet.key.dport = Port::from_be(tcp.dport);
        }
        Proto::ICMP if v4 => packet.echo = is_echo(ctx, l4, true)?,
        Proto::ICMPV6 if !v4 => packet.echo = is_echo(ctx, l4, false)?,
        // For any protocol, a rejection quotes 8 bytes.
        _ if LOOSE || proto == Proto::UDP => {
            // SAFETY: as above.
            let udp = unsafe { &*pull_at::<Udp>(ctx, l4).ok_or(NotPlain::Foreign)? };
            packet.key.sport = Port::from_be(udp.sport);
            packet.key.dport = Port::from_be(udp.dport);
        }
        _ => return Err(NotPlain::SlowPath),
    }
    Ok(packet)
}

/// Whether ICMP messages of this type quote a packet, which may belong to a flow: errors and redirects.
#[inline(always)]
pub fn quotes_packet(kind: u8, v4: bool) -> bool {
    if v4 {
        // Unreachable, source quench, redirect, time exceeded, parameter problem.
        matches!(kind, 3 | 4 | 5 | 11 | 12)
    } else {
        // Unreachable, packet too big, time exceeded, parameter problem, redirect.
        matches!(kind, 1..=4 | 137)
    }
}

/// Whether the message is an echo request; any other message is not plain.
#[inline(always)]
fn is_echo(ctx: &TcContext, l4: usize, v4: bool) -> Result<bool, NotPlain> {
    // SAFETY: `pull_at` checked the bounds; the fields are plain integers.
    let icmp = unsafe { &*pull_at::<Icmp>(ctx, l4).ok_or(NotPlain::Foreign)? };
    let request = if v4 { 8 } else { 128 };
    if icmp.kind == request && icmp.code == 0 {
        Ok(true)
    } else if quotes_packet(icmp.kind, v4) {
        Err(NotPlain::SlowPath)
    } else {
        Err(NotPlain::Foreign)
    }
}
