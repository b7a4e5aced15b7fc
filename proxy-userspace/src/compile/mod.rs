//! Compiles one Service and its endpoints into what this node must do for it.
//!
//! [`compile`] is a pure function: no ids, no maps, no I/O. The controller calls it for every Service that a change
//! affects; `tables` gives the result ids and slot ranges.

mod categorize;
mod health_check;
mod order;
mod sctp;
mod source_ranges;

use std::{collections::BTreeMap, net::IpAddr, sync::Arc};

use ipnet::IpNet;
use proxy_common::FrontendKind;

use self::order::Order;
pub use self::{
    categorize::{Categories, Policies, categorize, is_local},
    health_check::HealthCheck,
};
use crate::{
    config::{CompileConfig, Scheduler},
    model::{Endpoint, Family, Node, Protocol, Service, ServiceKey, ServicePort, ServiceType, TrafficPolicy},
    problem::{Problem, ProblemKind},
};

/// What this node does for one Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CompiledService {
    pub key: ServiceKey,
    /// Creation time: the older Service keeps an address that both claim.
    pub created: Option<Arc<str>>,
    /// One for each port and family; empty if there is nothing to serve.
    pub ports: Vec<CompiledPort>,
    pub health_check: Option<HealthCheck>,
    pub problems: Vec<Problem>,
}

/// One port of a Service in one family: one service id of the datapath.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CompiledPort {
    pub name: Arc<str>,
    pub protocol: Protocol,
    pub family: Family,
    pub port: u16,
    /// Random instead of round-robin.
    pub random: bool,
    /// Session affinity by client address; 0 is none.
    pub affinity_seconds: u32,
    /// Any endpoint exists: if not, new flows are refused.
    pub has_endpoints: bool,
    /// The union of `cluster` and `local`, sorted by address and port.
    pub backends: Vec<CompiledBackend>,
    /// Indices into `backends`, in this node's order ([`order`]).
    pub cluster: Vec<u32>,
    /// The same for the backends on this node.
    pub local: Vec<u32>,
    /// UDP only: all serving endpoints, in a set or not. Flows to others are flushed.
    pub serving: Vec<(IpAddr, u16)>,
    pub frontends: Vec<CompiledFrontend>,
    /// Clients that may use its load balancer addresses; `None`: all.
    pub source_ranges: Option<Vec<IpNet>>,
    /// Clients that may use its NodePort; `None`: all.
    pub node_port_ranges: Option<Vec<IpNet>>,
}

/// An address and port of a service port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CompiledFrontend {
    /// `None` is every address of the node that accepts NodePorts.
    pub address: Option<IpAddr>,
    pub port: u16,
    pub kind: FrontendKind,
    /// Its traffic policy is Local.
    pub local: bool,
    /// It cannot be served: new flows are refused regardless of endpoints.
    pub refused: bool,
}

/// One endpoint in use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CompiledBackend {
    pub address: IpAddr,
    pub port: u16,
    pub local: bool,
    pub ready: bool,
    pub terminating: bool,
    pub node: Option<Arc<str>>,
}

/// What `node` must do for `service`. `endpoints` are those of all ports and families.
pub fn compile(
    service: &Service,
    endpoints: &[Endpoint],
    node: &Node,
    config: &CompileConfig,
) -> CompiledService {
    let mut compiled = CompiledService {
        key: service.key.clone(),
        created: service.created.clone(),
        ports: Vec::new(),
        health_check: None,
        problems: Vec::new(),
    };
    if !service.is_served() {
        let may_have_address = !service.headless && !service.other_proxy;
        if may_have_address && service.kind != ServiceType::ExternalName {
            compiled.problems.push(Problem::new(&service.key, ProblemKind::NoClusterIp));
        }
        return compiled;
    }
    let unreadable = service.unreadable_ranges.iter().cloned();
    let unreadable = unreadable.map(|range| ProblemKind::SourceRange { range });
    let of_node_ports = service.node_port_ranges.unreadable.iter().cloned();
    let unreadable = unreadable.chain(of_node_ports.map(|range| ProblemKind::NodePortSourceRange { range }));
    compiled.problems.extend(unreadable.map(|kind| Problem::new(&service.key, kind)));
    match health_check::health_check(service, endpoints, node) {
        Ok(check) => compiled.health_check = check,
        Err(kind) => compiled.problems.push(Problem::new(&service.key, kind)),
    }
    if config.without_external_ips && !service.external_ips.is_empty() {
        compiled.problems.push(Problem::new(&service.key, ProblemKind::ExternalIps));
    }
    for family in Family::BOTH {
        let Some(cluster_ip) = service.cluster_ip(family) else { continue };
        let addresses = addresses(service, family, cluster_ip, config);
        for port in &service.ports {
            let mut mine = endpoints_of(endpoints, port, family);
            let problem = sctp::port_problem(port, &mine);
            if problem.is_some() {
                mine.clear();
            }
            let problem = problem.or_else(|| sctp::node_port_problem(port));
            let problem = problem.map(|kind| Problem::new(&service.key, kind));
            compiled.problems.extend(problem.filter(|problem| !compiled.problems.contains(problem)));
            compiled.ports.push(compile_port(service, port, family, &addresses, &mine, node, config));
        }
    }
    compiled
}

