//! Backend selection for a new flow: the traffic policy of the frontend, then session affinity, then the next backend in turn
//! or at random.

use proxy_common::{Addr, Counter, Frontend};

use crate::{
    base::{atomic, maps::SERVICES, scratch::SelectedBackend, verdict::DropReason},
    load_balancing::{affinity, backend},
};

/// Where a new flow comes from, as far as traffic policies distinguish.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Origin {
    /// This node or one of its pods: with policy Local, external frontends use all backends.
    Node,
    Outside,
}

/// Applies the frontend's traffic policy (SERVICE-SEMANTICS 2.6), then selects a backend for `client` into `out`: by
/// affinity, in turn or at random. A subprogram, so that the verifier follows the callers in one state instead of one
/// for each path through here.
#[inline(never)]
pub fn select_backend(
    frontend: &Frontend,
    origin: Origin,
    client: &Addr,
    out: &mut SelectedBackend,
) -> Result<(), DropReason> {
    let service = SERVICES.get_ptr_mut(frontend.service).ok_or(Counter::BadSlot)?;
    if !frontend.has(Frontend::HAS_ENDPOINTS) {
        // SAFETY: a live, 8-byte aligned map value.
        unsafe { atomic::add_one(&raw mut (*service).refused) };
        return Err(Counter::NoBackend);
    }
    let local =
        frontend.has(Frontend::LOCAL) && !(frontend.has(Frontend::EXTERNAL) && origin == Origin::Node);
    let count = if local { frontend.local_count } else { frontend.cluster_count };
    if count == 0 {
        // SAFETY: as above.
        unsafe { atomic::add_one(&raw mut (*service).dropped) };
        return Err(Counter::NoLocalEndpoints);
    }
    if frontend.affinity_seconds != 0 {
        return affinity::select(frontend, service, local, client, out);
    }
    backend::next(frontend, service, local, out)
}
