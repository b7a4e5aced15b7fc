//! v1 Endpoints, and how they become slices: a proxy reads slices only, and the cluster's
//! EndpointSliceMirroring controller makes slices of Endpoints written by hand. Files have no such controller.

use serde::Deserialize;

use super::{
    endpoint_slice::{PortDoc, ports},
    field_error::FieldError,
    meta::ObjectMeta,
    validate::ip,
};
use crate::model::{EndpointSlice, Family, ObjectKey, Service, SliceEndpoint, SlicePort};

/// An Endpoints object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoints {
    pub key: ObjectKey,
    /// It must not be mirrored: labelled so, or a leader election record.
    pub skip_mirror: bool,
    pub subsets: Vec<Subset>,
}

/// Addresses that listen on the same ports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Subset {
    pub endpoints: Vec<SliceEndpoint>,
    pub ports: Vec<SlicePort>,
}

#[derive(Debug, Deserialize)]
pub struct EndpointsDoc {
    #[serde(default)]
    metadata: ObjectMeta,
    subsets: Option<Vec<SubsetDoc>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct SubsetDoc {
    addresses: Option<Vec<AddressDoc>>,
    not_ready_addresses: Option<Vec<AddressDoc>>,
    ports: Option<Vec<PortDoc>>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct AddressDoc {
    ip: String,
    node_name: Option<String>,
}

const SKIP_MIRROR: &str = "endpointslice.kubernetes.io/skip-mirror";
/// Endpoints that carry this annotation are a lock, not addresses.
const LEADER: &str = "control-plane.alpha.kubernetes.io/leader";

pub fn convert(doc: EndpointsDoc) -> Result<Endpoints, FieldError> {
    let key = doc.metadata.key(true)?;
    let is_lock = doc.metadata.annotation(LEADER).is_some();
    let skip_mirror = doc.metadata.is_true(SKIP_MIRROR) || is_lock;
    let mut subsets = Vec::new();
    for (i, subset) in doc.subsets.unwrap_or_default().into_iter().enumerate() {
        let ports = ports(&format!("subsets[{i}].ports"), subset.ports.as_deref().unwrap_or_default())?;
        let mut endpoints = Vec::new();
        for (name, list, ready) in
            [("addresses", subset.addresses, true), ("notReadyAddresses", subset.not_ready_addresses, false)]
        {
            for (j, address) in list.unwrap_or_default().into_iter().enumerate() {
                endpoints.push(SliceEndpoint {
                    address: ip(&format!("subsets[{i}].{name}[{j}].ip"), &address.ip)?,
                    ready,
                    serving: true,
                    terminating: false,
                    node: address.node_name.filter(|name| !name.is_empty()).map(Into::into),
                    hints: None,
                });
            }
        }
        subsets.push(Subset { endpoints, ports });
    }
    Ok(Endpoints { key, skip_mirror, subsets })
}

impl Endpoints {
    /// The slices mirrored from it, one per subset and family. `service` is the Service of the same name; none if that
    /// has a selector: then the slices are made from pods.
    pub fn mirror(&self, service: Option<&Service>) -> Vec<EndpointSlice> {
        if self.skip_mirror || service.is_none_or(|service| service.has_selector) {
            return Vec::new();
        }
        let mut slices = Vec::new();
        for (i, subset) in self.subsets.iter().enumerate() {
            for family in Family::BOTH {
                let in_family = subset.endpoints.iter().filter(|e| Family::from(e.address) == family);
                let endpoints: Vec<_> = in_family.cloned().collect();
                if endpoints.is_empty() {
                    continue;
                }
                // The name of a real slice cannot contain a slash.
                let name = format!("endpoints/{}/{i}/IPv{}", self.key.name, family.number());
                slices.push(EndpointSlice {
                    key: ObjectKey::new(self.key.namespace.clone(), name),
                    service: Some(self.key.clone()),
                    ports: subset.ports.clone(),
                    endpoints,
                    trigger: None,
                });
            }
        }
        slices
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn read(doc: Value) -> Result<Endpoints, FieldError> {
        super::super::parse::read(doc).and_then(convert)
    }

    fn service(selector: Value) -> Service {
        let doc = json!({"kind": "Service", "apiVersion": "v1", "metadata": {"name": "mysvc"},
            "spec": {"clusterIP": "10.68.0.9", "ports": [{"port": 80}], "selector": selector}});
        match super::super::decode(doc).remove(0).result {
            Ok(super::super::Object::Service(service)) => service,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn mirrored_by_subset_and_family() {
        let endpoints = read(json!({"metadata": {"name": "mysvc"}, "subsets": [{
            "addresses": [{"ip": "192.168.8.202", "nodeName": "n2"}, {"ip": "fd00::2"}],
            "notReadyAddresses": [{"ip": "192.168.8.203"}],
            "ports": [{"port": 9999}],
        }]}))
        .unwrap();
        let slices = endpoints.mirror(Some(&service(Value::Null)));
        let shape = |slice: &EndpointSlice| -> Vec<(String, bool)> {
            slice.endpoints.iter().map(|e| (e.address.to_string(), e.ready)).collect()
        };
        assert_eq!(slices.len(), 2);
        assert_eq!(shape(&slices[0]), [("192.168.8.202".into(), true), ("192.168.8.203".into(), false)]);
        assert_eq!(shape(&slices[1]), [("fd00::2".into(), true)]);
        assert_eq!(slices[0].service.as_ref(), Some(&endpoints.key));
        assert!(endpoints.mirror(Some(&service(json!({"app": "x"})))).is_empty());
        assert!(endpoints.mirror(None).is_empty());
    }

    #[test]
    fn the_skip_label_is_honoured() {
        let meta = json!({"name": "mysvc", "labels": {"endpointslice.kubernetes.io/skip-mirror": "true"}});
        let endpoints =
            read(json!({"metadata": meta, "subsets": [{"addresses": [{"ip": "10.0.0.1"}]}]})).unwrap();
        assert!(endpoints.mirror(Some(&service(Value::Null))).is_empty());
    }

    #[test]
    fn wrong_fields_are_named() {
        let wrong = read(json!({"metadata": {"name": "a"}, "subsets": [{"addresses": [{"ip": "10.0.0"}]}]}));
        assert_eq!(
            wrong.unwrap_err().to_string(),
            "subsets[0].addresses[0].ip: \"10.0.0\" is not an IP address"
        );
    }
}
