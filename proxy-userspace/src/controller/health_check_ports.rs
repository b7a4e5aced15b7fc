//! The listeners of healthCheckNodePorts: recomputed when a Service's health check or the node's addresses change.

use std::sync::Arc;

use crate::{
    compile::CompiledService,
    config::NodePortAddresses,
    health_checks::{self, HealthChecks, Listeners},
    model::ServiceKey,
    problem::Problem,
    tables::Tables,
};

/// What is listened for, and what must be recomputed.
#[derive(Debug, Default)]
pub(super) struct HealthCheckPorts {
    checks: HealthChecks,
    listeners: Listeners,
    problems: Vec<Problem>,
    is_dirty: bool,
}

impl HealthCheckPorts {
    /// Takes the health check of a Service as compiled now; `None`: the Service is gone.
    pub(super) fn set(&mut self, key: &ServiceKey, compiled: Option<&CompiledService>) {
        let created = compiled.and_then(|compiled| compiled.created.as_ref());
        let check = compiled.and_then(|compiled| compiled.health_check.clone());
        self.is_dirty |= self.checks.set(key, created, check);
    }

    /// The node's addresses may have changed, if `changed`.
    pub(super) fn mark(&mut self, changed: bool) {
        self.is_dirty |= changed;
    }

    /// Recomputes the listeners where necessary: whether they changed, and the problems that are new.
    pub(super) fn update(
        &mut self,
        tables: &Tables,
        chosen: &NodePortAddresses,
        uid: impl Fn(&ServiceKey) -> Option<Arc<str>>,
    ) -> (bool, Vec<Problem>) {
        if !std::mem::take(&mut self.is_dirty) {
            return (false, Vec::new());
        }
        let addresses = health_checks::addresses(tables.node_addrs.entries(), chosen);
        let mut listeners = self.checks.listeners(&addresses);
        listeners.values_mut().for_each(|answer| answer.uid = uid(&answer.service));
        let changed = listeners != self.listeners;
        self.listeners = listeners;
        let problems: Vec<_> = self.checks.problems().collect();
        let new = problems.iter().filter(|one| !self.problems.contains(one)).cloned().collect();
        self.problems = problems;
        (changed, new)
    }

    pub(super) fn listeners(&self) -> &Listeners {
        &self.listeners
    }

    pub(super) fn problems(&self) -> &[Problem] {
        &self.problems
    }
}
