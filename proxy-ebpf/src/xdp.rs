//! The XDP lane: traffic of NodePorts, load balancer addresses and externalIPs at an uplink's driver, before there
//! is an skb. Ingress and egress stage of the packet line at one hook, over the same halves in CONNTRACK.
//!
//! To a backend on this node the destination is rewritten, and the packet goes on with a mark in its metadata that
//! `ingress_xdp` knows. To one elsewhere, and back to the client, both ends are rewritten and the frame leaves by the
//! device that the routing table names. A flow keeps its lane (`CtEntry::XDP`): the host's stack sees all of it or
//! nothing. Whatever is unsure goes on to tc untouched, where the same entries make it go on.

mod frame;
mod route;
mod tag;

use aya_ebpf::programs::XdpContext;
use proxy_common::{Backend, CtEntry, CtKey, Frontend, FrontendKind, Half, Hook, node::port_bits};

use self::{
    frame::{Ends, Family, V4, V6, is_partial, parse, rewrite},
    route::{Way, send, way},
};
pub use self::{
    route::{Fib, back_across},
    tag::{gate, tag_generic},
};
use crate::{
    begin::{Work, begin, work},
    flow,
    ingress::begins_anew,
    maps::NODE_ADDRS,
    new_flow::{may_concern, to_service},
    packet::{ETH_P_IP, ETH_P_IPV6, Packet, at},
    service, source, trace,
    verdict::Lane,
    watch,
};

/// The XDP hook of an uplink.
#[inline(always)]
pub fn receive(ctx: &XdpContext) -> Lane {
    // SAFETY: `at` checked the bounds.
    let Some(kind) = at::<[u16; 7]>(ctx, 0).map(|words| unsafe { (*words)[6] }) else {
        return Lane::Pass;
    };
    match kind {
        ETH_P_IP => receive_ip::<V4>(ctx),
        ETH_P_IPV6 => receive_ip::<V6>(ctx),
        _ => Lane::Pass,
    }
}

#[inline(always)]
fn receive_ip<F: Family>(ctx: &XdpContext) -> Lane {
    let Some(packet) = parse::<F>(ctx) else {
        return Lane::Pass;
    };
    if let Some(entry) = flow::lookup(&packet.key) {
        if !entry.has(CtEntry::XDP) {
            return Lane::Pass;
        }
        if !(packet.is_syn() && begins_anew(&packet.key, entry)) {
            return known::<F>(ctx, &packet, entry);
        }
        flow::forget(&packet.key, entry);
    }
    if !may_concern(&packet.key) || packet.is_tcp() && !packet.is_syn() || is_partial::<F>(ctx, &packet) {
        return Lane::Pass;
    }
    let Some(work) = take_down::<F>(ctx, &packet) else {
        return Lane::Pass;
    };
    // From here on nothing is read from `packet`, as in `ingress.rs`.
    match decide(ctx, work) {
        Decided::Foreign => Lane::Pass,
        Decided::Left => Lane::Left,
        Decided::Begun => {
            // Here and not where it begins: the verifier would follow the trace for each way through there
            // ("BPF program is too large. Processed 1000001 insn").
            trace::decision(work, &Ok(()));
            watch::begun(work, Hook::Xdp);
            if work.lane == 0 { Lane::Left } else { begun::<F>(ctx) }
        }
    }
}

/// Copies to per-CPU memory what the stages behind need to know of a packet.
#[inline(always)]
fn take_down<F: Family>(ctx: &XdpContext, packet: &Packet) -> Option<&'static mut Work> {
    let work = work()?;
    work.request = packet.key;
    work.tcp_flags = u32::from(packet.tcp_flags);
    work.ifindex = route::came_in(ctx);
    route::prepare::<F>(ctx, packet, &mut work.fib)?;
    Some(work)
}

/// The packet that has just begun a flow, parsed again.
#[inline(always)]
fn begun<F: Family>(ctx: &XdpContext) -> Lane {
    let Some(packet) = parse::<F>(ctx) else {
        return Lane::Pass;
    };
    match flow::lookup(&packet.key) {
        Some(entry) if entry.has(CtEntry::XDP) => known::<F>(ctx, &packet, entry),
        _ => Lane::Left,
    }
}

/// A packet of a flow that is in this lane.
#[inline(always)]
fn known<F: Family>(ctx: &XdpContext, packet: &Packet, entry: &mut CtEntry) -> Lane {
    if is_partial::<F>(ctx, packet) {
        return Lane::Left;
    }
    if entry.has(CtEntry::REQUEST) {
        flow::touch(&packet.key, packet.tcp_flags, entry);
        if !entry.has(CtEntry::MASQUERADED) {
            return hand_on::<F>(ctx, &packet.key, entry);
        }
    }
    match take_down::<F>(ctx, packet) {
        Some(work) => forward::<F>(ctx, work, entry),
        None => Lane::Left,
    }
}

/// Translates a packet to a backend of this node. A subprogram for the stack: what is called to begin a flow needs most
/// of it ("combined stack size of 5 calls is 528. Too large").
#[inline(never)]
fn hand_on<F: Family>(ctx: &XdpContext, key: &CtKey, entry: &CtEntry) -> Lane {
    let to = Ends { src: key.src, sport: entry.peer_port, dst: entry.addr, dport: entry.port() };
    match frame::hand_on::<F>(ctx, key, &to) {
        Some(()) => {
            watch::request(ctx, entry.service);
            Lane::Local
        }
        None => Lane::Left,
    }
}

