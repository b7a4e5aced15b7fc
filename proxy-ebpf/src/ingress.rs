//! The ingress hook: translates destinations. VIP to backend, or one of the node's translated sources back
//! to the client it stands for.

use aya_ebpf::programs::TcContext;
use proxy_common::{
    Backend, Counter, CtEntry, Device, Frontend, FrontendKey, Half, NodeConfig, node::port_bits,
};

use crate::{
    begin::{Begin, Work, begin, work},
    count::count,
    echo, flow,
    maps::{BACKEND_ADDRS, DEVICES, NODE_CONFIG},
    packet::{Link, Packet, parse, skb},
    reject,
    rewrite::{Rewrite, rewrite},
    service::{self, Origin},
    trace,
    verdict::{DropReason, Verdict},
};

#[inline(always)]
pub fn ingress<L: Link>(ctx: &TcContext) -> Verdict {
    let Some(packet) = parse::<L>(ctx, Half::Ingress) else {
        return Verdict::Next;
    };
    if packet.echo {
        return echo::answer::<L>(ctx, &packet, false);
    }
    let mut to = Rewrite::NOTHING;
    let step = match flow::lookup(&packet.key) {
        Some(entry) if packet.is_syn() && begins_anew(&packet, entry) => {
            flow::forget(&packet.key, entry);
            unknown::<L>(ctx, &packet, &mut to)
        }
        Some(entry) => known(&packet, entry, &mut to),
        None => unknown::<L>(ctx, &packet, &mut to),
    };
    match step {
        Step::Pass => Verdict::Next,
        Step::Rewrite => match rewrite::<L>(ctx, &packet, &to) {
            Ok(()) => Verdict::Next,
            Err(reason) => reason.into(),
        },
        Step::Refuse => {
            if reject::refuse::<L>(ctx, &packet) {
                echo::back_out(ctx)
            } else {
                Verdict::Drop
            }
        }
        Step::Drop => Verdict::Drop,
    }
}

/// What is left to do with a packet once it is decided.
enum Step {
    Pass,
    Rewrite,
    Refuse,
    Drop,
}

/// A SYN on the tuple of a flow that is over, or that has had no answer from a backend that is gone.
#[inline(always)]
fn begins_anew(packet: &Packet, entry: &CtEntry) -> bool {
    if !entry.has(CtEntry::REQUEST) {
        return false;
    }
    flow::is_closed(packet.key.proto, entry)
        || entry.has(CtEntry::SERVICE) && service::active_backend(entry.backend).is_none()
}

/// A packet of a recorded flow.
#[inline(always)]
fn known(packet: &Packet, entry: &mut CtEntry, to: &mut Rewrite) -> Step {
    if entry.has(CtEntry::REQUEST) {
        flow::touch(packet, entry);
    }
    if entry.has(CtEntry::IDENTITY) {
        return Step::Pass;
    }
    *to = Rewrite { addr: entry.addr, port: entry.port(), peer_port: entry.peer_port };
    Step::Rewrite
}

/// A packet of no recorded flow: to a frontend, to a backend's own address, or none of ours.
#[inline(always)]
fn unknown<L: Link>(ctx: &TcContext, packet: &Packet, to: &mut Rewrite) -> Step {
    let (dst, dport, proto) = (&packet.key.dst, packet.key.dport, packet.key.proto);
    let bits = service::bits_of(dport);
    if let Some(frontend) = service::frontend(dst, dport, proto, bits, service::PACKET_ROLES) {
        let Some(work) = work() else {
            return Step::Drop;
        };
        let result = to_service(ctx, packet, frontend, work);
        trace::decision(ctx, packet, &result, &work.out);
        return match result {
            Ok(()) => {
                *to = work.out;
                Step::Rewrite
            }
            Err(reason) => {
                count(reason);
                if matches!(reason, Counter::NoBackend | Counter::NoFlow) { Step::Refuse } else { Step::Drop }
            }
        };
    }
    if bits & port_bits::backend(proto) != 0 && (!packet.is_tcp() || packet.is_syn()) {
        return to_backend_address(packet, to);
    }
    Step::Pass
}

