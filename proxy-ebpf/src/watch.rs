//! For people to look at: what each Service carries, what each device's hooks refuse and drop and why, and the events of
//! `shunt monitor`. No packet's way depends on anything written here.

use aya_ebpf::{
    bindings::BPF_NOEXIST,
    helpers::{
        bpf_get_current_pid_tgid, bpf_get_prandom_u32, bpf_ktime_get_ns, bpf_xdp_get_buff_len, generated,
    },
    programs::{TcContext, XdpContext},
};
use proxy_common::{
    Addr, Backend, Counter, CtEntry, CtKey, DropKey, EventKind, FlowEvent, Half, Hook, Port, ServiceStats,
    watch::kinds,
};

use crate::{
    atomic,
    begin::Work,
    count::count_number,
    globals,
    maps::{COUNTERS, DROPS, EVENTS, MONITOR, SERVICE_STATS},
    odd,
    packet::{Aside, Link, ifindex, parse, skb},
};

/// A packet's share of its Service's statistics.
pub trait Measured {
    fn packets(&self) -> u64;
    fn bytes(&self) -> u64;
}

impl Measured for TcContext {
    #[inline(always)]
    fn packets(&self) -> u64 {
        // Both 0 unless it is a super-packet; of what a virtual machine sends only the size is known.
        let (segments, size) = (skb(self).gso_segs, skb(self).gso_size);
        if segments != 0 {
            return u64::from(segments);
        }
        if size == 0 { 1 } else { u64::from(self.len().div_ceil(size)) }
    }

    #[inline(always)]
    fn bytes(&self) -> u64 {
        u64::from(self.len())
    }
}

impl Measured for XdpContext {
    #[inline(always)]
    fn packets(&self) -> u64 {
        1
    }

    #[inline(always)]
    fn bytes(&self) -> u64 {
        // SAFETY: the context the kernel gave. Not the distance of its pointers: a jumbo frame goes on elsewhere.
        unsafe { bpf_xdp_get_buff_len(self.ctx) }
    }
}

/// The statistics of a service port on this CPU; 0 is no Service.
#[inline(always)]
fn stats(service: u32) -> Option<&'static mut ServiceStats> {
    if service == 0 || !globals::stats() {
        return None;
    }
    // SAFETY: a live element of a per-CPU array, which only this CPU writes.
    SERVICE_STATS.get_ptr_mut(service).map(|stats| unsafe { &mut *stats })
}

/// A flow to a Service began. Atomic: a process in a socket hook may be interrupted by a packet.
#[inline(always)]
pub fn flow(service: u32) {
    if let Some(stats) = stats(service) {
        // SAFETY: a live map value, 8-byte aligned.
        unsafe { atomic::add_one(&raw mut stats.flows) };
    }
}

/// A packet from a client.
#[inline(always)]
pub fn request(ctx: &impl Measured, service: u32) {
    if let Some(stats) = stats(service) {
        stats.packets_in += ctx.packets();
        stats.bytes_in += ctx.bytes();
    }
}

/// A packet to a client.
#[inline(always)]
pub fn reply(ctx: &impl Measured, service: u32) {
    if let Some(stats) = stats(service) {
        stats.packets_out += ctx.packets();
        stats.bytes_out += ctx.bytes();
    }
}

/// A packet of a recorded half, whichever way it goes.
#[inline(always)]
pub fn packet(ctx: &impl Measured, entry: &CtEntry) {
    if entry.has(CtEntry::REQUEST) {
        request(ctx, entry.service);
    } else if entry.has(CtEntry::REPLY) {
        reply(ctx, entry.service);
    }
}

/// A packet that is refused or dropped, before anything of it is changed for that. `reason` is a [`Counter`] by number.
/// A subprogram: it parses the packet again, where somebody wants to know.
#[inline(never)]
pub fn ended<L: Link>(ctx: &TcContext, half: Half, reason: u32) {
    count_number(reason);
    let device = ifindex(ctx);
    count_drop(&DropKey { ifindex: device, reason });
    let kind = if Counter::is_refusal(reason) { EventKind::Refused } else { EventKind::Dropped };
    let Some(time) = wanted(kind) else {
        return;
    };
    let hook = if half == Half::Ingress { Hook::Ingress } else { Hook::Egress };
    match parse::<L>(ctx, half) {
        Ok(packet) => tell(time, &packet.key, kind, hook, device, reason),
        // What is not plain has been read.
        Err(Aside::Odd) => {
            if let Some(odd) = odd::odd() {
                tell(time, &odd.key, kind, hook, device, reason);
            }
        }
        Err(Aside::Foreign) => {}
    }
}

