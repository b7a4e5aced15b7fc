//! Keeps the state of a flow as its packets pass: time stamp, TCP's state and the sequence numbers that tell a forged segment
//! from a real one (`proxy_common::tcp`). Called for request halves at ingress and reply halves at egress.

use proxy_common::{
    CtEntry, CtKey, Proto,
    tcp::{self, Segment, Tracked, flag},
};

use crate::{
    base::{atomic, clock, globals, maps::followed},
    conntrack::entry::lookup,
    packet::{checksum::TcpPacket, parse::Packet},
};

/// Follows a packet of the flow.
#[inline(always)]
pub fn touch<C: TcpPacket>(ctx: &C, packet: &Packet, entry: &mut CtEntry) {
    touch_half(ctx, &packet.key, packet.l4 as u32, [u32::from(packet.tcp_flags), packet.tcp_end], entry);
}

/// The same for the half with this key. The TCP header is at `l4`.
#[inline(always)]
pub fn touch_half<C: TcpPacket>(ctx: &C, key: &CtKey, l4: u32, [flags, end]: [u32; 2], entry: &mut CtEntry) {
    if is_noted(key, entry, flags) {
        follow(ctx, key, l4, end);
    } else {
        refresh(key, entry, end);
    }
}

/// Whether there is more to note of a packet than that it came: a TCP segment that begins or ends something, or whose flow is
/// beginning, ending or in doubt.
#[inline(always)]
pub fn is_noted(key: &CtKey, entry: &CtEntry, flags: u32) -> bool {
    const NOTED: u32 = (flag::SYN | flag::FIN | flag::RST) as u32;
    key.proto == Proto::TCP && (entry.state & tcp::FLAGS != tcp::ESTABLISHED || flags & NOTED != 0)
}

/// Notes that a packet came. Writes nothing while the stamp is less than a second old and the number near the one that is kept,
/// so that CPUs do not share dirty cache lines over established flows.
#[inline(always)]
pub fn refresh(key: &CtKey, entry: &mut CtEntry, end: u32) {
    let is_due = clock::now().wrapping_sub(entry.last_seen) >= globals::hz();
    if key.proto != Proto::TCP {
        if is_due {
            entry.last_seen = clock::now();
        }
        note_datagram(key, entry);
    } else if is_due || tcp::has_moved(entry.numbers().next, end) {
        stamp(entry, end);
    }
}

/// A subprogram, so that the verifier does not follow its branches any further.
#[inline(never)]
fn stamp(entry: &mut CtEntry, end: u32) {
    entry.last_seen = clock::now();
    set_upper(&raw mut entry.state, tcp::moved(entry.numbers().next, end));
}

/// Notes the number behind a new flow's first segment in the half, not yet in the table, that it passes; 0 for other protocols.
#[inline(always)]
pub fn begin(entry: &mut CtEntry, end: u32) {
    entry.state |= u64::from(end) << 32;
}

/// Whether the client of the flow is on the side of this half.
#[inline(always)]
fn is_from_client(entry: &CtEntry) -> bool {
    entry.has(CtEntry::REQUEST) != entry.has(CtEntry::NODE_FLOW)
}

#[inline(always)]
fn note_datagram(key: &CtKey, entry: &mut CtEntry) {
    let state = entry.state;
    let next = tcp::advance_datagram(state, is_from_client(entry));
    if next != state {
        set_state(entry, state, next);
        set_peers_state(key, entry, state, next);
    }
}

/// A TCP segment that is more than traffic of an established flow, of the half with this key. The header is at `l4`.
///
/// The steps hand FOLLOWED on. Exported and without a pointer as argument, they are global functions, each of which the verifier
/// follows once, and not again for every state of its callers; and the stack of the hooks has no room for more than one.
#[inline(never)]
pub fn follow<C: TcpPacket>(ctx: &C, key: &CtKey, l4: u32, end: u32) {
    let Some(followed) = followed() else {
        return;
    };
    followed.key = *key;
    followed.l4 = l4;
    followed.end = end;
    if !ctx.read_tcp(l4, &mut followed.header) {
        return;
    }
    match follow_segment() {
        outcome::STORE => {}
        outcome::STORE_IF_SOUND if ctx.tcp_checksum_holds() => {}
        _ => return,
    }
    store_followed();
}

