//! The endpoint controller: derives EndpointSlices from a Service's selector and the existing pods. Pure.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::{allocate::key, objects::PodSpec};
use crate::net::plan::{BOTH, Dual, Family};

/// A running pod that may be an endpoint.
#[derive(Clone, Debug)]
pub struct Candidate<'a> {
    pub namespace: &'a str,
    pub name: &'a str,
    pub labels: &'a BTreeMap<String, String>,
    pub spec: &'a PodSpec,
    pub addr: Dual,
    pub node: String,
}

/// The EndpointSlices of a Service with a selector, one per family; none for a Service without selector.
pub fn slices(service: &Value, pods: &[Candidate<'_>]) -> Vec<Value> {
    let Some(selector) = service["spec"]["selector"].as_object().filter(|selector| !selector.is_empty())
    else {
        return Vec::new();
    };
    let (namespace, name) = key(service);
    let selected: Vec<_> = pods
        .iter()
        .filter(|pod| {
            let has =
                |label: &String, want: &Value| pod.labels.get(label).map(String::as_str) == want.as_str();
            pod.namespace == namespace && selector.iter().all(|(label, want)| has(label, want))
        })
        .collect();
    let families = service["spec"]["ipFamilies"].as_array().cloned().unwrap_or_default();
    let of_family = |family| {
        let kind = match family {
            Family::V4 => "IPv4",
            Family::V6 => "IPv6",
        };
        families.iter().any(|wanted| wanted == kind).then(|| {
            json!({
                "apiVersion": "discovery.k8s.io/v1",
                "kind": "EndpointSlice",
                "metadata": {
                    "name": format!("{name}-{}", kind.to_lowercase()),
                    "namespace": namespace,
                    "labels": {"kubernetes.io/service-name": name},
                },
                "addressType": kind,
                "ports": ports(service, &selected),
                "endpoints": selected.iter().map(|pod| endpoint(pod, family)).collect::<Vec<_>>(),
            })
        })
    };
    BOTH.into_iter().filter_map(of_family).collect()
}

fn endpoint(pod: &Candidate<'_>, family: Family) -> Value {
    json!({
        "addresses": [pod.addr.of(family)],
        "conditions": {"ready": true, "serving": true, "terminating": false},
        "nodeName": pod.node,
        "targetRef": {"kind": "Pod", "namespace": pod.namespace, "name": pod.name},
    })
}

/// The Service's ports with target ports resolved: a name is looked up in the container ports. A port whose name no pod
/// has does not lead to an endpoint yet.
fn ports(service: &Value, pods: &[&Candidate<'_>]) -> Vec<Value> {
    let ports = service["spec"]["ports"].as_array().into_iter().flatten();
    ports
        .filter_map(|port| {
            let target = match &port["targetPort"] {
                Value::String(name) => {
                    let found = pods.iter().flat_map(|pod| pod.spec.ports()).find(|port| port.name == *name);
                    json!(found?.container_port)
                }
                Value::Number(number) => json!(number),
                _ => port["port"].clone(),
            };
            let protocol = port["protocol"].as_str().unwrap_or("TCP");
            Some(json!({"name": port["name"].as_str().unwrap_or_default(), "protocol": protocol, "port": target}))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::plan::pod_addr;

    fn service(spec: Value) -> Value {
        json!({"metadata": {"name": "web"}, "spec": spec})
    }

    #[test]
    fn selected_pods_become_endpoints_with_ports_resolved() {
        let spec: PodSpec = serde_json::from_value(
            json!({"containers": [{"ports": [{"name": "http", "containerPort": 8080}]}]}),
        )
        .unwrap();
        let (web, other) = (BTreeMap::from([("app".to_owned(), "web".to_owned())]), BTreeMap::new());
        let pod = |name, labels, host| Candidate {
            namespace: "default",
            name,
            labels,
            spec: &spec,
            addr: pod_addr(1, host),
            node: "node-2".to_owned(),
        };
        let pods = [pod("web-1", &web, 2), pod("other-1", &other, 3)];
        let slices = slices(
            &service(json!({
                "selector": {"app": "web"},
                "ipFamilies": ["IPv4", "IPv6"],
                "ports": [{"name": "a", "port": 80, "targetPort": "http"}, {"name": "b", "port": 81, "targetPort": "no"}],
            })),
            &pods,
        );
        assert_eq!(slices.len(), 2);
        assert_eq!(slices[0]["ports"], json!([{"name": "a", "protocol": "TCP", "port": 8080}]));
        let addresses: Vec<_> =
            slices.iter().map(|slice| slice["endpoints"][0]["addresses"][0].clone()).collect();
        assert_eq!(addresses, ["172.20.1.2", "fd00:172:20:1::2"]);
        assert_eq!(slices[0]["endpoints"].as_array().unwrap().len(), 1);
    }

    #[test]
    fn a_service_without_selector_is_not_ours() {
        assert!(slices(&service(json!({"ipFamilies": ["IPv4"], "ports": [{"port": 80}]})), &[]).is_empty());
    }
}
