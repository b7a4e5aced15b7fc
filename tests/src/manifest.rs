//! Manifests of the kinds the files source reads, as text.

use std::fmt::Write;

use crate::net::{
    Node, Pod,
    plan::{BOTH, Dual, Family, pod_addr},
};

/// A Node: its addresses and its pod ranges.
pub fn node(node: &Node) -> String {
    let (addr, range) = (node.addr(), pod_addr(node.index(), 0));
    format!(
        "apiVersion: v1\nkind: Node\nmetadata:\n  name: {name}\n  labels:\n    kubernetes.io/hostname: {name}\n\
         spec:\n  podCIDR: {v4}/24\n  podCIDRs: [\"{v4}/24\", \"{v6}/64\"]\n\
         status:\n  addresses:\n  - {{type: InternalIP, address: {}}}\n  - {{type: InternalIP, address: \"{}\"}}\n  \
         - {{type: Hostname, address: {name}}}\n",
        addr.v4,
        addr.v6,
        name = node.name(),
        v4 = range.v4,
        v6 = range.v6,
    )
}

/// A Service to be written, with its EndpointSlices.
#[derive(Clone, Debug)]
pub struct Service {
    name: String,
    vip: Option<Dual>,
    ports: Vec<ServicePort>,
    node_port: bool,
    external_local: bool,
    internal_local: bool,
    external_ips: Vec<std::net::IpAddr>,
    endpoints: Vec<Endpoint>,
}

#[derive(Clone, Debug)]
struct ServicePort {
    name: String,
    protocol: &'static str,
    port: u16,
    target: u16,
    node_port: Option<u16>,
}

/// One endpoint, in both families.
#[derive(Clone, Debug)]
struct Endpoint {
    addr: Dual,
    node: String,
    ready: bool,
}

impl Service {
    /// A dual-stack Service in namespace `default`.
    pub fn new(name: &str, vip: Dual) -> Self {
        Self {
            name: name.to_owned(),
            vip: Some(vip),
            ports: Vec::new(),
            node_port: false,
            external_local: false,
            internal_local: false,
            external_ips: Vec::new(),
            endpoints: Vec::new(),
        }
    }

    pub fn tcp(self, port: u16, target: u16) -> Self {
        self.port("TCP", port, target, None)
    }

    pub fn udp(self, port: u16, target: u16) -> Self {
        self.port("UDP", port, target, None)
    }

    /// A port of both protocols that every node answers on, too.
    pub fn node_port(self, port: u16, target: u16, node_port: u16) -> Self {
        let service =
            self.port("TCP", port, target, Some(node_port)).port("UDP", port, target, Some(node_port));
        Self { node_port: true, ..service }
    }

    pub fn external_traffic_local(self) -> Self {
        Self { external_local: true, ..self }
    }

    pub fn internal_traffic_local(self) -> Self {
        Self { internal_local: true, ..self }
    }

    pub fn external_ip(mut self, addr: std::net::IpAddr) -> Self {
        self.external_ips.push(addr);
        self
    }

    /// Sends to these pods, too.
    pub fn pods(mut self, pods: &[&Pod]) -> Self {
        self.endpoints.extend(pods.iter().map(|pod| Endpoint {
            addr: pod.addr(),
            node: format!("node-{}", pod.node() + 1),
            ready: true,
        }));
        self
    }

    /// Sends to these nodes' own addresses, too.
    pub fn nodes(mut self, nodes: &[&Node]) -> Self {
        self.endpoints.extend(nodes.iter().map(|node| Endpoint {
            addr: node.addr(),
            node: node.name().to_owned(),
            ready: true,
        }));
        self
    }

    fn port(mut self, protocol: &'static str, port: u16, target: u16, node_port: Option<u16>) -> Self {
        let name = format!("{}-{port}", protocol.to_lowercase());
        self.ports.push(ServicePort { name, protocol, port, target, node_port });
        self
    }

    /// The Service's document and one EndpointSlice for each family.
    pub fn yaml(&self) -> String {
        let mut text = self.document();
        for family in BOTH {
            text += "---\n";
            text += &self.slice(family);
        }
        text
    }

    fn document(&self) -> String {
        let mut text = format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: {}, namespace: default}}\nspec:\n  type: {}\n",
            self.name,
            if self.node_port { "NodePort" } else { "ClusterIP" }
        );
        if let Some(Dual { v4, v6 }) = self.vip {
            let _ = writeln!(
                text,
                "  clusterIP: {v4}\n  clusterIPs: [{v4}, \"{v6}\"]\n  ipFamilies: [IPv4, IPv6]\n  \
                 ipFamilyPolicy: RequireDualStack"
            );
        }
        if self.external_local {
            text += "  externalTrafficPolicy: Local\n";
        }
        if self.internal_local {
            text += "  internalTrafficPolicy: Local\n";
        }
        if !self.external_ips.is_empty() {
            let list: Vec<_> = self.external_ips.iter().map(|addr| format!("\"{addr}\"")).collect();
            let _ = writeln!(text, "  externalIPs: [{}]", list.join(", "));
        }
        text += "  ports:\n";
        for port in &self.ports {
            let node_port = port.node_port.map(|port| format!(", nodePort: {port}")).unwrap_or_default();
            let _ = writeln!(
                text,
                "  - {{name: {}, protocol: {}, port: {}, targetPort: {}{node_port}}}",
                port.name, port.protocol, port.port, port.target
            );
        }
        text
    }

    fn slice(&self, family: Family) -> String {
        let (suffix, kind) = match family {
            Family::V4 => ("v4", "IPv4"),
            Family::V6 => ("v6", "IPv6"),
        };
        let mut text = format!(
            "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata:\n  name: {name}-{suffix}\n  \
             namespace: default\n  labels: {{kubernetes.io/service-name: {name}}}\naddressType: {kind}\nports:\n",
            name = self.name
        );
        for port in &self.ports {
            let _ = writeln!(
                text,
                "- {{name: {}, protocol: {}, port: {}}}",
                port.name, port.protocol, port.target
            );
        }
        if self.endpoints.is_empty() {
            text += "endpoints: []\n";
        } else {
            text += "endpoints:\n";
        }
        for endpoint in &self.endpoints {
            let _ = writeln!(
                text,
                "- {{addresses: [\"{}\"], nodeName: {}, conditions: {{ready: {}}}}}",
                endpoint.addr.of(family),
                endpoint.node,
                endpoint.ready
            );
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::plan::vip;

    #[test]
    fn a_service_is_three_documents() {
        let text = Service::new("web", vip(10)).node_port(80, 8080, 30080).external_traffic_local().yaml();
        assert_eq!(text.matches("---\n").count(), 2);
        assert!(text.contains("clusterIPs: [10.68.0.10, \"fd00:10:68::a\"]"), "{text}");
        assert!(
            text.contains("{name: udp-80, protocol: UDP, port: 80, targetPort: 8080, nodePort: 30080}"),
            "{text}"
        );
        assert!(text.contains("externalTrafficPolicy: Local"), "{text}");
        assert!(text.contains("endpoints: []"), "{text}");
    }
}