/// Rewrites both ends of a packet of a flow whose source is translated, and sends it out. A subprogram that reads
/// `work`: inlined, the compiler spills registers it never wrote ("R1 !read_ok").
#[inline(never)]
fn forward<F: Family>(ctx: &XdpContext, work: &mut Work, entry: &CtEntry) -> Lane {
    let (old, from_client) = (&work.request, entry.has(CtEntry::REQUEST));
    // The key that the packet would have at the egress hook.
    let key = CtKey::new(old.src, entry.peer_port, entry.addr, entry.port(), old.proto, Half::Egress);
    let Some(source) = flow::lookup(&key) else {
        return Lane::Left;
    };
    let half = if from_client { CtEntry::MASQUERADE } else { CtEntry::REPLY };
    if !(source.has(half) && source.has(CtEntry::XDP)) {
        return Lane::Left;
    }
    // Pending: another CPU is about to complete it.
    if source.port == 0 {
        return Lane::Left;
    }
    if !from_client {
        flow::touch(&key, work.tcp_flags as u8, source);
    }
    work.fib.towards(&key.dst, key.dport, F::V4);
    let way = way(ctx, &mut work.fib);
    if matches!(way, Way::None) {
        return Lane::Left;
    }
    let to = Ends { src: source.addr, sport: source.port(), dst: key.dst, dport: source.peer_port };
    match rewrite::<F>(ctx, old, &to, true) {
        Some(()) => {
            watch::packet(ctx, if from_client { entry } else { source });
            send(ctx, way, &work.fib)
        }
        None => Lane::Left,
    }
}

/// What a packet of no known flow is to the lane.
#[repr(u32)]
enum Decided {
    /// None of the lane's.
    Foreign,
    /// To one of its frontends, but tc's to refuse or drop.
    Left,
    /// A flow has begun: of this lane, if `work.lane` says so.
    Begun,
}

/// Decides about the packet with tuple `work.request`, as `new_flow::decide` does. What that would refuse or drop is
/// left to it before anything is counted or a backend's turn is taken. A subprogram for the verifier's sake.
#[inline(never)]
fn decide(ctx: &XdpContext, work: &mut Work) -> Decided {
    let (dst, dport, proto) = (&work.request.dst, work.request.dport, work.request.proto);
    let bits = service::bits_of(dport) & (port_bits::frontend(proto) | port_bits::nodeport(proto));
    let Some(frontend) = service::frontend(dst, dport, proto, bits, service::PACKET_ROLES) else {
        return Decided::Foreign;
    };
    const NODE_PORT: u32 = FrontendKind::NodePort as u32;
    const LOAD_BALANCER: u32 = FrontendKind::LoadBalancerIp as u32;
    const EXTERNAL: u32 = FrontendKind::ExternalIp as u32;
    if !matches!(frontend.kind, NODE_PORT | LOAD_BALANCER | EXTERNAL) {
        return Decided::Foreign;
    }
    let backends = if frontend.has(Frontend::LOCAL) { frontend.local_count } else { frontend.cluster_count };
    if !frontend.has(Frontend::HAS_ENDPOINTS) || backends == 0 || to_service(frontend, work).is_err() {
        return Decided::Left;
    }
    work.lane = if is_for_lane(ctx, work) { CtEntry::XDP } else { 0 };
    // Recorded in any case: the backend's turn is taken, and tc finds the flow.
    if begin(work).is_err() {
        return Decided::Left;
    }
    if work.lane != 0 {
        complete(work);
    }
    Decided::Begun
}

/// Gives the flow that has begun its source where it needs one, as the first egress hook would. Where that fails
/// `forward` finds the source pending, and the packet is tc's.
#[inline(always)]
fn complete(work: &mut Work) {
    if work.to.masquerade == 0 {
        return;
    }
    let to = &work.out;
    let key = CtKey::new(work.request.src, to.peer_port, to.addr, to.port, work.request.proto, Half::Egress);
    if let Some(pending) = flow::lookup(&key)
        && pending.port == 0
    {
        let _failed = source::complete(&key, work.fib.ifindex, pending);
    }
}

/// Whether the flow that is about to begin can be served here from its first packet to its last.
#[inline(always)]
fn is_for_lane(ctx: &XdpContext, work: &mut Work) -> bool {
    let local = work.chosen.backend.has(Backend::LOCAL);
    match (local, work.to.masquerade != 0) {
        // To the node's own stack a device's checksum may say more than an XDP program can mend (CHECKSUM_COMPLETE
        // in generic mode); where a packet is forwarded the stack forgets it.
        // SAFETY: a map's memory for as long as this program runs; see `flow::lookup` for what may become of it meanwhile.
        (true, false) => unsafe { NODE_ADDRS.get(work.to.addr) }.is_none(),
        (false, true) => {
            let (addr, port) = (work.to.addr, work.to.port);
            work.fib.towards(&addr, port, addr.is_v4());
            !matches!(way(ctx, &mut work.fib), Way::None)
        }
        // Its source is translated where it leaves for its own pod, or its reply misses this node.
        _ => false,
    }
}