/// The Service's addresses in one family, each once. ClusterIP takes precedence over load balancer address, and that
/// over externalIP (an address that is both is the load balancer's, with its source ranges).
fn addresses(
    service: &Service,
    family: Family,
    cluster_ip: IpAddr,
    config: &CompileConfig,
) -> Vec<(IpAddr, FrontendKind)> {
    let in_family = |ips: &[IpAddr]| -> Vec<IpAddr> {
        ips.iter().copied().filter(|ip| Family::from(*ip) == family).collect()
    };
    let load_balancer = in_family(&service.load_balancer_ips);
    let mut found = vec![(cluster_ip, FrontendKind::ClusterIp)];
    found.extend(load_balancer.into_iter().map(|ip| (ip, FrontendKind::LoadBalancerIp)));
    if !config.without_external_ips {
        found.extend(in_family(&service.external_ips).into_iter().map(|ip| (ip, FrontendKind::ExternalIp)));
    }
    let mut seen = Vec::new();
    found.retain(|(ip, _)| {
        let first = !seen.contains(ip);
        seen.push(*ip);
        first
    });
    found
}

fn compile_port(
    service: &Service,
    port: &ServicePort,
    family: Family,
    addresses: &[(IpAddr, FrontendKind)],
    mine: &[&Endpoint],
    node: &Node,
    config: &CompileConfig,
) -> CompiledPort {
    let externally_accessible =
        port.node_port.is_some() || addresses.iter().any(|(_, kind)| *kind != FrontendKind::ClusterIp);
    // The external policy applies to what the spec requests, not to an address that is still in the status.
    let has_external_policy = matches!(service.kind, ServiceType::NodePort | ServiceType::LoadBalancer)
        || !service.external_ips.is_empty();
    let policies = Policies {
        internal_local: service.internal_policy == TrafficPolicy::Local,
        external_local: has_external_policy && service.external_policy == TrafficPolicy::Local,
        externally_accessible,
    };
    let categories = categorize(mine, node, policies);

    let mut used: Vec<usize> = categories.cluster.iter().chain(&categories.local).copied().collect();
    used.sort_unstable();
    used.dedup();
    let order = Order::new(&node.name, &service.key, &port.name, family);
    let in_order = |mut set: Vec<usize>| -> Vec<u32> {
        set.sort_by_cached_key(|i| order.place(mine[*i].address, mine[*i].port));
        set.iter().map(|i| used.binary_search(i).unwrap_or_default() as u32).collect()
    };
    let is_udp = port.protocol == Protocol::Udp;
    CompiledPort {
        name: port.name.clone(),
        protocol: port.protocol,
        family,
        port: port.port,
        random: config.scheduler == Scheduler::Random,
        affinity_seconds: service.affinity_seconds.unwrap_or(0),
        has_endpoints: categories.has_any,
        cluster: in_order(categories.cluster),
        local: in_order(categories.local),
        serving: mine
            .iter()
            .filter(|endpoint| is_udp && endpoint.serving)
            .map(|endpoint| (endpoint.address, endpoint.port))
            .collect(),
        backends: used.iter().map(|i| backend(mine[*i], node)).collect(),
        frontends: frontends(port, addresses, policies),
        source_ranges: source_ranges::of(service, family, node),
        node_port_ranges: source_ranges::of_node_port(service, port, family, &config.nodeport_source_ranges),
    }
}

fn frontends(
    port: &ServicePort,
    addresses: &[(IpAddr, FrontendKind)],
    policies: Policies,
) -> Vec<CompiledFrontend> {
    let mut frontends: Vec<_> = addresses
        .iter()
        .map(|(ip, kind)| {
            let internal = *kind == FrontendKind::ClusterIp;
            let local = if internal { policies.internal_local } else { policies.external_local };
            CompiledFrontend { address: Some(*ip), port: port.port, kind: *kind, local, refused: false }
        })
        .collect();
    frontends.extend(port.node_port.map(|node_port| CompiledFrontend {
        address: None,
        port: node_port,
        kind: FrontendKind::NodePort,
        local: policies.external_local,
        refused: sctp::node_port_problem(port).is_some(),
    }));
    frontends
}

/// The endpoints of one port and family, sorted by address and port. Of duplicates the later one wins unless it is
/// terminating (a reused pod address belongs to the running pod).
fn endpoints_of<'a>(endpoints: &'a [Endpoint], port: &ServicePort, family: Family) -> Vec<&'a Endpoint> {
    let mut found: BTreeMap<(IpAddr, u16), &Endpoint> = BTreeMap::new();
    let mine = endpoints.iter().filter(|endpoint| {
        endpoint.protocol == port.protocol
            && Family::from(endpoint.address) == family
            && endpoint.port_name == port.name
    });
    for endpoint in mine {
        let slot = found.entry((endpoint.address, endpoint.port)).or_insert(endpoint);
        if !endpoint.terminating {
            *slot = endpoint;
        }
    }
    found.into_values().collect()
}

fn backend(endpoint: &Endpoint, node: &Node) -> CompiledBackend {
    CompiledBackend {
        address: endpoint.address,
        port: endpoint.port,
        local: is_local(endpoint, node),
        ready: endpoint.ready,
        terminating: endpoint.terminating,
        node: endpoint.node.clone(),
    }
}
