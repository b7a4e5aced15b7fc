//! The tc egress hook: translates sources. Backend back to the VIP that the client addressed, or the client to an address of
//! this node.

use aya_ebpf::programs::TcContext;
use proxy_common::{Counter, CtEntry, CtKey, Frontend, FrontendKey, Half, node::port_bits};

use crate::{
    base::{
        maps::{flow_context, slow_packet},
        scratch::{FlowContext, Rewrite, SlowPacket},
        verdict::{DropReason, Verdict},
    },
    conntrack::{
        entry, follow,
        node_flow::{self, Recorded},
        snat,
    },
    load_balancing::{cluster_ip, frontend, prefilter, source_ranges},
    new_flow,
    observe::service_stats,
    packet::{
        access::{ifindex, skb},
        link::Link,
        parse::{NotPlain, Packet, parse},
        rewrite::rewrite,
    },
    respond::{icmp_echo, symmetric_reply},
    slow_path::{self, step::SlowStep},
};

/// The hook, stage by stage.
#[inline(always)]
pub fn egress<L: Link>(ctx: &TcContext) -> Verdict {
    match parse::<L>(ctx, Half::Egress) {
        Ok(packet) => plain_packet::<L>(ctx, &packet),
        Err(NotPlain::SlowPath) => slow_path_packet::<L>(ctx),
        Err(NotPlain::Foreign) => Verdict::NEXT,
    }
}

/// Whether the node itself sends the packet: it did not arrive on a device.
#[inline(always)]
fn is_from_node(ctx: &TcContext) -> bool {
    skb(ctx).ingress_ifindex == 0
}

/// A plain packet.
#[inline(always)]
fn plain_packet<L: Link>(ctx: &TcContext, packet: &Packet) -> Verdict {
    let from_node = is_from_node(ctx);
    if packet.echo {
        let answered = if from_node { icmp_echo::answer::<L>(ctx, Half::Egress) } else { Verdict::NEXT };
        if !answered.is_next() {
            return answered;
        }
        return drop_if_unallocated(&packet.key);
    }
    if let Some(entry) = entry::lookup(&packet.key) {
        if !(packet.is_syn() && node_flow::may_replace(packet.key.proto, entry)) {
            return known_flow::<L>(ctx, packet, entry);
        }
        entry::remove_by_reply(&packet.key, entry, true);
    }
    let may_match = from_node && prefilter::may_match(&packet.key);
    let may_be_node_flow = prefilter::may_be_node_flow(&packet.key, from_node);
    if !may_match && !may_be_node_flow {
        return drop_if_unallocated(&packet.key);
    }
    let Some(flow) = flow_context() else {
        return Verdict::NEXT;
    };
    flow.request = packet.key;
    flow.tcp_flags = u32::from(packet.tcp_flags);
    flow.tcp_end = packet.tcp_end;
    // From here on nothing is read from the parsed packet, as in `ingress.rs`.
    let verdict =
        if may_match { unknown_flow_of_node(&flow.request) } else { drop_if_unallocated(&flow.request) };
    if verdict.is_next() && may_be_node_flow { node_flow_of::<L>(ctx, flow) } else { verdict }
}

/// A packet that may begin a flow of the node's own addresses, with tuple `flow.request`.
#[inline(always)]
fn node_flow_of<L: Link>(ctx: &TcContext, flow: &mut FlowContext) -> Verdict {
    match node_flow::record(flow) {
        Recorded::Pass => Verdict::NEXT,
        Recorded::Translate => new_flow::translate_source::<L>(ctx, flow),
        Recorded::Drop => Counter::SctpPort.into(),
    }
}

