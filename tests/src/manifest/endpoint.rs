//! One endpoint of an EndpointSlice, in both families.

use std::net::IpAddr;

use crate::net::{
    Node, Pod,
    plan::{Dual, Family},
};

/// An endpoint: by default ready, on its node and without hints.
#[derive(Clone, Debug)]
pub struct Endpoint {
    addr: Dual,
    node: Option<String>,
    /// The text after `conditions:`; `None` if the field is absent.
    conditions: Option<&'static str>,
    zones: Vec<String>,
    nodes: Vec<String>,
}

impl Endpoint {
    /// An endpoint by address, without a node.
    pub fn at(addr: Dual) -> Self {
        let conditions = Some("{ready: true}");
        Self { addr, node: None, conditions, zones: Vec::new(), nodes: Vec::new() }
    }

    pub fn pod(pod: &Pod) -> Self {
        Self { node: Some(format!("node-{}", pod.node() + 1)), ..Self::at(pod.addr()) }
    }

    /// A pod in the node's own network.
    pub fn node(node: &Node) -> Self {
        Self { node: Some(node.name().to_owned()), ..Self::at(node.addr()) }
    }

    /// `nodeName` is absent.
    pub fn without_node(self) -> Self {
        Self { node: None, ..self }
    }

    /// Terminating and still serving.
    pub fn terminating(self) -> Self {
        self.conditions("{ready: false, serving: true, terminating: true}")
    }

    /// Terminating and no longer serving.
    pub fn gone(self) -> Self {
        self.conditions("{ready: false, serving: false, terminating: true}")
    }

    /// Not ready and not terminating.
    pub fn unready(self) -> Self {
        self.conditions("{ready: false, serving: false, terminating: false}")
    }

    /// The conditions of a terminating pod in a Service with publishNotReadyAddresses.
    pub fn published_terminating(self) -> Self {
        self.conditions("{ready: true, serving: true, terminating: true}")
    }

    /// `conditions` is absent.
    pub fn without_conditions(self) -> Self {
        Self { conditions: None, ..self }
    }

    /// The hint forZones.
    pub fn for_zones(self, zones: &[&str]) -> Self {
        Self { zones: zones.iter().map(|&zone| zone.to_owned()).collect(), ..self }
    }

    /// The hint forNodes.
    pub fn for_nodes(self, nodes: &[&str]) -> Self {
        Self { nodes: nodes.iter().map(|&node| node.to_owned()).collect(), ..self }
    }

    fn conditions(self, text: &'static str) -> Self {
        Self { conditions: Some(text), ..self }
    }

    /// Whether new flows go to it while other endpoints exist.
    pub(super) fn is_ready(&self) -> bool {
        self.conditions.is_none_or(|text| text.contains("ready: true"))
    }

    pub(super) fn addr(&self, family: Family) -> IpAddr {
        self.addr.of(family)
    }

    /// An item of `endpoints:`.
    pub(super) fn line(&self, family: Family) -> String {
        let mut fields = vec![format!("addresses: [\"{}\"]", self.addr.of(family))];
        fields.extend(self.node.as_ref().map(|node| format!("nodeName: {node}")));
        fields.extend(self.conditions.map(|text| format!("conditions: {text}")));
        let named = |names: &[String]| {
            let items: Vec<_> = names.iter().map(|name| format!("{{name: {name}}}")).collect();
            format!("[{}]", items.join(", "))
        };
        let mut hints = Vec::new();
        if !self.zones.is_empty() {
            hints.push(format!("forZones: {}", named(&self.zones)));
        }
        if !self.nodes.is_empty() {
            hints.push(format!("forNodes: {}", named(&self.nodes)));
        }
        if !hints.is_empty() {
            fields.push(format!("hints: {{{}}}", hints.join(", ")));
        }
        format!("- {{{}}}\n", fields.join(", "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::plan::pod_addr;

    #[test]
    fn an_endpoint_is_a_line() {
        let endpoint = Endpoint::at(pod_addr(1, 2)).terminating().for_zones(&["a"]).for_nodes(&["n", "m"]);
        let want = "- {addresses: [\"172.20.1.2\"], conditions: {ready: false, serving: true, terminating: true}, \
                    hints: {forZones: [{name: a}], forNodes: [{name: n}, {name: m}]}}\n";
        assert_eq!(endpoint.line(Family::V4), want);
        let bare = Endpoint::at(pod_addr(1, 2)).without_conditions();
        assert_eq!(bare.line(Family::V6), "- {addresses: [\"fd00:172:20:1::2\"]}\n");
    }
}
