//! The XDP hook of an uplink: traffic of NodePorts, load balancer addresses and externalIPs, before there is an skb. Runs the
//! stages of tc ingress and tc egress at one hook, over the same entries in CONNTRACK.
//!
//! To a backend on this node the destination is rewritten, and the packet continues with a tag in its metadata that
//! `ingress_xdp` recognises. To a backend elsewhere, and back to the client, both ends are rewritten and the frame leaves by the
//! device that the routing table names. XDP serves a flow for its whole life or never (`CtEntry::XDP`): the host's stack sees
//! the translated packets of a local backend, and none of a remote one. A packet that XDP cannot handle goes to tc unchanged,
//! where the same entries translate it.

mod fib;
pub mod frame;
pub mod metadata;

use aya_ebpf::programs::XdpContext;
use proxy_common::{Backend, CtEntry, CtKey, Frontend, FrontendKind, Half, Hook, node::port_bits};

use crate::{
    base::{
        globals,
        maps::{NODE_ADDRS, flow_context, teardown_keys},
        protocol_headers::{ETH_P_IP, ETH_P_IPV6},
        scratch::FlowContext,
        verdict::{DropReason, XdpVerdict},
    },
    conntrack::{create::create_flow, entry, follow, reuse, snat},
    hooks::xdp::{
        fib::NextHop,
        frame::{Endpoints, Family, V4, V6},
    },
    load_balancing::{frontend, prefilter},
    new_flow,
    observe::{events, service_stats, trace},
    packet::{access::ptr_at, parse::Packet},
};

/// The XDP hook of an uplink in generic mode, and in the driver of a veth. Packets that pass are tagged, and those that go
/// back out are redirected, because after XDP_TX a veth wakes its peer only if that has an XDP program too.
#[inline(always)]
pub fn receive_generic(ctx: &XdpContext) -> XdpVerdict {
    match receive(ctx) {
        XdpVerdict::Tx => fib::redirect_back(ctx),
        verdict if verdict.is_unchanged() => {
            metadata::tag_untouched(ctx);
            verdict
        }
        verdict => verdict,
    }
}

/// The XDP hook of an uplink.
#[inline(always)]
pub fn receive(ctx: &XdpContext) -> XdpVerdict {
    // SAFETY: `ptr_at` checked the bounds.
    let Some(kind) = ptr_at::<[u16; 7]>(ctx, 0).map(|words| unsafe { (*words)[6] }) else {
        return XdpVerdict::Pass;
    };
    match kind {
        ETH_P_IP => receive_ip::<V4>(ctx),
        ETH_P_IPV6 => receive_ip::<V6>(ctx),
        _ => XdpVerdict::Pass,
    }
}

#[inline(always)]
fn receive_ip<F: Family>(ctx: &XdpContext) -> XdpVerdict {
    let Some(packet) = frame::parse::<F>(ctx) else {
        return XdpVerdict::Pass;
    };
    if let Some(entry) = entry::lookup(&packet.key) {
        if !entry.has(CtEntry::XDP) {
            return XdpVerdict::Pass;
        }
        if !(packet.is_syn() && entry.has(CtEntry::REQUEST) && entry::is_over(packet.key.proto, entry)) {
            // tc compares the backend with the sets of its Service: a loop that is too much for this program.
            if packet.is_syn() && reuse::may_have_moved(entry) {
                return XdpVerdict::LeaveToTc;
            }
            return known_flow::<F>(ctx, &packet, entry);
        }
        entry::remove(&packet.key, entry);
    }
    if !prefilter::may_match(&packet.key)
        || packet.is_tcp() && !packet.is_syn()
        || frame::maybe_partial::<F>(ctx, &packet)
    {
        return XdpVerdict::Pass;
    }
    let Some(flow) = save_context::<F>(ctx, &packet) else {
        return XdpVerdict::Pass;
    };
    // From here on nothing is read from `packet`, as in `ingress.rs`.
    match decide(flow) {
        NewFlow::Pass => XdpVerdict::Pass,
        NewFlow::LeaveToTc => XdpVerdict::LeaveToTc,
        NewFlow::Selected => {
            // Not called by `decide`, for the stack.
            if create(ctx, flow).is_err() {
                return XdpVerdict::LeaveToTc;
            }
            // Here and not in a stage: the verifier would follow the trace for each path through it ("BPF program is
            // too large. Processed 1000001 insn").
            trace::decision(flow, &Ok(()));
            events::flow_created(flow, Hook::Xdp);
            if flow.xdp_flag == 0 { XdpVerdict::LeaveToTc } else { translate_created::<F>(ctx) }
        }
    }
}

