//! The watched resources: Services, EndpointSlices, this node's Node and ServiceCIDRs, with kube-proxy's selectors. An
//! object that no longer matches (a label was added) arrives as deleted.

use std::collections::HashMap;

use serde::Deserialize;
use serde_json::value::RawValue;

use crate::{
    api::{self, FieldError, Kind, Object},
    kube_client::RequestError,
    model::ObjectKey,
    sources::event::Event,
};

/// A resource of the API.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resource {
    pub kind: Kind,
    /// Plural, as in RBAC rules.
    pub name: &'static str,
    path: &'static str,
    labels: Option<&'static str>,
    fields: Option<String>,
}

/// The part that all objects have.
#[derive(Debug, Deserialize)]
pub struct Head {
    #[serde(default)]
    pub metadata: HeadMeta,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct HeadMeta {
    pub name: String,
    pub namespace: String,
    pub resource_version: String,
    /// In lists: the token of the next page.
    pub r#continue: String,
}

/// A bookmark, which may end a streamed list.
#[derive(Debug, Deserialize)]
pub struct Bookmark {
    metadata: BookmarkMeta,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct BookmarkMeta {
    annotations: HashMap<String, String>,
}

/// A page of a list; its objects are not decoded yet.
#[derive(Debug, Deserialize)]
pub struct Page<'a> {
    #[serde(default)]
    pub metadata: HeadMeta,
    #[serde(borrow, default)]
    pub items: Option<Vec<&'a RawValue>>,
}

/// A line of a watch.
#[derive(Debug, Deserialize)]
pub struct Line<'a> {
    pub r#type: String,
    #[serde(borrow)]
    pub object: &'a RawValue,
}

/// Objects per page: a page of Services is about a megabyte.
const LIMIT: u32 = 500;

const SERVICE_CIDRS: [&str; 2] =
    ["/apis/networking.k8s.io/v1/servicecidrs", "/apis/networking.k8s.io/v1beta1/servicecidrs"];

impl Resource {
    pub fn services() -> Self {
        let labels = Some("!service.kubernetes.io/service-proxy-name");
        let fields = Some("spec.clusterIP!=None".to_owned());
        Self { kind: Kind::Service, name: "services", path: "/api/v1/services", labels, fields }
    }

    pub fn slices() -> Self {
        Self {
            kind: Kind::EndpointSlice,
            name: "endpointslices",
            path: "/apis/discovery.k8s.io/v1/endpointslices",
            labels: Some("!service.kubernetes.io/headless"),
            fields: None,
        }
    }

    /// Only the Node of this name.
    pub fn node(name: &str) -> Self {
        let fields = Some(format!("metadata.name={name}"));
        Self { kind: Kind::Node, name: "nodes", path: "/api/v1/nodes", labels: None, fields }
    }

    /// Served since 1.33, and before that as a beta if enabled.
    pub fn service_cidrs() -> Self {
        let path = SERVICE_CIDRS[0];
        Self { kind: Kind::ServiceCidr, name: "servicecidrs", path, labels: None, fields: None }
    }

    /// Switches to the next older API version; after the oldest back to the newest, and returns false.
    pub fn turn_to_older(&mut self) -> bool {
        let is_newest = self.path == SERVICE_CIDRS[0];
        if self.kind == Kind::ServiceCidr {
            self.path = SERVICE_CIDRS[usize::from(is_newest)];
        }
        self.kind == Kind::ServiceCidr && is_newest
    }

    /// API servers before 1.31 do not support selecting Services by clusterIP. Without the selector headless Services
    /// are listed too, and ignored later. Returns whether there was a field selector.
    pub fn leave_fields_out(&mut self) -> bool {
        self.kind == Kind::Service && self.fields.take().is_some()
    }

    /// Whether every cluster has such an object: the API server itself maintains the Service default/kubernetes and its
    /// slice.
    pub fn is_never_empty(&self) -> bool {
        matches!(self.kind, Kind::Service | Kind::EndpointSlice)
    }

    /// Whether the agent can work although the server does not serve this resource or forbids access.
    pub fn is_optional(&self) -> bool {
        self.kind == Kind::ServiceCidr
    }

    /// A page of the most recent state, never of a server's cache, which may be older than what was seen before.
    /// Without `paged` everything is in one response.
    pub fn list(&self, paged: bool, token: Option<&str>) -> String {
        let mut query = self.selectors();
        if paged {
            query.push(("limit", LIMIT.to_string()));
        }
        query.extend(token.map(|token| ("continue", token.to_owned())));
        self.target(&query)
    }

