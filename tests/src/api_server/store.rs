//! The server's data: objects, every change with its version, and the planned faults.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Condvar, Mutex, MutexGuard},
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use serde_json::{Value, json};

use super::selector::Selector;

/// An occasional fault of a real server or network; each happens once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The next list is answered with this status.
    ListStatus(u16),
    /// The next page after the first is rejected: its version was compacted.
    PageGone,
    /// The next watch is rejected with 410.
    WatchGone,
    /// Each open watch, or the next one, ends with an ERROR line of code 410.
    StreamGone,
    /// The next request is rejected with 429 and this Retry-After.
    TooMany(u64),
    /// The next request's connection is closed without a response.
    Reset,
    /// The next request gets no response.
    Hang,
    /// The next list is truncated JSON with the correct HTTP length.
    CutList,
    /// The next list ends before the announced HTTP length.
    ShortList,
    /// Each open watch, or the next one, ends in the middle of a line.
    CutLine,
    /// The next list is empty although there are objects.
    EmptyList,
    /// Streaming lists are rejected, as on servers without the feature.
    NoStreaming,
}

#[derive(Debug, Default)]
pub struct Store {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
pub(crate) struct State {
    objects: BTreeMap<(String, String), Value>,
    pub(crate) log: Vec<Change>,
    pub(crate) version: u64,
    /// Watches from earlier versions are rejected.
    pub(crate) compacted: u64,
    faults: VecDeque<(String, Fault)>,
    requests: Vec<String>,
    violations: Vec<String>,
    pub(super) events: Vec<Value>,
    /// Field selectors work for Nodes only, as before 1.31.
    pub(super) is_old: bool,
}

/// One change of one object.
#[derive(Clone, Debug)]
pub(crate) struct Change {
    pub(crate) version: u64,
    resource: String,
    old: Option<Value>,
    new: Option<Value>,
}

impl Store {
    pub(crate) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no holder panics")
    }

    /// Adds or changes every object of a multi-document manifest.
    pub fn apply(&self, manifest: &str) -> Result<()> {
        for document in manifest.split("---\n").filter(|text| !text.trim().is_empty()) {
            self.apply_object(serde_saphyr::from_str(document).context("a manifest of the test")?)?;
        }
        Ok(())
    }

    pub fn apply_object(&self, mut object: Value) -> Result<()> {
        let resource = resource_of(object["kind"].as_str().context("an object without a kind")?)?;
        let mut state = self.lock();
        let version = state.next();
        let meta = &mut object["metadata"];
        meta["resourceVersion"] = version.to_string().into();
        // Fields that every object of a real cluster has.
        meta["managedFields"] =
            json!([{"manager": "harness", "operation": "Update", "fieldsV1": {"f:spec": {}}}]);
        if !matches!(resource, "nodes" | "servicecidrs") && meta.get("namespace").is_none() {
            meta["namespace"] = "default".into();
        }
        let key = (resource.to_owned(), key_of(&object));
        let old = state.objects.insert(key, object.clone());
        state.log.push(Change { version, resource: resource.to_owned(), old, new: Some(object) });
        drop(state);
        self.wake();
        Ok(())
    }

    /// Deletes an object; `name` is `NAMESPACE/NAME`, or a Node's name.
    pub fn delete(&self, resource: &str, name: &str) -> Result<()> {
        let mut state = self.lock();
        let version = state.next();
        let old = state.objects.remove(&(resource.to_owned(), name.to_owned()));
        let mut old = old.with_context(|| format!("there is no {resource} {name}"))?;
        old["metadata"]["resourceVersion"] = version.to_string().into();
        state.log.push(Change { version, resource: resource.to_owned(), old: Some(old), new: None });
        drop(state);
        self.wake();
        Ok(())
    }

    /// Discards old versions: a watch from an earlier version is rejected with 410.
    pub fn compact(&self) {
        let mut state = self.lock();
        state.version += 1;
        state.compacted = state.version;
        state.log.clear();
    }

