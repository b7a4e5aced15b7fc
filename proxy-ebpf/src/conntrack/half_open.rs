//! The limit on half-open flows: a ring remembers the latest ones created, and what a new one displaces from it is removed if
//! it is still half-open.
//!
//! A flood of SYNs from forged addresses creates flows faster than any collector could remove them. With a ring of N slots the
//! oldest half-open flow makes room for the newest, so a real client has the time in which N other flows are created to
//! complete its handshake, and established flows are never touched. An LRU map would cost a second lookup with each packet of
//! an established flow; the ring costs one with each new flow. `create.rs` calls it.

use proxy_common::{Counter, CtEntry, Proto, tcp};

use crate::{
    base::{atomic, globals, maps::HALF_OPEN, scratch::FlowContext},
    conntrack::entry,
    observe::counters::count,
};

/// Enters the flow that was just created into the ring, and removes the flow it displaces if that is still half-open.
/// A subprogram, like all stages of a new flow.
#[inline(never)]
pub fn track(flow: &FlowContext) {
    let slots = globals::half_open();
    if slots == 0 {
        return;
    }
    let Some(first) = HALF_OPEN.get_ptr_mut(0) else {
        return;
    };
    // SAFETY: a live map value, 8-byte aligned; this field of it is only ever accessed atomically.
    let turn = unsafe { atomic::add_one(&raw mut (*first).turn) };
    let Some(slot) = HALF_OPEN.get_ptr_mut(1 + (turn % u64::from(slots)) as u32) else {
        return;
    };
    // SAFETY: a live map value. Another CPU comes here after as many turns as there are slots; were it that fast, one
    // half-open flow would be left to the collector.
    let slot = unsafe { &mut *slot };
    if let Some(found) = entry::lookup(&slot.key)
        && found.created == slot.created
        && is_half_open(slot.key.proto, found)
    {
        entry::remove(&slot.key, found);
        count(Counter::HalfOpenForgotten);
    }
    slot.key = flow.request;
    slot.created = flow.entry.created;
}

/// TCP before the handshake is complete; for other protocols, a single datagram without an answer.
#[inline(always)]
fn is_half_open(proto: u8, entry: &CtEntry) -> bool {
    if !entry.has(CtEntry::REQUEST) {
        return false;
    }
    match proto {
        Proto::TCP => entry.state & tcp::CONFIRMED == 0,
        _ => entry.state & tcp::REPLIED == 0 && entry.last_seen == entry.created,
    }
}
