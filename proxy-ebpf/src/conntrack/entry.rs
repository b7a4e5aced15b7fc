//! Entries of existing flows: lookup, whether they are over, removal. `follow.rs` keeps their state. `create.rs` creates them.

use proxy_common::{CtEntry, CtKey, Half, Proto, tcp};

use crate::base::{
    maps::{CONNTRACK, teardown_keys},
    scratch::TeardownKeys,
};

/// Whether the flow is over for sure: a new SYN begins another one.
#[inline(always)]
pub fn is_over(proto: u8, entry: &CtEntry) -> bool {
    proto == Proto::TCP && tcp::is_over(entry.state)
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
