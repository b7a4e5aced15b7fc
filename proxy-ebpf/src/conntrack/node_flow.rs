//! Flows that other parties of the node begin from its own addresses: its sockets, and netfilter where a CNI masquerades
//! pods. shunt translates none of them, but it must know two kinds:
//!
//! - flows that leave from a frontend's address and port (a NodePort, or a load balancer's port at an address of the node): their
//!   answers look like packets of new flows to that frontend;
//! - flows to a known backend: a flow with a translated source to the same backend might be given the same source port.
//!
//! Both are recorded when they leave, as a pair of halves that rewrite nothing. Where the tuple is taken by a flow with a
//! translated source, the later one gets another source port here, which its ingress half undoes. The egress hook calls;
//! `ports.rs` checks the same keys before it gives a port to a masqueraded flow.

use aya_ebpf::bindings::BPF_NOEXIST;
use proxy_common::{
    Counter, CtEntry, CtKey, FrontendKey, Half, Proto,
    node::{port_bits, role},
    tcp,
};

use crate::{
    base::{
        clock,
        maps::{BACKEND_ADDRS, CONNTRACK, EEXIST, NODE_ADDRS},
        scratch::{FlowContext, Rewrite},
    },
    conntrack::{entry, follow, half_open, ports},
    load_balancing::frontend,
    observe::counters::count,
};

/// A SYN on the tuple of a flow of this kind that is over: the port is used again.
#[inline(always)]
pub fn may_replace(proto: u8, entry: &CtEntry) -> bool {
    entry.has(CtEntry::NODE_FLOW) && entry::is_over(proto, entry)
}

/// What is left to do with the packet of a flow that was recorded, or not.
#[repr(u32)]
pub enum Recorded {
    /// It passes as it is; also where its flow is none of the two kinds or found no room.
    Pass,
    /// It is rewritten as `flow.rewrite` says.
    Translate,
    /// Another flow has its tuple, and SCTP's checksum does not let its port change.
    Drop,
}

/// Records the flow of the packet with tuple `flow.request`, if it is one of the two kinds and not known.
#[inline(never)]
pub fn record(flow: &mut FlowContext) -> Recorded {
    if is_relevant(flow) { create(flow) } else { Recorded::Pass }
}

#[inline(never)]
fn is_relevant(flow: &FlowContext) -> bool {
    let key = &flow.request;
    let is_tcp = key.proto == Proto::TCP;
    let flags = flow.tcp_flags as u8;
    // A reset begins nothing: it may be a rejection by shunt itself, or the end of a flow that has just been removed.
    if is_tcp && flags & tcp::flag::RST != 0 {
        return false;
    }
    // SAFETY: a map's memory for as long as this program runs; see `entry::lookup` for what may become of it meanwhile.
    let Some(roles) = (unsafe { NODE_ADDRS.get(key.src) }) else {
        return false;
    };
    let from = frontend::port_flags(key.sport);
    // The bit is set before the NodePort is served, so flows are recorded from then on.
    if from & port_bits::nodeport(key.proto) != 0 && roles & role::NODEPORT != 0 {
        return true;
    }
    if from & port_bits::frontend(key.proto) != 0
        && frontend::get(&FrontendKey::new(key.src, key.sport, key.proto)).is_some()
    {
        return true;
    }
    let may_begin = !is_tcp || tcp::is_syn(flags);
    may_begin
        && frontend::port_flags(key.dport) & port_bits::backend(key.proto) != 0
        // SAFETY: as above.
        && unsafe { BACKEND_ADDRS.get(FrontendKey::new(key.dst, key.dport, key.proto)) }.is_some()
}

