//! A packet of no recorded flow: to a frontend, to a backend's own address, or neither. Decides on policy and source
//! translation; `conntrack/create.rs` records the flow. The ingress hook and the XDP hook call; the egress hook only to translate.
//!
//! Everything here works on `FlowContext` in memory, not on the parsed packet: the verifier need not follow apart what it does
//! not know of a packet (its family, its protocol).

use aya_ebpf::programs::TcContext;
use proxy_common::{
    Addr, Backend, Counter, Device, Frontend, FrontendKey, Half, Hook, NodeConfig, Proto, node::port_bits,
    tcp,
};

use crate::{
    base::{
        globals,
        maps::{BACKEND_ADDRS, DEVICES, NODE_ADDRS, NODE_CONFIG},
        scratch::{FlowContext, Target},
        verdict::{DropReason, Verdict},
    },
    conntrack::{create::create_flow, entry},
    load_balancing::{
        cluster_ip, frontend,
        select::{Origin, select_backend},
        source_ranges,
    },
    observe::{counters::count, events, service_stats, trace},
    packet::{link::Link, parse::parse, rewrite::rewrite},
    slow_path,
};

/// What remains to be done with a packet after a decision.
#[repr(u32)]
pub enum Action {
    Pass,
    /// Create a flow to `flow.target`.
    Create,
    /// Rewrite the packet by `flow.rewrite`.
    Translate,
    /// Drop or reject it, for `flow.reason`.
    End,
}

/// Decides on the packet with tuple `flow.request`.
#[inline(never)]
pub fn decide(flow: &mut FlowContext) -> Action {
    let (dst, dport, proto) = (&flow.request.dst, flow.request.dport, flow.request.proto);
    let bits = frontend::port_flags(dport);
    let is_syn = tcp::is_syn(flow.tcp_flags as u8);
    if let Some(frontend) = frontend::find(dst, dport, proto, bits, frontend::PACKET_ROLES) {
        if !is_syn && frontend.may_be_node_address() && entry::is_answer(&flow.request, &mut flow.reply) {
            return Action::Pass;
        }
        let target =
            if is_martian(&flow.request.src) { Err(Counter::Martian) } else { select_target(frontend, flow) };
        let result = match target {
            Ok(()) if !may_keep_ports(flow) => Err(Counter::SctpPort),
            result => result,
        };
        return match result {
            Ok(()) => Action::Create,
            Err(reason) => {
                trace::decision(flow, &result);
                flow.reason = reason as u32;
                Action::End
            }
        };
    }
    if cluster_ip::is_cluster_ip(dst) {
        flow.reason = Counter::NoServicePort as u32;
        return Action::End;
    }
    if bits & port_bits::backend(proto) != 0
        && (proto != Proto::TCP || is_syn)
        && !is_martian(&flow.request.src)
        && matches!(target_backend_address(flow), Action::Create)
    {
        return Action::Create;
    }
    target_of_frontends_owner(flow)
}

/// Whether a packet that arrives with this source is forged: a loopback address, or an address of the node itself. The kernel
/// forwards such a packet over IPv6. A subprogram, for the stack.
#[inline(never)]
pub fn is_martian(source: &Addr) -> bool {
    // SAFETY: map memory, valid while the program runs (RCU); `entry::lookup` says what another CPU may do to it.
    source.is_loopback() || unsafe { NODE_ADDRS.get(*source) }.is_some()
}

/// Creates the flow that [`decide`] asked for. Called after it and not by it: kernel 6.1 counts each stack frame in
/// steps of 32 bytes, and the deepest chain of calls must stay within 512 ("combined stack size of 5 calls is 544.
/// Too large").
#[inline(always)]
pub fn create(flow: &mut FlowContext) -> Action {
    let result = create_flow(flow);
    if flow.target.service == 0 {
        // A direct flow to a backend's own address is never rejected or dropped.
        return match result {
            Ok(()) if flow.rewrite.peer_port != flow.request.sport => Action::Translate,
            Ok(()) => Action::Pass,
            Err(_) => {
                count(Counter::FlowUnrecorded);
                Action::Pass
            }
        };
    }
    trace::decision(flow, &result);
    match result {
        Ok(()) => {
            events::flow_created(flow, Hook::Ingress);
            Action::Translate
        }
        Err(reason) => {
            flow.reason = reason as u32;
            Action::End
        }
    }
}

