//! v1 Node.

use serde::Deserialize;

use super::{
    field_error::FieldError,
    meta::ObjectMeta,
    validate::{ip, range, subdomain},
};
use crate::model::Node;

#[derive(Debug, Deserialize)]
pub struct NodeDoc {
    #[serde(default)]
    metadata: ObjectMeta,
    spec: Option<Spec>,
    status: Option<Status>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Spec {
    #[serde(rename = "podCIDR")]
    pod_cidr: Option<String>,
    #[serde(rename = "podCIDRs")]
    pod_cidrs: Option<Vec<String>>,
    taints: Option<Vec<Taint>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Taint {
    key: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Status {
    addresses: Option<Vec<Address>>,
}

#[derive(Debug, Deserialize)]
struct Address {
    r#type: String,
    address: String,
}

const ZONE: &str = "topology.kubernetes.io/zone";
/// The cluster autoscaler's taint on a node that it is about to delete.
const TO_BE_DELETED: &str = "ToBeDeletedByClusterAutoscaler";

pub fn convert(doc: NodeDoc) -> Result<Node, FieldError> {
    let name = doc.metadata.name()?;
    subdomain("metadata.name", name)?;
    let mut node = Node {
        name: name.into(),
        zone: doc.metadata.label(ZONE).filter(|zone| !zone.is_empty()).map(Into::into),
        ..Node::default()
    };
    let spec = doc.spec.unwrap_or_default();
    let is_marked = |taint: &Taint| taint.key.as_deref() == Some(TO_BE_DELETED);
    node.leaving = doc.metadata.is_being_deleted() || spec.taints.iter().flatten().any(is_marked);
    let several = spec.pod_cidrs.unwrap_or_default();
    for (i, text) in several.iter().enumerate() {
        node.pod_cidrs.push(range(&format!("spec.podCIDRs[{i}]"), text)?);
    }
    if let Some(text) = spec.pod_cidr.filter(|text| several.is_empty() && !text.is_empty()) {
        node.pod_cidrs.push(range("spec.podCIDR", &text)?);
    }
    let addresses = doc.status.unwrap_or_default().addresses.unwrap_or_default();
    for (i, address) in addresses.iter().enumerate() {
        match address.r#type.as_str() {
            "InternalIP" => {
                node.internal_ips.push(ip(&format!("status.addresses[{i}].address"), &address.address)?);
            }
            // Hostnames and DNS names are listed here too.
            _ => node.other_ips.extend(address.address.parse::<std::net::IpAddr>()),
        }
    }
    Ok(node)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn addresses_ranges_and_zone() {
        let doc = json!({
            "metadata": {"name": "n1.example", "labels": {"topology.kubernetes.io/zone": "a"}},
            "spec": {"podCIDR": "172.20.1.0/24", "podCIDRs": ["172.20.1.0/24", "fd00:20::/64"]},
            "status": {"addresses": [
                {"type": "InternalIP", "address": "192.168.8.201"}, {"type": "Hostname", "address": "n1"},
                {"type": "ExternalIP", "address": "203.0.113.1"}]},
        });
        let node = super::super::parse::read(doc).and_then(convert).unwrap();
        assert_eq!(node.zone.as_deref(), Some("a"));
        assert_eq!(node.internal_ips, ["192.168.8.201".parse::<std::net::IpAddr>().unwrap()]);
        assert_eq!(node.other_ips, ["203.0.113.1".parse::<std::net::IpAddr>().unwrap()]);
        assert_eq!(node.pod_cidrs.len(), 2);
        assert!(!node.leaving);
    }

    #[test]
    fn nodes_that_are_leaving() {
        let leaving = |metadata, spec| {
            let doc = json!({"metadata": metadata, "spec": spec});
            super::super::parse::read(doc).and_then(convert).unwrap().leaving
        };
        let taint = |key: &str| json!({"taints": [{"key": "other"}, {"key": key, "effect": "NoSchedule"}]});
        assert!(leaving(json!({"name": "n"}), taint("ToBeDeletedByClusterAutoscaler")));
        assert!(!leaving(json!({"name": "n"}), taint("node.kubernetes.io/unschedulable")));
        assert!(leaving(json!({"name": "n", "deletionTimestamp": "2026-01-01T00:00:00Z"}), json!({})));
        assert!(!leaving(json!({"name": "n", "deletionTimestamp": null}), json!({"taints": null})));
    }
}