/// Records both halves, the ingress half first: it reserves the tuple on the wire.
#[inline(never)]
fn create(flow: &mut FlowContext) -> Recorded {
    let now = clock::now();
    let (proto, flags) = (flow.request.proto, flow.tcp_flags as u8);
    flow.reply = CtKey::new(
        flow.request.dst,
        flow.request.dport,
        flow.request.src,
        flow.request.sport,
        proto,
        Half::Ingress,
    );
    flow.entry = CtEntry {
        addr: flow.request.src,
        port: u64::from(flow.request.sport.be()),
        state: match proto {
            Proto::TCP if tcp::is_syn(flags) => tcp::first(flags),
            // In mid-stream: it was open before the number became a frontend's.
            Proto::TCP => tcp::ESTABLISHED | tcp::first(flags),
            _ => tcp::OPENED,
        },
        peer_port: flow.request.dport,
        device: 0,
        flags: CtEntry::NODE_FLOW | CtEntry::REQUEST | CtEntry::IDENTITY,
        last_seen: now,
        service: 0,
        backend: 0,
        created: now,
    };
    let outcome = reserve(flow);
    if outcome == UNRECORDED {
        count(Counter::FlowUnrecorded);
    }
    if outcome > AGAIN {
        return if outcome == TAKEN { Recorded::Drop } else { Recorded::Pass };
    }
    let port = flow.reply.dport;
    flow.entry.port = u64::from(port.be());
    flow.entry.flags = flow.entry.flags & !CtEntry::REQUEST | CtEntry::REPLY;
    follow::begin(&mut flow.entry, flow.tcp_end);
    flow.rewrite = Rewrite { addr: flow.request.src, port, peer_port: flow.request.dport };
    match CONNTRACK.insert(&flow.request, &flow.entry, u64::from(BPF_NOEXIST)) {
        Ok(()) => {
            count(Counter::FlowNode);
            if port != flow.request.sport {
                count(Counter::FlowPortChanged);
            }
            half_open::track(&flow.reply, now);
        }
        Err(error) => {
            // Another CPU recorded the flow first; or there is no room.
            let winner = if error == EEXIST { entry::lookup(&flow.request) } else { None };
            match winner {
                Some(winner) => {
                    if outcome == NEW && winner.port() != port {
                        let _gone = CONNTRACK.remove(&flow.reply);
                    }
                    flow.rewrite.port = winner.port();
                }
                None => {
                    if outcome == NEW {
                        let _gone = CONNTRACK.remove(&flow.reply);
                    }
                    count(Counter::FlowUnrecorded);
                    return Recorded::Pass;
                }
            }
        }
    }
    if flow.rewrite.port == flow.request.sport { Recorded::Pass } else { Recorded::Translate }
}

const NEW: u32 = 0;
/// The ingress half is there already.
const AGAIN: u32 = 1;
/// Nothing to record.
const KNOWN: u32 = 2;
const UNRECORDED: u32 = 3;
/// By another flow, and the port cannot change.
const TAKEN: u32 = 4;

/// Inserts the ingress half under `flow.reply`, with another port where the tuple is taken.
#[inline(always)]
fn reserve(flow: &mut FlowContext) -> u32 {
    match CONNTRACK.insert(&flow.reply, &flow.entry, u64::from(BPF_NOEXIST)) {
        Ok(()) => return NEW,
        Err(EEXIST) => {}
        Err(_) => return UNRECORDED,
    }
    let Some(found) = entry::lookup(&flow.reply) else {
        return UNRECORDED;
    };
    if found.has(CtEntry::NODE_FLOW) && found.addr.is(&flow.entry.addr) && found.port() == flow.entry.port() {
        return AGAIN;
    }
    let is_syn = flow.request.proto == Proto::TCP && tcp::is_syn(flow.tcp_flags as u8);
    // An answer to a client of the frontend, translated at an earlier hook.
    if found.has(CtEntry::REQUEST) && !found.has(CtEntry::NODE_FLOW) && !is_syn {
        return KNOWN;
    }
    if ports::replace_ended(&flow.reply, &flow.entry, &mut flow.masquerade) {
        return NEW;
    }
    // SCTP's checksum covers the ports, and nothing here can compute it.
    if flow.request.proto == Proto::SCTP {
        return TAKEN;
    }
    flow.entry.flags &= !CtEntry::IDENTITY;
    match ports::reserve_source(flow) {
        ports::reserved::DONE => NEW,
        _ => UNRECORDED,
    }
}
