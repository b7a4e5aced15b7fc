//! Session affinity: a client's new flow goes to the backend of its last one, while that is recent and the backend is still
//! in the set that the frontend uses. Otherwise it goes to the next backend, which the client then stays with. The key is the
//! client and the service port, so all frontends of one port agree (SERVICE-SEMANTICS 2.10).
//!
//! Only new flows come here, so only they refresh an entry. `shunt run` removes expired entries.

use aya_ebpf::bindings::BPF_NOEXIST;
use proxy_common::{Addr, Affinity, AffinityKey, Frontend, Port, Service, SetMember, affinity::set_bits};

use crate::{
    base::{
        atomic, clock, globals,
        maps::{AFFINITY, BACKENDS, EEXIST, SET_MEMBERS},
        scratch::SelectedBackend,
        verdict::DropReason,
    },
    load_balancing::backend,
};

/// Selects the client's backend in the local or the cluster-wide set, into `out`. A subprogram, for its stack frame;
/// frontends without affinity do not call it.
#[inline(never)]
pub fn select(
    frontend: &Frontend,
    counters: *mut Service,
    local: bool,
    client: &Addr,
    out: &mut SelectedBackend,
) -> Result<(), DropReason> {
    let set = if local { set_bits::LOCAL } else { set_bits::CLUSTER };
    let key = AffinityKey { client: *client, service: frontend.service };
    let now = clock::now();
    if let Some(entry) = AFFINITY.get_ptr_mut(&key) {
        let entry = entry.cast::<u64>();
        // SAFETY: a live map value, 8-byte aligned as all are. An LRU may meanwhile reuse it for another key; then the
        // exchange below finds another word there.
        let word = unsafe { entry.read_volatile() };
        let known = Affinity::from_word(word);
        let stays = known.is_fresh(now, frontend.affinity_seconds, globals::hz())
            && is_member(frontend.service, known.backend, set, out);
        if !stays {
            backend::next(frontend, counters, local, out)?;
        }
        // SAFETY: as above.
        let replaced = unsafe { atomic::replace(entry, word, new_word(out, now)) };
        if let Err(theirs) = replaced {
            follow(frontend.service, theirs, set, out);
        }
        return Ok(());
    }
    backend::next(frontend, counters, local, out)?;
    let new = Affinity::from_word(new_word(out, now));
    if let Err(EEXIST) = AFFINITY.insert(&key, &new, u64::from(BPF_NOEXIST))
        && let Some(entry) = AFFINITY.get_ptr_mut(&key)
    {
        // SAFETY: as above.
        let theirs = unsafe { entry.cast::<u64>().read_volatile() };
        follow(frontend.service, theirs, set, out);
    }
    Ok(())
}

#[inline(always)]
fn new_word(chosen: &SelectedBackend, now: u32) -> u64 {
    Affinity { backend: chosen.id, last_used: now }.word()
}

/// Another CPU has just selected a backend for another flow of this client: follow it.
#[inline(always)]
fn follow(service: u32, theirs: u64, set: u32, out: &mut SelectedBackend) {
    let _stays_as_chosen = is_member(service, Affinity::from_word(theirs).backend, set, out);
}

/// Whether the backend is in that set of the service port; if so, it is written to `out`.
#[inline(never)]
fn is_member(service: u32, backend: u32, set: u32, out: &mut SelectedBackend) -> bool {
    let member = SetMember { service, backend };
    // SAFETY: map memory, valid while the program runs (RCU); `entry::lookup` says what another CPU may do to it.
    let Some(sets) = (unsafe { SET_MEMBERS.get(&member) }) else {
        return false;
    };
    if sets & set == 0 {
        return false;
    }
    match BACKENDS.get(backend) {
        Some(found) if found.port != Port::ZERO => {
            *out = SelectedBackend { backend: *found, id: backend };
            true
        }
        _ => false,
    }
}