/// Translates a packet of a known flow.
#[inline(always)]
fn known_flow<L: Link>(ctx: &TcContext, packet: &Packet, entry: &mut CtEntry) -> Verdict {
    if entry.has(CtEntry::REPLY) {
        follow::touch(ctx, packet, entry);
        if entry.has(CtEntry::IDENTITY) {
            return Verdict::NEXT;
        }
        service_stats::count_reply(ctx, entry.service);
    } else if entry.port == 0
        && let Err(reason) = snat::complete::<_, true>(ctx, &packet.key, ifindex(ctx), entry)
    {
        return reason.into();
    }
    let to = Rewrite { addr: entry.addr, port: entry.port(), peer_port: entry.peer_port };
    match rewrite::<L>(ctx, packet, &to) {
        Ok(()) if entry.has(CtEntry::REPLY) => symmetric_reply::redirect(ctx, &packet.key, entry),
        Ok(()) => Verdict::NEXT,
        Err(reason) => reason.into(),
    }
}

/// The same stages for a packet on the slow path.
#[inline(always)]
fn slow_path_packet<L: Link>(ctx: &TcContext) -> Verdict {
    let Some(packet) = slow_packet() else {
        return Verdict::NEXT;
    };
    match slow_path::receive::<L>(ctx, packet, Half::Egress) {
        SlowStep::Continue => {}
        done => return packet.verdict(done),
    }
    let mut step = slow_path::egress::<L>(ctx, packet);
    if matches!(step, SlowStep::NeedsSource) {
        step = match complete_source(ctx, packet) {
            Ok(()) => slow_path::egress::<L>(ctx, packet),
            Err(reason) => packet.done(reason.into()),
        };
    }
    match step {
        SlowStep::Continue => {
            let from_node = is_from_node(ctx);
            let mut verdict =
                if from_node { unknown_flow_of_node(&packet.key) } else { drop_if_unallocated(&packet.key) };
            if verdict.is_next()
                && prefilter::may_be_node_flow(&packet.key, from_node)
                && let Some(flow) = flow_context()
            {
                flow.request = packet.key;
                flow.tcp_flags = packet.tcp_flags;
                flow.tcp_end = packet.tcp_end;
                verdict = node_flow_of::<L>(ctx, flow);
            }
            slow_path::record_verdict::<L>(ctx, packet, verdict.is_next());
            verdict
        }
        step => {
            let verdict = packet.verdict(step);
            slow_path::record_verdict::<L>(ctx, packet, verdict.is_next());
            verdict
        }
    }
}

#[inline(always)]
fn complete_source(ctx: &TcContext, packet: &SlowPacket) -> Result<(), DropReason> {
    let entry = entry::lookup(&packet.key).ok_or(Counter::NoFreeSource)?;
    snat::complete::<_, true>(ctx, &packet.key, ifindex(ctx), entry)
}

/// A packet of the node itself that the socket hooks did not translate. For a frontend: a connected UDP socket to a
/// Service without endpoints gets its rejection here; source ranges without the packet's source drop, and so does
/// policy Local without a local endpoint. Everything else passes. A subprogram, so that the verifier follows it once.
#[inline(never)]
fn unknown_flow_of_node(key: &CtKey) -> Verdict {
    let bits = frontend::port_flags(key.dport);
    let frontend = if bits & port_bits::frontend(key.proto) == 0 {
        None
    } else {
        frontend::get(&FrontendKey::new(key.dst, key.dport, key.proto))
    };
    let Some(frontend) = frontend else {
        if !cluster_ip::is_cluster_ip(&key.dst) {
            return drop_if_unallocated(key);
        }
        return Counter::NoServicePort.into();
    };
    if !source_ranges::allow(frontend, &key.src) {
        return Counter::SrcRange.into();
    }
    if !frontend.has(Frontend::HAS_ENDPOINTS) {
        return Counter::NoBackend.into();
    }
    let local_only = frontend.flags & (Frontend::LOCAL | Frontend::EXTERNAL) == Frontend::LOCAL;
    if local_only && frontend.local_count == 0 {
        return Counter::NoLocalEndpoints.into();
    }
    Verdict::NEXT
}

/// A packet of no known flow leaves the node, unless its destination is an unallocated address of a ServiceCIDR.
#[inline(always)]
fn drop_if_unallocated(key: &CtKey) -> Verdict {
    if cluster_ip::is_unallocated(&key.dst) { Counter::Unallocated.into() } else { Verdict::NEXT }
}