/// Whether a flow that must keep its ports (SCTP) can have `flow.target`. The controller rejects an SCTP Service with
/// another target port; a backend that connects to itself from its own port would need another one too. A subprogram,
/// for the stack of `select_target`.
#[inline(never)]
fn may_keep_ports(flow: &FlowContext) -> bool {
    let itself = flow.target.addr.is(&flow.request.src) && flow.target.port == flow.request.sport;
    flow.request.proto != Proto::SCTP || !itself && flow.target.port == flow.request.dport
}

/// Rewrites the packet by `flow.rewrite`. Parses it again: depending on nothing but the packet, the subprogram is
/// verified once.
#[inline(never)]
pub fn translate<L: Link>(ctx: &TcContext, flow: &FlowContext) -> Verdict {
    service_stats::count_request(ctx, flow.target.service);
    let result = match parse::<L>(ctx, Half::Ingress) {
        Ok(packet) => rewrite::<L>(ctx, &packet, &flow.rewrite),
        Err(_) => slow_path::translate::<L>(ctx, &flow.rewrite),
    };
    match result {
        Ok(()) => Verdict::NEXT,
        Err(reason) => reason.into(),
    }
}

/// The egress hook's counterpart of [`translate`], for a flow of the node's own addresses that was given another source port.
#[inline(never)]
pub fn translate_source<L: Link>(ctx: &TcContext, flow: &FlowContext) -> Verdict {
    let result = match parse::<L>(ctx, Half::Egress) {
        Ok(packet) => rewrite::<L>(ctx, &packet, &flow.rewrite),
        Err(_) => slow_path::translate::<L>(ctx, &flow.rewrite),
    };
    match result {
        Ok(()) => Verdict::NEXT,
        Err(reason) => reason.into(),
    }
}

/// What happens to a TCP segment of no known flow. A subprogram for the stack of [`select_target`].
#[inline(never)]
fn mid_stream_reason() -> DropReason {
    let config = NODE_CONFIG.get(0);
    if config.is_some_and(|config| config.flags & NodeConfig::TAKING_OVER != 0) {
        Counter::TakingOver
    } else {
        Counter::NoFlow
    }
}

/// A load balancer's address or an externalIP may be another node's, which begins flows of its own from the frontend's port.
/// They are recorded as direct flows, so that their answers, which this node would take for new flows to the frontend, are
/// recognised. Segments in mid-stream too: the connection may be older than the frontend.
#[inline(never)]
fn target_of_frontends_owner(flow: &mut FlowContext) -> Action {
    let (src, sport, proto) = (flow.request.src, flow.request.sport, flow.request.proto);
    let begins = proto != Proto::TCP || flow.tcp_flags as u8 & tcp::flag::RST == 0;
    if !begins || frontend::port_flags(sport) & port_bits::frontend(proto) == 0 {
        return Action::Pass;
    }
    match frontend::get(&FrontendKey::new(src, sport, proto)) {
        Some(frontend) if frontend.may_be_node_address() && !is_martian(&src) => {
            flow.target = Target {
                addr: flow.request.dst,
                port: flow.request.dport,
                reserved: 0,
                service: 0,
                backend: 0,
                masquerade: 0,
            };
            Action::Create
        }
        _ => Action::Pass,
    }
}

/// With `--symmetric-replies`: notes the device that the packet arrived on, if it is an uplink whose ifindex fits into an entry.
#[inline(always)]
pub fn note_uplink(flow: &mut FlowContext) {
    flow.uplink = if globals::symmetric_replies() { uplink(flow.ifindex) } else { 0 };
}

/// A subprogram, for the stack of the hooks.
#[inline(never)]
fn uplink(ifindex: u32) -> u32 {
    // SAFETY: map memory, valid while the program runs (RCU); `entry::lookup` says what another CPU may do to it.
    let is_uplink = unsafe { DEVICES.get(ifindex) }.is_some_and(|device| device.flags & Device::UPLINK != 0);
    if is_uplink && ifindex <= u32::from(u16::MAX) { ifindex } else { 0 }
}

