//! SCTP: its checksum covers the whole packet and a program cannot recompute it, so addresses are translated and ports
//! are not. A frontend is served only if its port is the target port of every endpoint; otherwise it is refused for all
//! clients, so that no client reaches only some of the endpoints.

use crate::{
    model::{Endpoint, Protocol, ServicePort},
    problem::ProblemKind,
};

/// Why this port cannot be served: one of its endpoints, ready or not, listens on another port number.
pub fn port_problem(port: &ServicePort, endpoints: &[&Endpoint]) -> Option<ProblemKind> {
    let mut others = endpoints.iter().filter(|endpoint| endpoint.port != port.port);
    let other = others.next().filter(|_| port.protocol == Protocol::Sctp)?;
    Some(ProblemKind::SctpPort { port: port.port, address: other.address, target: other.port })
}

/// Why the NodePort cannot be served although the port itself can: its number differs, as it usually does.
pub fn node_port_problem(port: &ServicePort) -> Option<ProblemKind> {
    let node_port = port.node_port.filter(|node_port| *node_port != port.port)?;
    (port.protocol == Protocol::Sctp).then_some(ProblemKind::SctpNodePort { port: port.port, node_port })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::TargetPort;

    fn port(protocol: Protocol, node_port: Option<u16>) -> ServicePort {
        ServicePort {
            name: "".into(),
            protocol,
            port: 3868,
            target_port: TargetPort::Name("diameter".into()),
            node_port,
        }
    }

    fn endpoint(port: u16, ready: bool) -> Endpoint {
        Endpoint {
            port_name: "".into(),
            protocol: Protocol::Sctp,
            address: "172.20.1.2".parse().unwrap(),
            port,
            ready,
            serving: ready,
            terminating: false,
            node: None,
            hints: None,
        }
    }

    #[test]
    fn one_endpoint_with_another_number_is_enough() {
        let sctp = port(Protocol::Sctp, None);
        let (same, other) = (endpoint(3868, true), endpoint(3869, false));
        assert_eq!(port_problem(&sctp, &[&same, &same]), None);
        let problem = port_problem(&sctp, &[&same, &other]);
        assert!(
            matches!(problem, Some(ProblemKind::SctpPort { port: 3868, target: 3869, .. })),
            "{problem:?}"
        );
        assert_eq!(port_problem(&sctp, &[]), None);
        assert_eq!(port_problem(&port(Protocol::Tcp, None), &[&other]), None);
    }

    #[test]
    fn a_node_port_is_served_only_where_it_is_the_same_number() {
        assert!(node_port_problem(&port(Protocol::Sctp, Some(30000))).is_some());
        assert_eq!(node_port_problem(&port(Protocol::Sctp, Some(3868))), None);
        assert_eq!(node_port_problem(&port(Protocol::Sctp, None)), None);
        assert_eq!(node_port_problem(&port(Protocol::Udp, Some(30000))), None);
    }
}
