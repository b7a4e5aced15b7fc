//! A flow begins: its middle tuple is reserved and its halves are recorded, before the first rewrite.
//!
//! Order matters, because another CPU may be doing the same for another packet of the same flow: reply half
//! (the reservation, BPF_NOEXIST), then masquerade half, then request half (BPF_NOEXIST), which makes the flow
//! visible. Who loses the last race takes back what it reserved and follows the winner.

use aya_ebpf::{bindings::BPF_NOEXIST, helpers::bpf_get_prandom_u32};
use proxy_common::{Addr, Counter, CtEntry, CtKey, Half, Port, Proto, node::port_bits, tcp};

use crate::{
    count::count,
    flow, half_open,
    maps::{CONNTRACK, WORK},
    rewrite::Rewrite,
    service::{Chosen, bits_of},
    verdict::DropReason,
    watch,
    xdp::Fib,
};

/// How many other ports are tried for a taken tuple.
pub const PROBES: u32 = 14;

/// -EEXIST, as map updates return it.
pub const EXISTS: i32 = -17;

/// What a new flow is sent to.
#[repr(C)]
pub struct Begin {
    pub addr: Addr,
    pub port: Port,
    pub reserved: u16,
    /// 0 for a direct flow to a backend's own address.
    pub service: u32,
    pub backend: u32,
    /// Not 0: its source is to be translated by the first egress hook.
    pub masquerade: u32,
}

/// A port for which replies come back to shunt and to nobody else on the node: outside the host's own
/// ephemeral range (32768-60999) and no NodePort.
#[inline(always)]
pub fn random_port() -> Port {
    const LOW: u32 = 30_000 - 1024;
    const HIGH: u32 = 65_536 - 61_000;
    // SAFETY: takes no arguments and has no effect.
    let at = unsafe { bpf_get_prandom_u32() } % (LOW + HIGH);
    Port::new(if at < LOW { 1024 + at } else { 61_000 + (at - LOW) } as u16)
}

/// Whether a port may be taken for source translation.
#[inline(always)]
pub fn is_in_pool(port: Port) -> bool {
    let host = port.host();
    ((1024..30_000).contains(&host) || host >= 61_000) && bits_of(port) & port_bits::ANY_NODEPORT == 0
}

/// Where a flow is put together: too much for the 512 bytes of stack. Per CPU; no two programs that use it run
/// on one CPU at the same time, because both hooks run with softirqs off.
#[repr(C)]
pub struct Work {
    pub entry: CtEntry,
    pub pending: CtEntry,
    pub request: CtKey,
    pub reply: CtKey,
    pub masquerade: CtKey,
    pub to: Begin,
    pub chosen: Chosen,
    /// What `begin` decided.
    pub out: Rewrite,
    pub tcp_flags: u32,
    /// Not 0: the packet is not plain, and `odd.rs` has read it.
    pub odd: u32,
    /// The device the packet came in by.
    pub ifindex: u32,
    /// Why the packet is refused or dropped: a [`DropReason`] by number.
    pub reason: u32,
    /// `CtEntry::XDP` where the flow is the XDP lane's.
    pub lane: u32,
    /// Not 0: another CPU had begun the flow.
    pub follows: u32,
    /// The XDP lane's question to the routing table.
    pub fib: Fib,
}

#[inline(always)]
pub fn work() -> Option<&'static mut Work> {
    // SAFETY: an element of a per-CPU array, used by nobody else meanwhile (see `Work`).
    WORK.get_ptr_mut(0).map(|work| unsafe { &mut *work })
}

