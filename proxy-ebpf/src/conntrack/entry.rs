//! Entries of existing flows: lookup, refresh, closing, removal. `create.rs` creates them.

use proxy_common::{CtEntry, CtKey, Half, Proto, tcp};

use crate::{
    base::{
        atomic, clock, globals,
        maps::{CONNTRACK, teardown_keys},
        scratch::TeardownKeys,
    },
    load_balancing::{backend, frontend},
};

/// Updates state and time stamp of a request or reply half for a packet. Writes nothing while the state does not
/// change and the stamp is less than a second old, so that CPUs do not share dirty cache lines over established
/// flows.
#[inline(always)]
pub fn touch(key: &CtKey, tcp_flags: u8, entry: &mut CtEntry) {
    let now = clock::now();
    if now.wrapping_sub(entry.last_seen) >= globals::hz() {
        entry.last_seen = now;
    }
    let is_request = entry.has(CtEntry::REQUEST);
    // The client of a flow that the node began is on this side.
    let from_client = is_request != entry.has(CtEntry::NODE_FLOW);
    let state = entry.state;
    let next = if key.proto == Proto::TCP {
        tcp::advance(state, tcp_flags, from_client)
    } else {
        tcp::advance_datagram(state, from_client)
    };
    if next != state {
        let peer = if is_request { entry.egress_key(key) } else { entry.ingress_key(key) };
        set_state(entry, state, next);
        if let Some(peer) = lookup(&peer) {
            set_state(peer, state, next);
        }
    }
}

/// Applies only the bits that changed, because another CPU may be changing the entry too.
#[inline(always)]
fn set_state(entry: &mut CtEntry, old: u64, new: u64) {
    // SAFETY: a live map value, 8-byte aligned.
    unsafe { atomic::set_bits(&raw mut entry.state, new & !old) };
    if old & !new != 0 {
        // SAFETY: as above.
        unsafe { atomic::clear_bits(&raw mut entry.state, old & !new) };
    }
}

/// Whether a new SYN may reuse this entry's tuple at once.
#[inline(always)]
pub fn is_closed(proto: u8, entry: &CtEntry) -> bool {
    proto == Proto::TCP && tcp::is_closed(entry.state)
}

/// Whether another flow may use this entry's tuple towards the backend at once.
#[inline(always)]
pub fn has_ended(proto: u8, entry: &CtEntry) -> bool {
    proto == Proto::TCP && tcp::has_ended(entry.state)
}

/// Looks up an entry.
///
/// The reference is to memory that other CPUs change and, because CONNTRACK is preallocated, may reuse for another
/// flow meanwhile. Readers therefore read each field once, and a stale read is harmless: one packet is misdirected,
/// as if it had arrived a moment later. Since kernel 6.1 this holds for maps that are not preallocated, too: a
/// deleted element is reused by the next insert without waiting for programs that still read it.
#[inline(always)]
pub fn lookup(key: &CtKey) -> Option<&'static mut CtEntry> {
    // SAFETY: a live map value for as long as the program runs (RCU); the aliasing is described above.
    CONNTRACK.get_ptr_mut(key).map(|entry| unsafe { &mut *entry })
}

/// Whether the packet with this tuple answers a direct flow, one that arrived on this node and is not translated. `reply` is memory
/// for a key, which the stack of the callers has no room for.
#[inline(never)]
pub fn is_answer(key: &CtKey, reply: &mut CtKey) -> bool {
    *reply = *key;
    reply.half = Half::Egress as u8;
    is_direct_reply(reply)
}

/// Whether this key at egress is the reply half of a direct flow.
#[inline(always)]
pub fn is_direct_reply(key: &CtKey) -> bool {
    lookup(key).is_some_and(|entry| entry.has(CtEntry::REPLY) && entry.has(CtEntry::IDENTITY))
}

/// Whether a SYN on the tuple of this entry creates a new flow in its place: the old flow is closed, its backend is gone or,
/// before the handshake is complete, has left this Service, or another proxy translated it (whose end may have gone unseen).
/// A subprogram: only a SYN of a known flow comes here, and its code must not enlarge the hooks' stack frames.
#[inline(never)]
pub fn may_replace(key: &CtKey, entry: &CtEntry) -> bool {
    is_over(key, entry)
        || entry.has(CtEntry::REQUEST) && may_have_moved(entry) && !is_still_served(key, entry.backend)
}

/// The same as far as the entry itself tells.
#[inline(always)]
pub fn is_over(key: &CtKey, entry: &CtEntry) -> bool {
    if !entry.has(CtEntry::REQUEST) {
        return false;
    }
    is_closed(key.proto, entry)
        || entry.has(CtEntry::SERVICE)
            && (entry.has(CtEntry::IDENTITY) || backend::active(entry.backend).is_none())
}

/// Whether the backend of a Service's flow is to be compared with its sets when a SYN is repeated.
#[inline(always)]
pub fn may_have_moved(entry: &CtEntry) -> bool {
    entry.has(CtEntry::SERVICE) && entry.state & tcp::CONFIRMED == 0
}

/// Whether the frontend that this request half names still leads to the backend: its address may meanwhile belong to a pod of
/// another Service.
#[inline(always)]
fn is_still_served(key: &CtKey, id: u32) -> bool {
    let bits = frontend::port_flags(key.dport);
    frontend::find(&key.dst, key.dport, key.proto, bits, frontend::PACKET_ROLES)
        .is_some_and(|frontend| backend::is_in_set(frontend, id))
}

/// Removes all halves of the flow of the request half `request`. A subprogram: it has a stack frame of its own and
/// runs once per flow.
#[inline(never)]
pub fn remove(request: &CtKey, entry: &CtEntry) {
    let Some(keys) = teardown_keys() else {
        return;
    };
    keys.reply = entry.egress_key(request);
    if let Some(found) = lookup(&keys.reply) {
        // The reservation may belong to another flow by now.
        keys.back = found.ingress_key(&keys.reply);
        if keys.back.is(request) {
            let _gone = CONNTRACK.remove(&keys.reply);
        }
    }
    if entry.has(CtEntry::MASQUERADED) {
        keys.masquerade = entry.masquerade_key(request);
        remove_masquerade(keys);
    }
    let _gone = CONNTRACK.remove(request);
}

/// Removes the halves of the flow of the reply half `reply`; its request half only if `request` is set.
#[inline(never)]
pub fn remove_by_reply(reply: &CtKey, entry: &CtEntry, request: bool) {
    let Some(keys) = teardown_keys() else {
        return;
    };
    if request {
        keys.back = entry.ingress_key(reply);
        let _gone = CONNTRACK.remove(&keys.back);
    }
    if entry.has(CtEntry::MASQUERADED) {
        keys.masquerade =
            CtKey::new(reply.dst, reply.dport, reply.src, reply.sport, reply.proto, Half::Egress);
        remove_masquerade(keys);
    }
    let _gone = CONNTRACK.remove(reply);
}

/// Removes the masquerade half `keys.masquerade` and the unmasquerade half that reserves its port.
#[inline(always)]
fn remove_masquerade(keys: &mut TeardownKeys) {
    if let Some(found) = lookup(&keys.masquerade)
        && found.has(CtEntry::MASQUERADE)
    {
        let port = found.port;
        keys.back = found.ingress_key(&keys.masquerade);
        // The masquerade half first: it must never name a port that another flow may take.
        let _gone = CONNTRACK.remove(&keys.masquerade);
        if port != 0 {
            let _gone = CONNTRACK.remove(&keys.back);
        }
    }
}