    /// The shortest list; only its resourceVersion is used.
    pub fn version(&self) -> String {
        let mut query = self.selectors();
        query.push(("limit", "1".to_owned()));
        self.target(&query)
    }

    pub fn watch(&self, version: &str, seconds: u64) -> String {
        let mut query = self.selectors();
        query.extend(self.watching(seconds));
        query.push(("resourceVersion", version.to_owned()));
        self.target(&query)
    }

    /// A watch that begins with all objects (KEP-3157).
    pub fn watch_list(&self, seconds: u64) -> String {
        let mut query = self.selectors();
        query.extend(self.watching(seconds));
        query.push(("sendInitialEvents", "true".to_owned()));
        query.push(("resourceVersionMatch", "NotOlderThan".to_owned()));
        self.target(&query)
    }

    fn watching(&self, seconds: u64) -> [(&'static str, String); 3] {
        let yes = || "true".to_owned();
        [("watch", yes()), ("allowWatchBookmarks", yes()), ("timeoutSeconds", seconds.to_string())]
    }

    fn selectors(&self) -> Vec<(&'static str, String)> {
        let labels = self.labels.map(|labels| ("labelSelector", labels.to_owned()));
        let fields = self.fields.clone().map(|fields| ("fieldSelector", fields));
        labels.into_iter().chain(fields).collect()
    }

    fn target(&self, query: &[(&'static str, String)]) -> String {
        let words: Vec<String> =
            query.iter().map(|(name, value)| format!("{name}={}", escape(value))).collect();
        format!("{}?{}", self.path, words.join("&"))
    }

    /// The event for an object's state.
    pub fn event(&self, text: &RawValue) -> Result<Event, FieldError> {
        Ok(match api::decode_one(self.kind, text.get())? {
            Object::Service(service) => Event::Service(service),
            Object::Slice(slice) => Event::Slice(slice),
            Object::Node(node) => Event::Node(node),
            Object::ServiceCidr(range) => Event::ServiceCidr(range),
            Object::Endpoints(_) => unreachable!("Endpoints are no resource of this source"),
        })
    }

    /// The event for an object's deletion.
    pub fn gone(&self, key: ObjectKey) -> Event {
        match self.kind {
            Kind::EndpointSlice => Event::SliceGone(key),
            Kind::Node => Event::NodeGone(key.name),
            Kind::ServiceCidr => Event::ServiceCidrGone(key.name),
            Kind::Service | Kind::Endpoints => Event::ServiceGone(key),
        }
    }
}

impl Bookmark {
    pub fn ends_list(&self) -> bool {
        self.metadata.annotations.get("k8s.io/initial-events-end").is_some_and(|value| value == "true")
    }
}

impl HeadMeta {
    pub fn key(&self) -> ObjectKey {
        ObjectKey::new(self.namespace.as_str(), self.name.as_str())
    }
}

/// Decodes a response of the API server.
pub fn decode<'a, T: Deserialize<'a>>(text: &'a [u8]) -> Result<T, RequestError> {
    serde_json::from_slice(text).map_err(|error| malformed(format!("invalid response: {error}")))
}

pub fn malformed(what: impl Into<String>) -> RequestError {
    RequestError::Malformed(what.into())
}

/// Percent-encodes a query value (RFC 3986).
fn escape(value: &str) -> String {
    let mut out = String::with_capacity(value.len());
    for byte in value.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => out.push(byte.into()),
            _ => out.push_str(&format!("%{byte:02X}")),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_older_version_is_asked_once() {
        let mut cidrs = Resource::service_cidrs();
        let new = cidrs.clone();
        assert!(cidrs.turn_to_older() && cidrs.version().contains("v1beta1"));
        assert!(!cidrs.turn_to_older() && cidrs == new);
        assert!(!Resource::services().turn_to_older());
    }

    #[test]
    fn selectors_are_kube_proxys() {
        assert_eq!(
            Resource::services().list(true, None),
            "/api/v1/services?labelSelector=%21service.kubernetes.io%2Fservice-proxy-name\
             &fieldSelector=spec.clusterIP%21%3DNone&limit=500"
        );
        assert_eq!(
            Resource::slices().watch("17", 300),
            "/apis/discovery.k8s.io/v1/endpointslices?labelSelector=%21service.kubernetes.io%2Fheadless\
             &watch=true&allowWatchBookmarks=true&timeoutSeconds=300&resourceVersion=17"
        );
        assert_eq!(Resource::node("n1").list(false, None), "/api/v1/nodes?fieldSelector=metadata.name%3Dn1");
        assert!(Resource::node("n1").list(true, Some("a+b/=")).ends_with("&limit=500&continue=a%2Bb%2F%3D"));
    }
}
