//! Addresses of the cluster at which nobody serves: another port or protocol of a ClusterIP is refused, an address of
//! a ServiceCIDR that no Service has is dropped, both only without a flow. As kube-proxy's nftables mode does; never
//! for the addresses of load balancers, externalIPs and nodes.
//!
//! A ClusterIP is known as ours, so it is refused by the first hook that sees the packet. An unallocated address may be
//! that of a Service which another proxy serves: only what is about to leave the node under it is dropped.

use proxy_common::{
    Addr, Frontend, FrontendKey, NodeConfig, Port, Proto,
    node::{port_bits, role},
};

use crate::{
    maps::{NODE_ADDRS, NODE_CONFIG, PORTS},
    service,
};

/// The entry that every VIP has, for ping.
#[inline(always)]
fn vip(addr: &Addr) -> Option<&'static Frontend> {
    let proto = if addr.is_v4() { Proto::ICMP } else { Proto::ICMPV6 };
    service::get(&FrontendKey::new(*addr, Port::ZERO, proto))
}

/// Whether some ClusterIP ends as this address does: a free array read that spares the lookup.
#[inline(always)]
pub fn may_be_cluster_ip(addr: &Addr) -> bool {
    PORTS.get(u32::from(addr.low16())).copied().unwrap_or(0) & port_bits::CLUSTER_IP != 0
}

/// Whether this is the ClusterIP of a Service that we serve.
#[inline(always)]
pub fn is_cluster_ip(addr: &Addr) -> bool {
    may_be_cluster_ip(addr) && is_known(addr)
}

/// A subprogram: the key would be too much for the stack of `decide`, from which a flow's recording goes deep.
#[inline(never)]
fn is_known(addr: &Addr) -> bool {
    vip(addr).is_some_and(|found| found.has(Frontend::CLUSTER_IP))
}

/// Whether this address lies in a ServiceCIDR and is nobody's.
#[inline(always)]
pub fn is_unallocated(addr: &Addr) -> bool {
    match NODE_CONFIG.get(0) {
        Some(config) if config.service_prefix_count != 0 => is_free(config, addr),
        _ => false,
    }
}

/// A subprogram: its loop is verified once.
#[inline(never)]
fn is_free(config: &NodeConfig, addr: &Addr) -> bool {
    let mut i = 0;
    while i < config.service_prefixes.len() && (i as u32) < config.service_prefix_count {
        if config.service_prefixes[i].contains(addr) {
            // SAFETY: a map's memory for as long as this program runs; see `flow::lookup` for what may become of it meanwhile.
            let is_nodes = unsafe { NODE_ADDRS.get(*addr) }.is_some_and(|roles| roles & role::OWN != 0);
            return !is_nodes && vip(addr).is_none();
        }
        i += 1;
    }
    false
}
