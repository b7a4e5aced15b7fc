//! A packet of no recorded flow, at the ingress hook: to a frontend, to a backend's own address, or none of
//! ours. Policy and source translation are decided here; `begin.rs` records the flow.
//!
//! All of it works on `Work` in memory, not on the parsed packet: what the verifier does not know of a packet
//! (its family, its protocol) it need not follow apart.

use aya_ebpf::programs::TcContext;
use proxy_common::{
    Backend, Counter, CtKey, Device, Frontend, FrontendKey, Half, Hook, NodeConfig, Proto, node::port_bits,
    tcp,
};

use crate::{
    begin::{Begin, Work, begin},
    count::count,
    maps::{BACKEND_ADDRS, DEVICES, NODE_CONFIG},
    nobody, odd,
    packet::{Link, parse},
    rewrite::rewrite,
    service::{self, Origin},
    trace,
    verdict::{DropReason, Verdict},
    watch,
};

/// What is left to do with a packet once it is decided.
#[repr(u32)]
pub enum Step {
    Pass,
    /// A flow to `work.to` is to be recorded.
    Begin,
    /// To `work.out`.
    Translate,
    Refuse,
    Drop,
}

/// Whether some frontend or backend has the packet's destination port, or a ClusterIP its address as far as that can be
/// told for nothing: two array reads spare packets that are none of ours all that follows.
#[inline(always)]
pub fn may_concern(key: &CtKey) -> bool {
    let proto = key.proto;
    let ours = port_bits::frontend(proto) | port_bits::nodeport(proto) | port_bits::backend(proto);
    service::bits_of(key.dport) & ours != 0 || nobody::may_be_cluster_ip(&key.dst)
}

/// Decides about the packet with tuple `work.request`.
#[inline(never)]
pub fn decide(work: &mut Work) -> Step {
    let (dst, dport, proto) = (&work.request.dst, work.request.dport, work.request.proto);
    let bits = service::bits_of(dport);
    let is_syn = tcp::is_syn(work.tcp_flags as u8);
    if let Some(frontend) = service::frontend(dst, dport, proto, bits, service::PACKET_ROLES) {
        let result = match to_service(frontend, work) {
            Ok(()) if !may_keep_ports(work) => Err(Counter::SctpPort),
            result => result,
        };
        return match result {
            Ok(()) => Step::Begin,
            Err(reason) => {
                trace::decision(work, &result);
                work.reason = reason as u32;
                if matches!(reason, Counter::NoBackend | Counter::NoFlow) { Step::Refuse } else { Step::Drop }
            }
        };
    }
    if nobody::is_cluster_ip(dst) {
        work.reason = Counter::NoServicePort as u32;
        return Step::Refuse;
    }
    if bits & port_bits::backend(proto) != 0 && (proto != Proto::TCP || is_syn) {
        return to_backend_address(work);
    }
    Step::Pass
}

/// Records the flow that [`decide`] asked for. Not called by it, but after it: kernel 6.1 counts each frame in steps of
/// 32 bytes, and the deepest chain of calls must stay within 512 ("combined stack size of 5 calls is 544. Too large").
#[inline(always)]
pub fn record(work: &mut Work) -> Step {
    let result = begin(work);
    if work.to.service == 0 {
        // A direct flow to a backend's own address is never refused or dropped.
        return match result {
            Ok(()) if work.out.peer_port != work.request.sport => Step::Translate,
            Ok(()) => Step::Pass,
            Err(_) => {
                count(Counter::FlowUnrecorded);
                Step::Pass
            }
        };
    }
    trace::decision(work, &result);
    match result {
        Ok(()) => {
            watch::begun(work, Hook::Ingress);
            Step::Translate
        }
        Err(reason) => {
            work.reason = reason as u32;
            Step::Drop
        }
    }
}

/// Whether a flow that must keep its ports (`begin::reserve`) can have `work.to`. The controller refuses an SCTP Service
/// with another target port; a backend that asks itself from its own port would need another one too. A subprogram for
/// the stack of `to_service`.
#[inline(never)]
fn may_keep_ports(work: &Work) -> bool {
    let itself = work.to.addr.is(&work.request.src) && work.to.port == work.request.sport;
    work.request.proto != Proto::SCTP || !itself && work.to.port == work.request.dport
}

/// Rewrites the packet as `work.out` says. Parses it again: this is a subprogram that depends on nothing but
/// the packet itself, so the verifier goes through it once.
#[inline(never)]
pub fn translate<L: Link>(ctx: &TcContext, work: &Work) -> Verdict {
    watch::request(ctx, work.to.service);
    let result = match parse::<L>(ctx, Half::Ingress) {
        Ok(packet) => rewrite::<L>(ctx, &packet, &work.out),
        Err(_) => odd::translate::<L>(ctx, &work.out),
    };
    match result {
        Ok(()) => Verdict::NEXT,
        Err(reason) => reason.into(),
    }
}

