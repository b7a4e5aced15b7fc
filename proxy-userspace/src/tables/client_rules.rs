//! The entries of SET_MEMBERS and SOURCE_RANGES for one Service: the backends that clients may have affinity to, and
//! the clients that its load balancer addresses and its NodePorts accept.

use std::collections::{BTreeMap, BTreeSet};

use ipnet::IpNet;
use proxy_common::{Addr, FrontendKind, SetMember, SourceRange, affinity::set_bits};

use super::desired::Tables;
use crate::compile::CompiledPort;

/// Entries of both maps.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClientRules {
    /// To bits of `proxy_common::affinity::set_bits`.
    members: BTreeMap<SetMember, u32>,
    ranges: BTreeSet<SourceRange>,
}

impl ClientRules {
    /// Adds the entries of one port; `backend_ids` are the ids of its backends, in order.
    pub fn add(&mut self, port: &CompiledPort, service: u32, backend_ids: &[u32]) {
        if port.affinity_seconds != 0 {
            for (set, bit) in [(&port.cluster, set_bits::CLUSTER), (&port.local, set_bits::LOCAL)] {
                for i in set {
                    let member = SetMember { service, backend: backend_ids[*i as usize] };
                    *self.members.entry(member).or_default() |= bit;
                }
            }
        }
        self.ranges.extend(source_ranges(port, service));
    }

    pub fn put(&self, tables: &mut Tables) {
        self.members.iter().for_each(|(member, sets)| tables.set_members.set(*member, *sets));
        self.ranges.iter().for_each(|range| tables.source_ranges.set(*range, 1));
    }

    /// Removes entries that `now` does not have; returns whether a backend left a set.
    pub fn remove_but(&self, now: &Self, tables: &mut Tables) -> bool {
        let gone = self.members.keys().filter(|member| !now.members.contains_key(*member));
        gone.for_each(|member| tables.set_members.remove(member));
        self.ranges.difference(&now.ranges).for_each(|range| tables.source_ranges.remove(range));
        self.members.iter().any(|(member, sets)| sets & !now.members.get(member).copied().unwrap_or(0) != 0)
    }
}

/// The keys of a port's ranges in SOURCE_RANGES.
pub fn source_ranges(port: &CompiledPort, service: u32) -> impl Iterator<Item = SourceRange> + '_ {
    let key = move |kind: FrontendKind| {
        move |range: &IpNet| {
            let len = u32::from(range.prefix_len()) + if range.addr().is_ipv4() { 96 } else { 0 };
            SourceRange::new(SourceRange::owner(service, kind as u32), Addr::from(range.addr()), len)
        }
    };
    let addresses = port.source_ranges.iter().flatten().map(key(FrontendKind::LoadBalancerIp));
    addresses.chain(port.node_port_ranges.iter().flatten().map(key(FrontendKind::NodePort)))
}
