//! The Kubernetes API's shape of the objects that a proxy reads, and their conversion to `model`.
//!
//! Trimmed to the fields in use. API defaults are filled in. Objects that the API server would refuse are refused here
//! too, with the field's path, because manifest files have passed no API server. Called by the sources.

mod endpoint_slice;
mod endpoints;
mod field_error;
mod meta;
mod node;
mod parse;
mod service;
mod service_cidr;
mod validate;

use std::fmt;

use serde_json::Value;

use self::parse::{read, read_text};
pub use self::{
    endpoints::Endpoints,
    field_error::{FieldError, Reason},
};
use crate::model::{EndpointSlice, Node, ObjectKey, Service, ServiceCidr};

/// An object that a proxy reads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Object {
    Service(Service),
    Slice(EndpointSlice),
    Endpoints(Endpoints),
    Node(Node),
    ServiceCidr(ServiceCidr),
}

/// The kinds of objects that a proxy reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    Service,
    EndpointSlice,
    Endpoints,
    Node,
    ServiceCidr,
}

/// Identifies an object; the namespace of cluster-scoped kinds (Node, ServiceCIDR) is empty.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ObjectId {
    pub kind: Kind,
    pub key: ObjectKey,
}

/// One object of a document, or why it is not used.
#[derive(Clone, Debug)]
pub struct Item {
    /// The object, if its name could be read.
    pub id: Option<ObjectId>,
    pub result: Result<Object, ItemError>,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ItemError {
    #[error("{0}")]
    Refused(FieldError),
    /// A proxy does not use this kind.
    #[error("kind {0} is ignored")]
    Ignored(String),
}

/// The objects of one document: itself, or a list's items.
pub fn decode(document: Value) -> Vec<Item> {
    let mut items = Vec::new();
    decode_into(&mut items, document, String::new());
    items
}

/// One object of a known kind as an API server sends it. Unused fields (managedFields above all) are skipped while
/// parsing and never kept in memory.
pub fn decode_one(kind: Kind, text: &str) -> Result<Object, FieldError> {
    match kind {
        Kind::Service => read_text(text).and_then(service::convert).map(Object::Service),
        Kind::EndpointSlice => read_text(text).and_then(endpoint_slice::convert).map(Object::Slice),
        Kind::Endpoints => read_text(text).and_then(endpoints::convert).map(Object::Endpoints),
        Kind::Node => read_text(text).and_then(node::convert).map(Object::Node),
        Kind::ServiceCidr => read_text(text).and_then(service_cidr::convert).map(Object::ServiceCidr),
    }
}

fn decode_into(items: &mut Vec<Item>, mut value: Value, path: String) {
    let kind = value.get("kind").and_then(Value::as_str).unwrap_or_default().to_owned();
    if let Some(item_kind) = kind.strip_suffix("List") {
        let Some(listed) = value.get_mut("items").map(Value::take) else {
            return refuse(items, None, &path, "items", Reason::Required);
        };
        let Value::Array(listed) = listed else {
            if !listed.is_null() {
                refuse(items, None, &path, "items", Reason::Shape("expected a list".into()));
            }
            return;
        };
        let version = value.get("apiVersion").cloned();
        for (i, mut item) in listed.into_iter().enumerate() {
            // The items of a typed list (ServiceList) carry no kind of their own.
            if let Some(object) = item.as_object_mut()
                && !item_kind.is_empty()
            {
                object.entry("kind").or_insert_with(|| item_kind.into());
                object.entry("apiVersion").or_insert_with(|| version.clone().unwrap_or_default());
            }
            decode_into(items, item, join(&path, &format!("items[{i}]")));
        }
        return;
    }
    if kind.is_empty() {
        return refuse(items, None, &path, "kind", Reason::Required);
    }
    let version = value.get("apiVersion").and_then(Value::as_str).unwrap_or_default().to_owned();
    let known = match (version.as_str(), kind.as_str()) {
        ("v1", "Service") => Kind::Service,
        ("v1", "Endpoints") => Kind::Endpoints,
        ("v1", "Node") => Kind::Node,
        ("discovery.k8s.io/v1" | "discovery.k8s.io/v1beta1", "EndpointSlice") => Kind::EndpointSlice,
        ("networking.k8s.io/v1" | "networking.k8s.io/v1beta1", "ServiceCIDR") => Kind::ServiceCidr,
        ("", "Service" | "Endpoints" | "Node" | "EndpointSlice" | "ServiceCIDR") => {
            return refuse(items, None, &path, "apiVersion", Reason::Required);
        }
        (version, "EndpointSlice") if version.starts_with("discovery.k8s.io/") => {
            let value = version.to_owned();
            let allowed = "discovery.k8s.io/v1, discovery.k8s.io/v1beta1";
            return refuse(items, None, &path, "apiVersion", Reason::NotOneOf { value, allowed });
        }
        (version, "ServiceCIDR") if version.starts_with("networking.k8s.io/") => {
            let value = version.to_owned();
            let allowed = "networking.k8s.io/v1, networking.k8s.io/v1beta1";
            return refuse(items, None, &path, "apiVersion", Reason::NotOneOf { value, allowed });
        }
        (version, kind) => {
            let name = if version.is_empty() { kind.into() } else { format!("{version} {kind}") };
            return items.push(Item { id: None, result: Err(ItemError::Ignored(name)) });
        }
    };
    let id = id_of(known, &value);
    let decoded = match known {
        Kind::Service => read(value).and_then(service::convert).map(Object::Service),
        Kind::EndpointSlice => read(value).and_then(endpoint_slice::convert).map(Object::Slice),
        Kind::Endpoints => read(value).and_then(endpoints::convert).map(Object::Endpoints),
        Kind::Node => read(value).and_then(node::convert).map(Object::Node),
        Kind::ServiceCidr => read(value).and_then(service_cidr::convert).map(Object::ServiceCidr),
    };
    let result = decoded.map_err(|error| {
        ItemError::Refused(FieldError { path: join(&path, &error.path), reason: error.reason })
    });
    items.push(Item { id, result });
}

fn refuse(items: &mut Vec<Item>, id: Option<ObjectId>, path: &str, field: &str, reason: Reason) {
    let error = FieldError { path: join(path, field), reason };
    items.push(Item { id, result: Err(ItemError::Refused(error)) });
}

fn join(path: &str, field: &str) -> String {
    match (path, field) {
        ("", _) => field.into(),
        (_, "") => path.into(),
        _ => format!("{path}.{field}"),
    }
}

/// The object of a document, even if the rest of it is invalid.
fn id_of(kind: Kind, value: &Value) -> Option<ObjectId> {
    let meta = value.get("metadata")?;
    let name = meta.get("name")?.as_str()?;
    let namespace = match kind {
        Kind::Node | Kind::ServiceCidr => "",
        _ => meta.get("namespace").and_then(Value::as_str).filter(|ns| !ns.is_empty()).unwrap_or("default"),
    };
    Some(ObjectId { kind, key: ObjectKey::new(namespace, name) })
}

impl Object {
    pub fn id(&self) -> ObjectId {
        let (kind, key) = match self {
            Self::Service(service) => (Kind::Service, service.key.clone()),
            Self::Slice(slice) => (Kind::EndpointSlice, slice.key.clone()),
            Self::Endpoints(endpoints) => (Kind::Endpoints, endpoints.key.clone()),
            Self::Node(node) => (Kind::Node, ObjectKey::new("", node.name.clone())),
            Self::ServiceCidr(range) => (Kind::ServiceCidr, ObjectKey::new("", range.name.clone())),
        };
        ObjectId { kind, key }
    }
}

impl fmt::Display for ObjectId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.kind {
            Kind::Node => write!(f, "Node {}", self.key.name),
            Kind::ServiceCidr => write!(f, "ServiceCIDR {}", self.key.name),
            kind => write!(f, "{kind:?} {}", self.key),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn refusal(document: Value) -> String {
        let items = decode(document);
        assert_eq!(items.len(), 1);
        items[0].result.as_ref().unwrap_err().to_string()
    }

