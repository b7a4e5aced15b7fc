//! A Service with its EndpointSlices.

use std::{fmt::Write, net::IpAddr};

use super::{Endpoint, Front};
use crate::net::{
    Node, Pod,
    plan::{BOTH, Dual, Family},
};

/// A Service and its EndpointSlices, in namespace `default`.
#[derive(Clone, Debug)]
pub struct Service {
    name: String,
    kind: &'static str,
    vip: Option<Dual>,
    families: Vec<Family>,
    ports: Vec<ServicePort>,
    labels: Vec<String>,
    annotations: Vec<String>,
    slice_labels: Vec<String>,
    spec: Vec<String>,
    external_ips: Vec<IpAddr>,
    /// Items of `status.loadBalancer.ingress`, and those addresses that are served.
    ingress: Vec<String>,
    balancer_ips: Vec<IpAddr>,
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

impl Service {
    /// A dual-stack Service of type ClusterIP; its type changes with what is added.
    pub fn new(name: &str, vip: Dual) -> Self {
        Self {
            name: name.to_owned(),
            kind: "ClusterIP",
            vip: Some(vip),
            families: BOTH.to_vec(),
            ports: Vec::new(),
            labels: Vec::new(),
            annotations: Vec::new(),
            slice_labels: Vec::new(),
            spec: Vec::new(),
            external_ips: Vec::new(),
            ingress: Vec::new(),
            balancer_ips: Vec::new(),
            endpoints: Vec::new(),
        }
    }

    /// Single-stack: this family's ClusterIP only, and this family's EndpointSlices.
    pub fn only(self, family: Family) -> Self {
        Self { families: vec![family], ..self }
    }

    pub fn tcp(self, port: u16, target: u16) -> Self {
        self.port("TCP", port, target, None)
    }

    pub fn udp(self, port: u16, target: u16) -> Self {
        self.port("UDP", port, target, None)
    }

    pub fn sctp(self, port: u16, target: u16) -> Self {
        self.port("SCTP", port, target, None)
    }

    /// A port of both protocols with a NodePort on every node.
    pub fn node_port(self, port: u16, target: u16, node_port: u16) -> Self {
        self.tcp_node_port(port, target, node_port).udp_node_port(port, target, node_port)
    }

    pub fn tcp_node_port(self, port: u16, target: u16, node_port: u16) -> Self {
        self.port("TCP", port, target, Some(node_port)).at_least_node_port()
    }

    pub fn udp_node_port(self, port: u16, target: u16, node_port: u16) -> Self {
        self.port("UDP", port, target, Some(node_port)).at_least_node_port()
    }

    /// Type LoadBalancer with these addresses (ipMode absent, which means VIP).
    pub fn load_balancer(mut self, addr: Dual) -> Self {
        self.ingress.extend(BOTH.map(|family| format!("{{ip: \"{}\"}}", addr.of(family))));
        self.balancer_ips.extend(BOTH.map(|family| addr.of(family)));
        Self { kind: "LoadBalancer", ..self }
    }

    /// Type LoadBalancer, with addresses of this `ipMode`.
    pub fn load_balancer_mode(mut self, addr: Dual, mode: &str) -> Self {
        self.ingress.extend(BOTH.map(|family| format!("{{ip: \"{}\", ipMode: {mode}}}", addr.of(family))));
        Self { kind: "LoadBalancer", ..self }
    }

    /// Type ExternalName, whatever other fields it has.
    pub fn external_name(self, name: &str) -> Self {
        Self { kind: "ExternalName", ..self }.spec(&format!("externalName: {name}"))
    }

    /// `clusterIP: None`.
    pub fn headless(self) -> Self {
        Self { vip: None, ..self }.spec("clusterIP: None").spec("clusterIPs: [None]")
    }

    pub fn external_traffic_local(self) -> Self {
        self.spec("externalTrafficPolicy: Local")
    }

    pub fn internal_traffic_local(self) -> Self {
        self.spec("internalTrafficPolicy: Local")
    }

    pub fn external_ip(mut self, addr: IpAddr) -> Self {
        self.external_ips.push(addr);
        self
    }

    pub fn external_ips(self, addr: Dual) -> Self {
        BOTH.iter().fold(self, |service, family| service.external_ip(addr.of(*family)))
    }

    /// One more field of `spec`, as `key: value` in flow style.
    pub fn spec(mut self, field: &str) -> Self {
        self.spec.push(field.to_owned());
        self
    }

    /// A label of the Service, as `key: value`.
    pub fn label(mut self, label: &str) -> Self {
        self.labels.push(label.to_owned());
        self
    }

    /// An annotation of the Service, as `key: value`.
    pub fn annotation(mut self, annotation: &str) -> Self {
        self.annotations.push(annotation.to_owned());
        self
    }

    /// A label of its EndpointSlices, as `key: value`.
    pub fn slice_label(mut self, label: &str) -> Self {
        self.slice_labels.push(label.to_owned());
        self
    }

    /// Adds these pods as endpoints.
    pub fn pods(self, pods: &[&Pod]) -> Self {
        self.endpoints(pods.iter().map(|pod| Endpoint::pod(pod)))
    }

    /// Adds these nodes' own addresses as endpoints.
    pub fn nodes(self, nodes: &[&Node]) -> Self {
        self.endpoints(nodes.iter().map(|node| Endpoint::node(node)))
    }

