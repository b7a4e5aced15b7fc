//! Which Services are to be compiled with the next sync.

use std::collections::BTreeSet;

use crate::{model::ServiceKey, snapshot::Snapshot};

/// Services that changed since the last sync.
#[derive(Debug, Default)]
pub(super) struct Pending {
    services: BTreeSet<ServiceKey>,
    every_service: bool,
}

impl Pending {
    pub(super) fn add(&mut self, services: impl IntoIterator<Item = ServiceKey>) {
        self.services.extend(services);
    }

    /// Something that every Service depends on changed, if `changed`.
    pub(super) fn add_every_service(&mut self, changed: bool) {
        self.every_service |= changed;
    }

    /// The Services to compile, and whether these are all of them.
    pub(super) fn take(&mut self, snapshot: &Snapshot) -> (BTreeSet<ServiceKey>, bool) {
        let is_full = std::mem::take(&mut self.every_service);
        if is_full {
            self.services.extend(snapshot.service_keys().cloned());
        }
        (std::mem::take(&mut self.services), is_full)
    }
}
