//! The prefilter: a few array reads that let packets of no Service skip all lookups behind it.

use proxy_common::{Addr, CtKey, Port, node::port_bits};

use crate::load_balancing::{cluster_ip, frontend};

/// Whether a packet that arrives may belong to a flow that another node begins from a frontend's port.
#[inline(always)]
pub fn may_be_from_frontend(key: &CtKey) -> bool {
    frontend::port_flags(key.sport) & port_bits::frontend(key.proto) != 0
}

/// Whether a packet of no recorded flow that leaves the node may belong to a flow that `conntrack/node_flow.rs` records: from
/// an address of the node, and from a frontend's port or to a backend's. A forwarded packet costs one array read unless its
/// source may be the node's.
#[inline(always)]
pub fn may_be_node_flow(key: &CtKey, from_node: bool) -> bool {
    let proto = key.proto;
    (from_node || low16_flags(&key.src) & port_bits::NODE_ADDR != 0)
        && (frontend::port_flags(key.sport) & (port_bits::frontend(proto) | port_bits::nodeport(proto))
            | frontend::port_flags(key.dport) & port_bits::backend(proto))
            != 0
}

#[inline(always)]
fn low16_flags(addr: &Addr) -> u32 {
    frontend::port_flags(Port::new(addr.low16()))
}

/// Whether some frontend or backend may have the packet's destination port, or some ClusterIP its address. Two array reads
/// spare packets of no Service everything that follows.
#[inline(always)]
pub fn may_match(key: &CtKey) -> bool {
    let proto = key.proto;
    let ours = port_bits::frontend(proto) | port_bits::nodeport(proto) | port_bits::backend(proto);
    frontend::port_flags(key.dport) & ours != 0 || cluster_ip::may_be_cluster_ip(&key.dst)
}