/// What happens to a TCP segment of no known flow. A subprogram for the stack of [`to_service`].
#[inline(never)]
fn mid_stream() -> DropReason {
    let config = NODE_CONFIG.get(0);
    if config.is_some_and(|config| config.flags & NodeConfig::TAKING_OVER != 0) {
        Counter::TakingOver
    } else {
        Counter::NoFlow
    }
}

/// Where a new flow to a frontend goes: `work.to`.
#[inline(never)]
pub fn to_service(frontend: &Frontend, work: &mut Work) -> Result<(), DropReason> {
    if !service::lets_in(frontend, &work.request.src) {
        return Err(Counter::SrcRange);
    }
    // Nobody can say which backend a segment in mid-stream belongs to: end it fast instead of hanging.
    let is_tcp = work.request.proto == Proto::TCP;
    if is_tcp && !tcp::is_syn(work.tcp_flags as u8) && frontend.has(Frontend::HAS_ENDPOINTS) {
        return Err(mid_stream());
    }
    let config = NODE_CONFIG.get(0).ok_or(Counter::BadSlot)?;
    let origin = origin(work, config);
    service::choose(frontend, origin, &work.request.src, &mut work.chosen)?;
    let backend = &work.chosen.backend;
    work.to = Begin {
        addr: backend.addr,
        port: backend.port,
        reserved: 0,
        service: frontend.service,
        backend: work.chosen.id,
        masquerade: u32::from(needs_masquerade(work, frontend, config, origin)),
    };
    Ok(())
}

/// Source translation is needed only where the reply would otherwise miss this node (ARCHITECTURE, "The
/// datapath"): the backend is elsewhere and the client is not a pod of this node, or the backend is the
/// client. `--masquerade-all` gives kube-proxy's behaviour. With detectLocalMode ClusterCIDR a pod of any node is
/// a local to policies; but only to one of this node the reply comes by this node.
#[inline(always)]
fn needs_masquerade(work: &Work, frontend: &Frontend, config: &NodeConfig, origin: Origin) -> bool {
    let keeps_client =
        frontend.flags & (Frontend::LOCAL | Frontend::EXTERNAL) == Frontend::LOCAL | Frontend::EXTERNAL;
    let everything = config.flags & NodeConfig::MASQUERADE_ALL != 0 && !keeps_client;
    let elsewhere = !work.chosen.backend.has(Backend::LOCAL)
        && (origin == Origin::Outside
            || config.flags & NodeConfig::CLUSTER_PREFIXES != 0 && !came_by_pod_device(work));
    everything || elsewhere || work.chosen.backend.addr.is(&work.request.src)
}

/// Whether the packet comes from a pod of this node. Only new flows ask.
#[inline(never)]
fn origin(work: &Work, config: &NodeConfig) -> Origin {
    let by_device = if work.request.src.is_v4() {
        NodeConfig::LOCAL_BY_DEVICE_V4
    } else {
        NodeConfig::LOCAL_BY_DEVICE_V6
    };
    if config.flags & by_device != 0 {
        return if came_by_pod_device(work) { Origin::Inside } else { Origin::Outside };
    }
    let mut i = 0;
    while i < config.pod_prefixes.len() && (i as u32) < config.pod_prefix_count {
        if config.pod_prefixes[i].contains(&work.request.src) {
            return Origin::Inside;
        }
        i += 1;
    }
    Origin::Outside
}

/// Whether pods of this node are behind the device that the packet came in by.
#[inline(never)]
fn came_by_pod_device(work: &Work) -> bool {
    // SAFETY: a map's memory for as long as this program runs; see `flow::lookup` for what may become of it meanwhile.
    unsafe { DEVICES.get(work.ifindex) }.is_some_and(|device| device.flags & Device::POD != 0)
}

/// A direct flow to a backend's own address begins: it is recorded, so that it and a Service flow with the
/// same middle tuple are never taken for one another. It is never refused or dropped.
#[inline(always)]
fn to_backend_address(work: &mut Work) -> Step {
    let key = FrontendKey::new(work.request.dst, work.request.dport, work.request.proto);
    // SAFETY: a map's memory for as long as this program runs; see `flow::lookup` for what may become of it meanwhile.
    let Some(id) = (unsafe { BACKEND_ADDRS.get(key) }) else {
        return Step::Pass;
    };
    work.to = Begin {
        addr: work.request.dst,
        port: work.request.dport,
        reserved: 0,
        service: 0,
        backend: *id,
        masquerade: 0,
    };
    Step::Begin
}
