//! Existing flows: refreshing, closing, forgetting. `begin.rs` makes them.

use aya_ebpf::helpers::bpf_jiffies64;
use proxy_common::{CtEntry, CtKey, Half, Proto, tcp};

use crate::{
    atomic, globals,
    maps::{CONNTRACK, SPARE},
};

/// Low 32 bits of jiffies: an inlined load, where bpf_ktime_get_ns costs 30 ns.
#[inline(always)]
pub fn now() -> u32 {
    // SAFETY: takes no arguments and has no effect.
    unsafe { bpf_jiffies64() as u32 }
}

/// Notes a packet on a request or reply half. Writes nothing while the flow is steady and its stamp is less
/// than a second old, so that established flows share no dirty cache line between CPUs.
#[inline(always)]
pub fn touch(key: &CtKey, tcp_flags: u8, entry: &mut CtEntry) {
    let now = now();
    if now.wrapping_sub(entry.last_seen) >= globals::hz() {
        entry.last_seen = now;
    }
    let from_client = entry.has(CtEntry::REQUEST);
    let state = entry.state;
    let next = if key.proto == Proto::TCP {
        tcp::advance(state, tcp_flags, from_client)
    } else {
        tcp::advance_datagram(state, from_client)
    };
    if next != state {
        let peer = if from_client { entry.egress_key(key) } else { entry.ingress_key(key) };
        set_state(entry, state, next);
        if let Some(peer) = lookup(&peer) {
            set_state(peer, state, next);
        }
    }
}

/// Carries the bits that changed over to an entry that another CPU may be changing too.
#[inline(always)]
fn set_state(entry: &mut CtEntry, old: u64, new: u64) {
    // SAFETY: a live map value, 8-byte aligned.
    unsafe { atomic::set_bits(&raw mut entry.state, new & !old) };
    if old & !new != 0 {
        // SAFETY: as above.
        unsafe { atomic::clear_bits(&raw mut entry.state, old & !new) };
    }
}

/// Whether a new SYN may take over this entry's tuple at once.
#[inline(always)]
pub fn is_closed(proto: u8, entry: &CtEntry) -> bool {
    proto == Proto::TCP && tcp::is_closed(entry.state)
}

/// The entry with this key, if any.
///
/// The reference is to memory that other CPUs change and, because CONNTRACK is preallocated, may reuse for
/// another flow while it is held: readers take each field once, and what they do with it stays harmless then (one
/// packet sent wrong, as if it had come a moment later). Since 6.1 that goes for maps that are not preallocated, too: what
/// is deleted of them is given to the next insert without waiting for programs that still look at it.
#[inline(always)]
pub fn lookup(key: &CtKey) -> Option<&'static mut CtEntry> {
    // SAFETY: a live map value for as long as the program runs (RCU); the aliasing is described above.
    CONNTRACK.get_ptr_mut(key).map(|entry| unsafe { &mut *entry })
}

/// Keys that are put together to forget a flow: too much for the stack below the callers' frames. Per CPU, used
/// as `begin::Work` is.
#[repr(C)]
pub struct Spare {
    reply: CtKey,
    masquerade: CtKey,
    back: CtKey,
}

#[inline(always)]
fn spare() -> Option<&'static mut Spare> {
    // SAFETY: an element of a per-CPU array, used by nobody else meanwhile.
    SPARE.get_ptr_mut(0).map(|spare| unsafe { &mut *spare })
}

/// Removes all halves of the flow that `request` (key of a request half) began. A subprogram: it has a stack
/// frame of its own, and runs once in a flow's life.
#[inline(never)]
pub fn forget(request: &CtKey, entry: &CtEntry) {
    let Some(spare) = spare() else {
        return;
    };
    spare.reply = entry.egress_key(request);
    if let Some(found) = lookup(&spare.reply) {
        // The reservation may meanwhile belong to another flow.
        spare.back = found.ingress_key(&spare.reply);
        if spare.back.is(request) {
            let _gone = CONNTRACK.remove(&spare.reply);
        }
    }
    if entry.has(CtEntry::MASQUERADED) {
        spare.masquerade = entry.masquerade_key(request);
        forget_source(spare);
    }
    let _gone = CONNTRACK.remove(request);
}

/// Removes the halves of the flow that `reply` (key of a reply half) belongs to, its request half only with
/// `request`.
#[inline(never)]
pub fn forget_by_reply(reply: &CtKey, entry: &CtEntry, request: bool) {
    let Some(spare) = spare() else {
        return;
    };
    if request {
        spare.back = entry.ingress_key(reply);
        let _gone = CONNTRACK.remove(&spare.back);
    }
    if entry.has(CtEntry::MASQUERADED) {
        spare.masquerade =
            CtKey::new(reply.dst, reply.dport, reply.src, reply.sport, reply.proto, Half::Egress);
        forget_source(spare);
    }
    let _gone = CONNTRACK.remove(reply);
}

/// Removes the masquerade half `spare.masquerade` and the port it reserved.
#[inline(always)]
fn forget_source(spare: &mut Spare) {
    if let Some(found) = lookup(&spare.masquerade)
        && found.has(CtEntry::MASQUERADE)
    {
        let port = found.port;
        spare.back = found.ingress_key(&spare.masquerade);
        // The masquerade half first: it must not name a port that another flow may take.
        let _gone = CONNTRACK.remove(&spare.masquerade);
        if port != 0 {
            let _gone = CONNTRACK.remove(&spare.back);
        }
    }
}
