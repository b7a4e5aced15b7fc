//! Writing translated addresses and ports into a packet, and updating its checksums.
//!
//! Addresses, ports and the IPv4 header's checksum are stored in place. The transport checksum is updated by
//! bpf_l4_csum_replace, because packets from pods and from the node itself carry only the pseudo-header's sum there
//! (CHECKSUM_PARTIAL), which a program cannot see. The helper has to be told address changes and port changes apart.

use aya_ebpf::{
    EbpfContext as _,
    bindings::{__sk_buff, BPF_F_MARK_MANGLED_0, BPF_F_PSEUDO_HDR},
    helpers::bpf_csum_update,
    programs::TcContext,
};
use proxy_common::{Addr, Counter, Half, Port, Proto, csum};

use crate::{
    base::{
        globals,
        protocol_headers::{Ipv4, Ipv6},
        scratch::{Rewrite, SlowPacket},
        verdict::DropReason,
    },
    packet::{
        access::{ptr_at, store},
        checksum::update_l4,
        link::Link,
        parse::Packet,
    },
};

/// Source and destination port, with which every transport protocol begins.
#[repr(C, packed(2))]
pub struct Ports {
    pub word: u32,
}

/// Rewrites a plain packet at the hook that its key was parsed for.
#[inline(always)]
pub fn rewrite<L: Link>(ctx: &TcContext, packet: &Packet, to: &Rewrite) -> Result<(), DropReason> {
    let ingress = packet.key.half == Half::Ingress as u8;
    let old = if ingress { packet.key.dst } else { packet.key.src };
    let addr_diff = if packet.v4 {
        write_v4_addr::<L>(ctx, ingress, old.v4_be(), to.addr.v4_be())?
    } else {
        write_v6_addr::<L>(ctx, ingress, &old, &to.addr)?
    };
    let (sport, dport) = if ingress { (to.peer_port, to.port) } else { (to.port, to.peer_port) };
    let old_ports = ports_word(packet.key.sport, packet.key.dport);
    let new_ports = ports_word(sport, dport);
    let ports = ptr_at::<Ports>(ctx, packet.l4).ok_or(Counter::RewriteFailed)?;
    // SAFETY: `ptr_at` checked the bounds.
    unsafe { (*ports).word = new_ports };

    let (offset, mark) = match packet.key.proto {
        Proto::TCP => (packet.l4 + 16, 0),
        // A zero UDP checksum over IPv4 means no checksum and stays zero.
        _ => (packet.l4 + 6, u64::from(BPF_F_MARK_MANGLED_0)),
    };
    if !to.addr.is(&old) {
        let family = if packet.v4 { 0 } else { globals::csum_ipv6() };
        update_l4(ctx, offset, addr_diff, u64::from(BPF_F_PSEUDO_HDR) | mark | family)?;
    }
    if new_ports != old_ports {
        update_l4(ctx, offset, csum::diff(old_ports, new_ports), mark)?;
    }
    Ok(())
}

/// Like [`rewrite`], for a packet on the slow path: its ports may be anywhere, or missing.
#[inline(always)]
pub fn rewrite_slow<L: Link>(
    ctx: &TcContext,
    packet: &mut SlowPacket,
    to: &Rewrite,
) -> Result<(), DropReason> {
    let ingress = packet.key.half == Half::Ingress as u8;
    let old = if ingress { packet.key.dst } else { packet.key.src };
    let v4 = old.is_v4();
    let addr_diff = if v4 {
        write_v4_addr::<L>(ctx, ingress, old.v4_be(), to.addr.v4_be())?
    } else {
        write_v6_addr::<L>(ctx, ingress, &old, &to.addr)?
    };
    let (offset, mark) = match packet.key.proto {
        Proto::TCP => (16, 0),
        Proto::UDP => (6, u64::from(BPF_F_MARK_MANGLED_0)),
        // SCTP's checksum does not cover addresses, and its ports stay.
        _ => return update_device_sum(ctx, v4, addr_diff),
    };
    if packet.has_transport == 0 {
        return update_device_sum(ctx, v4, addr_diff);
    }
    let offset = packet.headers.l4 as usize + offset;
    let (sport, dport) = if ingress { (to.peer_port, to.port) } else { (to.port, to.peer_port) };
    let old_ports = ports_word(packet.key.sport, packet.key.dport);
    packet.ports = ports_word(sport, dport);
    if !store(ctx, packet.headers.l4, &packet.ports) {
        return Err(Counter::RewriteFailed);
    }
    let family = if v4 { 0 } else { globals::csum_ipv6() };
    update_l4(ctx, offset, addr_diff, u64::from(BPF_F_PSEUDO_HDR) | mark | family)?;
    update_l4(ctx, offset, csum::diff(old_ports, packet.ports), mark)
}

/// Updates the sum that a device computed over the whole packet (skb->csum), where no checksum in the packet makes up
/// for a new IPv6 address.
#[inline(always)]
fn update_device_sum(ctx: &TcContext, v4: bool, addr_diff: u32) -> Result<(), DropReason> {
    if !v4 {
        // SAFETY: the kernel's context. It fails where there is no such checksum.
        unsafe { bpf_csum_update(ctx.as_ptr().cast::<__sk_buff>(), addr_diff) };
    }
    Ok(())
}

/// Both ports as one native word of the packet.
#[inline(always)]
pub fn ports_word(sport: Port, dport: Port) -> u32 {
    if cfg!(target_endian = "little") {
        u32::from(dport.be()) << 16 | u32::from(sport.be())
    } else {
        u32::from(sport.be()) << 16 | u32::from(dport.be())
    }
}

#[inline(always)]
pub fn write_v4_addr<L: Link>(ctx: &TcContext, ingress: bool, old: u32, new: u32) -> Result<u32, DropReason> {
    let ip = ptr_at::<Ipv4>(ctx, L::HEADER).ok_or(Counter::RewriteFailed)?;
    // SAFETY: `ptr_at` checked the bounds.
    let ip = unsafe { &mut *ip };
    let diff = csum::diff(old, new);
    if ingress {
        ip.dst = new;
    } else {
        ip.src = new;
    }
    ip.check = csum::apply(ip.check, diff);
    Ok(diff)
}

#[inline(always)]
pub fn write_v6_addr<L: Link>(
    ctx: &TcContext,
    ingress: bool,
    old: &Addr,
    new: &Addr,
) -> Result<u32, DropReason> {
    let ip = ptr_at::<Ipv6>(ctx, L::HEADER).ok_or(Counter::RewriteFailed)?;
    // SAFETY: `ptr_at` checked the bounds.
    let ip = unsafe { &mut *ip };
    if ingress {
        ip.dst = new.words();
    } else {
        ip.src = new.words();
    }
    Ok(csum::diff4(old.words(), new.words()))
}
