//! v1 Service.

use std::{collections::BTreeMap, net::IpAddr};

use serde::{Deserialize, de::IgnoredAny};

use super::{
    field_error::{FieldError, Reason},
    meta::ObjectMeta,
    validate::{field, ip, label, port, protocol, range, vip},
};
use crate::model::{Family, Service, ServicePort, ServiceType, SourceRanges, TargetPort, TrafficPolicy};

#[derive(Debug, Deserialize)]
pub struct ServiceDoc {
    #[serde(default)]
    metadata: ObjectMeta,
    spec: Option<Spec>,
    status: Option<Status>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Spec {
    r#type: Option<String>,
    #[serde(rename = "clusterIP")]
    cluster_ip: Option<String>,
    #[serde(rename = "clusterIPs")]
    cluster_ips: Option<Vec<String>>,
    ports: Option<Vec<Port>>,
    selector: Option<BTreeMap<String, IgnoredAny>>,
    internal_traffic_policy: Option<String>,
    external_traffic_policy: Option<String>,
    session_affinity: Option<String>,
    session_affinity_config: Option<AffinityConfig>,
    #[serde(rename = "externalIPs")]
    external_ips: Option<Vec<String>>,
    load_balancer_source_ranges: Option<Vec<String>>,
    health_check_node_port: Option<i64>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Port {
    name: Option<String>,
    protocol: Option<String>,
    port: Option<i64>,
    target_port: Option<IntOrString>,
    node_port: Option<i64>,
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum IntOrString {
    Int(i64),
    String(String),
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct AffinityConfig {
    #[serde(rename = "clientIP")]
    client_ip: Option<ClientIp>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct ClientIp {
    timeout_seconds: Option<i64>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Status {
    load_balancer: Option<LoadBalancer>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct LoadBalancer {
    ingress: Option<Vec<Ingress>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Ingress {
    ip: Option<String>,
    ip_mode: Option<String>,
}

/// Services with this label are served by another proxy.
const PROXY_NAME: &str = "service.kubernetes.io/service-proxy-name";
/// Clients that the Service's NodePorts accept, separated by commas.
const NODE_PORT_RANGES: &str = "shunt.dev/nodeport-source-ranges";
/// The API's default for `sessionAffinityConfig.clientIP.timeoutSeconds`.
const AFFINITY_SECONDS: i64 = 10800;

pub fn convert(doc: ServiceDoc) -> Result<Service, FieldError> {
    let key = doc.metadata.key(true)?;
    let spec = doc.spec.unwrap_or_default();
    let kind = service_type(spec.r#type.as_deref())?;
    let (cluster_ips, headless) = cluster_ips(&spec)?;
    let ports = ports(&spec, kind, headless)?;
    let external_ips = vips("spec.externalIPs", spec.external_ips.iter().flatten())?;
    let ranges = source_ranges(spec.load_balancer_source_ranges.iter().flatten().map(String::as_str));
    let node_port_ranges =
        doc.metadata.annotation(NODE_PORT_RANGES).unwrap_or_default().split(',').map(str::trim);
    Ok(Service {
        key,
        uid: doc.metadata.uid.as_deref().filter(|uid| !uid.is_empty()).map(Into::into),
        created: doc.metadata.creation_timestamp.as_deref().filter(|t| !t.is_empty()).map(Into::into),
        kind,
        cluster_ips,
        headless,
        has_selector: spec.selector.as_ref().is_some_and(|selector| !selector.is_empty()),
        other_proxy: doc.metadata.label(PROXY_NAME).is_some(),
        ports,
        internal_policy: policy("spec.internalTrafficPolicy", spec.internal_traffic_policy.as_deref())?,
        external_policy: policy("spec.externalTrafficPolicy", spec.external_traffic_policy.as_deref())?,
        affinity_seconds: affinity(&spec)?,
        external_ips,
        load_balancer_ips: load_balancer_ips(doc.status.as_ref())?,
        source_ranges: ranges.readable,
        unreadable_ranges: ranges.unreadable,
        node_port_ranges: source_ranges(node_port_ranges.filter(|text| !text.is_empty())),
        health_check_node_port: health_check_node_port(&spec)?,
    })
}

fn service_type(name: Option<&str>) -> Result<ServiceType, FieldError> {
    Ok(match name {
        None | Some("" | "ClusterIP") => ServiceType::ClusterIp,
        Some("NodePort") => ServiceType::NodePort,
        Some("LoadBalancer") => ServiceType::LoadBalancer,
        Some("ExternalName") => ServiceType::ExternalName,
        Some(value) => {
            let allowed = "ClusterIP, NodePort, LoadBalancer, ExternalName";
            return Err(field("spec.type", Reason::NotOneOf { value: value.into(), allowed }));
        }
    })
}

/// The Service's addresses, and whether it is headless.
fn cluster_ips(spec: &Spec) -> Result<(Vec<IpAddr>, bool), FieldError> {
    let single = spec.cluster_ip.as_deref().filter(|ip| !ip.is_empty());
    let several: Vec<&str> = spec.cluster_ips.iter().flatten().map(String::as_str).collect();
    if let (Some(single), Some(first)) = (single, several.first())
        && single != *first
    {
        return Err(field("spec.clusterIPs[0]", Reason::Differs("spec.clusterIP")));
    }
    let is_none = |ip: &str| ip == "None";
    if single.is_some_and(is_none) || several.first().is_some_and(|ip| is_none(ip)) {
        return Ok((Vec::new(), true));
    }
    let texts: Vec<(String, &str)> = if several.is_empty() {
        single.map(|ip| ("spec.clusterIP".to_owned(), ip)).into_iter().collect()
    } else {
        several.iter().enumerate().map(|(i, ip)| (format!("spec.clusterIPs[{i}]"), *ip)).collect()
    };
    let mut found: Vec<IpAddr> = Vec::new();
    for (path, text) in texts {
        let address = vip(&path, text)?;
        if found.iter().any(|other| Family::from(*other) == Family::from(address)) {
            return Err(field(path, Reason::SameFamily));
        }
        found.push(address);
    }
    Ok((found, false))
}

fn ports(spec: &Spec, kind: ServiceType, headless: bool) -> Result<Vec<ServicePort>, FieldError> {
    let docs = spec.ports.as_deref().unwrap_or_default();
    if docs.is_empty() && !headless && kind != ServiceType::ExternalName {
        return Err(field("spec.ports", Reason::Required));
    }
    let mut ports: Vec<ServicePort> = Vec::new();
    for (i, doc) in docs.iter().enumerate() {
        let path = |name: &str| format!("spec.ports[{i}].{name}");
        let new = service_port(doc, kind, docs.len() > 1, &path)?;
        for (j, other) in ports.iter().enumerate() {
            let same = |name: &str| Reason::Duplicate(format!("spec.ports[{j}].{name}"));
            if new.name == other.name {
                return Err(field(path("name"), same("name")));
            }
            if new.protocol == other.protocol && new.port == other.port {
                return Err(field(path("port"), same("port")));
            }
            let one_node_port = new.node_port.is_some() && new.node_port == other.node_port;
            if new.protocol == other.protocol && one_node_port {
                return Err(field(path("nodePort"), same("nodePort")));
            }
        }
        ports.push(new);
    }
    Ok(ports)
}

fn service_port(
    doc: &Port,
    kind: ServiceType,
    needs_name: bool,
    path: &impl Fn(&str) -> String,
) -> Result<ServicePort, FieldError> {
    let name = doc.name.as_deref().unwrap_or_default();
    if !name.is_empty() {
        label(&path("name"), name)?;
    } else if needs_name {
        return Err(field(path("name"), Reason::Required));
    }
    let number = doc.port.ok_or_else(|| field(path("port"), Reason::Required))?;
    let number = port(&path("port"), number)?;
    let target_port = match &doc.target_port {
        None | Some(IntOrString::Int(0)) => TargetPort::Number(number),
        Some(IntOrString::Int(target)) => TargetPort::Number(port(&path("targetPort"), *target)?),
        Some(IntOrString::String(text)) if text.is_empty() => TargetPort::Number(number),
        // `targetPort: "8080"` looks like a number but is a name to the API, which refuses it.
        Some(IntOrString::String(text)) => match text.parse() {
            Ok(target) => TargetPort::Number(port(&path("targetPort"), target)?),
            Err(_) => TargetPort::Name(text.as_str().into()),
        },
    };
    let node_port = match doc.node_port {
        None | Some(0) => None,
        Some(_) if kind == ServiceType::ClusterIp => {
            return Err(field(path("nodePort"), Reason::NotAllowed("spec.type is ClusterIP")));
        }
        // Left over from another Service type: the API keeps it without effect.
        Some(_) if kind == ServiceType::ExternalName => None,
        Some(number) => Some(port(&path("nodePort"), number)?),
    };
    Ok(ServicePort {
        name: name.into(),
        protocol: protocol(&path("protocol"), doc.protocol.as_deref())?,
        port: number,
        target_port,
        node_port,
    })
}

fn policy(path: &str, name: Option<&str>) -> Result<TrafficPolicy, FieldError> {
    match name {
        None | Some("" | "Cluster") => Ok(TrafficPolicy::Cluster),
        Some("Local") => Ok(TrafficPolicy::Local),
        Some(value) => Err(field(path, Reason::NotOneOf { value: value.into(), allowed: "Cluster, Local" })),
    }
}

fn affinity(spec: &Spec) -> Result<Option<u32>, FieldError> {
    match spec.session_affinity.as_deref() {
        None | Some("" | "None") => return Ok(None),
        Some("ClientIP") => {}
        Some(value) => {
            let reason = Reason::NotOneOf { value: value.into(), allowed: "None, ClientIP" };
            return Err(field("spec.sessionAffinity", reason));
        }
    }
    let config = spec.session_affinity_config.as_ref().and_then(|config| config.client_ip.as_ref());
    let value = config.and_then(|client_ip| client_ip.timeout_seconds).unwrap_or(AFFINITY_SECONDS);
    let (min, max) = (1, 86400);
    if !(min..=max).contains(&value) {
        let path = "spec.sessionAffinityConfig.clientIP.timeoutSeconds";
        return Err(field(path, Reason::OutOfRange { value, min, max }));
    }
    Ok(u32::try_from(value).ok())
}

fn vips<'a>(path: &str, texts: impl Iterator<Item = &'a String>) -> Result<Vec<IpAddr>, FieldError> {
    texts.enumerate().map(|(i, text)| vip(&format!("{path}[{i}]"), text)).collect()
}

/// Addresses with ipMode VIP (the default); traffic to other addresses arrives through the load balancer.
fn load_balancer_ips(status: Option<&Status>) -> Result<Vec<IpAddr>, FieldError> {
    let ingress = status.and_then(|status| status.load_balancer.as_ref()?.ingress.as_ref());
    let mut found = Vec::new();
    for (i, ingress) in ingress.into_iter().flatten().enumerate() {
        let path = |name: &str| format!("status.loadBalancer.ingress[{i}].{name}");
        let Some(text) = ingress.ip.as_deref().filter(|ip| !ip.is_empty()) else { continue };
        match ingress.ip_mode.as_deref() {
            None | Some("" | "VIP") => found.push(vip(&path("ip"), text)?),
            Some("Proxy") => drop(ip(&path("ip"), text)?),
            Some(value) => {
                let reason = Reason::NotOneOf { value: value.into(), allowed: "VIP, Proxy" };
                return Err(field(path("ipMode"), reason));
            }
        }
    }
    Ok(found)
}

/// Older API servers accepted invalid entries: one of them is no reason to refuse the Service.
fn source_ranges<'a>(texts: impl Iterator<Item = &'a str>) -> SourceRanges {
    let mut found = SourceRanges::default();
    for text in texts {
        match range("", text) {
            Ok(range) => found.readable.push(range),
            Err(_) => found.unreadable.push(text.into()),
        }
    }
    found
}

fn health_check_node_port(spec: &Spec) -> Result<Option<u16>, FieldError> {
    let number = spec.health_check_node_port.filter(|number| *number != 0);
    number.map(|number| port("spec.healthCheckNodePort", number)).transpose()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use ipnet::IpNet;
    use serde_json::{Value, json};

    use super::*;

    fn read(spec: Value) -> Result<Service, FieldError> {
        super::super::parse::read(json!({"metadata": {"name": "web"}, "spec": spec})).and_then(convert)
    }

    fn refusal(spec: Value) -> String {
        read(spec).unwrap_err().to_string()
    }

    #[test]
    fn defaults_are_filled_in() {
        let service = read(json!({
            "clusterIP": "10.68.0.1", "externalTrafficPolicy": "", "sessionAffinity": "ClientIP",
            "ports": [{"port": 80}],
        }))
        .unwrap();
        assert_eq!(service.key.to_string(), "default/web");
        assert_eq!(service.ports[0].protocol.name(), "TCP");
        assert_eq!(service.ports[0].target_port, TargetPort::Number(80));
        assert_eq!(service.external_policy, TrafficPolicy::Cluster);
        assert_eq!(service.affinity_seconds, Some(10800));
        assert!(service.is_served() && !service.has_selector);
    }

    #[test]
    fn headless_external_and_unaddressed_services_are_not_served() {
        assert!(!read(json!({"clusterIP": "None"})).unwrap().is_served());
        assert!(!read(json!({"type": "ExternalName", "externalName": "x"})).unwrap().is_served());
        let was_node_port = json!({"type": "ExternalName", "externalName": "x", "clusterIP": "10.68.0.1",
            "ports": [{"port": 80, "nodePort": 30080}]});
        assert!(!read(was_node_port).unwrap().is_served());
        assert!(!read(json!({"ports": [{"port": 80}]})).unwrap().is_served());
    }

    #[test]
    fn wrong_fields_are_named() {
        let port = |port: Value| json!({"clusterIP": "10.68.0.1", "ports": [port]});
        for (spec, want) in [
            (port(json!({"port": 70000})), "spec.ports[0].port: 70000 is not a port number (1 to 65535)"),
            (port(json!({})), "spec.ports[0].port: required"),
            (
                port(json!({"port": 80, "protocol": "tcp"})),
                "spec.ports[0].protocol: \"tcp\" is not one of TCP, UDP, SCTP",
            ),
            (
                port(json!({"port": 80, "nodePort": 30000})),
                "spec.ports[0].nodePort: not allowed when spec.type is ClusterIP",
            ),
            (
                port(json!({"port": "eighty"})),
                "spec.ports[0].port: invalid type: string \"eighty\", expected i64",
            ),
            (
                json!({"clusterIP": "10.68.0.1", "ports": [
                    {"name": "a", "port": 80}, {"name": "b", "port": 80}]}),
                "spec.ports[1].port: same as spec.ports[0].port",
            ),
            (
                json!({"clusterIP": "10.68.0.1", "ports": [{"name": "a", "port": 80}, {"port": 81}]}),
                "spec.ports[1].name: required",
            ),
            (
                json!({"clusterIP": "10.68.0", "ports": [{"port": 80}]}),
                "spec.clusterIP: \"10.68.0\" is not an IP address",
            ),
            (
                json!({"clusterIPs": ["10.68.0.1", "10.68.0.2"], "ports": [{"port": 80}]}),
                "spec.clusterIPs[1]: two addresses of one family",
            ),
            (
                json!({"clusterIP": "10.68.0.1", "externalIPs": ["127.0.0.1"], "ports": [{"port": 80}]}),
                "spec.externalIPs[0]: 127.0.0.1 is a loopback address",
            ),
            (
                json!({"clusterIP": "10.68.0.1", "internalTrafficPolicy": "local", "ports": [{"port": 80}]}),
                "spec.internalTrafficPolicy: \"local\" is not one of Cluster, Local",
            ),
            (json!({"clusterIP": "10.68.0.1"}), "spec.ports: required"),
        ] {
            assert_eq!(refusal(spec), want);
        }
    }

    #[test]
    fn one_number_may_serve_two_protocols() {
        let twins = json!({"clusterIP": "10.68.0.1", "ports": [
            {"name": "tcp", "port": 53}, {"name": "udp", "port": 53, "protocol": "UDP"}]});
        assert_eq!(read(twins).unwrap().ports.len(), 2);
    }

    #[test]
    fn source_ranges_are_trimmed_and_those_nobody_can_read_are_kept_apart() {
        let service = read(json!({"clusterIP": "10.68.0.1", "ports": [{"port": 80}],
            "loadBalancerSourceRanges": [" 10.1.2.3/8\t", "10.1.2.3", "fd00::/8", "10.0.0.0/33"]}))
        .unwrap();
        let ranges: Vec<_> = service.source_ranges.iter().map(ToString::to_string).collect();
        assert_eq!(ranges, ["10.0.0.0/8", "fd00::/8"]);
        assert_eq!(service.unreadable_ranges, ["10.1.2.3".into(), Arc::from("10.0.0.0/33")]);
    }

    #[test]
    fn the_annotation_of_node_ports_is_a_list() {
        let of = |text: Value| {
            let doc = json!({"metadata": {"name": "web", "annotations": {NODE_PORT_RANGES: text}},
                "spec": {"type": "NodePort", "clusterIP": "10.68.0.1", "ports": [{"port": 80}]}});
            super::super::parse::read(doc).and_then(convert).unwrap().node_port_ranges
        };
        let ranges = of(json!("10.1.2.3/8, fd00::/8,\n10.1.2.3,"));
        assert_eq!(ranges.readable, ["10.0.0.0/8".parse::<IpNet>().unwrap(), "fd00::/8".parse().unwrap()]);
        assert_eq!(ranges.unreadable, [Arc::from("10.1.2.3")]);
        assert_eq!(of(json!("")), SourceRanges::default());
        assert_eq!(of(Value::Null), SourceRanges::default());
    }

    #[test]
    fn load_balancers_that_proxy_are_not_captured() {
        let doc = json!({
            "metadata": {"name": "web"}, "spec": {"ports": [{"port": 80}]},
            "status": {"loadBalancer": {"ingress": [
                {"ip": "10.1.1.1"}, {"ip": "169.254.1.2", "ipMode": "Proxy"}, {"hostname": "x"}]}},
        });
        let service = super::super::parse::read(doc).and_then(convert).unwrap();
        assert_eq!(service.load_balancer_ips, ["10.1.1.1".parse::<IpAddr>().unwrap()]);
    }
}