/// A new flow to a frontend; `work.out` holds what its packets are rewritten to. A subprogram for the verifier's
/// sake, as `begin`.
#[inline(never)]
fn to_service(
    ctx: &TcContext,
    packet: &Packet,
    frontend: &Frontend,
    work: &mut Work,
) -> Result<(), DropReason> {
    // Nobody can say which backend a segment in mid-stream belongs to: end it fast instead of hanging.
    if packet.is_tcp() && !packet.is_syn() && frontend.has(Frontend::HAS_ENDPOINTS) {
        return Err(Counter::NoFlow);
    }
    let config = NODE_CONFIG.get(0).ok_or(Counter::BadSlot)?;
    let origin = origin(ctx, packet, config);
    service::choose(frontend, origin, &mut work.chosen)?;
    let backend = &work.chosen.backend;
    work.to = Begin {
        addr: backend.addr,
        port: backend.port,
        reserved: 0,
        service: frontend.service,
        backend: work.chosen.id,
        masquerade: u32::from(needs_masquerade(packet, frontend, config, backend, origin)),
    };
    work.request = packet.key;
    work.tcp_flags = u32::from(packet.tcp_flags);
    begin(work)
}

/// Source translation is needed only where the reply would otherwise miss this node (ARCHITECTURE, "The
/// datapath"): the backend is elsewhere and the client is not a pod of this node, or the backend is the
/// client. `--masquerade-all` gives kube-proxy's behaviour.
#[inline(always)]
fn needs_masquerade(
    packet: &Packet,
    frontend: &Frontend,
    config: &NodeConfig,
    backend: &Backend,
    origin: Origin,
) -> bool {
    let everything = config.flags & NodeConfig::MASQUERADE_ALL != 0 && !frontend.has(Frontend::LOCAL);
    let elsewhere = !backend.has(Backend::LOCAL) && origin == Origin::Outside;
    everything || elsewhere || backend.addr.is(&packet.key.src)
}

/// Whether the packet comes from a pod of this node. Only new flows ask. A subprogram for the verifier's sake.
#[inline(never)]
fn origin(ctx: &TcContext, packet: &Packet, config: &NodeConfig) -> Origin {
    if config.flags & NodeConfig::LOCAL_BY_DEVICE != 0 {
        // SAFETY: BPF_F_NO_PREALLOC: an element is freed only after this program has ended.
        let device = unsafe { DEVICES.get(skb(ctx).ifindex) };
        return match device {
            Some(device) if device.flags & Device::POD != 0 => Origin::Inside,
            _ => Origin::Outside,
        };
    }
    let mut i = 0;
    while i < config.pod_prefixes.len() && (i as u32) < config.pod_prefix_count {
        if config.pod_prefixes[i].contains(&packet.key.src) {
            return Origin::Inside;
        }
        i += 1;
    }
    Origin::Outside
}

/// A direct flow to a backend's own address begins: it is recorded, so that it and a Service flow with the
/// same middle tuple are never taken for one another. It is never refused or dropped.
#[inline(always)]
fn to_backend_address(packet: &Packet, out: &mut Rewrite) -> Step {
    let key = FrontendKey::new(packet.key.dst, packet.key.dport, packet.key.proto);
    // SAFETY: BPF_F_NO_PREALLOC: an element is freed only after this program has ended.
    let Some(id) = (unsafe { BACKEND_ADDRS.get(key) }) else {
        return Step::Pass;
    };
    let Some(work) = work() else {
        return Step::Pass;
    };
    work.to = Begin {
        addr: packet.key.dst,
        port: packet.key.dport,
        reserved: 0,
        service: 0,
        backend: *id,
        masquerade: 0,
    };
    work.request = packet.key;
    work.tcp_flags = u32::from(packet.tcp_flags);
    match begin(work) {
        Ok(()) if work.out.peer_port != packet.key.sport => {
            *out = work.out;
            Step::Rewrite
        }
        Ok(()) => Step::Pass,
        Err(reason) => {
            count(reason);
            Step::Pass
        }
    }
}
