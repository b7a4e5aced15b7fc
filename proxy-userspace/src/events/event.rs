//! An Event before it has a name and a place in the API.

use std::sync::Arc;

use crate::model::ServiceKey;

/// One Event: what happened to which object.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Event {
    pub regarding: Regarding,
    pub is_warning: bool,
    /// CamelCase, as `kubectl describe` shows it.
    pub reason: &'static str,
    /// What the agent was doing.
    pub action: &'static str,
    pub note: String,
}

/// The object that an Event is about.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Regarding {
    /// This node.
    Node,
    Service {
        key: ServiceKey,
        uid: Option<Arc<str>>,
    },
}
