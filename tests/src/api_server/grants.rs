//! The requests that the agent may make: the rules of its own ClusterRole, as an RBAC authorizer reads them, and one
//! restriction that RBAC cannot express but the agent observes (of Nodes, only its own).

use anyhow::{Context as _, Result, ensure};
use serde::Deserialize;
use serde_json::Value;

use super::request::Request;

/// The deployed manifest: the agent's identity and its permissions.
pub(super) const MANIFEST: &str = concat!(
    include_str!("../../../manifests/base/serviceaccount.yaml"),
    "\n---\n",
    include_str!("../../../manifests/base/rbac.yaml")
);

/// Namespace and name of the agent's service account.
pub(super) fn service_account() -> Result<(String, String)> {
    let account = only(MANIFEST, "ServiceAccount")?;
    let word = |field: &str| {
        let word = account["metadata"][field].as_str();
        word.map(str::to_owned).with_context(|| format!("the ServiceAccount's {field}"))
    };
    Ok((word("namespace")?, word("name")?))
}

/// The only document of this kind.
fn only(manifest: &str, kind: &str) -> Result<Value> {
    let documents = manifest.split("\n---").filter(|text| !text.trim().is_empty());
    let documents = documents.map(|text| serde_saphyr::from_str(text).context("the agent's manifest"));
    let mut found = documents.collect::<Result<Vec<Value>>>()?;
    found.retain(|document| document["kind"] == kind);
    ensure!(found.len() == 1, "{} documents of kind {kind} in the manifest, not one", found.len());
    Ok(found.remove(0))
}

/// A request as an authorizer sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Asked {
    pub(super) verb: &'static str,
    pub(super) group: String,
    pub(super) resource: String,
    /// Set for requests for one object, and for lists that select one by its name.
    pub(super) name: Option<String>,
}

/// The rules of a ClusterRole.
#[derive(Debug, Deserialize)]
pub(super) struct Grants {
    rules: Vec<Rule>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
struct Rule {
    api_groups: Vec<String>,
    resources: Vec<String>,
    resource_names: Vec<String>,
    verbs: Vec<String>,
}

impl Grants {
    /// The rules of the agent's manifest.
    pub(super) fn of_manifest() -> Result<Self> {
        Self::read(MANIFEST)
    }

    fn read(manifest: &str) -> Result<Self> {
        Ok(serde_json::from_value(only(manifest, "ClusterRole")?)?)
    }