    #[test]
    fn lists_are_read_item_by_item() {
        let items = decode(json!({"kind": "List", "apiVersion": "v1", "items": [
            {"kind": "Node", "apiVersion": "v1", "metadata": {"name": "n1"}},
            {"kind": "Node", "apiVersion": "v1", "metadata": {"name": "n2"}, "spec": {"podCIDR": "x"}},
            {"kind": "Pod", "apiVersion": "v1", "metadata": {"name": "p"}},
        ]}));
        assert!(items[0].result.is_ok());
        assert_eq!(items[1].id.as_ref().unwrap().to_string(), "Node n2");
        let wrong = items[1].result.as_ref().unwrap_err().to_string();
        assert_eq!(wrong, "items[1].spec.podCIDR: \"x\" is not an address range (as in 10.0.0.0/8)");
        assert_eq!(items[2].result, Err(ItemError::Ignored("v1 Pod".into())));
    }

    #[test]
    fn a_typed_list_gives_its_items_their_kind() {
        let items =
            decode(json!({"kind": "NodeList", "apiVersion": "v1", "items": [{"metadata": {"name": "n1"}}]}));
        assert!(matches!(&items[0].result, Ok(Object::Node(node)) if &*node.name == "n1"));
    }

    #[test]
    fn what_cannot_be_an_object_is_refused() {
        assert_eq!(refusal(json!({})), "kind: required");
        assert_eq!(refusal(json!({"kind": "Service"})), "apiVersion: required");
        assert_eq!(refusal(json!({"kind": "List"})), "items: required");
        let old = json!({"kind": "EndpointSlice", "apiVersion": "discovery.k8s.io/v1alpha1"});
        assert!(refusal(old).starts_with("apiVersion: \"discovery.k8s.io/v1alpha1\" is not one of"));
        assert_eq!(
            refusal(
                json!({"kind": "Service", "apiVersion": "v1", "metadata": {"name": "a"}, "spec": {"ports": 1}})
            ),
            "spec.ports: invalid type: integer `1`, expected a sequence"
        );
    }
}
