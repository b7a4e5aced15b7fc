//! The tc ingress hook: translates destinations. VIP to backend, or one of the node's translated sources back to the client
//! that it stands for.

use aya_ebpf::programs::TcContext;
use proxy_common::{CtEntry, Half};

use crate::{
    base::{
        maps::{flow_context, slow_packet},
        scratch::{FlowContext, Rewrite},
        verdict::Verdict,
    },
    conntrack::{entry, follow, reuse},
    load_balancing::prefilter,
    new_flow::{self, Action},
    observe::service_stats,
    packet::{
        access::ifindex,
        link::Link,
        parse::{NotPlain, Packet, parse},
        rewrite::rewrite,
    },
    respond::icmp_echo,
    slow_path::{self, step::SlowStep},
};

/// The hook, stage by stage: parse, look the flow up and translate, or decide on a new flow.
#[inline(always)]
pub fn ingress<L: Link>(ctx: &TcContext) -> Verdict {
    let flow = match parse::<L>(ctx, Half::Ingress) {
        Ok(packet) => {
            if packet.echo {
                return icmp_echo::answer::<L>(ctx, Half::Ingress);
            }
            if let Some(entry) = entry::lookup(&packet.key) {
                if !(packet.is_syn() && reuse::may_replace(&packet.key, entry)) {
                    return known_flow::<L>(ctx, &packet, entry);
                }
                entry::remove(&packet.key, entry);
            }
            if !prefilter::may_match(&packet.key) && !prefilter::may_be_from_frontend(&packet.key) {
                return Verdict::NEXT;
            }
            let Some(flow) = flow_context() else {
                return Verdict::NEXT;
            };
            flow.request = packet.key;
            flow.tcp_flags = u32::from(packet.tcp_flags);
            flow.tcp_end = packet.tcp_end;
            flow.is_slow = 0;
            flow
        }
        Err(NotPlain::SlowPath) => match slow_path_packet::<L>(ctx) {
            Ok(flow) => flow,
            Err(verdict) => return verdict,
        },
        Err(NotPlain::Foreign) => return Verdict::NEXT,
    };
    unknown_flow::<L>(ctx, flow)
}

/// The same stages for a packet on the slow path. `Ok`: of no known flow.
#[inline(always)]
fn slow_path_packet<L: Link>(ctx: &TcContext) -> Result<&'static mut FlowContext, Verdict> {
    let (Some(flow), Some(packet)) = (flow_context(), slow_packet()) else {
        return Err(Verdict::NEXT);
    };
    match slow_path::receive::<L>(ctx, packet, Half::Ingress) {
        SlowStep::Continue => {}
        done => return Err(packet.verdict(done)),
    }
    flow.is_slow = 1;
    match slow_path::ingress::<L>(ctx, packet, flow) {
        SlowStep::Continue => Ok(flow),
        done => {
            let verdict = packet.verdict(done);
            slow_path::record_verdict::<L>(ctx, packet, verdict.is_next());
            Err(verdict)
        }
    }
}

/// A packet of no known flow. Nothing is read from the parsed packet here, so that all kinds of packets share one verifier
/// state; `new_flow::translate` and `reject` parse again.
#[inline(always)]
fn unknown_flow<L: Link>(ctx: &TcContext, flow: &mut FlowContext) -> Verdict {
    flow.ifindex = ifindex(ctx);
    flow.xdp_flag = 0;
    new_flow::note_uplink(flow);
    let action = match new_flow::decide(flow) {
        Action::Create => new_flow::create(flow),
        action => action,
    };
    let verdict = match action {
        Action::Pass | Action::Create => Verdict::NEXT,
        Action::Translate => new_flow::translate::<L>(ctx, flow),
        Action::End => Verdict::ended(flow.reason),
    };
    if flow.is_slow != 0
        && let Some(packet) = slow_packet()
    {
        slow_path::record_verdict::<L>(ctx, packet, verdict.is_next());
    }
    verdict
}

/// Translates a packet of a known flow.
#[inline(always)]
fn known_flow<L: Link>(ctx: &TcContext, packet: &Packet, entry: &mut CtEntry) -> Verdict {
    if entry.has(CtEntry::REQUEST) {
        follow::touch(ctx, packet, entry);
    }
    if entry.has(CtEntry::IDENTITY) {
        return Verdict::NEXT;
    }
    if entry.has(CtEntry::REQUEST) {
        service_stats::count_request(ctx, entry.service);
    }
    let to = Rewrite { addr: entry.addr, port: entry.port(), peer_port: entry.peer_port };
    match rewrite::<L>(ctx, packet, &to) {
        Ok(()) => Verdict::NEXT,
        Err(reason) => reason.into(),
    }
}
