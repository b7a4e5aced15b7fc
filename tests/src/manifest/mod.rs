//! Manifests, as text, of the kinds that the files source reads.

mod endpoint;
mod service;

use std::net::SocketAddr;

pub use endpoint::Endpoint;
pub use service::Service;

use crate::net::{Node, plan::pod_addr};

/// A frontend of a Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Front {
    pub service: String,
    /// `tcp`, `udp` or `sctp`.
    pub protocol: String,
    /// The unspecified address for a NodePort.
    pub at: SocketAddr,
    /// Anything but a ClusterIP.
    pub is_external: bool,
    pub backends: Vec<SocketAddr>,
}

/// A Node: its addresses, its pod ranges and its zone ([`zone`]).
pub fn node(node: &Node) -> String {
    let (addr, range) = (node.addr(), pod_addr(node.index(), 0));
    format!(
        "apiVersion: v1\nkind: Node\nmetadata:\n  name: {name}\n  labels:\n    kubernetes.io/hostname: {name}\n    \
         topology.kubernetes.io/zone: {zone}\n\
         spec:\n  podCIDR: {v4}/24\n  podCIDRs: [\"{v4}/24\", \"{v6}/64\"]\n\
         status:\n  addresses:\n  - {{type: InternalIP, address: {}}}\n  - {{type: InternalIP, address: \"{}\"}}\n  \
         - {{type: Hostname, address: {name}}}\n",
        addr.v4,
        addr.v6,
        name = node.name(),
        zone = zone(node.index()),
        v4 = range.v4,
        v6 = range.v6,
    )
}

/// The zone of node `index`: the first node has its own, all others share the second.
pub fn zone(index: usize) -> &'static str {
    if index == 0 { "zone-a" } else { "zone-b" }
}
