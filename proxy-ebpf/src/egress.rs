//! The egress hook: translates sources. Backend back to the VIP that the client asked for, or the client to an
//! address of this node.

use aya_ebpf::programs::TcContext;
use proxy_common::{Counter, CtEntry, CtKey, Frontend, FrontendKey, Half, node::port_bits};

use crate::{
    echo, flow, nobody, odd,
    packet::{Aside, Link, ifindex, parse, skb},
    reject,
    rewrite::{Rewrite, rewrite},
    service, source,
    verdict::{DropReason, Verdict},
    watch,
};

#[inline(always)]
pub fn egress<L: Link>(ctx: &TcContext) -> Verdict {
    let packet = match parse::<L>(ctx, Half::Egress) {
        Ok(packet) => packet,
        Err(Aside::Odd) => return odd_packet::<L>(ctx),
        Err(Aside::Foreign) => return Verdict::NEXT,
    };
    // What the node itself sends came in by no device.
    let own = skb(ctx).ingress_ifindex == 0;
    if packet.echo {
        let answered = if own { echo::answer::<L>(ctx, &packet, true) } else { Verdict::NEXT };
        return if answered.is_next() { leaving(&packet.key) } else { answered };
    }
    let Some(entry) = flow::lookup(&packet.key) else {
        return if own { from_node::<L>(ctx, &packet.key) } else { leaving(&packet.key) };
    };
    if entry.has(CtEntry::REPLY) {
        flow::touch(&packet.key, packet.tcp_flags, entry);
        if entry.has(CtEntry::IDENTITY) {
            return Verdict::NEXT;
        }
        watch::reply(ctx, entry.service);
    } else if entry.port == 0
        && let Err(reason) = source::complete(&packet.key, ifindex(ctx), entry)
    {
        return reason.into();
    }
    let to = Rewrite { addr: entry.addr, port: entry.port(), peer_port: entry.peer_port };
    match rewrite::<L>(ctx, &packet, &to) {
        Ok(()) => Verdict::NEXT,
        Err(reason) => reason.into(),
    }
}

/// The same for what is not plain.
#[inline(always)]
fn odd_packet<L: Link>(ctx: &TcContext) -> Verdict {
    let Some(odd) = odd::odd() else {
        return Verdict::NEXT;
    };
    match odd::arrive::<L>(ctx, odd, Half::Egress) {
        odd::Step::New => {}
        done => return odd.verdict(done),
    }
    match odd::egress::<L>(ctx, odd) {
        odd::Step::New if skb(ctx).ingress_ifindex == 0 => {
            let verdict = odd_from_node::<L>(ctx, odd);
            odd::settle::<L>(ctx, odd, verdict.is_next());
            verdict
        }
        step => {
            let verdict = if matches!(step, odd::Step::New) { leaving(&odd.key) } else { odd.verdict(step) };
            odd::settle::<L>(ctx, odd, verdict.is_next());
            verdict
        }
    }
}

/// A subprogram: where verdicts meet that have a word of their own and such that have none, the compiler makes a spill
/// of that word which the verifier refuses ("R1 !read_ok").
#[inline(never)]
fn odd_from_node<L: Link>(ctx: &TcContext, odd: &odd::Odd) -> Verdict {
    from_node::<L>(ctx, &odd.key)
}

/// A packet of the node's own to a frontend that the socket hooks did not translate: a connected UDP socket to
/// a Service without endpoints is told so here; policy Local without a local endpoint drops, and so do source ranges
/// without the packet's source. Everything else passes.
#[inline(always)]
fn from_node<L: Link>(ctx: &TcContext, key: &CtKey) -> Verdict {
    let bits = service::bits_of(key.dport);
    let frontend = if bits & port_bits::frontend(key.proto) == 0 {
        None
    } else {
        service::get(&FrontendKey::new(key.dst, key.dport, key.proto))
    };
    let Some(frontend) = frontend else {
        if !nobody::is_cluster_ip(&key.dst) {
            return leaving(key);
        }
        return turn_back::<L>(ctx, Counter::NoServicePort);
    };
    if !service::lets_in(frontend, &key.src) {
        return Counter::SrcRange.into();
    }
    if !frontend.has(Frontend::HAS_ENDPOINTS) {
        return turn_back::<L>(ctx, Counter::NoBackend);
    }
    let local_only = frontend.flags & (Frontend::LOCAL | Frontend::EXTERNAL) == Frontend::LOCAL;
    if local_only && frontend.local_count == 0 {
        return Counter::NoLocalEndpoints.into();
    }
    Verdict::NEXT
}

/// Refuses a packet of the node's own.
#[inline(always)]
fn turn_back<L: Link>(ctx: &TcContext, reason: DropReason) -> Verdict {
    watch::ended::<L>(ctx, Half::Egress, reason as u32);
    if reject::refuse::<L>(ctx) { echo::to_ingress(ctx) } else { Verdict::GONE }
}

/// A packet of no flow leaves the node; to nobody's address it does not.
#[inline(always)]
fn leaving(key: &CtKey) -> Verdict {
    if nobody::is_unallocated(&key.dst) { Counter::Unallocated.into() } else { Verdict::NEXT }
}
