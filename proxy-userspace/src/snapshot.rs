//! The cluster's state as delivered by the sources, and which Services a change affects.
//!
//! [`Snapshot::apply`] takes one event and returns the Services to recompile; it compiles nothing itself. The
//! controller calls it; the work is proportional to the change.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    net::IpAddr,
    sync::Arc,
};

use ipnet::IpNet;
use jiff::Timestamp;

use crate::{
    model::{Endpoint, EndpointSlice, Node, ObjectKey, Service, ServiceKey, Trigger},
    problem::{Problem, ProblemKind, RefusedAddress},
    sources::Event,
};

/// What must be recomputed after an event.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Dirty {
    pub services: Vec<ServiceKey>,
    /// Something every Service depends on changed (this node's zone, its InternalIPs).
    pub every_service: bool,
    /// This node's own object, an address of some node, or a ServiceCIDR changed.
    pub node: bool,
    /// An address became or ceased to be a ClusterIP.
    pub cluster_ips: bool,
}

/// All known objects, with indexes.
#[derive(Debug, Default)]
pub struct Snapshot {
    node_name: Arc<str>,
    services: HashMap<ServiceKey, Service>,
    slices: HashMap<ObjectKey, EndpointSlice>,
    slices_of: HashMap<ServiceKey, BTreeSet<ObjectKey>>,
    nodes: HashMap<Arc<str>, Node>,
    service_cidrs: BTreeMap<Arc<str>, Vec<IpNet>>,
    /// How many served Services have this address as ClusterIP.
    cluster_ips: HashMap<IpAddr, u32>,
    /// How many Node objects have this address.
    node_addresses: HashMap<IpAddr, u32>,
    /// How many endpoints have this address.
    endpoint_addresses: HashMap<IpAddr, u32>,
    /// Interned names: they repeat in thousands of endpoints.
    names: HashSet<Arc<str>>,
    /// Causes of endpoint changes since the last [`Self::take_triggers`], by Service.
    triggers: HashMap<ServiceKey, Vec<Trigger>>,
    /// Older triggers belong to changes from before this process started.
    started: Timestamp,
    synced: bool,
}

/// Maximum triggers kept per Service, in case writing fails for hours.
const MAX_TRIGGERS: usize = 64;

impl Snapshot {
    pub fn new(node_name: &str) -> Self {
        Self { node_name: node_name.into(), started: Timestamp::now(), ..Self::default() }
    }

    /// Whether every source has delivered its initial list.
    pub fn is_synced(&self) -> bool {
        self.synced
    }

    pub fn apply(&mut self, event: Event) -> Dirty {
        match event {
            Event::Service(service) => self.put_service(service),
            Event::ServiceGone(key) => self.remove_service(&key),
            Event::Slice(slice) => self.put_slice(slice),
            Event::SliceGone(key) => self.slice_gone(&key),
            Event::Node(node) => self.put_node(node),
            Event::NodeGone(name) => self.remove_node(&name),
            Event::ServiceCidr(range) => {
                let old = self.service_cidrs.insert(range.name.clone(), range.cidrs.clone());
                Dirty { node: old.as_ref() != Some(&range.cidrs), ..Dirty::default() }
            }
            Event::ServiceCidrGone(name) => {
                Dirty { node: self.service_cidrs.remove(&name).is_some(), ..Dirty::default() }
            }
            Event::Synced => {
                self.synced = true;
                Dirty::default()
            }
        }
    }

    pub fn service(&self, key: &ServiceKey) -> Option<&Service> {
        self.services.get(key)
    }

    pub fn service_keys(&self) -> impl Iterator<Item = &ServiceKey> {
        self.services.keys()
    }

    pub fn service_count(&self) -> usize {
        self.services.len()
    }

    /// This node's object, or one with only the name.
    pub fn node(&self) -> Node {
        let name = &self.node_name;
        self.nodes.get(name).cloned().unwrap_or_else(|| Node { name: name.clone(), ..Node::default() })
    }

    /// Whether a source delivered this node's object.
    pub fn knows_node(&self) -> bool {
        self.nodes.contains_key(&self.node_name)
    }

    /// Whether load balancers may send to this node (KEP-3836). If the source need not have Nodes (`without`, as with
    /// files) and has none, the answer is yes; if other Nodes exist and this one does not, it has left the cluster.
    pub fn is_node_eligible(&self, without: bool) -> bool {
        match self.nodes.get(&self.node_name) {
            Some(node) => !node.leaving,
            None => !self.misses_node(without),
        }
    }

