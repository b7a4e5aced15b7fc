//! ICMP echo (ping): a VIP answers while it has an endpoint, and is unreachable without.

use aya_ebpf::programs::TcContext;
use proxy_common::{Counter, Frontend, FrontendKey, FrontendKind, Half, Port, csum};

use crate::{
    base::{
        protocol_headers::{Icmp, Ipv4, Ipv6},
        verdict::Verdict,
    },
    load_balancing::frontend,
    observe::counters::count,
    packet::{
        access::ptr_at,
        link::Link,
        parse::{Packet, parse},
    },
    respond::send_back::{send_back, swap_link_addresses},
};

/// Answers an echo request to a VIP: out of the device that it arrived on or, on egress (the node itself pings), back
/// into the device that it was leaving by. A request to any other destination passes. A subprogram that parses the
/// packet again, so that the verifier follows it once.
#[inline(never)]
pub fn answer<L: Link>(ctx: &TcContext, half: Half) -> Verdict {
    let Ok(packet) = &parse::<L>(ctx, half) else {
        return Verdict::NEXT;
    };
    let key = FrontendKey::new(packet.key.dst, Port::ZERO, packet.key.proto);
    let Some(frontend) = frontend::get(&key) else {
        return Verdict::NEXT;
    };
    if !packet.echo || frontend.kind != FrontendKind::Ping as u32 {
        return Verdict::NEXT;
    }
    if !frontend.has(Frontend::HAS_ENDPOINTS) {
        return Counter::NoBackend.into();
    }
    if make_reply::<L>(ctx, packet).is_none() {
        return Counter::RewriteFailed.into();
    }
    count(Counter::PingAnswered);
    send_back(ctx, half)
}

#[inline(always)]
fn make_reply<L: Link>(ctx: &TcContext, packet: &Packet) -> Option<()> {
    swap_link_addresses::<L>(ctx)?;
    // Swapping source and destination does not change the sums of header and message.
    if packet.v4 {
        // SAFETY: `ptr_at` checked the bounds.
        let ip = unsafe { &mut *ptr_at::<Ipv4>(ctx, L::HEADER)? };
        (ip.src, ip.dst) = (ip.dst, ip.src);
    } else {
        // SAFETY: `ptr_at` checked the bounds.
        let ip = unsafe { &mut *ptr_at::<Ipv6>(ctx, L::HEADER)? };
        (ip.src, ip.dst) = (ip.dst, ip.src);
    }
    // SAFETY: `ptr_at` checked the bounds.
    let icmp = unsafe { &mut *ptr_at::<Icmp>(ctx, packet.l4)? };
    let reply = if packet.v4 { 0_u8 } else { 129 };
    let word = |kind: u8| u32::from(u16::from_ne_bytes([kind, 0]));
    icmp.check = csum::apply(icmp.check, csum::diff(word(icmp.kind), word(reply)));
    icmp.kind = reply;
    Some(())
}
