//! Whether a SYN on the tuple of a recorded flow begins another flow. The hooks ask before they translate a SYN of a known flow.

use proxy_common::{CtEntry, CtKey, tcp};

use crate::{
    base::{clock, globals, maps::followed},
    conntrack::{
        entry,
        follow::{set_peers_state, set_state, set_upper},
    },
    load_balancing::{backend, frontend},
};

/// Whether a SYN on the tuple of this entry creates a new flow in its place: the old flow is over; or its backend has left this
/// Service, and the handshake is not complete or the backend leaves SYNs unanswered. Otherwise the backend answers for itself,
/// because anybody can forge a SYN. A subprogram: only a SYN of a known flow comes here, and its code must not enlarge the hooks'
/// stack frames.
#[inline(never)]
pub fn may_replace(key: &CtKey, entry: &mut CtEntry) -> bool {
    if !entry.has(CtEntry::REQUEST) {
        return false;
    }
    if entry::is_over(key.proto, entry) {
        return true;
    }
    if !entry.has(CtEntry::SERVICE) {
        return false;
    }
    let is_served = !entry.has(CtEntry::IDENTITY)
        && backend::active(entry.backend).is_some()
        && (entry.state & tcp::CONFIRMED != 0 && !tcp::is_closed(entry.state)
            || is_still_served(key, entry.backend));
    !is_served && (entry.state & tcp::CONFIRMED == 0 || is_unanswered(key, entry))
}

/// Whether [`may_replace`] may say so of a flow that is not over.
#[inline(always)]
pub fn may_have_moved(entry: &CtEntry) -> bool {
    entry.has(CtEntry::SERVICE)
        && (entry.state & tcp::CONFIRMED == 0
            || tcp::is_closed(entry.state)
            || entry.has(CtEntry::IDENTITY)
            || backend::active(entry.backend).is_none())
}

/// Whether the frontend that this request half names still leads to the backend: its address may meanwhile belong to a pod of
/// another Service.
#[inline(always)]
fn is_still_served(key: &CtKey, backend: u32) -> bool {
    let Some(followed) = followed() else {
        return true;
    };
    followed.key = *key;
    followed.backend = backend;
    is_followed_served() != 0
}

/// [`is_still_served`] of the half in FOLLOWED. Exported and without an argument, it is a global function, whose loop the
/// verifier follows once.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn is_followed_served() -> u32 {
    let Some(followed) = followed() else {
        return 1;
    };
    let key = &followed.key;
    let bits = frontend::port_flags(key.dport);
    let found = frontend::find(&key.dst, key.dport, key.proto, bits, frontend::PACKET_ROLES);
    u32::from(found.is_some_and(|frontend| backend::is_in_set(frontend, followed.backend)))
}

/// Notes a SYN for a backend that is no longer served. True: the third one, each a second after the one before, without any
/// answer of the backend. One that still has the connection answers each SYN that comes more than half a second after its last
/// answer (RFC 5961, 4.2; `tcp_invalid_ratelimit`), also when anybody forges others in between.
#[inline(always)]
fn is_unanswered(key: &CtKey, entry: &mut CtEntry) -> bool {
    let state = entry.state & tcp::FLAGS;
    let now = clock::now();
    const TWICE: u64 = tcp::UNANSWERED | tcp::UNANSWERED_TWICE;
    // An eighth less than a second: clients measure it themselves.
    let is_due = now.wrapping_sub(entry.numbers().ack) >= globals::hz() - globals::hz() / 8;
    if state & tcp::UNANSWERED != 0 && !is_due {
        return false;
    }
    if state & TWICE == TWICE {
        return true;
    }
    let next = state | if state & tcp::UNANSWERED == 0 { tcp::UNANSWERED } else { tcp::UNANSWERED_TWICE };
    set_upper(&raw mut entry.port, now);
    set_state(entry, state, next);
    set_peers_state(key, entry, state, next);
    false
}
