//! Ping: a VIP answers ICMP echo while it has an endpoint, and is unreachable without.

use aya_ebpf::programs::TcContext;
use proxy_common::{Counter, Frontend, FrontendKey, FrontendKind, Half, Port, csum};

use crate::{
    count::count,
    packet::{Icmp, Ipv4, Ipv6, Link, Packet, at, parse},
    service,
    verdict::{Verdict, turn_back},
};

/// Turns an echo request to a VIP around: out of the device it came in by, or (on egress: the node itself asks) back
/// into the device it was leaving by. Any other destination passes. A subprogram that parses the packet again, so that
/// the verifier goes through it once.
#[inline(never)]
pub fn answer<L: Link>(ctx: &TcContext, half: Half) -> Verdict {
    let Ok(packet) = &parse::<L>(ctx, half) else {
        return Verdict::NEXT;
    };
    let key = FrontendKey::new(packet.key.dst, Port::ZERO, packet.key.proto);
    let Some(frontend) = service::get(&key) else {
        return Verdict::NEXT;
    };
    if !packet.echo || frontend.kind != FrontendKind::Ping as u32 {
        return Verdict::NEXT;
    }
    if !frontend.has(Frontend::HAS_ENDPOINTS) {
        return Verdict::refused(Counter::NoBackend as u32);
    }
    if turn_around::<L>(ctx, packet).is_none() {
        return Counter::RewriteFailed.into();
    }
    count(Counter::PingAnswered);
    turn_back(ctx, half)
}

#[inline(always)]
fn turn_around<L: Link>(ctx: &TcContext, packet: &Packet) -> Option<()> {
    swap_link::<L>(ctx)?;
    // The sums of header and message do not change when source and destination change places.
    if packet.v4 {
        // SAFETY: `at` checked the bounds.
        let ip = unsafe { &mut *at::<Ipv4>(ctx, L::HEADER)? };
        (ip.src, ip.dst) = (ip.dst, ip.src);
    } else {
        // SAFETY: `at` checked the bounds.
        let ip = unsafe { &mut *at::<Ipv6>(ctx, L::HEADER)? };
        (ip.src, ip.dst) = (ip.dst, ip.src);
    }
    // SAFETY: `at` checked the bounds.
    let icmp = unsafe { &mut *at::<Icmp>(ctx, packet.l4)? };
    let reply = if packet.v4 { 0_u8 } else { 129 };
    let word = |kind: u8| u32::from(u16::from_ne_bytes([kind, 0]));
    icmp.check = csum::apply(icmp.check, csum::diff(word(icmp.kind), word(reply)));
    icmp.kind = reply;
    Some(())
}

/// Swaps the Ethernet addresses, where there are some.
#[inline(always)]
pub fn swap_link<L: Link>(ctx: &TcContext) -> Option<()> {
    if L::HEADER == 0 {
        return Some(());
    }
    // SAFETY: `at` checked the bounds.
    let macs = unsafe { &mut *at::<[[u16; 3]; 2]>(ctx, 0)? };
    let [to, from] = *macs;
    *macs = [from, to];
    Some(())
}
