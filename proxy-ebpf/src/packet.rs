//! Parsing: from an skb to the tuple that conntrack and frontends are looked up with.
//!
//! A whole TCP or UDP packet or an ICMP echo request, directly behind an IPv4 or IPv6 header, is plain and comes out as
//! a [`Packet`]. What takes a longer look is [`Aside::Odd`], `odd.rs`'s: fragments, IPv6 extension headers, ICMP errors
//! and redirects, other protocols. The rest is nobody's: other EtherTypes, VLAN tags (the VLAN device's own hook sees
//! the packet untagged), truncated headers, other ICMP.

use core::{hint::black_box, mem::size_of};

use aya_ebpf::{
    EbpfContext as _,
    bindings::__sk_buff,
    helpers::bpf_skb_pull_data,
    programs::{TcContext, XdpContext},
};
use proxy_common::{Addr, CtKey, Half, Port, Proto, tcp};

/// Link-layer framing of a device: which of the two program variants this is.
pub trait Link {
    /// Bytes in front of the IP header.
    const HEADER: usize;
}

/// 14 bytes of Ethernet.
pub struct Ethernet;
/// Nothing: the packet begins with the IP header.
pub struct NoHeader;

impl Link for Ethernet {
    const HEADER: usize = 14;
}

impl Link for NoHeader {
    const HEADER: usize = 0;
}

/// Headers are only 2-byte aligned behind Ethernet: `packed(2)` makes every load defined behaviour.
#[repr(C, packed(2))]
pub struct Ipv4 {
    pub version_ihl: u8,
    pub tos: u8,
    pub total_len: u16,
    pub id: u16,
    pub fragment: u16,
    pub ttl: u8,
    pub proto: u8,
    pub check: u16,
    pub src: u32,
    pub dst: u32,
}

#[repr(C, packed(2))]
pub struct Ipv6 {
    pub version_class_flow: u32,
    pub payload_len: u16,
    pub next_header: u8,
    pub hop_limit: u8,
    pub src: [u32; 4],
    pub dst: [u32; 4],
}

#[repr(C, packed(2))]
pub struct Tcp {
    pub sport: u16,
    pub dport: u16,
    pub seq: u32,
    pub ack: u32,
    pub offset: u8,
    pub flags: u8,
    pub window: u16,
    pub check: u16,
    pub urgent: u16,
}

#[repr(C, packed(2))]
pub struct Udp {
    pub sport: u16,
    pub dport: u16,
    pub len: u16,
    pub check: u16,
}

#[repr(C, packed(2))]
pub struct Icmp {
    pub kind: u8,
    pub code: u8,
    pub check: u16,
    pub rest: u32,
}

pub const ETH_P_IP: u16 = 0x0800_u16.to_be();
pub const ETH_P_IPV6: u16 = 0x86dd_u16.to_be();
/// More-fragments flag and fragment offset.
pub const FRAGMENT_MASK: u16 = 0x3fff_u16.to_be();
const OFFSET_MASK: u16 = 0x1fff_u16.to_be();

/// A packet shunt may have a say in.
pub struct Packet {
    /// The tuple as the packet carries it, keyed for the hook it was parsed at. For an echo request both
    /// ports are zero.
    pub key: CtKey,
    /// Offset of the transport header.
    pub l4: usize,
    /// TCP flags; 0 for other protocols.
    pub tcp_flags: u8,
    pub v4: bool,
    /// An ICMP or ICMPv6 echo request.
    pub echo: bool,
}

impl Packet {
    #[inline(always)]
    pub fn is_tcp(&self) -> bool {
        self.key.proto == Proto::TCP
    }

    /// The first segment of a connection.
    #[inline(always)]
    pub fn is_syn(&self) -> bool {
        tcp::is_syn(self.tcp_flags)
    }
}

/// Why a packet is not a plain one.
#[derive(Clone, Copy)]
pub enum Aside {
    /// For `odd.rs` to look at.
    Odd,
    /// None of ours.
    Foreign,
}

/// What a hook shows of a packet: an skb at tc, a buffer at XDP.
pub trait Frame {
    /// Where the linear part begins and ends. Read anew for each check: from checks that it can relate the
    /// compiler makes arithmetic that the verifier refuses ("pointer arithmetic on pkt_end prohibited", "offset
    /// is outside of the packet").
    fn bounds(&self) -> (usize, usize);
}

