//! What the healthCheckNodePort of a Service answers on this node: a load balancer asks every node whether it has local
//! endpoints. Pure; `health/` opens the listeners.

use std::{collections::BTreeSet, net::IpAddr};

use super::categorize::is_local;
use crate::{
    model::{Endpoint, Family, Node, Service, ServiceType, TrafficPolicy},
    problem::ProblemKind,
};

/// The health check of one Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HealthCheck {
    pub port: u16,
    /// For each family of the Service: the number of local addresses with a ready endpoint.
    pub local_endpoints: Vec<(Family, usize)>,
}

/// The Service's health check. Only type LoadBalancer with external policy Local has one; a port left over from another
/// type or policy is not opened.
pub fn health_check(
    service: &Service,
    endpoints: &[Endpoint],
    node: &Node,
) -> Result<Option<HealthCheck>, ProblemKind> {
    if service.kind != ServiceType::LoadBalancer || service.external_policy != TrafficPolicy::Local {
        return Ok(None);
    }
    let port = service.health_check_node_port.ok_or(ProblemKind::NoHealthCheckPort)?;
    let families = Family::BOTH.into_iter().filter(|family| service.cluster_ip(*family).is_some());
    let local_endpoints = families.map(|family| (family, count(endpoints, family, node))).collect();
    Ok(Some(HealthCheck { port, local_endpoints }))
}

/// Counts addresses, not endpoints: one pod serves several ports. A terminating one never counts, even if
/// publishNotReadyAddresses makes it ready: new connections should go elsewhere (KEP-1669).
fn count(endpoints: &[Endpoint], family: Family, node: &Node) -> usize {
    let counts = |endpoint: &&Endpoint| {
        Family::from(endpoint.address) == family
            && is_local(endpoint, node)
            && endpoint.ready
            && !endpoint.terminating
    };
    endpoints.iter().filter(counts).map(|endpoint| endpoint.address).collect::<BTreeSet<IpAddr>>().len()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Protocol, ServiceKey, SourceRanges};

    fn service() -> Service {
        Service {
            key: ServiceKey::new("ns", "web"),
            uid: None,
            created: None,
            kind: ServiceType::LoadBalancer,
            cluster_ips: vec!["10.68.0.1".parse().unwrap(), "fd00::1".parse().unwrap()],
            headless: false,
            has_selector: true,
            other_proxy: false,
            ports: Vec::new(),
            internal_policy: TrafficPolicy::Cluster,
            external_policy: TrafficPolicy::Local,
            affinity_seconds: None,
            external_ips: Vec::new(),
            load_balancer_ips: Vec::new(),
            source_ranges: Vec::new(),
            unreadable_ranges: Vec::new(),
            node_port_ranges: SourceRanges::default(),
            health_check_node_port: Some(32000),
        }
    }

    /// `address state@node`; `r` ready, `t` terminating, `p` terminating but published as ready, `x` not ready.
    fn endpoint(text: &str, port: u16) -> Endpoint {
        let (address, rest) = text.split_once(' ').unwrap();
        let (state, node) = rest.split_once('@').unwrap();
        Endpoint {
            port_name: "".into(),
            protocol: Protocol::Tcp,
            address: address.parse().unwrap(),
            port,
            ready: matches!(state, "r" | "p"),
            serving: state != "x",
            terminating: matches!(state, "t" | "p"),
            node: Some(node.into()),
            hints: None,
        }
    }

    fn counted(endpoints: &[&str]) -> Vec<usize> {
        let node = Node { name: "me".into(), ..Node::default() };
        // Each on two ports.
        let endpoints: Vec<_> =
            [80, 81].iter().flat_map(|port| endpoints.iter().map(|text| endpoint(text, *port))).collect();
        let check = health_check(&service(), &endpoints, &node).unwrap().unwrap();
        check.local_endpoints.iter().map(|(_, count)| *count).collect()
    }

    #[test]
    fn local_ready_addresses_count_once_each() {
        assert_eq!(counted(&[]), [0, 0]);
        assert_eq!(counted(&["172.20.0.2 r@me", "172.20.0.3 r@me", "fd00:20::2 r@me"]), [2, 1]);
        assert_eq!(counted(&["172.20.0.2 r@other", "172.20.0.3 x@me", "172.20.0.4 t@me"]), [0, 0]);
        assert_eq!(counted(&["172.20.0.2 p@me"]), [0, 0]);
    }

    #[test]
    fn only_local_load_balancers_have_one() {
        let node = Node::default();
        let check = |change: fn(&mut Service)| {
            let mut service = service();
            change(&mut service);
            health_check(&service, &[], &node)
        };
        assert_eq!(check(|_| {}).unwrap().unwrap().port, 32000);
        assert_eq!(check(|s| s.kind = ServiceType::NodePort), Ok(None));
        assert_eq!(check(|s| s.external_policy = TrafficPolicy::Cluster), Ok(None));
        assert_eq!(check(|s| s.health_check_node_port = None), Err(ProblemKind::NoHealthCheckPort));
        let only_v4 = check(|s| s.cluster_ips.truncate(1)).unwrap().unwrap();
        assert_eq!(only_v4.local_endpoints, [(Family::V4, 0)]);
    }
}