#[inline(always)]
fn count_drop(key: &DropKey) {
    if let Some(value) = DROPS.get_ptr_mut(key) {
        // SAFETY: a live element of a per-CPU hash, which only this CPU writes.
        unsafe { *value += 1 };
        return;
    }
    // Where another CPU was first, this one's count begins with the next packet.
    let _there_or_full = DROPS.insert(key, &1, u64::from(BPF_NOEXIST));
}

/// The time, where somebody watches and wants this event.
#[inline(always)]
fn wanted(kind: EventKind) -> Option<u64> {
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

/// EVENTS has no room.
#[inline(always)]
fn lost() {
    if let Some(monitor) = MONITOR.get_ptr_mut(0) {
        // SAFETY: a live map value, 8-byte aligned.
        unsafe { atomic::add_one(&raw mut (*monitor).lost) };
    }
}

/// An event about a packet without a flow.
#[inline(always)]
fn tell(time: u64, key: &CtKey, kind: EventKind, hook: Hook, ifindex: u32, reason: u32) {
    let Some(mut place) = EVENTS.reserve::<FlowEvent>(0) else {
        return lost();
    };
    place.write(FlowEvent {
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
    place.submit(0);
}

/// The flow to a Service that `work` has begun. A subprogram, for its stack.
#[inline(never)]
pub fn begun(work: &Work, hook: Hook) {
    if work.follows != 0 {
        return;
    }
    let Some(time) = wanted(EventKind::Flow) else {
        return;
    };
    let Some(mut place) = EVENTS.reserve::<FlowEvent>(0) else {
        return lost();
    };
    let (key, to) = (&work.request, &work.to);
    let masqueraded = if to.masquerade != 0 { FlowEvent::MASQUERADED } else { 0 };
    let local = if work.chosen.backend.has(Backend::LOCAL) { FlowEvent::LOCAL } else { 0 };
    place.write(FlowEvent {
        time,
        src: key.src,
        dst: key.dst,
        to: work.out.addr,
        sport: key.sport,
        dport: key.dport,
        to_port: work.out.port,
        client_port: work.out.peer_port,
        proto: key.proto,
        kind: EventKind::Flow as u8,
        hook: hook as u8,
        flags: masqueraded | local,
        reason: 0,
        service: to.service,
        backend: to.backend,
        ifindex: work.ifindex,
        pid: 0,
        comm: [0; 16],
    });
    place.submit(0);
}

/// What a socket asked for and what became of it.
pub struct Asked<'a> {
    pub client: &'a Addr,
    pub addr: &'a Addr,
    pub port: Port,
    pub proto: u8,
    pub service: u32,
    /// Not where it was refused.
    pub to: Option<(&'a Backend, u32)>,
    /// Why it was refused: a [`Counter`] by number.
    pub reason: u32,
}

/// A socket's question is refused.
#[inline(always)]
pub fn refused(question: &Asked<'_>) {
    if let Some(value) = COUNTERS.get_ptr_mut(question.reason) {
        // SAFETY: a live map value, 8-byte aligned. Atomic, because a packet may interrupt a process.
        unsafe { atomic::add_one(value) };
    }
    count_drop(&DropKey { ifindex: 0, reason: question.reason });
    asked(question);
}

/// A socket's question, answered or refused.
#[inline(always)]
pub fn asked(asked: &Asked<'_>) {
    let kind = if asked.to.is_some() { EventKind::Flow } else { EventKind::Refused };
    let Some(time) = wanted(kind) else {
        return;
    };
    let Some(mut place) = EVENTS.reserve::<FlowEvent>(0) else {
        return lost();
    };
    let (to, to_port, backend, flags) = match asked.to {
        Some((backend, id)) => {
            let local = if backend.has(Backend::LOCAL) { FlowEvent::LOCAL } else { 0 };
            (backend.addr, backend.port, id, local)
        }
        None => (Addr::UNSPECIFIED_V6, Port::ZERO, 0, 0),
    };
    place.write(FlowEvent {
        time,
        src: *asked.client,
        dst: *asked.addr,
        to,
        sport: Port::ZERO,
        dport: asked.port,
        to_port,
        client_port: Port::ZERO,
        proto: asked.proto,
        kind: kind as u8,
        hook: Hook::Socket as u8,
        flags,
        reason: asked.reason,
        service: asked.service,
        backend,
        ifindex: 0,
        pid: (bpf_get_current_pid_tgid() >> 32) as u32,
        comm: [0; 16],
    });
    // SAFETY: the place is this program's until it is submitted. Where the helper fails, the name stays empty.
    unsafe { generated::bpf_get_current_comm((&raw mut (*place.as_mut_ptr()).comm).cast(), 16) };
    place.submit(0);
}