/// Records the flow that the packet with tuple `work.request` begins, to `work.to`, and leaves in `work.out` what
/// its packets are rewritten to at ingress, which may be another CPU's choice for the same flow. A subprogram
/// that reads all it needs from `work`: the verifier meets it in one state and not in one for each way here.
#[inline(never)]
pub fn begin(work: &mut Work) -> Result<(), DropReason> {
    let proto = work.request.proto;
    let direct = work.to.service == 0;
    let masquerade = work.to.masquerade != 0;
    let now = flow::now();
    work.follows = 0;
    work.entry = CtEntry {
        addr: work.request.dst,
        port: u64::from(work.request.dport.be()),
        state: if proto == Proto::TCP {
            tcp::advance(0, work.tcp_flags as u8, true)
        } else {
            tcp::advance_datagram(0, true)
        },
        peer_port: work.request.sport,
        reserved: 0,
        flags: CtEntry::REPLY
            | if direct { 0 } else { CtEntry::SERVICE }
            | if masquerade { CtEntry::MASQUERADED } else { 0 }
            | work.lane,
        last_seen: now,
        service: work.to.service,
        backend: work.to.backend,
        created: now,
    };
    let fresh = reserve(work)?;
    let client_port = work.reply.dport;
    if client_port != work.request.sport {
        count(Counter::FlowPortChanged);
    }

    if masquerade {
        work.pending = work.entry;
        work.pending.addr = Addr::UNSPECIFIED_V6;
        work.pending.port = 0;
        work.pending.peer_port = work.to.port;
        work.pending.flags = CtEntry::MASQUERADE | CtEntry::SERVICE | work.lane;
        work.masquerade =
            CtKey::new(work.request.src, client_port, work.to.addr, work.to.port, proto, Half::Egress);
        // One that is there already was left by an earlier flow with this middle tuple, and still holds.
        if let Err(error) = CONNTRACK.insert(&work.masquerade, &work.pending, u64::from(BPF_NOEXIST))
            && error != EXISTS
        {
            let _gone = CONNTRACK.remove(&work.reply);
            return Err(Counter::ConntrackFull);
        }
    }

    work.entry.addr = work.to.addr;
    work.entry.port = u64::from(work.to.port.be());
    work.entry.peer_port = client_port;
    work.entry.flags = work.entry.flags & !CtEntry::REPLY | CtEntry::REQUEST;
    match CONNTRACK.insert(&work.request, &work.entry, u64::from(BPF_NOEXIST)) {
        Ok(()) => {
            count(if direct { Counter::FlowDirect } else { Counter::FlowNew });
            watch::flow(work.to.service);
            if masquerade {
                count(Counter::FlowMasqueraded);
            }
            work.out = Rewrite { addr: work.to.addr, port: work.to.port, peer_port: client_port };
            half_open::note(work);
            Ok(())
        }
        Err(error) => {
            let winner = if error == EXISTS { flow::lookup(&work.request) } else { None };
            let Some(winner) = winner else {
                if fresh {
                    flow::forget_by_reply(&work.reply, &work.entry, false);
                }
                return Err(Counter::ConntrackFull);
            };
            if fresh && !winner.egress_key(&work.request).is(&work.reply) {
                flow::forget_by_reply(&work.reply, &work.entry, false);
            }
            work.follows = 1;
            work.out = Rewrite { addr: winner.addr, port: winner.port(), peer_port: winner.peer_port };
            Ok(())
        }
    }
}

/// Inserts the reply half for a free middle tuple: the client's own port, or another where that is taken.
/// Leaves its key in `work.reply`; returns whether it is new (not the same flow's, found again).
#[inline(always)]
fn reserve(work: &mut Work) -> Result<bool, DropReason> {
    let mut port = work.request.sport;
    // A pod's connection to itself from its own server port: both egress halves would have one key.
    if work.request.src.is(&work.to.addr) && port == work.to.port && work.to.service != 0 {
        port = random_port();
    }
    if work.to.service == 0 {
        work.entry.flags |= CtEntry::IDENTITY;
    }
    work.reply =
        CtKey::new(work.to.addr, work.to.port, work.request.src, port, work.request.proto, Half::Egress);
    if work.to.service == 0 || !is_turned(work) {
        match take(work) {
            TAKEN => {}
            FULL => return Err(Counter::ConntrackFull),
            mine => return Ok(mine == NEW),
        }
    }
    // SCTP's checksum (CRC32c) covers the ports and nothing here can compute it.
    if work.request.proto == Proto::SCTP {
        return Err(Counter::SctpPort);
    }
    work.entry.flags &= !CtEntry::IDENTITY;
    let mut probe = 0;
    while probe < PROBES {
        work.reply.dport = random_port();
        match CONNTRACK.insert(&work.reply, &work.entry, u64::from(BPF_NOEXIST)) {
            Ok(()) => return Ok(true),
            Err(EXISTS) => probe += 1,
            Err(_) => return Err(Counter::ConntrackFull),
        }
    }
    // Crowded: most of these ports belong to flows that are over.
    match take(work) {
        TAKEN => Err(Counter::NoFreePort),
        FULL => Err(Counter::ConntrackFull),
        mine => Ok(mine == NEW),
    }
}

/// Whether a flow has the same two ends the other way round: what leaves for the backend would be taken for that
/// flow's reply. A subprogram: in `begin` its key would be too much for the stack.
#[inline(never)]
fn is_turned(work: &mut Work) -> bool {
    let request = &work.request;
    work.masquerade =
        CtKey::new(request.src, request.sport, work.to.addr, work.to.port, request.proto, Half::Egress);
    flow::lookup(&work.masquerade).is_some_and(|found| found.has(CtEntry::REPLY))
}

const TAKEN: u32 = 0;
const NEW: u32 = 1;
const AGAIN: u32 = 2;
const FULL: u32 = 3;

/// Inserts the reply half under `work.reply`, in place of a flow that is over.
#[inline(never)]
fn take(work: &mut Work) -> u32 {
    match CONNTRACK.insert(&work.reply, &work.entry, u64::from(BPF_NOEXIST)) {
        Ok(()) => return NEW,
        Err(EXISTS) => {}
        Err(_) => return FULL,
    }
    let Some(found) = flow::lookup(&work.reply) else {
        return TAKEN;
    };
    if !found.has(CtEntry::REPLY) {
        return TAKEN;
    }
    work.masquerade = found.ingress_key(&work.reply);
    if work.masquerade.is(&work.request) {
        return AGAIN;
    }
    if !flow::is_closed(work.request.proto, found) {
        return TAKEN;
    }
    flow::forget_by_reply(&work.reply, found, true);
    match CONNTRACK.insert(&work.reply, &work.entry, u64::from(BPF_NOEXIST)) {
        Ok(()) => NEW,
        Err(_) => TAKEN,
    }
}