    pub fn endpoints(mut self, endpoints: impl IntoIterator<Item = Endpoint>) -> Self {
        self.endpoints.extend(endpoints);
        self
    }

    /// A port; its name is the protocol's name and the port number, as in `tcp-80`.
    fn port(mut self, protocol: &'static str, port: u16, target: u16, node_port: Option<u16>) -> Self {
        let name = format!("{}-{port}", protocol.to_lowercase());
        self.ports.push(ServicePort { name, protocol, port, target, node_port });
        self
    }

    fn at_least_node_port(self) -> Self {
        let kind = if self.kind == "ClusterIP" { "NodePort" } else { self.kind };
        Self { kind, ..self }
    }

    /// Its frontends and their endpoints, in its families. Policies, hints and conditions other than ready are ignored.
    pub fn fronts(&self) -> Vec<Front> {
        let mut fronts = Vec::new();
        for (port, family) in self.ports.iter().flat_map(|port| BOTH.map(|family| (port, family))) {
            if !self.families.contains(&family) {
                continue;
            }
            let ready = self.endpoints.iter().filter(|endpoint| endpoint.is_ready());
            let front = |addr: IpAddr, number: u16, is_external: bool| Front {
                service: self.name.clone(),
                protocol: port.protocol.to_lowercase(),
                at: (addr, number).into(),
                is_external,
                backends: ready.clone().map(|endpoint| (endpoint.addr(family), port.target).into()).collect(),
            };
            fronts.extend(self.vip.map(|vip| front(vip.of(family), port.port, false)));
            let of_family = |addr: &&IpAddr| addr.is_ipv4() == (family == Family::V4);
            let external = self.external_ips.iter().chain(&self.balancer_ips).filter(of_family);
            fronts.extend(external.map(|addr| front(*addr, port.port, true)));
            fronts.extend(port.node_port.map(|number| front(family.unspecified(), number, true)));
        }
        fronts
    }

    /// The Service's document and one EndpointSlice per family.
    pub fn yaml(&self) -> String {
        let slices: Vec<_> = self.families.iter().map(|family| self.slice(*family, "")).collect();
        [self.document(), slices.join("---\n")].join("---\n")
    }

    /// The Service's document only.
    pub fn document(&self) -> String {
        let mut text = format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: {}, namespace: default, labels: {{{}}}, annotations: {{{}}}}}\nspec:\n  \
             type: {}\n",
            self.name,
            self.labels.join(", "),
            self.annotations.join(", "),
            self.kind
        );
        if let Some(vip) = self.vip {
            let ips: Vec<_> = self.families.iter().map(|family| format!("\"{}\"", vip.of(*family))).collect();
            let families: Vec<_> = self.families.iter().map(|family| kind(*family).1).collect();
            let policy = if families.len() == 2 { "RequireDualStack" } else { "SingleStack" };
            let _ = writeln!(
                text,
                "  clusterIP: {}\n  clusterIPs: [{}]\n  ipFamilies: [{}]\n  ipFamilyPolicy: {policy}",
                ips[0],
                ips.join(", "),
                families.join(", ")
            );
        }
        for field in &self.spec {
            let _ = writeln!(text, "  {field}");
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
        if !self.ingress.is_empty() {
            let _ = writeln!(text, "status: {{loadBalancer: {{ingress: [{}]}}}}", self.ingress.join(", "));
        }
        text
    }

    /// One EndpointSlice, `NAME-FAMILY` and `suffix`, with all endpoints and their ports.
    pub fn slice(&self, family: Family, suffix: &str) -> String {
        let (short, kind) = kind(family);
        let own = format!("kubernetes.io/service-name: {}", self.name);
        let labels: Vec<_> = [&own].into_iter().chain(&self.slice_labels).map(String::as_str).collect();
        let mut text = format!(
            "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata:\n  name: {name}-{short}{suffix}\n  \
             namespace: default\n  labels: {{{}}}\naddressType: {kind}\nports:\n",
            labels.join(", "),
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
            text += &endpoint.line(family);
        }
        text
    }
}

/// The family's name in object names and in the API.
fn kind(family: Family) -> (&'static str, &'static str) {
    match family {
        Family::V4 => ("v4", "IPv4"),
        Family::V6 => ("v6", "IPv6"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::plan::{external, vip};

    #[test]
    fn a_service_is_three_documents() {
        let text = Service::new("web", vip(10)).node_port(80, 8080, 30080).external_traffic_local().yaml();
        assert_eq!(text.matches("---\n").count(), 2);
        assert!(text.contains("clusterIPs: [\"10.68.0.10\", \"fd00:10:68::a\"]"), "{text}");
        assert!(
            text.contains("{name: udp-80, protocol: UDP, port: 80, targetPort: 8080, nodePort: 30080}"),
            "{text}"
        );
        assert!(text.contains("externalTrafficPolicy: Local"), "{text}");
        assert!(text.contains("type: NodePort"), "{text}");
        assert!(text.contains("endpoints: []"), "{text}");
    }

    #[test]
    fn a_load_balancer_has_its_addresses_in_its_status() {
        let text =
            Service::new("web", vip(10)).load_balancer(external(7)).tcp_node_port(80, 8080, 30080).yaml();
        assert!(text.contains("type: LoadBalancer"), "{text}");
        let status = "status: {loadBalancer: {ingress: [{ip: \"203.0.113.7\"}, {ip: \"2001:db8::7\"}]}}";
        assert!(text.contains(status), "{text}");
    }
}
