//! EVENTS, for `shunt monitor`: new flows, rejections and drops, and what sockets asked for. Written only while a monitor
//! runs, which MONITOR says.

use aya_ebpf::helpers::{bpf_get_current_pid_tgid, bpf_get_prandom_u32, bpf_ktime_get_ns, generated};
use proxy_common::{Addr, Backend, CtKey, EventKind, FlowEvent, Hook, Port, observe::kinds};

use crate::base::{
    atomic,
    maps::{EVENTS, MONITOR},
    scratch::FlowContext,
};

/// The current time, if a monitor runs and wants this event.
#[inline(always)]
pub fn sample(kind: EventKind) -> Option<u64> {
    let monitor = MONITOR.get_ptr(0)?;
    // SAFETY: a live map value; the watcher writes it meanwhile, and each field means something by itself.
    let (until, wants, one_in) = unsafe {
        (
            (&raw const (*monitor).until).read_volatile(),
            (&raw const (*monitor).kinds).read_volatile(),
            (&raw const (*monitor).one_in).read_volatile(),
        )
    };
    if until == 0 || wants & kinds::bit(kind) == 0 {
        return None;
    }
    // SAFETY: takes no arguments and has no effect.
    if one_in > 1 && unsafe { bpf_get_prandom_u32() } % one_in != 0 {
        return None;
    }
    // SAFETY: as above.
    let now = unsafe { bpf_ktime_get_ns() };
    if now < until { Some(now) } else { None }
}

/// Counts an event for which EVENTS had no room.
#[inline(always)]
fn count_lost() {
    if let Some(monitor) = MONITOR.get_ptr_mut(0) {
        // SAFETY: a live map value, 8-byte aligned.
        unsafe { atomic::add_one(&raw mut (*monitor).lost) };
    }
}

/// Reports a rejected or dropped packet.
#[inline(always)]
pub fn packet_ended(time: u64, key: &CtKey, kind: EventKind, hook: Hook, ifindex: u32, reason: u32) {
    let Some(mut event) = EVENTS.reserve::<FlowEvent>(0) else {
        return count_lost();
    };
    event.write(FlowEvent {
        time,
        src: key.src,
        dst: key.dst,
        to: Addr::UNSPECIFIED_V6,
        sport: key.sport,
        dport: key.dport,
        to_port: Port::ZERO,
        client_port: key.sport,
        proto: key.proto,
        kind: kind as u8,
        hook: hook as u8,
        flags: 0,
        reason,
        service: 0,
        backend: 0,
        ifindex,
        pid: 0,
        comm: [0; 16],
    });
    event.submit(0);
}

/// Reports the flow to a Service that was created from `flow`. A subprogram, for its stack frame.
#[inline(never)]
pub fn flow_created(flow: &FlowContext, hook: Hook) {
    if flow.lost_race != 0 {
        return;
    }
    let Some(time) = sample(EventKind::Flow) else {
        return;
    };
    let Some(mut event) = EVENTS.reserve::<FlowEvent>(0) else {
        return count_lost();
    };
    let (key, to) = (&flow.request, &flow.target);
    let masqueraded = if to.masquerade != 0 { FlowEvent::MASQUERADED } else { 0 };
    let local = if flow.selected.backend.has(Backend::LOCAL) { FlowEvent::LOCAL } else { 0 };
    event.write(FlowEvent {
        time,
        src: key.src,
        dst: key.dst,
        to: flow.rewrite.addr,
        sport: key.sport,
        dport: key.dport,
        to_port: flow.rewrite.port,
        client_port: flow.rewrite.peer_port,
        proto: key.proto,
        kind: EventKind::Flow as u8,
        hook: hook as u8,
        flags: masqueraded | local,
        reason: 0,
        service: to.service,
        backend: to.backend,
        ifindex: flow.ifindex,
        pid: 0,
        comm: [0; 16],
    });
    event.submit(0);
}

/// What a socket requested, and the result.
pub struct SocketRequest<'a> {
    pub client: &'a Addr,
    pub addr: &'a Addr,
    pub port: Port,
    pub proto: u8,
    pub service: u32,
    /// The backend and its id; `None` if the request was rejected.
    pub to: Option<(&'a Backend, u32)>,
    /// Why the request was rejected: a [`Counter`] by number.
    pub reason: u32,
}

/// Reports a socket request, translated or rejected.
#[inline(always)]
pub fn socket_request(request: &SocketRequest<'_>) {
    let kind = if request.to.is_some() { EventKind::Flow } else { EventKind::Refused };
    let Some(time) = sample(kind) else {
        return;
    };
    let Some(mut event) = EVENTS.reserve::<FlowEvent>(0) else {
        return count_lost();
    };
    let (to, to_port, backend, flags) = match request.to {
        Some((backend, id)) => {
            let local = if backend.has(Backend::LOCAL) { FlowEvent::LOCAL } else { 0 };
            (backend.addr, backend.port, id, local)
        }
        None => (Addr::UNSPECIFIED_V6, Port::ZERO, 0, 0),
    };
    event.write(FlowEvent {
        time,
        src: *request.client,
        dst: *request.addr,
        to,
        sport: Port::ZERO,
        dport: request.port,
        to_port,
        client_port: Port::ZERO,
        proto: request.proto,
        kind: kind as u8,
        hook: Hook::Socket as u8,
        flags,
        reason: request.reason,
        service: request.service,
        backend,
        ifindex: 0,
        pid: (bpf_get_current_pid_tgid() >> 32) as u32,
        comm: [0; 16],
    });
    // SAFETY: the event belongs to this program until it is submitted. If the helper fails, the name stays empty.
    unsafe { generated::bpf_get_current_comm((&raw mut (*event.as_mut_ptr()).comm).cast(), 16) };
    event.submit(0);
}
