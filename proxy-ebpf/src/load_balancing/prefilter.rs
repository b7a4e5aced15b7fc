//! The prefilter: two array reads that let packets of no Service skip all lookups behind it.

use proxy_common::{CtKey, node::port_bits};

use crate::load_balancing::{cluster_ip, frontend};

/// Whether some frontend or backend has the packet's destination port, or a ClusterIP its address as far as that can be
/// told for nothing: two array reads spare packets that are none of ours all that follows.
#[inline(always)]
pub fn may_match(key: &CtKey) -> bool {
    let proto = key.proto;
    let ours = port_bits::frontend(proto) | port_bits::nodeport(proto) | port_bits::backend(proto);
    frontend::port_flags(key.dport) & ours != 0 || cluster_ip::may_be_cluster_ip(&key.dst)
}