    /// Goes back to an earlier version, as a restored backup does. Applied objects stay.
    pub fn go_back(&self, version: u64) {
        let mut state = self.lock();
        state.version = version;
        state.compacted = 0;
        state.log.clear();
    }

    pub fn version(&self) -> u64 {
        self.lock().version
    }

    /// Plans a fault for a resource's next request.
    pub fn fault(&self, resource: &str, fault: Fault) {
        self.lock().faults.push_back((resource.to_owned(), fault));
        self.wake();
    }

    /// Behaves like a server before 1.31 from now on, which cannot select Services by their clusterIP.
    pub fn be_old(&self) {
        self.lock().is_old = true;
    }

    /// Number of planned faults that have not happened yet.
    pub fn faults_left(&self) -> usize {
        self.lock().faults.len()
    }

    /// All requests so far: `list services`, `watch services`, `page services`, `stream services`.
    pub fn requests(&self) -> Vec<String> {
        self.lock().requests.clone()
    }

    /// Requests that the agent's ClusterRole does not grant.
    pub fn violations(&self) -> Vec<String> {
        self.lock().violations.clone()
    }

    /// Events as they were written, including later states of the same Event.
    pub fn events(&self) -> Vec<Value> {
        self.lock().events.clone()
    }

    /// Waits for a change, for at most this time.
    pub(crate) fn wait<'a>(&'a self, state: MutexGuard<'a, State>, most: Duration) -> MutexGuard<'a, State> {
        self.changed.wait_timeout(state, most).expect("no holder panics").0
    }

    pub(crate) fn wake(&self) {
        self.changed.notify_all();
    }
}

impl State {
    fn next(&mut self) -> u64 {
        self.version += 1;
        self.version
    }

    pub(crate) fn note(&mut self, request: String) {
        self.requests.push(request);
    }

    pub(crate) fn violated(&mut self, request: String) {
        self.violations.push(request);
    }

    /// Takes the fault planned for this resource, if `suits` accepts it.
    pub(crate) fn take_fault(&mut self, resource: &str, suits: impl Fn(Fault) -> bool) -> Option<Fault> {
        let at = self.faults.iter().position(|(of, fault)| of == resource && suits(*fault))?;
        self.faults.remove(at).map(|(_, fault)| fault)
    }

    /// Selected objects of a resource, sorted by name.
    pub(crate) fn list(&self, resource: &str, selector: &Selector) -> Vec<&Value> {
        let of = self.objects.iter().filter(|((of, _), _)| of == resource);
        of.map(|(_, object)| object).filter(|object| selector.matches(object)).collect()
    }
}

impl Change {
    /// The watch line of this change for a selector: an object that no longer matches is sent as a deletion.
    pub(crate) fn line(&self, resource: &str, selector: &Selector) -> Option<Value> {
        if self.resource != resource {
            return None;
        }
        let old = self.old.as_ref().filter(|object| selector.matches(object));
        let new = self.new.as_ref().filter(|object| selector.matches(object));
        let (kind, object) = match (old, new) {
            (None, None) => return None,
            (None, Some(new)) => ("ADDED", new),
            (Some(_), Some(new)) => ("MODIFIED", new),
            (Some(old), None) => ("DELETED", old),
        };
        let mut object = object.clone();
        object["metadata"]["resourceVersion"] = self.version.to_string().into();
        Some(json!({"type": kind, "object": object}))
    }
}

fn key_of(object: &Value) -> String {
    let meta = &object["metadata"];
    let name = meta["name"].as_str().unwrap_or_default();
    match meta["namespace"].as_str() {
        Some(namespace) => format!("{namespace}/{name}"),
        None => name.to_owned(),
    }
}

fn resource_of(kind: &str) -> Result<&'static str> {
    Ok(match kind {
        "Service" => "services",
        "EndpointSlice" => "endpointslices",
        "Node" => "nodes",
        "ServiceCIDR" => "servicecidrs",
        other => bail!("the harness's API server stores no {other}"),
    })
}
