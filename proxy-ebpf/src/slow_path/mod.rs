//! The slow path: packets that are not plain TCP, UDP or ICMP echo. TCP and UDP behind IPv6 extension headers, fragments, SCTP,
//! ICMP errors. They go through the same stages as plain packets, but are read into memory and rewritten from there by helpers:
//! slower, and no cost to plain packets. The tc hooks and `new_flow.rs` call.

mod fragment_queue;
mod fragment_table;
mod fragments;
mod icmp_error;
mod read;
pub mod step;

use aya_ebpf::programs::TcContext;
use proxy_common::{Counter, CtEntry, Half, tcp};

use crate::{
    base::{
        maps::slow_packet,
        scratch::{FlowContext, Rewrite, SlowPacket, fragment_part},
        verdict::DropReason,
    },
    conntrack::{entry, follow, node_flow, reuse},
    load_balancing::prefilter,
    observe::service_stats,
    packet::{link::Link, rewrite::rewrite_slow},
    respond::symmetric_reply,
    slow_path::step::SlowStep,
};

/// Stage 1 of both hooks: reads the packet. [`SlowStep::Continue`] means that its flow is to be looked up, which does
/// not apply to ICMP errors, later fragments and packets that are not for shunt. Not part of [`ingress`] and
/// [`egress`], which keeps the deepest chain of calls within the stack limit.
#[inline(always)]
pub fn receive<L: Link>(ctx: &TcContext, packet: &mut SlowPacket, half: Half) -> SlowStep {
    match read::read::<L>(ctx, packet, half) {
        SlowStep::Continue if packet.headers.part != fragment_part::WHOLE => {
            receive_fragment::<L>(ctx, packet)
        }
        SlowStep::IcmpError => icmp_error::handle::<L>(ctx, packet),
        step => step,
    }
}

/// A fragment: the first one of a datagram continues, the others follow its verdict.
#[inline(always)]
fn receive_fragment<L: Link>(ctx: &TcContext, packet: &mut SlowPacket) -> SlowStep {
    let verdict = if packet.headers.part == fragment_part::LATER {
        fragments::later::<L>(ctx, &packet.fragment)
    } else if packet.tiny != 0 {
        fragments::tiny(&packet.fragment)
    } else {
        let waiting = fragments::first(&packet.fragment);
        if waiting == 0 {
            return SlowStep::Continue;
        }
        match fragment_queue::release::<L>(ctx, &packet.fragment, waiting) {
            Some(verdict) => verdict,
            None => return SlowStep::Continue,
        }
    };
    packet.done(verdict)
}

/// Last stage of both hooks: records the verdict on a first fragment, for those that follow it. To be called for
/// every packet that continued after [`receive`].
#[inline(always)]
pub fn record_verdict<L: Link>(ctx: &TcContext, packet: &SlowPacket, went: bool) {
    if packet.headers.part == fragment_part::FIRST {
        fragments::record_verdict::<L>(ctx, &packet.fragment, went);
    }
}

/// Stage 2 at ingress: translates a packet of a known flow. A subprogram, for the verifier.
#[inline(never)]
pub fn ingress<L: Link>(ctx: &TcContext, packet: &mut SlowPacket, flow: &mut FlowContext) -> SlowStep {
    if let Some(entry) = entry::lookup(&packet.key) {
        if !(tcp::is_syn(packet.tcp_flags as u8) && reuse::may_replace(&packet.key, entry)) {
            if entry.has(CtEntry::REQUEST) {
                touch(ctx, packet, entry);
            }
            return translate_known::<L>(ctx, packet, entry);
        }
        entry::remove(&packet.key, entry);
    }
    if !prefilter::may_match(&packet.key) && !prefilter::may_be_from_frontend(&packet.key) {
        return SlowStep::Pass;
    }
    flow.request = packet.key;
    flow.tcp_flags = packet.tcp_flags;
    flow.tcp_end = packet.tcp_end;
    SlowStep::Continue
}

/// Stage 2 at egress, likewise.
#[inline(never)]
pub fn egress<L: Link>(ctx: &TcContext, packet: &mut SlowPacket) -> SlowStep {
    let Some(entry) = entry::lookup(&packet.key) else {
        return SlowStep::Continue;
    };
    if tcp::is_syn(packet.tcp_flags as u8) && node_flow::may_replace(packet.key.proto, entry) {
        entry::remove_by_reply(&packet.key, entry, true);
        return SlowStep::Continue;
    }
    if entry.has(CtEntry::REPLY) {
        touch(ctx, packet, entry);
    } else if entry.port == 0 {
        return SlowStep::NeedsSource;
    }
    translate_known::<L>(ctx, packet, entry)
}

#[inline(always)]
fn touch(ctx: &TcContext, packet: &SlowPacket, entry: &mut CtEntry) {
    let tcp = [packet.tcp_flags, packet.tcp_end];
    follow::touch_half(ctx, &packet.key, packet.headers.l4, tcp, entry);
}

/// Translates a packet of a known flow.
#[inline(always)]
fn translate_known<L: Link>(ctx: &TcContext, packet: &mut SlowPacket, entry: &CtEntry) -> SlowStep {
    if entry.has(CtEntry::IDENTITY) {
        return SlowStep::Pass;
    }
    service_stats::count_packet(ctx, entry);
    let to = Rewrite { addr: entry.addr, port: entry.port(), peer_port: entry.peer_port };
    match rewrite_slow::<L>(ctx, packet, &to) {
        // A datagram in fragments stays together on the route of the host's stack.
        Ok(()) if entry.has(CtEntry::REPLY) && packet.headers.part == fragment_part::WHOLE => {
            let verdict = symmetric_reply::redirect(ctx, &packet.key, entry);
            packet.done(verdict)
        }
        Ok(()) => SlowStep::Pass,
        Err(reason) => packet.done(reason.into()),
    }
}

/// Rewrites the packet that [`receive`] read, for a flow that was just created.
#[inline(never)]
pub fn translate<L: Link>(ctx: &TcContext, to: &Rewrite) -> Result<(), DropReason> {
    let packet = slow_packet().ok_or(Counter::RewriteFailed)?;
    rewrite_slow::<L>(ctx, packet, to)
}