impl Frame for TcContext {
    #[inline(always)]
    fn bounds(&self) -> (usize, usize) {
        let skb = skb(self);
        // SAFETY: fields of the context, which is valid while the program runs.
        let (data, end) =
            unsafe { ((&raw const skb.data).read_volatile(), (&raw const skb.data_end).read_volatile()) };
        (data as usize, end as usize)
    }
}

impl Frame for XdpContext {
    #[inline(always)]
    fn bounds(&self) -> (usize, usize) {
        // SAFETY: fields of the context, which is valid while the program runs.
        let (data, end) = unsafe {
            ((&raw const (*self.ctx).data).read_volatile(), (&raw const (*self.ctx).data_end).read_volatile())
        };
        (data as usize, end as usize)
    }
}

/// A pointer to a `T` at `offset`, if the linear part of the packet holds one.
#[inline(always)]
pub fn at<T>(ctx: &impl Frame, offset: usize) -> Option<*mut T> {
    let (data, end) = ctx.bounds();
    let start = data + offset;
    if start + size_of::<T>() > end {
        return None;
    }
    Some(start as *mut T)
}

/// As [`at`], but where the header lies (in part) beyond the linear part it is pulled into it first. Only then: a
/// received packet's headers are linear as a rule, and pulling payload after them costs an allocation.
#[inline(always)]
fn reach<T>(ctx: &TcContext, offset: usize) -> Option<*mut T> {
    if let Some(header) = at(ctx, offset) {
        return Some(header);
    }
    let end = offset + size_of::<T>();
    if end > ctx.len() as usize {
        return None;
    }
    // SAFETY: the context the kernel gave; pointers into the packet are made anew after this. After a failure the
    // check that follows finds the packet too short.
    unsafe { bpf_skb_pull_data(ctx.as_ptr().cast::<__sk_buff>(), end as u32) };
    at(ctx, offset)
}

#[inline(always)]
pub fn skb(ctx: &TcContext) -> &__sk_buff {
    // SAFETY: the context is a valid __sk_buff for as long as the program runs; the verifier turns each field
    // access into a load from the real skb.
    unsafe { &*ctx.skb.skb }
}

/// The device whose hook runs. From a pointer of its own: where several stages read this field, the compiler makes
/// one pointer to it, which the verifier refuses ("dereference of modified ctx ptr R6 off=40 disallowed").
#[inline(always)]
pub fn ifindex(ctx: &TcContext) -> u32 {
    let skb = black_box(ctx.skb.skb);
    // SAFETY: as in `skb`.
    unsafe { (*skb).ifindex }
}

/// The packet, keyed for this hook, if it is a plain one.
#[inline(always)]
pub fn parse<L: Link>(ctx: &TcContext, half: Half) -> Result<Packet, Aside> {
    parse_as::<L, false>(ctx, half)
}

/// As [`parse`], and takes first fragments and any protocol besides: for a refusal, which needs 8 bytes behind the IP
/// header and no more.
#[inline(always)]
pub fn parse_loosely<L: Link>(ctx: &TcContext, half: Half) -> Result<Packet, Aside> {
    parse_as::<L, true>(ctx, half)
}

#[inline(always)]
fn parse_as<L: Link, const LOOSE: bool>(ctx: &TcContext, half: Half) -> Result<Packet, Aside> {
    let skb = skb(ctx);
    if skb.vlan_present != 0 {
        return Err(Aside::Foreign);
    }
    match skb.protocol as u16 {
        ETH_P_IP => parse_v4::<L, LOOSE>(ctx, half),
        ETH_P_IPV6 => parse_v6::<L, LOOSE>(ctx, half),
        _ => Err(Aside::Foreign),
    }
}

