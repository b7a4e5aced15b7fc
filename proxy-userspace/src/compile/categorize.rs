//! Which endpoints of a service port traffic may go to: kube-proxy's CategorizeEndpoints, rule by rule
//! (KEP-2433 hints, KEP-3015 node hints, KEP-1669 terminating endpoints, KEP-2086 internal policy).

use crate::model::{Endpoint, Hints, Node};

/// The traffic policies of one service port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Policies {
    pub internal_local: bool,
    pub external_local: bool,
    /// It has a NodePort, a load balancer address or an externalIP.
    pub externally_accessible: bool,
}

impl Policies {
    /// External policy Local still needs the cluster-wide set, for traffic from inside the cluster.
    fn uses_cluster(self) -> bool {
        !self.internal_local || self.externally_accessible
    }

    fn uses_local(self) -> bool {
        self.internal_local || (self.external_local && self.externally_accessible)
    }
}

/// Indices into the endpoints given, in their order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Categories {
    /// For policy Cluster, and for traffic from inside the cluster under external policy Local.
    pub cluster: Vec<usize>,
    /// On this node. Not a subset of `cluster`: hints do not apply here, and each set falls back to terminating
    /// endpoints independently.
    pub local: Vec<usize>,
    /// Any endpoint exists: if not, traffic is refused instead of dropped.
    pub has_any: bool,
}

/// How hints narrow the cluster-wide set. A single ready endpoint without hints disables them.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Topology {
    Ignored,
    SameNode,
    SameZone,
}

/// Sorts the endpoints of one service port and family. Hints apply only to ready endpoints; a set without a ready
/// endpoint takes terminating endpoints that still serve.
pub fn categorize(endpoints: &[&Endpoint], node: &Node, policies: Policies) -> Categories {
    let mut found = Categories::default();
    if policies.uses_cluster() {
        let topology = topology(endpoints, node);
        found.cluster = select(endpoints, |e| e.ready && is_available(e, topology, node));
        if found.cluster.is_empty() {
            found.cluster = select(endpoints, |e| e.serving && e.terminating);
        }
        found.has_any = !found.cluster.is_empty();
    }
    if policies.uses_local() {
        found.has_any |= endpoints.iter().any(|e| e.ready || (e.serving && e.terminating));
        found.local = select(endpoints, |e| is_local(e, node) && e.ready);
        if found.local.is_empty() {
            found.local = select(endpoints, |e| is_local(e, node) && e.serving && e.terminating);
        }
    }
    found
}

/// Whether the endpoint runs on this node.
pub fn is_local(endpoint: &Endpoint, node: &Node) -> bool {
    endpoint.node.as_ref() == Some(&node.name)
}

fn select(endpoints: &[&Endpoint], wanted: impl Fn(&Endpoint) -> bool) -> Vec<usize> {
    endpoints.iter().enumerate().filter(|(_, e)| wanted(e)).map(|(i, _)| i).collect()
}

fn topology(endpoints: &[&Endpoint], node: &Node) -> Topology {
    let hints: Vec<Option<&Hints>> =
        endpoints.iter().filter(|e| e.ready).map(|e| e.hints.as_deref()).collect();
    let all_have = |has: fn(&Hints) -> bool| hints.iter().all(|h| h.is_some_and(has));
    let one_names = |names: &dyn Fn(&Hints) -> bool| hints.iter().any(|h| h.is_some_and(names));
    if hints.is_empty() {
        Topology::Ignored
    } else if all_have(|h| !h.nodes.is_empty()) && one_names(&|h| h.nodes.contains(&node.name)) {
        Topology::SameNode
    } else if let Some(zone) = &node.zone
        && all_have(|h| !h.zones.is_empty())
        && one_names(&|h| h.zones.contains(zone))
    {
        Topology::SameZone
    } else {
        Topology::Ignored
    }
}