/// Selects the target of a new flow to a frontend: `flow.target`.
#[inline(never)]
pub fn select_target(frontend: &Frontend, flow: &mut FlowContext) -> Result<(), DropReason> {
    if !source_ranges::allow(frontend, &flow.request.src) {
        return Err(Counter::SrcRange);
    }
    // A mid-stream segment does not tell its backend: end the connection fast instead of letting it hang.
    let is_tcp = flow.request.proto == Proto::TCP;
    if is_tcp && !tcp::is_syn(flow.tcp_flags as u8) && frontend.has(Frontend::HAS_ENDPOINTS) {
        return Err(mid_stream_reason());
    }
    let config = NODE_CONFIG.get(0).ok_or(Counter::BadSlot)?;
    let origin = origin(flow, config);
    select_backend(frontend, origin, &flow.request.src, &mut flow.selected)?;
    let backend = &flow.selected.backend;
    flow.target = Target {
        addr: backend.addr,
        port: backend.port,
        reserved: 0,
        service: frontend.service,
        backend: flow.selected.id,
        masquerade: u32::from(needs_masquerade(flow, frontend, config, origin)),
    };
    Ok(())
}

/// Whether the flow's source is to be translated: only where the reply would not come back through this node. That
/// is, the backend is elsewhere and the client is not a pod of this node, or the backend is the client.
/// `--masquerade-all` gives kube-proxy's behaviour. With detectLocalMode ClusterCIDR a pod of any node counts as
/// local for policies, but only the replies to pods of this node come back through it.
#[inline(always)]
fn needs_masquerade(flow: &FlowContext, frontend: &Frontend, config: &NodeConfig, origin: Origin) -> bool {
    let keeps_client =
        frontend.flags & (Frontend::LOCAL | Frontend::EXTERNAL) == Frontend::LOCAL | Frontend::EXTERNAL;
    let everything = config.flags & NodeConfig::MASQUERADE_ALL != 0 && !keeps_client;
    let elsewhere = !flow.selected.backend.has(Backend::LOCAL)
        && (origin == Origin::Outside
            || config.flags & NodeConfig::CLUSTER_PREFIXES != 0 && !came_by_pod_device(flow));
    everything || elsewhere || flow.selected.backend.addr.is(&flow.request.src)
}

/// Whether the packet comes from a pod of this node. Evaluated for new flows only.
#[inline(never)]
fn origin(flow: &FlowContext, config: &NodeConfig) -> Origin {
    let by_device = if flow.request.src.is_v4() {
        NodeConfig::LOCAL_BY_DEVICE_V4
    } else {
        NodeConfig::LOCAL_BY_DEVICE_V6
    };
    if config.flags & by_device != 0 {
        return if came_by_pod_device(flow) { Origin::Node } else { Origin::Outside };
    }
    let mut i = 0;
    while i < config.pod_prefixes.len() && (i as u32) < config.pod_prefix_count {
        if config.pod_prefixes[i].contains(&flow.request.src) {
            return Origin::Node;
        }
        i += 1;
    }
    Origin::Outside
}

/// Whether the packet arrived on a device that has pods of this node behind it.
#[inline(never)]
fn came_by_pod_device(flow: &FlowContext) -> bool {
    // SAFETY: map memory, valid while the program runs (RCU); `entry::lookup` says what another CPU may do to it.
    unsafe { DEVICES.get(flow.ifindex) }.is_some_and(|device| device.flags & Device::POD != 0)
}

/// A direct flow to a backend's own address: it is recorded so that it cannot be confused with a Service flow of the
/// same middle tuple. It is never rejected or dropped.
#[inline(always)]
fn target_backend_address(flow: &mut FlowContext) -> Action {
    let key = FrontendKey::new(flow.request.dst, flow.request.dport, flow.request.proto);
    // SAFETY: map memory, valid while the program runs (RCU); `entry::lookup` says what another CPU may do to it.
    let Some(id) = (unsafe { BACKEND_ADDRS.get(key) }) else {
        return Action::Pass;
    };
    flow.target = Target {
        addr: flow.request.dst,
        port: flow.request.dport,
        reserved: 0,
        service: 0,
        backend: *id,
        masquerade: 0,
    };
    Action::Create
}
