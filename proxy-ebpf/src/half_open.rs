//! Half-open flows take no more than their share of CONNTRACK: a ring remembers the latest that began, and what it
//! comes round to goes if it is still half-open.
//!
//! A flood of SYNs from made-up addresses begins flows faster than any collector could remove them. With a ring of N
//! places the oldest gives way to the newest, so a real client has the time in which N others begin to complete its
//! handshake, and flows that did are never touched. An LRU map would do the same for a second lookup with each packet of
//! an open flow; this costs one with each new flow, and nothing after. `begin.rs` calls it.

use proxy_common::{Counter, CtEntry, CtKey, Proto, tcp};

use crate::{atomic, begin::Work, count::count, flow, globals, maps::HALF_OPEN};

/// A place in the ring: a flow by the key of its request half and the time it began.
#[repr(C)]
pub struct Place {
    key: CtKey,
    created: u32,
    reserved: u32,
    /// In the first element, which is no place: the ring's turn.
    turn: u64,
}

/// Enters the flow that `work` has begun and forgets the one whose place it takes, if that never got further. A
/// subprogram, as all of a new flow's stages.
#[inline(never)]
pub fn note(work: &Work) {
    let places = globals::half_open();
    if places == 0 {
        return;
    }
    let Some(first) = HALF_OPEN.get_ptr_mut(0) else {
        return;
    };
    // SAFETY: a live map value, 8-byte aligned; this field of it is only ever accessed atomically.
    let turn = unsafe { atomic::add_one(&raw mut (*first).turn) };
    let Some(place) = HALF_OPEN.get_ptr_mut(1 + (turn % u64::from(places)) as u32) else {
        return;
    };
    // SAFETY: a live map value. Another CPU comes here after as many turns as there are places; were it that fast, one
    // half-open flow would be left to the collector.
    let place = unsafe { &mut *place };
    if let Some(found) = flow::lookup(&place.key)
        && found.created == place.created
        && is_half_open(place.key.proto, found)
    {
        flow::forget(&place.key, found);
        count(Counter::HalfOpenForgotten);
    }
    place.key = work.request;
    place.created = work.entry.created;
}

/// TCP before its handshake is complete; a single datagram that nobody answered.
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