fn is_available(endpoint: &Endpoint, topology: Topology, node: &Node) -> bool {
    let Some(hints) = endpoint.hints.as_deref() else { return topology == Topology::Ignored };
    match topology {
        Topology::Ignored => true,
        Topology::SameNode => hints.nodes.contains(&node.name),
        Topology::SameZone => node.zone.as_ref().is_some_and(|zone| hints.zones.contains(zone)),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::model::Protocol;

    const CLUSTER: Policies =
        Policies { internal_local: false, external_local: false, externally_accessible: false };
    const EXTERNAL_LOCAL: Policies =
        Policies { internal_local: false, external_local: true, externally_accessible: true };
    const INTERNAL_LOCAL: Policies =
        Policies { internal_local: true, external_local: false, externally_accessible: false };

    /// `r` ready, `t` terminating but serving, `x` neither; then `@node`; then `z:zone` and `n:node` hints.
    fn endpoint(text: &str) -> Endpoint {
        let mut words = text.split_whitespace();
        let (state, node) = words.next().unwrap().split_once('@').unwrap();
        let mut hints = Hints::default();
        for word in words {
            let (kind, name) = word.split_once(':').unwrap();
            if kind == "z" { &mut hints.zones } else { &mut hints.nodes }.push(name.into());
        }
        let has_hints = hints != Hints::default();
        Endpoint {
            port_name: "".into(),
            protocol: Protocol::Tcp,
            address: "10.0.0.1".parse().unwrap(),
            port: 80,
            ready: state == "r",
            serving: state != "x",
            terminating: state == "t",
            node: (!node.is_empty()).then(|| Arc::from(node)),
            hints: has_hints.then(|| Box::new(hints)),
        }
    }

    fn check(endpoints: &[&str], policies: Policies, cluster: &[usize], local: &[usize], has_any: bool) {
        let node = Node { name: "me".into(), zone: Some("a".into()), ..Node::default() };
        let endpoints: Vec<Endpoint> = endpoints.iter().map(|text| endpoint(text)).collect();
        let got = categorize(&endpoints.iter().collect::<Vec<_>>(), &node, policies);
        let want = Categories { cluster: cluster.into(), local: local.into(), has_any };
        assert_eq!(got, want, "{endpoints:?}");
    }

    #[test]
    fn policies_choose_the_sets() {
        let all = ["r@me", "r@other", "r@"];
        check(&all, CLUSTER, &[0, 1, 2], &[], true);
        check(&all, EXTERNAL_LOCAL, &[0, 1, 2], &[0], true);
        check(&all, INTERNAL_LOCAL, &[], &[0], true);
        // Local without a local endpoint: an endpoint exists elsewhere, so traffic is dropped, not refused.
        check(&["r@other"], INTERNAL_LOCAL, &[], &[], true);
        check(&[], INTERNAL_LOCAL, &[], &[], false);
        check(&[], CLUSTER, &[], &[], false);
    }

    #[test]
    fn terminating_endpoints_serve_when_no_ready_one_is_left() {
        check(&["t@me", "r@other"], CLUSTER, &[1], &[], true);
        check(&["t@me", "x@other"], CLUSTER, &[0], &[], true);
        check(&["x@me", "x@other"], CLUSTER, &[], &[], false);
        // Each set falls back independently.
        check(&["t@me", "r@other"], EXTERNAL_LOCAL, &[1], &[0], true);
        check(&["t@other"], INTERNAL_LOCAL, &[], &[], true);
    }

    #[test]
    fn zone_hints_are_all_or_nothing() {
        check(&["r@x z:a", "r@y z:b"], CLUSTER, &[0], &[], true);
        check(&["r@x z:a", "r@y"], CLUSTER, &[0, 1], &[], true);
        check(&["r@x z:b", "r@y z:c"], CLUSTER, &[0, 1], &[], true);
        // An endpoint that is not ready does not count, with or without hints.
        check(&["r@x z:a", "x@y"], CLUSTER, &[0], &[], true);
        // Hints do not narrow the local set.
        check(&["r@me z:b", "r@y z:a"], EXTERNAL_LOCAL, &[1], &[0], true);
    }

    #[test]
    fn node_hints_go_before_zone_hints() {
        check(&["r@me z:a n:me", "r@y z:a n:y"], CLUSTER, &[0], &[], true);
        check(&["r@x z:a n:x", "r@y z:a n:y"], CLUSTER, &[0, 1], &[], true);
        check(&["r@x z:a n:x", "r@y z:b n:y"], CLUSTER, &[0], &[], true);
        // The hinted endpoint is not ready any more: the mode falls back.
        check(&["t@me z:a n:me", "r@y z:a n:y"], CLUSTER, &[1], &[], true);
    }

    #[test]
    fn fallback_ignores_topology() {
        check(&["t@x z:a", "t@y z:b"], CLUSTER, &[0, 1], &[], true);
    }
}
