//! The tc egress hook: translates sources. Backend back to the VIP that the client addressed, or the client to an address of
//! this node.

use aya_ebpf::programs::TcContext;
use proxy_common::{Counter, CtEntry, CtKey, Frontend, FrontendKey, Half, node::port_bits};

use crate::{
    base::{
        maps::{flow_context, slow_packet},
        scratch::Rewrite,
        verdict::Verdict,
    },
    conntrack::{entry, snat},
    load_balancing::{cluster_ip, frontend, prefilter, source_ranges},
    observe::service_stats,
    packet::{
        access::{ifindex, skb},
        link::Link,
        parse::{NotPlain, Packet, parse},
        rewrite::rewrite,
    },
    respond::icmp_echo,
    slow_path::{self, step::SlowStep},
};

#[inline(always)]
pub fn egress<L: Link>(ctx: &TcContext) -> Verdict {
    let packet = match parse::<L>(ctx, Half::Egress) {
        Ok(packet) => packet,
        Err(NotPlain::SlowPath) => return slow_packet_egress::<L>(ctx),
        Err(NotPlain::Foreign) => return Verdict::NEXT,
    };
    // What the node itself sends came in by no device.
    let own = skb(ctx).ingress_ifindex == 0;
    if packet.echo {
        let answered = if own { icmp_echo::answer::<L>(ctx, Half::Egress) } else { Verdict::NEXT };
        if !answered.is_next() {
            return answered;
        }
    } else if let Some(entry) = entry::lookup(&packet.key) {
        return known_flow::<L>(ctx, &packet, entry);
    } else if own && prefilter::may_match(&packet.key) {
        let Some(flow) = flow_context() else {
            return Verdict::NEXT;
        };
        flow.request = packet.key;
        return from_node(&flow.request);
    }
    unknown_flow(&packet.key)
}

/// A packet of a recorded flow.
#[inline(always)]
fn known_flow<L: Link>(ctx: &TcContext, packet: &Packet, entry: &mut CtEntry) -> Verdict {
    if entry.has(CtEntry::REPLY) {
        entry::touch(&packet.key, packet.tcp_flags, entry);
        if entry.has(CtEntry::IDENTITY) {
            return Verdict::NEXT;
        }
        service_stats::count_reply(ctx, entry.service);
    } else if entry.port == 0
        && let Err(reason) = snat::complete(ctx, &packet.key, ifindex(ctx), entry)
    {
        return reason.into();
    }
    let to = Rewrite { addr: entry.addr, port: entry.port(), peer_port: entry.peer_port };
    match rewrite::<L>(ctx, packet, &to) {
        Ok(()) => Verdict::NEXT,
        Err(reason) => reason.into(),
    }
}

/// The same for what is not plain.
#[inline(always)]
fn slow_packet_egress<L: Link>(ctx: &TcContext) -> Verdict {
    let Some(packet) = slow_packet() else {
        return Verdict::NEXT;
    };
    match slow_path::receive::<L>(ctx, packet, Half::Egress) {
        SlowStep::NewFlow => {}
        done => return packet.verdict(done),
    }
    match slow_path::egress::<L>(ctx, packet) {
        SlowStep::NewFlow if skb(ctx).ingress_ifindex == 0 => {
            let verdict = from_node(&packet.key);
            slow_path::record_verdict::<L>(ctx, packet, verdict.is_next());
            verdict
        }
        step => {
            let verdict = if matches!(step, SlowStep::NewFlow) {
                unknown_flow(&packet.key)
            } else {
                packet.verdict(step)
            };
            slow_path::record_verdict::<L>(ctx, packet, verdict.is_next());
            verdict
        }
    }
}

/// A packet of the node's own to a frontend that the socket hooks did not translate: a connected UDP socket to
/// a Service without endpoints is told so here; policy Local without a local endpoint drops, and so do source ranges
/// without the packet's source. Everything else passes. A subprogram, so that the verifier goes through it once.
#[inline(never)]
fn from_node(key: &CtKey) -> Verdict {
    let bits = frontend::port_flags(key.dport);
    let frontend = if bits & port_bits::frontend(key.proto) == 0 {
        None
    } else {
        frontend::get(&FrontendKey::new(key.dst, key.dport, key.proto))
    };
    let Some(frontend) = frontend else {
        if !cluster_ip::is_cluster_ip(&key.dst) {
            return unknown_flow(key);
        }
        return Verdict::rejected(Counter::NoServicePort as u32);
    };
    if !source_ranges::allow(frontend, &key.src) {
        return Counter::SrcRange.into();
    }
    if !frontend.has(Frontend::HAS_ENDPOINTS) {
        return Verdict::rejected(Counter::NoBackend as u32);
    }
    let local_only = frontend.flags & (Frontend::LOCAL | Frontend::EXTERNAL) == Frontend::LOCAL;
    if local_only && frontend.local_count == 0 {
        return Counter::NoLocalEndpoints.into();
    }
    Verdict::NEXT
}

/// A packet of no flow leaves the node; to nobody's address it does not.
#[inline(always)]
fn unknown_flow(key: &CtKey) -> Verdict {
    if cluster_ip::is_unallocated(&key.dst) { Counter::Unallocated.into() } else { Verdict::NEXT }
}