/// Copies what the following stages need to know of a packet to per-CPU memory.
#[inline(always)]
fn save_context<F: Family>(ctx: &XdpContext, packet: &Packet) -> Option<&'static mut FlowContext> {
    let flow = flow_context()?;
    flow.request = packet.key;
    flow.tcp_flags = u32::from(packet.tcp_flags);
    flow.tcp_end = packet.tcp_end;
    flow.ifindex = fib::ingress_ifindex(ctx);
    new_flow::note_uplink(flow);
    fib::prepare::<F>(ctx, packet, &mut flow.fib)?;
    Some(flow)
}

/// Parses the packet again that has just created a flow, and translates it.
#[inline(always)]
fn translate_created<F: Family>(ctx: &XdpContext) -> XdpVerdict {
    let Some(packet) = frame::parse::<F>(ctx) else {
        return XdpVerdict::Pass;
    };
    match entry::lookup(&packet.key) {
        Some(entry) if entry.has(CtEntry::XDP) => known_flow::<F>(ctx, &packet, entry),
        _ => XdpVerdict::LeaveToTc,
    }
}

/// Translates a packet of a flow that XDP serves.
#[inline(always)]
fn known_flow<F: Family>(ctx: &XdpContext, packet: &Packet, entry: &mut CtEntry) -> XdpVerdict {
    if frame::maybe_partial::<F>(ctx, packet) {
        return XdpVerdict::LeaveToTc;
    }
    if entry.has(CtEntry::REQUEST) {
        follow::touch(ctx, packet, entry);
        if !entry.has(CtEntry::MASQUERADED) {
            return deliver_locally::<F>(ctx, &packet.key, entry);
        }
    }
    let Some(flow) = save_context::<F>(ctx, packet) else {
        return XdpVerdict::LeaveToTc;
    };
    flow.is_noted = 0;
    let verdict = forward::<F>(ctx, flow, entry);
    if flow.is_noted != 0 {
        // Not called by `forward`, for the stack.
        follow::follow(ctx, &flow.reply, F::L4 as u32, flow.tcp_end);
    }
    verdict
}

/// Translates a packet to a backend of this node. A subprogram for the stack, most of which flow creation needs
/// ("combined stack size of 5 calls is 528. Too large").
#[inline(never)]
fn deliver_locally<F: Family>(ctx: &XdpContext, key: &CtKey, entry: &CtEntry) -> XdpVerdict {
    let to = Endpoints { src: key.src, sport: entry.peer_port, dst: entry.addr, dport: entry.port() };
    match frame::rewrite_and_tag::<F>(ctx, key, &to) {
        Some(()) => {
            service_stats::count_request(ctx, entry.service);
            XdpVerdict::Local
        }
        None => XdpVerdict::LeaveToTc,
    }
}

/// Rewrites both ends of a packet of a flow with a translated source, and sends it. A subprogram that reads `flow`:
/// inlined, the compiler spills registers that it never wrote ("R1 !read_ok").
#[inline(never)]
fn forward<F: Family>(ctx: &XdpContext, flow: &mut FlowContext, entry: &CtEntry) -> XdpVerdict {
    let (old, from_client) = (&flow.request, entry.has(CtEntry::REQUEST));
    // The key that the packet would have at the egress hook.
    let key = CtKey::new(old.src, entry.peer_port, entry.addr, entry.port(), old.proto, Half::Egress);
    let Some(source) = entry::lookup(&key) else {
        return XdpVerdict::LeaveToTc;
    };
    let half = if from_client { CtEntry::MASQUERADE } else { CtEntry::REPLY };
    if !(source.has(half) && source.has(CtEntry::XDP)) {
        return XdpVerdict::LeaveToTc;
    }
    // Pending: another CPU is about to complete it.
    if source.port == 0 {
        return XdpVerdict::LeaveToTc;
    }
    if !from_client {
        if follow::is_noted(&key, source, flow.tcp_flags) {
            flow.reply = key;
            flow.is_noted = 1;
        } else {
            follow::refresh(&key, source, flow.tcp_end);
        }
    }
    flow.fib.set_destination(&key.dst, key.dport, F::V4);
    let next_hop = fib::lookup(ctx, &mut flow.fib);
    if matches!(next_hop, NextHop::Unknown) {
        return XdpVerdict::LeaveToTc;
    }
    // The egress hook sends it by another device.
    let is_symmetric = source.device == 0 || u32::from(source.device) == flow.fib.ifindex;
    if globals::symmetric_replies() && !from_client && !is_symmetric {
        return XdpVerdict::LeaveToTc;
    }
    let to = Endpoints { src: source.addr, sport: source.port(), dst: key.dst, dport: source.peer_port };
    match frame::rewrite::<F>(ctx, old, &to, true) {
        Some(()) => {
            service_stats::count_packet(ctx, if from_client { entry } else { source });
            fib::send(ctx, next_hop, &flow.fib)
        }
        None => XdpVerdict::LeaveToTc,
    }
}

