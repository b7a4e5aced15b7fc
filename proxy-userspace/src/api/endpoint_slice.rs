//! discovery.k8s.io EndpointSlice, v1 and v1beta1 (which names the node in `topology`).

use std::{collections::BTreeMap, sync::Arc};

use serde::Deserialize;

use super::{
    field_error::{FieldError, Reason},
    meta::ObjectMeta,
    validate::{field, ip, port, protocol},
};
use crate::model::{EndpointSlice, Family, Hints, ServiceKey, SliceEndpoint, SlicePort, Trigger};

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SliceDoc {
    #[serde(default)]
    metadata: ObjectMeta,
    address_type: Option<String>,
    endpoints: Option<Vec<EndpointDoc>>,
    ports: Option<Vec<PortDoc>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct EndpointDoc {
    addresses: Option<Vec<String>>,
    conditions: Option<Conditions>,
    node_name: Option<String>,
    hints: Option<HintsDoc>,
    /// v1beta1 only.
    topology: Option<BTreeMap<String, String>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Conditions {
    ready: Option<bool>,
    serving: Option<bool>,
    terminating: Option<bool>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct HintsDoc {
    for_zones: Option<Vec<Named>>,
    for_nodes: Option<Vec<Named>>,
}

#[derive(Debug, Deserialize)]
struct Named {
    name: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct PortDoc {
    pub name: Option<String>,
    pub protocol: Option<String>,
    pub port: Option<i64>,
}

/// Names the Service.
const SERVICE_NAME: &str = "kubernetes.io/service-name";
/// The time of the change that caused this update.
const TRIGGER_TIME: &str = "endpoints.kubernetes.io/last-change-trigger-time";
/// Marks slices of headless Services.
const HEADLESS: &str = "service.kubernetes.io/headless";
/// v1beta1's name of the node.
const HOSTNAME: &str = "kubernetes.io/hostname";

pub fn convert(doc: SliceDoc) -> Result<EndpointSlice, FieldError> {
    let key = doc.metadata.key(false)?;
    let service = doc.metadata.label(SERVICE_NAME).filter(|name| !name.is_empty());
    let is_headless = doc.metadata.label(HEADLESS).is_some();
    let service = service.filter(|_| !is_headless).map(|name| ServiceKey::new(key.namespace.clone(), name));
    let family = match doc.address_type.as_deref() {
        Some("IPv4") => Some(Family::V4),
        Some("IPv6") => Some(Family::V6),
        Some("FQDN") => None,
        None | Some("") => return Err(field("addressType", Reason::Required)),
        Some(value) => {
            let reason = Reason::NotOneOf { value: value.into(), allowed: "IPv4, IPv6, FQDN" };
            return Err(field("addressType", reason));
        }
    };
    // A proxy cannot send to host names.
    let Some(family) = family else {
        return Ok(EndpointSlice {
            key,
            service: None,
            ports: Vec::new(),
            endpoints: Vec::new(),
            trigger: None,
        });
    };
    let ports = ports("ports", doc.ports.as_deref().unwrap_or_default())?;
    let endpoints = doc.endpoints.unwrap_or_default().into_iter().enumerate();
    let endpoints = endpoints.map(|(i, endpoint)| convert_endpoint(i, endpoint, family));
    // An unreadable time only loses a measurement.
    let trigger = doc.metadata.annotation(TRIGGER_TIME).and_then(|time| time.parse().ok());
    let trigger = trigger.map(|at| Trigger { family, at });
    Ok(EndpointSlice { key, service, ports, endpoints: endpoints.collect::<Result<_, _>>()?, trigger })
}

fn convert_endpoint(i: usize, doc: EndpointDoc, family: Family) -> Result<SliceEndpoint, FieldError> {
    let path = format!("endpoints[{i}].addresses[0]");
    let text = doc.addresses.as_ref().and_then(|addresses| addresses.first());
    let text = text.ok_or_else(|| field(format!("endpoints[{i}].addresses"), Reason::Required))?;
    let address = ip(&path, text)?;
    if Family::from(address) != family {
        let name = if family == Family::V4 { "IPv4" } else { "IPv6" };
        return Err(field(path, Reason::WrongFamily(text.clone(), name)));
    }
    let conditions = doc.conditions.unwrap_or_default();
    let by_topology = || doc.topology.as_ref().and_then(|topology| topology.get(HOSTNAME).cloned());
    let node = doc.node_name.clone().or_else(by_topology).filter(|name| !name.is_empty());
    Ok(SliceEndpoint {
        address,
        ready: conditions.ready.unwrap_or(true),
        serving: conditions.serving.unwrap_or(true),
        terminating: conditions.terminating.unwrap_or(false),
        node: node.map(Into::into),
        hints: hints(doc.hints.unwrap_or_default()),
    })
}

fn hints(doc: HintsDoc) -> Option<Box<Hints>> {
    let names = |list: Option<Vec<Named>>| -> Vec<Arc<str>> {
        list.unwrap_or_default().into_iter().map(|named| named.name.into()).collect()
    };
    let hints = Hints { zones: names(doc.for_zones), nodes: names(doc.for_nodes) };
    (hints != Hints::default()).then(|| Box::new(hints))
}

/// Ports of a slice or of an Endpoints subset; one without a number (or 0) means any port, which no frontend has.
pub fn ports(path: &str, docs: &[PortDoc]) -> Result<Vec<SlicePort>, FieldError> {
    let mut ports = Vec::new();
    for (i, doc) in docs.iter().enumerate() {
        let Some(number) = doc.port.filter(|number| *number != 0) else { continue };
        ports.push(SlicePort {
            name: doc.name.as_deref().unwrap_or_default().into(),
            protocol: protocol(&format!("{path}[{i}].protocol"), doc.protocol.as_deref())?,
            port: port(&format!("{path}[{i}].port"), number)?,
        });
    }
    Ok(ports)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn read(slice: Value) -> Result<EndpointSlice, FieldError> {
        super::super::parse::read(slice).and_then(convert)
    }

    fn meta() -> Value {
        json!({"name": "web-1", "labels": {"kubernetes.io/service-name": "web"}})
    }

    #[test]
    fn conditions_and_ports_have_defaults() {
        let slice = read(json!({
            "metadata": meta(), "addressType": "IPv4", "ports": [{"port": 8080}, {"name": "any"}, {"name": "zero", "port": 0}],
            "endpoints": [
                {"addresses": ["10.0.0.1", "10.0.0.2"], "nodeName": "n1"},
                {"addresses": ["10.0.0.3"], "conditions": {"ready": false, "terminating": true},
                 "topology": {"kubernetes.io/hostname": "n2"}},
            ],
        }))
        .unwrap();
        assert_eq!(slice.service.as_ref().unwrap().to_string(), "default/web");
        assert_eq!(
            slice.ports,
            [SlicePort { name: "".into(), protocol: crate::model::Protocol::Tcp, port: 8080 }]
        );
        let state = |e: &SliceEndpoint| (e.ready, e.serving, e.terminating, e.node.clone());
        assert_eq!(state(&slice.endpoints[0]), (true, true, false, Some("n1".into())));
        assert_eq!(state(&slice.endpoints[1]), (false, true, true, Some("n2".into())));
        assert_eq!(slice.endpoints.len(), 2);
    }

    #[test]
    fn slices_of_headless_services_belong_to_nobody() {
        let mut meta = meta();
        meta["labels"]["service.kubernetes.io/headless"] = "".into();
        assert_eq!(read(json!({"metadata": meta, "addressType": "IPv4"})).unwrap().service, None);
        let fqdn =
            json!({"metadata": self::meta(), "addressType": "FQDN", "endpoints": [{"addresses": ["a.b"]}]});
        assert!(read(fqdn).unwrap().endpoints.is_empty());
    }

    #[test]
    fn wrong_fields_are_named() {
        let with =
            |endpoint: Value| json!({"metadata": meta(), "addressType": "IPv4", "endpoints": [endpoint]});
        for (slice, want) in [
            (with(json!({})), "endpoints[0].addresses: required"),
            (
                with(json!({"addresses": ["10.0.0.256"]})),
                "endpoints[0].addresses[0]: \"10.0.0.256\" is not an IP address",
            ),
            (
                with(json!({"addresses": ["fd00::1"]})),
                "endpoints[0].addresses[0]: \"fd00::1\" is not an address of family IPv4",
            ),
            (json!({"metadata": meta()}), "addressType: required"),
        ] {
            assert_eq!(read(slice).unwrap_err().to_string(), want);
        }
    }
}
