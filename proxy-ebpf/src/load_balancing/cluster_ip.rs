//! Addresses that belong to the cluster but serve nothing: another port or protocol of a ClusterIP is rejected, an
//! unallocated address of a ServiceCIDR is dropped, as in kube-proxy's nftables mode. Applies to packets of no flow only, and
//! never to addresses of load balancers, externalIPs or nodes.
//!
//! A ClusterIP is known to be ours, so the first hook that sees the packet rejects it. An unallocated address may belong to a
//! Service that another proxy serves, so it is dropped only where it would leave the node untranslated.

use proxy_common::{
    Addr, Frontend, FrontendKey, NodeConfig, Port, Proto,
    node::{port_bits, role},
};

use crate::{
    base::maps::{NODE_ADDRS, NODE_CONFIG, PORTS},
    load_balancing::frontend,
};

/// The ping entry of an address, which every VIP has.
#[inline(always)]
fn vip(addr: &Addr) -> Option<&'static Frontend> {
    let proto = if addr.is_v4() { Proto::ICMP } else { Proto::ICMPV6 };
    frontend::get(&FrontendKey::new(*addr, Port::ZERO, proto))
}

/// Whether some ClusterIP has the same low 16 bits: an array read that saves the lookup.
#[inline(always)]
pub fn may_be_cluster_ip(addr: &Addr) -> bool {
    PORTS.get(u32::from(addr.low16())).copied().unwrap_or(0) & port_bits::CLUSTER_IP != 0
}

/// Whether this is the ClusterIP of a Service that shunt serves.
#[inline(always)]
pub fn is_cluster_ip(addr: &Addr) -> bool {
    may_be_cluster_ip(addr) && is_served(addr)
}

/// A subprogram: the key does not fit on the stack of `new_flow::decide`, from which flow creation calls deep.
#[inline(never)]
fn is_served(addr: &Addr) -> bool {
    vip(addr).is_some_and(|found| found.has(Frontend::CLUSTER_IP))
}

/// Whether this address is in a ServiceCIDR and not allocated.
#[inline(always)]
pub fn is_unallocated(addr: &Addr) -> bool {
    match NODE_CONFIG.get(0) {
        Some(config) if config.service_prefix_count != 0 => is_free(config, addr),
        _ => false,
    }
}

/// A subprogram, so that its loop is verified once.
#[inline(never)]
fn is_free(config: &NodeConfig, addr: &Addr) -> bool {
    let mut i = 0;
    while i < config.service_prefixes.len() && (i as u32) < config.service_prefix_count {
        if config.service_prefixes[i].contains(addr) {
            // SAFETY: map memory, valid while the program runs (RCU); `entry::lookup` says what another CPU may do to it.
            let is_nodes = unsafe { NODE_ADDRS.get(*addr) }.is_some_and(|roles| roles & role::OWN != 0);
            return !is_nodes && vip(addr).is_none();
        }
        i += 1;
    }
    false
}
