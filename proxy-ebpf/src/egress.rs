//! The egress hook: translates sources. Backend back to the VIP that the client asked for, or the client to an
//! address of this node.

use aya_ebpf::programs::TcContext;
use proxy_common::{Counter, CtEntry, CtKey, Frontend, FrontendKey, Half, node::port_bits};

use crate::{
    begin::work,
    echo, flow, new_flow, nobody, odd,
    packet::{Aside, Link, Packet, ifindex, parse, skb},
    rewrite::{Rewrite, rewrite},
    service, source,
    verdict::Verdict,
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
        let answered = if own { echo::answer::<L>(ctx, Half::Egress) } else { Verdict::NEXT };
        if !answered.is_next() {
            return answered;
        }
    } else if let Some(entry) = flow::lookup(&packet.key) {
        return known::<L>(ctx, &packet, entry);
    } else if own && new_flow::may_concern(&packet.key) {
        let Some(work) = work() else {
            return Verdict::NEXT;
        };
        work.request = packet.key;
        return from_node(&work.request);
    }
    leaving(&packet.key)
}

/// A packet of a recorded flow.
#[inline(always)]
fn known<L: Link>(ctx: &TcContext, packet: &Packet, entry: &mut CtEntry) -> Verdict {
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
    match rewrite::<L>(ctx, packet, &to) {
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
            let verdict = from_node(&odd.key);
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

/// A packet of the node's own to a frontend that the socket hooks did not translate: a connected UDP socket to
/// a Service without endpoints is told so here; policy Local without a local endpoint drops, and so do source ranges
/// without the packet's source. Everything else passes. A subprogram, so that the verifier goes through it once.
#[inline(never)]
fn from_node(key: &CtKey) -> Verdict {
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
        return Verdict::refused(Counter::NoServicePort as u32);
    };
    if !service::lets_in(frontend, &key.src) {
        return Counter::SrcRange.into();
    }
    if !frontend.has(Frontend::HAS_ENDPOINTS) {
        return Verdict::refused(Counter::NoBackend as u32);
    }
    let local_only = frontend.flags & (Frontend::LOCAL | Frontend::EXTERNAL) == Frontend::LOCAL;
    if local_only && frontend.local_count == 0 {
        return Counter::NoLocalEndpoints.into();
    }
    Verdict::NEXT
}

/// A packet of no flow leaves the node; to nobody's address it does not.
#[inline(always)]
fn leaving(key: &CtKey) -> Verdict {
    if nobody::is_unallocated(&key.dst) { Counter::Unallocated.into() } else { Verdict::NEXT }
}