    /// The reason to reject the agent's request; none if it is permitted.
    pub(super) fn objection(&self, request: &Request) -> Option<String> {
        let Some(asked) = Asked::of(request) else { return Some("no resource".to_owned()) };
        if !self.rules.iter().any(|rule| rule.grants(&asked)) {
            return Some(format!("no rule grants {} of {}", asked.verb, asked.resource));
        }
        if asked.resource == "nodes" && asked.name.is_none() {
            return Some("all Nodes instead of one".to_owned());
        }
        None
    }
}

impl Rule {
    fn grants(&self, asked: &Asked) -> bool {
        let has = |list: &[String], word: &str| list.iter().any(|entry| entry == word || entry == "*");
        has(&self.api_groups, &asked.group)
            && has(&self.resources, &asked.resource)
            && has(&self.verbs, asked.verb)
            && (self.resource_names.is_empty()
                || asked.name.as_ref().is_some_and(|name| self.resource_names.contains(name)))
    }
}

impl Asked {
    /// None if this is not a resource request (`/version`, `/healthz`).
    pub(super) fn of(request: &Request) -> Option<Self> {
        let mut words = request.path.trim_matches('/').split('/');
        let group = match words.next()? {
            "api" => String::new(),
            "apis" => words.next()?.to_owned(),
            _ => return None,
        };
        let _version = words.next()?;
        let mut rest: Vec<&str> = words.collect();
        if rest.len() > 2 && rest[0] == "namespaces" {
            rest.drain(..2);
        }
        let mut resource = (*rest.first()?).to_owned();
        if let Some(subresource) = rest.get(2) {
            resource = format!("{resource}/{subresource}");
        }
        let named = rest.get(1).map(|name| (*name).to_owned());
        let selected = request.value("fieldSelector").split(',').find_map(|term| {
            let (field, value) = term.split_once('=')?;
            (field == "metadata.name").then(|| value.trim_start_matches('=').to_owned())
        });
        let verb = match (request.method.as_str(), request.value("watch")) {
            ("GET", "true" | "1") => "watch",
            ("GET", _) if named.is_some() => "get",
            ("GET", _) => "list",
            ("POST", _) => "create",
            ("PUT", _) => "update",
            ("PATCH", _) => "patch",
            ("DELETE", _) if named.is_some() => "delete",
            ("DELETE", _) => "deletecollection",
            _ => return None,
        };
        Some(Self { verb, group, resource, name: named.or(selected) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn objection(grants: &Grants, method: &str, target: &str) -> Option<String> {
        grants.objection(&Request::of(method, target))
    }

    #[test]
    fn what_the_role_grants_is_allowed_and_nothing_else() {
        let grants = Grants::of_manifest().unwrap();
        let mine = "fieldSelector=metadata.name%3Dnode-1";
        for (method, target) in [
            ("GET", "/api/v1/services?limit=500"),
            ("GET", "/api/v1/services?watch=true"),
            ("GET", "/api/v1/services?watch=1"),
            ("GET", "/apis/discovery.k8s.io/v1/endpointslices"),
            ("GET", "/apis/networking.k8s.io/v1beta1/servicecidrs"),
            ("GET", &format!("/api/v1/nodes?{mine}")),
            ("GET", &format!("/api/v1/nodes?watch=true&{mine}")),
            ("POST", "/apis/events.k8s.io/v1/namespaces/default/events"),
            ("PATCH", "/apis/events.k8s.io/v1/namespaces/default/events/a"),
        ] {
            assert_eq!(objection(&grants, method, target), None, "{method} {target}");
        }
        for (method, target) in [
            ("GET", "/api/v1/nodes"),
            ("GET", "/api/v1/nodes?fieldSelector=metadata.name%21%3Da"),
            ("GET", "/api/v1/pods"),
            ("GET", "/api/v1/endpoints"),
            ("GET", "/api/v1/namespaces/default/secrets/a"),
            ("GET", "/apis/discovery.k8s.io/v1/services"),
            ("GET", "/api/v1/nodes/node-1"),
            ("GET", "/api/v1/namespaces/default/services/a"),
            ("GET", "/apis/events.k8s.io/v1/namespaces/default/events"),
            ("PUT", "/apis/events.k8s.io/v1/namespaces/default/events/a"),
            ("DELETE", "/apis/events.k8s.io/v1/namespaces/default/events/a"),
            ("POST", "/api/v1/namespaces/default/events"),
            ("PATCH", "/api/v1/namespaces/default/events/a"),
            ("PUT", "/api/v1/namespaces/default/services/a"),
            ("PATCH", "/api/v1/nodes/node-1/status"),
            ("DELETE", "/api/v1/namespaces/default/services/a"),
            ("POST", "/apis/authorization.k8s.io/v1/subjectaccessreviews"),
            ("GET", "/version"),
        ] {
            assert!(objection(&grants, method, target).is_some(), "{method} {target}");
        }
    }

    #[test]
    fn names_in_a_rule_count() {
        let grants = Grants::read(
            "kind: ClusterRole\nrules: [{apiGroups: [''], resources: [nodes], verbs: [get, list], \
             resourceNames: [node-1]}]\n",
        )
        .unwrap();
        assert_eq!(objection(&grants, "GET", "/api/v1/nodes/node-1"), None);
        assert_eq!(objection(&grants, "GET", "/api/v1/nodes?fieldSelector=metadata.name%3Dnode-1"), None);
        assert!(objection(&grants, "GET", "/api/v1/nodes/node-2").is_some());
        assert!(Grants::read("kind: Role\n").is_err());
    }
}