/// The decision on a packet of no known flow.
#[repr(u32)]
enum NewFlow {
    /// Not for XDP.
    Pass,
    /// To a frontend that XDP serves, but tc has to reject or drop it.
    LeaveToTc,
    /// To `flow.target`.
    Selected,
}

/// Decides on the packet with tuple `flow.request`, like `new_flow::decide`. What that would reject or drop is left
/// to it before anything is counted or a backend is selected. A subprogram, for the verifier.
#[inline(never)]
fn decide(flow: &mut FlowContext) -> NewFlow {
    let (dst, dport, proto) = (&flow.request.dst, flow.request.dport, flow.request.proto);
    let bits = frontend::port_flags(dport) & (port_bits::frontend(proto) | port_bits::nodeport(proto));
    let Some(frontend) = frontend::find(dst, dport, proto, bits, frontend::PACKET_ROLES) else {
        return NewFlow::Pass;
    };
    const NODE_PORT: u32 = FrontendKind::NodePort as u32;
    const LOAD_BALANCER: u32 = FrontendKind::LoadBalancerIp as u32;
    const EXTERNAL: u32 = FrontendKind::ExternalIp as u32;
    if !matches!(frontend.kind, NODE_PORT | LOAD_BALANCER | EXTERNAL) {
        return NewFlow::Pass;
    }
    let backends = if frontend.has(Frontend::LOCAL) { frontend.local_count } else { frontend.cluster_count };
    if !frontend.has(Frontend::HAS_ENDPOINTS)
        || backends == 0
        || new_flow::is_martian(&flow.request.src)
        || new_flow::select_target(frontend, flow).is_err()
    {
        return NewFlow::LeaveToTc;
    }
    NewFlow::Selected
}

/// Creates the flow that [`decide`] selected a target for; XDP serves it if `flow.xdp_flag` is set. A subprogram, for the
/// verifier.
#[inline(never)]
fn create(ctx: &XdpContext, flow: &mut FlowContext) -> Result<(), DropReason> {
    flow.xdp_flag = if can_serve(ctx, flow) { CtEntry::XDP } else { 0 };
    // Recorded in any case: the backend has had its turn, and tc finds the flow.
    create_flow(flow)?;
    if flow.xdp_flag != 0 {
        complete_snat(ctx, flow);
    }
    Ok(())
}

/// Completes the source translation of the flow that was just created, if it needs one, as the first egress hook
/// would. If that fails, `forward` finds the source pending and leaves the packet to tc.
#[inline(always)]
fn complete_snat(ctx: &XdpContext, flow: &mut FlowContext) {
    if flow.target.masquerade == 0 {
        return;
    }
    let Some(keys) = teardown_keys() else {
        return;
    };
    // In this memory, because the stack has no room for a key; the removal of a closed flow, which uses it too, comes after the
    // last look at this key.
    let to = &flow.rewrite;
    keys.masquerade =
        CtKey::new(flow.request.src, to.peer_port, to.addr, to.port, flow.request.proto, Half::Egress);
    if let Some(pending) = entry::lookup(&keys.masquerade)
        && pending.port == 0
    {
        let _failed = snat::complete::<_, false>(ctx, &keys.masquerade, flow.fib.ifindex, pending);
    }
}

/// Whether XDP can serve the flow that is about to be created from its first packet to its last. A subprogram, for the stack.
#[inline(never)]
fn can_serve(ctx: &XdpContext, flow: &mut FlowContext) -> bool {
    let local = flow.selected.backend.has(Backend::LOCAL);
    match (local, flow.target.masquerade != 0) {
        // A packet for the node's own stack may have a device's checksum that an XDP program cannot update
        // (CHECKSUM_COMPLETE in generic mode); forwarding discards it.
        // SAFETY: map memory, valid while the program runs (RCU); `entry::lookup` says what another CPU may do to it.
        (true, false) => unsafe { NODE_ADDRS.get(flow.target.addr) }.is_none(),
        (false, true) => {
            let (addr, port) = (flow.target.addr, flow.target.port);
            flow.fib.set_destination(&addr, port, addr.is_v4());
            !matches!(fib::lookup(ctx, &mut flow.fib), NextHop::Unknown)
        }
        // A hairpin, whose source is translated by the pod's device, or a flow whose reply does not come back through
        // this node.
        _ => false,
    }
}
