//! DROPS and COUNTERS of what is rejected or dropped, and the event that goes with it. `finish.rs` and the socket hooks call.

use aya_ebpf::{bindings::BPF_NOEXIST, programs::TcContext};
use proxy_common::{Counter, DropKey, EventKind, Half, Hook};

use crate::{
    base::{
        atomic,
        maps::{COUNTERS, DROPS, slow_packet},
    },
    observe::{
        counters::count_index,
        events::{self, SocketRequest},
    },
    packet::{
        access::ifindex,
        link::Link,
        parse::{NotPlain, parse},
    },
};

/// Records a packet that is rejected or dropped, before it is modified for that. `reason` is a [`Counter`] by number.
/// A subprogram, because it parses the packet again while a monitor runs.
#[inline(never)]
pub fn packet<L: Link>(ctx: &TcContext, half: Half, reason: u32) {
    count_index(reason);
    let device = ifindex(ctx);
    count_drop(&DropKey { ifindex: device, reason });
    let kind = if Counter::is_refusal(reason) { EventKind::Refused } else { EventKind::Dropped };
    let Some(time) = events::sample(kind) else {
        return;
    };
    let hook = if half == Half::Ingress { Hook::Ingress } else { Hook::Egress };
    match parse::<L>(ctx, half) {
        Ok(packet) => events::packet_ended(time, &packet.key, kind, hook, device, reason),
        // The slow path has read the packet already.
        Err(NotPlain::SlowPath) => {
            if let Some(packet) = slow_packet() {
                events::packet_ended(time, &packet.key, kind, hook, device, reason);
            }
        }
        Err(NotPlain::Foreign) => {}
    }
}

/// Records a socket request that is rejected.
#[inline(always)]
pub fn socket_refused(request: &SocketRequest<'_>) {
    if let Some(value) = COUNTERS.get_ptr_mut(request.reason) {
        // SAFETY: a live map value, 8-byte aligned. Atomic, because a packet may interrupt a process.
        unsafe { atomic::add_one(value) };
    }
    count_drop(&DropKey { ifindex: 0, reason: request.reason });
    events::socket_request(request);
}

#[inline(always)]
fn count_drop(key: &DropKey) {
    if let Some(value) = DROPS.get_ptr_mut(key) {
        // SAFETY: a live element of a per-CPU hash, which only this CPU writes.
        unsafe { *value += 1 };
        return;
    }
    // If another CPU creates the entry first, this CPU's count starts with the next packet.
    let _there_or_full = DROPS.insert(key, &1, u64::from(BPF_NOEXIST));
}
