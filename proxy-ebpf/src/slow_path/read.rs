//! Reads a packet into [`SlowPacket`]: tuple, flags, fragment identity.

use aya_ebpf::programs::TcContext;
use proxy_common::{CtKey, FragmentKey, Half, Port, Proto};

use crate::{
    base::{
        protocol_headers::ETH_P_IP,
        scratch::{SlowPacket, fragment_part},
    },
    packet::{
        access::{load, skb},
        ext_headers,
        link::Link,
        parse::tcp_end,
    },
    slow_path::step::SlowStep,
};

/// A subprogram, so that the verifier does not follow the branches of parsing any further.
#[inline(never)]
pub fn read<L: Link>(ctx: &TcContext, packet: &mut SlowPacket, half: Half) -> SlowStep {
    let v4 = skb(ctx).protocol as u16 == ETH_P_IP;
    if !ext_headers::read(ctx, L::HEADER as u32, v4, &mut packet.headers) {
        return SlowStep::Pass;
    }
    let proto = packet.headers.proto as u8;
    packet.key = CtKey::new(packet.headers.src, Port::ZERO, packet.headers.dst, Port::ZERO, proto, half);
    (packet.tcp_flags, packet.tcp_end) = (0, 0);
    packet.has_transport = u32::from(packet.headers.part != fragment_part::LATER);
    match proto {
        Proto::TCP | Proto::UDP | Proto::SCTP => {}
        Proto::ICMP if v4 && packet.headers.part == fragment_part::WHOLE => return SlowStep::IcmpError,
        Proto::ICMPV6 if !v4 && packet.headers.part == fragment_part::WHOLE => return SlowStep::IcmpError,
        _ => return read_other_protocol(packet),
    }
    let whole = packet.has_transport == 0 || read_transport(ctx, packet);
    if packet.headers.part == fragment_part::WHOLE {
        return if whole { SlowStep::Continue } else { SlowStep::Pass };
    }
    packet.tiny = u32::from(!whole);
    packet.fragment = FragmentKey {
        src: packet.key.src,
        dst: packet.key.dst,
        id: packet.headers.id,
        proto: packet.key.proto,
        half: packet.key.half,
        reserved: 0,
    };
    SlowStep::Continue
}

/// Other protocols have no flows, but a ClusterIP rejects them. Their fragments pass.
#[inline(always)]
fn read_other_protocol(packet: &SlowPacket) -> SlowStep {
    let is_icmp = matches!(packet.key.proto, Proto::ICMP | Proto::ICMPV6);
    if is_icmp || packet.headers.part != fragment_part::WHOLE { SlowStep::Pass } else { SlowStep::Continue }
}

/// Reads ports and flags. False: truncated.
#[inline(always)]
fn read_transport(ctx: &TcContext, packet: &mut SlowPacket) -> bool {
    let l4 = packet.headers.l4;
    if packet.key.proto == Proto::TCP {
        if !load(ctx, l4, &mut packet.tcp) {
            return false;
        }
        packet.tcp_flags = u32::from(packet.tcp.flags);
        packet.tcp_end = tcp_end(&packet.tcp, packet.headers.end.wrapping_sub(l4));
        packet.key.sport = Port::from_be(packet.tcp.sport);
        packet.key.dport = Port::from_be(packet.tcp.dport);
    } else if packet.key.proto == Proto::SCTP {
        if !load(ctx, l4, &mut packet.sctp) {
            return false;
        }
        packet.key.sport = Port::from_be(packet.sctp[0]);
        packet.key.dport = Port::from_be(packet.sctp[1]);
    } else {
        if !load(ctx, l4, &mut packet.udp) {
            return false;
        }
        packet.key.sport = Port::from_be(packet.udp.sport);
        packet.key.dport = Port::from_be(packet.udp.dport);
    }
    true
}
