//! Flow creation: reserves the middle tuple and records all halves, before the first packet is rewritten.
//!
//! The order matters, because another CPU may be creating the same flow from another packet: reply half (the reservation,
//! BPF_NOEXIST), masquerade half, then request half (BPF_NOEXIST), which makes the flow visible. The CPU that loses the last
//! race releases what it reserved and follows the winner.

use aya_ebpf::bindings::BPF_NOEXIST;
use proxy_common::{Addr, Counter, CtEntry, CtKey, Half, Proto, tcp};

use crate::{
    base::{
        clock,
        maps::{CONNTRACK, EEXIST},
        scratch::{FlowContext, Rewrite},
        verdict::DropReason,
    },
    conntrack::{
        entry, follow, half_open,
        ports::{PROBES, random_port},
    },
    observe::{counters::count, service_stats},
};

/// Creates the flow of the packet with tuple `flow.request` to `flow.target`, and writes to `flow.rewrite` what its
/// packets are rewritten to at ingress, which may be another CPU's choice for the same flow. A subprogram that takes
/// all input from `flow`, so that the verifier follows it in one state instead of one for each caller.
#[inline(never)]
pub fn create_flow(flow: &mut FlowContext) -> Result<(), DropReason> {
    let proto = flow.request.proto;
    let direct = flow.target.service == 0;
    let masquerade = flow.target.masquerade != 0;
    let now = clock::now();
    flow.lost_race = 0;
    flow.entry = CtEntry {
        addr: flow.request.dst,
        port: u64::from(flow.request.dport.be()),
        state: if proto == Proto::TCP { tcp::first(flow.tcp_flags as u8) } else { tcp::OPENED },
        peer_port: flow.request.sport,
        device: flow.uplink as u16,
        flags: CtEntry::REPLY
            | if direct { 0 } else { CtEntry::SERVICE }
            | if masquerade { CtEntry::MASQUERADED } else { 0 }
            | flow.xdp_flag,
        last_seen: now,
        service: flow.target.service,
        backend: flow.target.backend,
        created: now,
    };
    let fresh = reserve(flow)?;
    let client_port = flow.reply.dport;
    if client_port != flow.request.sport {
        count(Counter::FlowPortChanged);
    }

    if masquerade {
        flow.pending = flow.entry;
        flow.pending.addr = Addr::UNSPECIFIED_V6;
        flow.pending.port = 0;
        flow.pending.peer_port = flow.target.port;
        flow.pending.flags = CtEntry::MASQUERADE | CtEntry::SERVICE | flow.xdp_flag;
        flow.masquerade = CtKey::new(
            flow.request.src,
            client_port,
            flow.target.addr,
            flow.target.port,
            proto,
            Half::Egress,
        );
        // An entry that exists is valid: another CPU inserted it for this flow, or an earlier flow with this middle tuple left it.
        if let Err(error) = CONNTRACK.insert(&flow.masquerade, &flow.pending, u64::from(BPF_NOEXIST))
            && error != EEXIST
        {
            // Another CPU's half of this same flow stays.
            if fresh {
                let _gone = CONNTRACK.remove(&flow.reply);
            }
            return Err(Counter::ConntrackFull);
        }
    }

    flow.entry.addr = flow.target.addr;
    flow.entry.port = u64::from(flow.target.port.be());
    flow.entry.peer_port = client_port;
    flow.entry.flags = flow.entry.flags & !CtEntry::REPLY | CtEntry::REQUEST;
    follow::begin(&mut flow.entry, flow.tcp_end);
    match CONNTRACK.insert(&flow.request, &flow.entry, u64::from(BPF_NOEXIST)) {
        // The other CPU of a race found the map full and removed the reply half that both had: the next packet begins anew. The
        // garbage collector removes what is left when that happens after this lookup.
        Ok(()) if !fresh && entry::lookup(&flow.reply).is_none() => {
            let _gone = CONNTRACK.remove(&flow.request);
            Err(Counter::ConntrackFull)
        }
        Ok(()) => {
            count(if direct { Counter::FlowDirect } else { Counter::FlowNew });
            service_stats::count_flow(flow.target.service);
            if masquerade {
                count(Counter::FlowMasqueraded);
            }
            flow.rewrite = Rewrite { addr: flow.target.addr, port: flow.target.port, peer_port: client_port };
            half_open::track(&flow.request, flow.entry.created);
            Ok(())
        }
        Err(_) => {
            let Some(winner) = entry::lookup(&flow.request) else {
                if fresh {
                    entry::remove_by_reply(&flow.reply, &flow.entry, false);
                }
                return Err(Counter::ConntrackFull);
            };
            if fresh && !winner.egress_key(&flow.request).is(&flow.reply) {
                entry::remove_by_reply(&flow.reply, &flow.entry, false);
            }
            flow.lost_race = 1;
            flow.rewrite = Rewrite { addr: winner.addr, port: winner.port(), peer_port: winner.peer_port };
            Ok(())
        }
    }
}