/// The outcome of [`follow_segment`].
mod outcome {
    /// The flow has gone meanwhile: FOLLOWED holds what an earlier packet left there.
    pub const GONE: u32 = 0;
    pub const STORE: u32 = 1;
    /// The segment completes the handshake, if its checksum holds.
    pub const STORE_IF_SOUND: u32 = 2;
}

/// Looks up both halves and follows the segment.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn follow_segment() -> u32 {
    let Some(followed) = followed() else {
        return outcome::GONE;
    };
    let Some(entry) = lookup(&followed.key) else {
        return outcome::GONE;
    };
    followed.peer = peer_key(&followed.key, entry);
    followed.before = Tracked {
        state: entry.state & tcp::FLAGS,
        own: entry.numbers(),
        peer: lookup(&followed.peer).map_or(tcp::Numbers { next: 0, ack: 0 }, |peer| peer.numbers()),
    };
    followed.flow = followed.before;
    let header = &followed.header;
    let segment = Segment {
        flags: u32::from(header.flags),
        seq: u32::from_be(header.seq),
        end: followed.end,
        ack: u32::from_be(header.ack),
    };
    followed.flow.follow(&segment, is_from_client(entry));
    if followed.flow.state & !followed.before.state & tcp::CONFIRMED != 0 {
        outcome::STORE_IF_SOUND
    } else {
        outcome::STORE
    }
}

/// Stores what [`follow_segment`] has found.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn store_followed() -> u32 {
    let Some(followed) = followed() else {
        return 0;
    };
    let (before, flow) = (&followed.before, &followed.flow);
    if let Some(entry) = lookup(&followed.key) {
        // What is over stays no longer because of what still arrives for it.
        if !tcp::is_over(before.state) {
            entry.last_seen = clock::now();
        }
        set_state(entry, before.state, flow.state);
        set_numbers(entry, &before.own, &flow.own);
    }
    if let Some(peer) = lookup(&followed.peer) {
        set_state(peer, before.state, flow.state);
        set_numbers(peer, &before.peer, &flow.peer);
    }
    0
}

/// The key of the flow's other half: reply for request, request for reply.
#[inline(always)]
fn peer_key(key: &CtKey, entry: &CtEntry) -> CtKey {
    if entry.has(CtEntry::REQUEST) { entry.egress_key(key) } else { entry.ingress_key(key) }
}

/// Sets the state of the other half too.
#[inline(always)]
pub fn set_peers_state(key: &CtKey, entry: &CtEntry, old: u64, new: u64) {
    if let Some(followed) = followed() {
        followed.peer = peer_key(key, entry);
        if let Some(peer) = lookup(&followed.peer) {
            set_state(peer, old, new);
        }
    }
}

/// Writes only the numbers that changed, because another CPU may be writing the others: each half's are its own direction's, as a
/// rule.
#[inline(always)]
fn set_numbers(entry: &mut CtEntry, before: &tcp::Numbers, after: &tcp::Numbers) {
    if after.next != before.next {
        set_upper(&raw mut entry.state, after.next);
    }
    if after.ack != before.ack {
        set_upper(&raw mut entry.port, after.ack);
    }
}

/// Applies only the bits that changed, because another CPU may be changing the entry too.
#[inline(always)]
pub fn set_state(entry: &mut CtEntry, old: u64, new: u64) {
    // SAFETY: a live map value, 8-byte aligned.
    unsafe {
        atomic::set_bits(&raw mut entry.state, new & !old);
        atomic::clear_bits(&raw mut entry.state, old & !new);
    }
}

/// Stores the upper half of a word, whose lower half other CPUs may be changing.
#[inline(always)]
pub fn set_upper(word: *mut u64, value: u32) {
    let upper = if cfg!(target_endian = "little") { 1 } else { 0 };
    // SAFETY: half of a live, aligned word of a map value.
    unsafe { word.cast::<u32>().add(upper).write_volatile(value) };
}