#[inline(always)]
fn parse_v4<L: Link, const LOOSE: bool>(ctx: &TcContext, half: Half) -> Result<Packet, Aside> {
    let ip = reach::<Ipv4>(ctx, L::HEADER).ok_or(Aside::Foreign)?;
    // SAFETY: `reach` checked the bounds; the fields are plain integers.
    let ip = unsafe { &*ip };
    let header = usize::from(ip.version_ihl & 0x0f) * 4;
    if ip.version_ihl >> 4 != 4 || header < size_of::<Ipv4>() {
        return Err(Aside::Foreign);
    }
    let fragment = if LOOSE { OFFSET_MASK } else { FRAGMENT_MASK };
    if ip.fragment & fragment != 0 {
        return Err(Aside::Odd);
    }
    let (src, dst) = (Addr::from_v4_be(ip.src), Addr::from_v4_be(ip.dst));
    parse_transport::<LOOSE>(ctx, src, dst, ip.proto, L::HEADER + header, half, true)
}

#[inline(always)]
fn parse_v6<L: Link, const LOOSE: bool>(ctx: &TcContext, half: Half) -> Result<Packet, Aside> {
    let ip = reach::<Ipv6>(ctx, L::HEADER).ok_or(Aside::Foreign)?;
    // SAFETY: `reach` checked the bounds; the fields are plain integers.
    let ip = unsafe { &*ip };
    if ip.version_class_flow as u8 >> 4 != 6 {
        return Err(Aside::Foreign);
    }
    let (src, dst) = (Addr::from_v6_be(ip.src), Addr::from_v6_be(ip.dst));
    // v4-mapped addresses never appear on a wire (RFC 4291, 2.5.5.2): such a packet must not meet IPv4 state.
    if src.is_v4() || dst.is_v4() {
        return Err(Aside::Foreign);
    }
    parse_transport::<LOOSE>(ctx, src, dst, ip.next_header, L::HEADER + size_of::<Ipv6>(), half, false)
}

#[inline(always)]
fn parse_transport<const LOOSE: bool>(
    ctx: &TcContext,
    src: Addr,
    dst: Addr,
    proto: u8,
    l4: usize,
    half: Half,
    v4: bool,
) -> Result<Packet, Aside> {
    let mut packet = Packet {
        key: CtKey::new(src, Port::ZERO, dst, Port::ZERO, proto, half),
        l4,
        tcp_flags: 0,
        v4,
        echo: false,
    };
    match proto {
        Proto::TCP => {
            // SAFETY: `reach` checked the bounds; the fields are plain integers.
            let tcp = unsafe { &*reach::<Tcp>(ctx, l4).ok_or(Aside::Foreign)? };
            packet.tcp_flags = tcp.flags;
            packet.key.sport = Port::from_be(tcp.sport);
            packet.key.dport = Port::from_be(tcp.dport);
        }
        Proto::ICMP if v4 => packet.echo = is_echo(ctx, l4, true)?,
        Proto::ICMPV6 if !v4 => packet.echo = is_echo(ctx, l4, false)?,
        // Whatever it is, the quote in a refusal is just as long.
        _ if LOOSE || proto == Proto::UDP => {
            // SAFETY: as above.
            let udp = unsafe { &*reach::<Udp>(ctx, l4).ok_or(Aside::Foreign)? };
            packet.key.sport = Port::from_be(udp.sport);
            packet.key.dport = Port::from_be(udp.dport);
        }
        _ => return Err(Aside::Odd),
    }
    Ok(packet)
}

/// Errors and redirects quote a packet, which may be one of a flow's.
#[inline(always)]
pub fn quotes(kind: u8, v4: bool) -> bool {
    if v4 {
        // Unreachable, source quench, redirect, time exceeded, parameter problem.
        matches!(kind, 3 | 4 | 5 | 11 | 12)
    } else {
        // Unreachable, packet too big, time exceeded, parameter problem, redirect.
        matches!(kind, 1..=4 | 137)
    }
}

/// Whether the message is an echo request; any other kind is not plain.
#[inline(always)]
fn is_echo(ctx: &TcContext, l4: usize, v4: bool) -> Result<bool, Aside> {
    // SAFETY: `reach` checked the bounds; the fields are plain integers.
    let icmp = unsafe { &*reach::<Icmp>(ctx, l4).ok_or(Aside::Foreign)? };
    let request = if v4 { 8 } else { 128 };
    if icmp.kind == request && icmp.code == 0 {
        Ok(true)
    } else if quotes(icmp.kind, v4) {
        Err(Aside::Odd)
    } else {
        Err(Aside::Foreign)
    }
}
