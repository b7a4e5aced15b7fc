//! Backends: the next one of a set in turn or at random, and lookup by id.

use aya_ebpf::helpers::bpf_get_prandom_u32;
use proxy_common::{Backend, Counter, Frontend, Port, Service};

use crate::base::{
    atomic,
    maps::{BACKENDS, SLOTS},
    scratch::SelectedBackend,
    verdict::DropReason,
};

/// Selects the next backend of the set, in turn or at random, into `out`.
#[inline(always)]
pub fn next(
    frontend: &Frontend,
    service: *mut Service,
    local: bool,
    out: &mut SelectedBackend,
) -> Result<(), DropReason> {
    let (base, count) = if local {
        (frontend.local_base, frontend.local_count)
    } else {
        (frontend.cluster_base, frontend.cluster_count)
    };
    if count == 0 {
        return Err(Counter::BadSlot);
    }
    let turn = turn(service, local);
    let turn = if frontend.has(Frontend::RANDOM) {
        // SAFETY: takes no arguments and has no effect.
        u64::from(unsafe { bpf_get_prandom_u32() })
    } else {
        turn
    };
    let slot = base.wrapping_add((turn % u64::from(count)) as u32);
    let id = *SLOTS.get(slot).ok_or(Counter::BadSlot)?;
    let backend = BACKENDS.get(id).ok_or(Counter::BadSlot)?;
    if backend.port == Port::ZERO {
        return Err(Counter::BadSlot);
    }
    *out = SelectedBackend { backend: *backend, id };
    Ok(())
}

/// Takes the next number of a set's counter. With one atomic add, each backend gets n / count of n new flows, plus or
/// minus one.
#[inline(always)]
fn turn(service: *mut Service, local: bool) -> u64 {
    // SAFETY: a live, 8-byte aligned map value, only ever accessed atomically by programs.
    unsafe {
        atomic::add_one(if local { &raw mut (*service).local_next } else { &raw mut (*service).cluster_next })
    }
}

/// How many slots of each set [`is_in_set`] looks at.
const MOST_SLOTS: u32 = 64;

/// Whether one of the frontend's sets holds this backend. Of sets larger than [`MOST_SLOTS`] only their first slots count: a
/// flow that is told otherwise chooses anew, which harms no flow before its handshake is complete.
#[inline(always)]
pub fn is_in_set(frontend: &Frontend, id: u32) -> bool {
    is_in_range(frontend.cluster_base, frontend.cluster_count, id)
        || is_in_range(frontend.local_base, frontend.local_count, id)
}

/// A subprogram: its loop is verified once.
#[inline(never)]
fn is_in_range(base: u32, count: u32, id: u32) -> bool {
    let mut i = 0;
    while i < MOST_SLOTS && i < count {
        if SLOTS.get(base.wrapping_add(i)).is_some_and(|slot| *slot == id) {
            return true;
        }
        i += 1;
    }
    false
}

/// The backend with this id, if a Service uses it.
#[inline(always)]
pub fn active(id: u32) -> Option<&'static Backend> {
    let backend = BACKENDS.get(id)?;
    if backend.has(Backend::ACTIVE) { Some(backend) } else { None }
}
