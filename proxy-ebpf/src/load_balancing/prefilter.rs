//! The prefilter: two array reads that let packets of no Service skip all lookups behind it.

use proxy_common::{CtKey, node::port_bits};

use crate::load_balancing::{cluster_ip, frontend};

/// Whether a packet may be for shunt: some frontend or backend has its destination port, or some ClusterIP the low
/// bits of its destination address. False positives are possible, false negatives are not.
#[inline(always)]
pub fn may_match(key: &CtKey) -> bool {
    let proto = key.proto;
    let ours = port_bits::frontend(proto) | port_bits::nodeport(proto) | port_bits::backend(proto);
    frontend::port_flags(key.dport) & ours != 0 || cluster_ip::may_be_cluster_ip(&key.dst)
}
