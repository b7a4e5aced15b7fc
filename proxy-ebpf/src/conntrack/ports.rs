//! Ports for translated sources and for flows whose middle tuple is taken: which ones may be used, in which order they are
//! tried, and how many.

use aya_ebpf::{bindings::BPF_NOEXIST, helpers::bpf_get_prandom_u32};
use proxy_common::{
    CtEntry, CtKey, Half, Port,
    node::{SOURCE_CURSORS_LEN, port_bits},
};

use crate::{
    base::{
        atomic,
        maps::{CONNTRACK, EEXIST, SOURCE_CURSORS, source_search},
        scratch::FlowContext,
    },
    conntrack::entry,
    load_balancing::frontend,
};

/// How many other client ports are tried for a taken middle tuple.
pub const PROBES: u32 = 14;

/// How many source ports are tried towards a backend.
const SOURCE_PROBES: u32 = 64;

/// From this try on, the port of a flow that is over is taken. The tries before look for a free one, because the backend
/// may still hold a closed flow's port in TIME_WAIT. Tries go on where the last flow's ended, so what they meet first has
/// been closed the longest.
const EVICT_FROM: u32 = 40;

/// A client port for a flow whose middle tuple is taken: outside of the range that most clients choose from themselves
/// (32768-60999).
#[inline(always)]
pub fn random_port() -> Port {
    const LOW: u32 = 30_000 - 1024;
    const HIGH: u32 = 65_536 - 61_000;
    // SAFETY: takes no arguments and has no effect.
    let at = unsafe { bpf_get_prandom_u32() } % (LOW + HIGH);
    Port::new(if at < LOW { 1024 + at } else { 61_000 + (at - LOW) } as u16)
}

/// Whether a port of the node may be used for a translated source. The node's own sockets and netfilter choose from these
/// ports too: every one of their flows to a backend is recorded (`node_flow.rs`), so a tuple in use is found taken. Not a
/// NodePort's number: what a backend sends after the end of a flow would be a new flow to that NodePort.
#[inline(always)]
pub fn is_source_port(port: Port) -> bool {
    port.host() >= 1024 && frontend::port_flags(port) & port_bits::ANY_NODEPORT == 0
}

/// The outcome of [`reserve_source`].
pub mod reserved {
    pub const DONE: u32 = 0;
    pub const NONE_FREE: u32 = 1;
    pub const MAP_FULL: u32 = 2;
}

/// Inserts `flow.entry` under `flow.reply`, an ingress key with a backend as its source and an address of the node as its
/// destination, with the first destination port that is free, which it leaves in the key.
///
/// Every 65,536 tries towards one backend visit every port once, in an order without long runs of neighbours, so a flow is
/// refused only where nearly all ports are taken, and a try costs the same however many are.
#[inline(always)]
pub fn reserve_source(flow: &mut FlowContext) -> u32 {
    let Some(search) = source_search() else {
        return reserved::NONE_FREE;
    };
    search.reply = flow.reply;
    search.entry = flow.entry;
    let outcome = find_source();
    if outcome == reserved::DONE
        && let Some(search) = source_search()
    {
        flow.reply.dport = search.reply.dport;
    }
    outcome
}

/// The search itself, in SOURCE_SEARCH. Exported and without an argument, it is a global function, which the verifier
/// follows once and not again for every state of its callers ("egress_l2 499459" verified instructions on kernel 6.1, half of the
/// limit). It cannot take a pointer: "R2 type=mem expected=fp, pkt, pkt_meta, map_key, map_value" (6.1, as a map's key).
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn find_source() -> u32 {
    let Some(search) = source_search() else {
        return reserved::NONE_FREE;
    };
    let Some(cursor) = SOURCE_CURSORS.get_ptr_mut(cursor_of(&search.reply)) else {
        return reserved::NONE_FREE;
    };
    let mut probe = 0;
    while probe < SOURCE_PROBES {
        // SAFETY: a live, 8-byte aligned map value, only ever accessed atomically.
        let turn = unsafe { atomic::add_one(cursor) } as u16;
        // 2^16 over the golden ratio, odd: a permutation that spreads.
        let port = Port::new(turn.wrapping_mul(40_503));
        if is_source_port(port) {
            search.reply.dport = port;
            match CONNTRACK.insert(&search.reply, &search.entry, u64::from(BPF_NOEXIST)) {
                Ok(()) => return reserved::DONE,
                Err(EEXIST) => {}
                Err(_) => return reserved::MAP_FULL,
            }
            if probe >= EVICT_FROM && replace_ended(&search.reply, &search.entry, &mut search.masquerade) {
                return reserved::DONE;
            }
        }
        probe += 1;
    }
    reserved::NONE_FREE
}

/// Which cursor the flows to this backend share; others may share it.
#[inline(always)]
fn cursor_of(reply: &CtKey) -> u32 {
    let [a, b, c, d] = reply.src.words();
    let mixed = (a ^ b ^ c ^ d ^ u32::from(reply.sport.be())).wrapping_mul(0x9e37_79b1);
    mixed >> (u32::BITS - SOURCE_CURSORS_LEN.trailing_zeros())
}

/// Inserts `entry` under `back` (a backend -> the node, ingress) in the place of a flow that has ended. `masquerade` is memory for
/// a key. A subprogram, for the stack of its callers.
#[inline(never)]
pub fn replace_ended(back: &CtKey, entry: &CtEntry, masquerade: &mut CtKey) -> bool {
    match entry::lookup(back) {
        Some(found) if remove_if_ended(back, found, masquerade) => {
            CONNTRACK.insert(back, entry, u64::from(BPF_NOEXIST)).is_ok()
        }
        _ => false,
    }
}

/// Removes the flow that the entry `found` with key `back` belongs to, if it has ended.
#[inline(always)]
fn remove_if_ended(back: &CtKey, found: &CtEntry, masquerade: &mut CtKey) -> bool {
    if found.has(CtEntry::REQUEST) {
        if !entry::has_ended(back.proto, found) {
            return false;
        }
        entry::remove(back, found);
        return true;
    }
    *masquerade = CtKey::new(back.src, back.sport, found.addr, found.port(), back.proto, Half::Egress);
    let Some(half) = entry::lookup(masquerade) else {
        // Its flow is gone: an unmasquerade half alone leads nowhere.
        let _gone = CONNTRACK.remove(back);
        return true;
    };
    if !half.has(CtEntry::REPLY) || !entry::has_ended(back.proto, half) {
        return false;
    }
    entry::remove_by_reply(masquerade, half, true);
    true
}