    /// Whether this node's object is missing; `without` as for [`Self::is_node_eligible`].
    pub fn misses_node(&self, without: bool) -> bool {
        !(self.knows_node() || without && self.nodes.is_empty())
    }

    /// The ranges of all ServiceCIDRs, each once, in the order of the objects' names.
    pub fn service_cidrs(&self) -> Vec<IpNet> {
        let mut ranges = Vec::new();
        for range in self.service_cidrs.values().flatten() {
            if !ranges.contains(range) {
                ranges.push(*range);
            }
        }
        ranges
    }

    /// The addresses of all Node objects.
    pub fn node_addresses(&self) -> impl Iterator<Item = IpAddr> + '_ {
        self.node_addresses.keys().copied()
    }

    /// Whether the address is a Service's ClusterIP. Load balancer addresses do not count: they may be a node's own
    /// (k3s). Neither do externalIPs: any address can be specified there.
    pub fn is_cluster_ip(&self, ip: IpAddr) -> bool {
        self.cluster_ips.contains_key(&ip)
    }

    /// The Service's endpoints from all its slices, one for each port, in the order of the slices' names. Endpoints at
    /// addresses that must never receive traffic are left out and reported.
    pub fn endpoints(&self, key: &ServiceKey) -> (Vec<Endpoint>, Vec<Problem>) {
        let slices = self.slices_of.get(key).into_iter().flatten().filter_map(|slice| self.slices.get(slice));
        let (mut endpoints, mut refused) = (Vec::new(), BTreeSet::new());
        for slice in slices {
            for endpoint in &slice.endpoints {
                let address = endpoint.address;
                let cluster_ip = self.is_cluster_ip(address).then_some(RefusedAddress::ClusterIp);
                if let Some(why) = RefusedAddress::of(address).or(cluster_ip) {
                    refused.insert(Problem::new(key, ProblemKind::EndpointRefused { address, why }));
                    continue;
                }
                endpoints.extend(slice.ports.iter().map(|port| Endpoint {
                    port_name: port.name.clone(),
                    protocol: port.protocol,
                    address,
                    port: port.port,
                    ready: endpoint.ready,
                    serving: endpoint.serving,
                    terminating: endpoint.terminating,
                    node: endpoint.node.clone(),
                    hints: endpoint.hints.clone(),
                }));
            }
        }
        (endpoints, refused.into_iter().collect())
    }

    fn put_service(&mut self, service: Service) -> Dirty {
        if self.services.get(&service.key) == Some(&service) {
            return Dirty::default();
        }
        let key = service.key.clone();
        let mut changed = self.count_cluster_ips(&service, true);
        if let Some(old) = self.services.insert(key.clone(), service) {
            changed.extend(self.count_cluster_ips(&old, false));
        }
        self.dirty_with(key, &changed)
    }

    fn remove_service(&mut self, key: &ServiceKey) -> Dirty {
        let Some(old) = self.services.remove(key) else { return Dirty::default() };
        let changed = self.count_cluster_ips(&old, false);
        self.dirty_with(key.clone(), &changed)
    }

    /// Counts a Service's ClusterIPs in or out; returns the addresses that became or ceased to be a ClusterIP.
    fn count_cluster_ips(&mut self, service: &Service, add: bool) -> Vec<IpAddr> {
        let ips: &[IpAddr] = if service.is_served() { &service.cluster_ips } else { &[] };
        ips.iter().copied().filter(|ip| count(&mut self.cluster_ips, *ip, add)).collect()
    }

    /// The Service itself, and Services with an endpoint at an address that became or ceased to be a ClusterIP.
    fn dirty_with(&self, key: ServiceKey, changed: &[IpAddr]) -> Dirty {
        let mut services = vec![key];
        // Rare: an endpoint address is hardly ever a ClusterIP.
        if changed.iter().any(|ip| self.endpoint_addresses.contains_key(ip)) {
            let concerned = self
                .slices
                .values()
                .filter(|slice| slice.endpoints.iter().any(|endpoint| changed.contains(&endpoint.address)));
            services.extend(concerned.filter_map(|slice| slice.service.clone()));
        }
        Dirty { services, cluster_ips: !changed.is_empty(), ..Dirty::default() }
    }

    fn put_slice(&mut self, mut slice: EndpointSlice) -> Dirty {
        self.intern(&mut slice);
        let trigger = slice.trigger.take().filter(|trigger| trigger.at > self.started);
        let key = slice.key.clone();
        let old = self.slices.get(&key);
        if old == Some(&slice) {
            return Dirty::default();
        }
        if let (Some(service), Some(trigger)) = (&slice.service, trigger) {
            let triggers = self.triggers.entry(service.clone()).or_default();
            if triggers.len() < MAX_TRIGGERS {
                triggers.push(trigger);
            }
        }
        let mut dirty = self.remove_slice(&key);
        for endpoint in &slice.endpoints {
            count(&mut self.endpoint_addresses, endpoint.address, true);
        }
        if let Some(service) = &slice.service {
            self.slices_of.entry(service.clone()).or_default().insert(key.clone());
            if !dirty.services.contains(service) {
                dirty.services.push(service.clone());
            }
        }
        self.slices.insert(key, slice);
        dirty
    }

    /// The trigger of a deleted slice belongs to its last change, not to the deletion. Like kube-proxy, the Service's
    /// triggers are discarded.
    fn slice_gone(&mut self, key: &ObjectKey) -> Dirty {
        let dirty = self.remove_slice(key);
        for service in &dirty.services {
            self.triggers.remove(service);
        }
        dirty
    }

    /// Causes of endpoint changes since the last call.
    pub fn take_triggers(&mut self) -> Vec<Trigger> {
        std::mem::take(&mut self.triggers).into_values().flatten().collect()
    }

    fn remove_slice(&mut self, key: &ObjectKey) -> Dirty {
        let Some(old) = self.slices.remove(key) else { return Dirty::default() };
        for endpoint in &old.endpoints {
            count(&mut self.endpoint_addresses, endpoint.address, false);
        }
        let Some(service) = old.service else { return Dirty::default() };
        if let Some(slices) = self.slices_of.get_mut(&service) {
            slices.remove(key);
            if slices.is_empty() {
                self.slices_of.remove(&service);
            }
        }
        Dirty { services: vec![service], ..Dirty::default() }
    }

    fn put_node(&mut self, node: Node) -> Dirty {
        if self.nodes.get(&node.name) == Some(&node) {
            return Dirty::default();
        }
        self.count_node_addresses(&node, true);
        let old = self.nodes.insert(node.name.clone(), node.clone());
        if let Some(old) = &old {
            self.count_node_addresses(old, false);
        }
        let was = old.map(|old| (old.zone, old.internal_ips)).unwrap_or_default();
        let every_service = node.name == self.node_name && was != (node.zone, node.internal_ips);
        Dirty { every_service, node: true, ..Dirty::default() }
    }

    fn remove_node(&mut self, name: &Arc<str>) -> Dirty {
        let Some(old) = self.nodes.remove(name) else { return Dirty::default() };
        self.count_node_addresses(&old, false);
        let every_service =
            old.name == self.node_name && (old.zone.is_some() || !old.internal_ips.is_empty());
        Dirty { every_service, node: true, ..Dirty::default() }
    }

    fn count_node_addresses(&mut self, node: &Node, add: bool) {
        for ip in node.internal_ips.iter().chain(&node.other_ips) {
            count(&mut self.node_addresses, *ip, add);
        }
    }

    /// Interns the slice's names.
    fn intern(&mut self, slice: &mut EndpointSlice) {
        let names = &mut self.names;
        let mut once = |name: &mut Arc<str>| match names.get(name) {
            Some(kept) => *name = kept.clone(),
            None => drop(names.insert(name.clone())),
        };
        slice.ports.iter_mut().for_each(|port| once(&mut port.name));
        for endpoint in &mut slice.endpoints {
            endpoint.node.as_mut().map(&mut once);
            if let Some(hints) = &mut endpoint.hints {
                hints.zones.iter_mut().chain(&mut hints.nodes).for_each(&mut once);
            }
        }
    }
}

/// Counts an address in or out; returns whether it was the first or the last.
fn count(counts: &mut HashMap<IpAddr, u32>, ip: IpAddr, add: bool) -> bool {
    let n = counts.entry(ip).or_insert(0);
    if add {
        *n += 1;
        return *n == 1;
    }
    *n = n.saturating_sub(1);
    let gone = *n == 0;
    if gone {
        counts.remove(&ip);
    }
    gone
}
