//! Frontend, policy, backend: what a new flow is sent to. Shared by the packet hooks and the socket hooks.

use aya_ebpf::{helpers::bpf_get_prandom_u32, maps::lpm_trie::Key};
use proxy_common::{
    Addr, Backend, Counter, Frontend, FrontendKey, Port, Service, SourceRange,
    node::{port_bits, role},
};

use crate::{
    affinity,
    atomic::add_one,
    maps::{BACKENDS, FRONTENDS, NODE_ADDRS, PORTS, SERVICES, SLOTS, SOURCE_RANGES},
    verdict::DropReason,
};

/// The bits of [`port_bits`] for a destination port: a free array read that spares hash lookups.
#[inline(always)]
pub fn bits_of(port: Port) -> u32 {
    PORTS.get(u32::from(port.host())).copied().unwrap_or(0)
}

/// The frontend at this address: exact addresses first, then NodePorts on addresses that have one of `roles`.
#[inline(always)]
pub fn frontend(addr: &Addr, port: Port, proto: u8, bits: u32, roles: u32) -> Option<&'static Frontend> {
    if bits & port_bits::frontend(proto) != 0
        && let Some(found) = get(&FrontendKey::new(*addr, port, proto))
    {
        return Some(found);
    }
    if bits & port_bits::nodeport(proto) == 0 {
        return None;
    }
    // SAFETY: a map's memory for as long as this program runs; see `flow::lookup` for what may become of it meanwhile.
    let role = unsafe { NODE_ADDRS.get(*addr) }?;
    if role & roles == 0 {
        return None;
    }
    get(&FrontendKey::new(addr.unspecified_alike(), port, proto))
}

/// An exact lookup; 0 and a protocol number of ICMP as port and protocol is the ping answer of a VIP.
#[inline(always)]
pub fn get(key: &FrontendKey) -> Option<&'static Frontend> {
    // SAFETY: a map's memory for as long as this program runs; see `flow::lookup` for what may become of it meanwhile.
    unsafe { FRONTENDS.get(*key) }
}

/// The address roles at which the packet hooks serve NodePorts.
pub const PACKET_ROLES: u32 = role::NODEPORT;

/// Who a new flow comes from, as far as policies care.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Origin {
    /// A pod of this node, or the node itself: Local policy's short circuits apply.
    Inside,
    Outside,
}

/// A backend and its id.
#[repr(C)]
pub struct Chosen {
    pub backend: Backend,
    pub id: u32,
}

impl Chosen {
    /// To be filled in.
    pub const NOTHING: Self = Self {
        backend: Backend { addr: Addr::UNSPECIFIED_V6, port: Port::ZERO, proto: 0, flags: 0, reserved: 0 },
        id: 0,
    };
}

/// Whether the frontend takes new flows from this client (loadBalancerSourceRanges). Asked before anything else of
/// [`choose`]: who is not let in does not learn whether there is an endpoint.
#[inline(always)]
pub fn lets_in(frontend: &Frontend, client: &Addr) -> bool {
    !frontend.has(Frontend::SOURCE_RANGES) || is_in_ranges(frontend.service, client)
}

#[inline(never)]
fn is_in_ranges(service: u32, client: &Addr) -> bool {
    let [a, b, c, d] = client.words();
    let SourceRange { prefix_len, .. } = SourceRange::client(service, *client);
    SOURCE_RANGES.get(&Key::new(prefix_len, [service, a, b, c, d])).is_some()
}

/// The verdict per frontend (SERVICE-SEMANTICS 2.6), then a backend in turn or at random, or the one that `client`
/// stays with, left in `out`. A subprogram, so that the verifier meets what follows in one state and not in one for
/// each way through here.
#[inline(never)]
pub fn choose(
    frontend: &Frontend,
    origin: Origin,
    client: &Addr,
    out: &mut Chosen,
) -> Result<(), DropReason> {
    let service = SERVICES.get_ptr_mut(frontend.service).ok_or(Counter::BadSlot)?;
    if !frontend.has(Frontend::HAS_ENDPOINTS) {
        // SAFETY: a live, 8-byte aligned map value.
        unsafe { add_one(&raw mut (*service).refused) };
        return Err(Counter::NoBackend);
    }
    let local =
        frontend.has(Frontend::LOCAL) && !(frontend.has(Frontend::EXTERNAL) && origin == Origin::Inside);
    let count = if local { frontend.local_count } else { frontend.cluster_count };
    if count == 0 {
        // SAFETY: as above.
        unsafe { add_one(&raw mut (*service).dropped) };
        return Err(Counter::NoLocalEndpoints);
    }
    if frontend.affinity_seconds != 0 {
        return affinity::choose(frontend, service, local, client, out);
    }
    next(frontend, service, local, out)
}

/// The next backend of the set, in turn or at random.
#[inline(always)]
pub fn next(
    frontend: &Frontend,
    service: *mut Service,
    local: bool,
    out: &mut Chosen,
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
    *out = Chosen { backend: *backend, id };
    Ok(())
}

/// Takes the next number of a set's counter. One atomic add, so over n new flows of one set every backend
/// gets n / count, give or take one.
#[inline(always)]
fn turn(service: *mut Service, local: bool) -> u64 {
    // SAFETY: a live, 8-byte aligned map value, only ever accessed atomically by programs.
    unsafe { add_one(if local { &raw mut (*service).local_next } else { &raw mut (*service).cluster_next }) }
}

/// The backend with this id, while some service uses it.
#[inline(always)]
pub fn active_backend(id: u32) -> Option<&'static Backend> {
    let backend = BACKENDS.get(id)?;
    if backend.has(Backend::ACTIVE) { Some(backend) } else { None }
}