/// Inserts the reply half for a free middle tuple: with the client's own port, or with another if that is taken.
/// Writes its key to `flow.reply`; returns false if it is this flow's own, inserted before.
#[inline(always)]
fn reserve(flow: &mut FlowContext) -> Result<bool, DropReason> {
    let mut port = flow.request.sport;
    // A pod connects to itself from its own server port: both egress halves would have the same key.
    if flow.request.src.is(&flow.target.addr) && port == flow.target.port && flow.target.service != 0 {
        port = random_port();
    }
    if flow.target.service == 0 {
        flow.entry.flags |= CtEntry::IDENTITY;
    }
    flow.reply = CtKey::new(
        flow.target.addr,
        flow.target.port,
        flow.request.src,
        port,
        flow.request.proto,
        Half::Egress,
    );
    if flow.target.service == 0 || !has_reverse_flow(flow) {
        match insert_reply(flow) {
            TAKEN => {}
            FULL => return Err(Counter::ConntrackFull),
            mine => return Ok(mine == NEW),
        }
    }
    // SCTP's checksum (CRC32c) covers the ports, and a program cannot compute it.
    if flow.request.proto == Proto::SCTP {
        return Err(Counter::SctpPort);
    }
    flow.entry.flags &= !CtEntry::IDENTITY;
    let mut probe = 0;
    while probe < PROBES {
        flow.reply.dport = random_port();
        match CONNTRACK.insert(&flow.reply, &flow.entry, u64::from(BPF_NOEXIST)) {
            Ok(()) => return Ok(true),
            Err(EEXIST) => probe += 1,
            Err(_) => return Err(Counter::ConntrackFull),
        }
    }
    // No free port found. Most of these ports belong to closed flows: replace one.
    match insert_reply(flow) {
        TAKEN => Err(Counter::NoFreePort),
        FULL => Err(Counter::ConntrackFull),
        mine => Ok(mine == NEW),
    }
}

/// Whether a flow in the opposite direction has the same two ends: packets to the backend would be taken for its
/// replies. A subprogram: the key does not fit on the caller's stack.
#[inline(never)]
fn has_reverse_flow(flow: &mut FlowContext) -> bool {
    let request = &flow.request;
    flow.masquerade = CtKey::new(
        request.src,
        request.sport,
        flow.target.addr,
        flow.target.port,
        request.proto,
        Half::Egress,
    );
    entry::lookup(&flow.masquerade).is_some_and(|found| found.has(CtEntry::REPLY))
}

const TAKEN: u32 = 0;

const NEW: u32 = 1;

const AGAIN: u32 = 2;

const FULL: u32 = 3;

/// Inserts the reply half under `flow.reply`, replacing that of a flow that has ended.
#[inline(never)]
fn insert_reply(flow: &mut FlowContext) -> u32 {
    match CONNTRACK.insert(&flow.reply, &flow.entry, u64::from(BPF_NOEXIST)) {
        Ok(()) => return NEW,
        Err(EEXIST) => {}
        Err(_) => return FULL,
    }
    let Some(found) = entry::lookup(&flow.reply) else {
        return TAKEN;
    };
    if !found.has(CtEntry::REPLY) {
        return TAKEN;
    }
    flow.masquerade = found.ingress_key(&flow.reply);
    if flow.masquerade.is(&flow.request) {
        return AGAIN;
    }
    if !entry::has_ended(flow.request.proto, found) {
        return TAKEN;
    }
    entry::remove_by_reply(&flow.reply, found, true);
    match CONNTRACK.insert(&flow.reply, &flow.entry, u64::from(BPF_NOEXIST)) {
        Ok(()) => NEW,
        Err(_) => TAKEN,
    }
}
