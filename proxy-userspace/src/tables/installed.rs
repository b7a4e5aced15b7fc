//! A Service that is entered in the tables.

use std::sync::Arc;

use super::client_rules::ClientRules;
use crate::compile::{CompiledPort, CompiledService};

/// What was compiled, and what it was given.
#[derive(Debug)]
pub(super) struct Installed {
    pub(super) compiled: Arc<CompiledService>,
    /// Service ids, one for each port.
    pub(super) ids: Vec<u32>,
    pub(super) rules: ClientRules,
}

impl Installed {
    /// The port with this service id.
    pub(super) fn port(&self, id: u32) -> Option<&CompiledPort> {
        let at = self.ids.iter().position(|other| *other == id)?;
        self.compiled.ports.get(at)
    }
}
