//! FRAGMENTS: one entry per fragmented datagram and hook. `fragments.rs` and `fragment_queue.rs` use it.

use aya_ebpf::bindings::{BPF_F_INGRESS, BPF_NOEXIST};
use proxy_common::{Addr, Fragment, FragmentKey, FrontendKey, Half, Port, Proto, node::port_bits};

use crate::{
    base::{
        atomic, clock, globals,
        maps::{FRAGMENTS, NODE_ADDRS},
    },
    load_balancing::frontend,
};

/// Whether the datagram may be to a Service, a reply, or to one of our translated sources. On ingress its destination
/// is a VIP (which has a ping entry) or an address of the node; on egress one end may be a backend.
#[inline(always)]
pub fn may_match(key: &FragmentKey) -> bool {
    if key.half == Half::Egress as u8 {
        let ends = frontend::port_flags(Port::new(key.src.low16()))
            | frontend::port_flags(Port::new(key.dst.low16()));
        return ends & port_bits::BACKEND_ADDR != 0;
    }
    let echo = if key.dst.is_v4() { Proto::ICMP } else { Proto::ICMPV6 };
    // SAFETY: map memory, valid while the program runs (RCU); `entry::lookup` says what another CPU may do to it.
    let own = unsafe { NODE_ADDRS.get(&key.dst) };
    own.is_some() || frontend::get(&FrontendKey::new(key.dst, Port::ZERO, echo)).is_some()
}

/// Looks up the datagram's entry. The reference is to memory that other CPUs change and, in an LRU, may reuse for
/// another datagram meanwhile; the worst result is a fragment that is lost or queued in vain.
#[inline(always)]
pub fn lookup(key: &FragmentKey) -> Option<&'static mut Fragment> {
    // SAFETY: a live map value for as long as the program runs (RCU); the aliasing is described above.
    FRAGMENTS.get_ptr_mut(key).map(|entry| unsafe { &mut *entry })
}

/// Looks up the datagram's entry, and creates it if the datagram may be for shunt.
#[inline(always)]
pub fn find_or_create(key: &FragmentKey) -> Option<&'static mut Fragment> {
    if let Some(entry) = lookup(key) {
        return Some(entry);
    }
    if !may_match(key) {
        return None;
    }
    let awaited = Fragment { addr: Addr::UNSPECIFIED_V6, state: 0, since: clock::now(), reserved: 0 };
    // If another CPU inserts first, its entry is used.
    let _there = FRAGMENTS.insert(key, &awaited, u64::from(BPF_NOEXIST));
    lookup(key)
}

#[inline(always)]
pub fn state(entry: &Fragment) -> u64 {
    // SAFETY: a valid reference; volatile because other CPUs write it.
    unsafe { (&raw const entry.state).read_volatile() }
}

/// Changes the state; false if another CPU changed it first.
#[inline(always)]
pub fn replace_state(entry: &mut Fragment, old: u64, new: u64) -> bool {
    // SAFETY: a live map value, 8-byte aligned.
    unsafe { atomic::replace(&raw mut entry.state, old, new) }.is_ok()
}

#[inline(always)]
pub fn is_fresh(entry: &Fragment) -> bool {
    clock::now().wrapping_sub(entry.since) < Fragment::SECONDS * globals::hz()
}

/// Redirect flags that send a packet through this hook again, on the same device.
#[inline(always)]
pub fn same_hook_flags(key: &FragmentKey) -> u64 {
    if key.half == Half::Egress as u8 { 0 } else { u64::from(BPF_F_INGRESS) }
}
