//! This node: its addresses and roles, and NODE_CONFIG. Recomputed when the Node object, the devices' addresses, the
//! ServiceCIDRs or the set of ClusterIPs change.

use std::{collections::HashSet, net::IpAddr};

use proxy_common::NodeConfig;

use crate::{
    config::CompileConfig,
    model::{Family, Node},
    node::{NodeAddress, node_addrs, node_config, primary},
    snapshot::{Dirty, Snapshot},
    tables::ServiceTables,
};

/// What the agent says about the node, and what must be written again.
#[derive(Debug)]
pub(super) struct NodeState {
    addresses: Vec<NodeAddress>,
    /// Primary addresses for families in which the Node object has no InternalIP.
    fallback: Vec<IpAddr>,
    is_taking_over: bool,
    config_dirty: bool,
    addresses_dirty: bool,
}

impl NodeState {
    pub(super) fn new() -> Self {
        Self {
            addresses: Vec::new(),
            fallback: Vec::new(),
            is_taking_over: false,
            config_dirty: true,
            addresses_dirty: true,
        }
    }

    pub(super) fn mark(&mut self, dirty: &Dirty) {
        self.config_dirty |= dirty.node;
        // A ClusterIP is never an address of the node.
        self.addresses_dirty |= dirty.node || dirty.cluster_ips;
    }

    pub(super) fn set_taking_over(&mut self, is_taking_over: bool) {
        self.config_dirty |= self.is_taking_over != is_taking_over;
        self.is_taking_over = is_taking_over;
    }

    pub(super) fn is_taking_over(&self) -> bool {
        self.is_taking_over
    }

    /// Returns whether the fallback changed, which every Service depends on.
    pub(super) fn set_addresses(&mut self, addresses: Vec<NodeAddress>, fallback: &[IpAddr]) -> bool {
        let is_new_fallback = self.fallback != fallback;
        self.config_dirty |= self.addresses != addresses || is_new_fallback;
        self.addresses = addresses;
        self.fallback = fallback.to_vec();
        is_new_fallback
    }

    /// The node that Services are compiled for: its primary addresses filled in where the Node object has none.
    pub(super) fn compile_node(&self, mut node: Node) -> Node {
        for family in Family::BOTH {
            if node.primary_ip(family).is_none() {
                node.internal_ips.extend(primary(&node, &self.fallback, family));
            }
        }
        node
    }

    /// Updates NODE_ADDRS and NODE_CONFIG where necessary. Returns whether NODE_ADDRS was recomputed.
    pub(super) fn update(
        &mut self,
        node: &Node,
        snapshot: &Snapshot,
        config: &CompileConfig,
        services: &mut ServiceTables,
    ) -> bool {
        let config_dirty = std::mem::take(&mut self.config_dirty);
        let addresses_dirty = std::mem::take(&mut self.addresses_dirty);
        if config_dirty || addresses_dirty {
            self.update_addresses(node, snapshot, config, services);
        }
        if config_dirty {
            self.update_config(node, snapshot, config, services);
        }
        config_dirty || addresses_dirty
    }

    fn update_addresses(
        &self,
        node: &Node,
        snapshot: &Snapshot,
        config: &CompileConfig,
        services: &mut ServiceTables,
    ) {
        let is_cluster_ip = |ip| snapshot.is_cluster_ip(ip);
        let roles = node_addrs(&self.addresses, node, &self.fallback, config, is_cluster_ip);
        let own = roles.keys().map(|addr| addr.to_ip());
        let nodes: HashSet<IpAddr> = own.chain(snapshot.node_addresses()).collect();
        services.set_node_addrs(roles);
        services.set_node_addresses(nodes);
    }

    fn update_config(
        &self,
        node: &Node,
        snapshot: &Snapshot,
        config: &CompileConfig,
        services: &mut ServiceTables,
    ) {
        let (mut value, left_out) = node_config(node, &self.fallback, &snapshot.service_cidrs(), config);
        if self.is_taking_over {
            value.flags |= NodeConfig::TAKING_OVER;
        }
        services.tables.node_config.set(0, value);
        for range in left_out.pods {
            tracing::warn!("pod range {range} is one too many: its pods count as outside the cluster");
        }
        for range in left_out.services {
            tracing::warn!("ServiceCIDR {range} is one too many: packets to its unallocated addresses pass");
        }
    }
}
