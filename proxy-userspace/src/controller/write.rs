//! Writes the tables' diff to the store, and takes back the one Service that does not fit.

use std::{collections::HashMap, sync::Arc};

use super::problems::Refused;
use crate::{
    compile::CompiledService,
    maps::{MapError, MapStore},
    model::ServiceKey,
    problem::Problem,
    tables::{Full, ServiceTables},
};

/// The state that each Service had at the last complete write, of those that changed since.
#[derive(Debug, Default)]
pub(super) struct Unwritten(HashMap<ServiceKey, Option<Arc<CompiledService>>>);

impl Unwritten {
    /// `key` changes; `before` is its state until now.
    pub(super) fn note(&mut self, key: ServiceKey, before: Option<Arc<CompiledService>>) {
        self.0.entry(key).or_insert(before);
    }

    /// Everything is written.
    pub(super) fn clear(&mut self) {
        self.0.clear();
    }
}

/// What a write did.
#[derive(Debug, Default)]
pub(super) struct Written {
    pub(super) ops: usize,
    /// Services taken back because a map is full.
    pub(super) problems: Vec<Problem>,
}

/// Writes until the store holds what the tables say. A store with less room than configured refuses one Service whole:
/// that one is restored to its state before, and the rest is written.
pub(super) fn write(
    services: &mut ServiceTables,
    store: &mut dyn MapStore,
    unwritten: &mut Unwritten,
    refused: &mut Refused,
) -> (Written, Result<(), MapError>) {
    let mut written = Written::default();
    loop {
        let ops = services.tables.ops();
        if ops.is_empty() {
            return (written, Ok(()));
        }
        let Err((done, error)) = store.write(&ops) else {
            services.commit(&ops);
            written.ops += ops.len();
            return (written, Ok(()));
        };
        services.commit(&ops[..done]);
        written.ops += done;
        let MapError::Full { map, max } = error else { return (written, Err(error)) };
        let blamed = ops.get(done).and_then(|op| services.blame(op));
        let Some(key) = blamed.filter(|key| take_back(services, unwritten, key)) else {
            return (written, Err(error));
        };
        let is_served = services.installed(&key).is_some();
        written.problems.extend(refused.insert(&key, Full { map, max }, is_served));
    }
}

/// Restores the Service's state of the last complete write; only what changed since can be restored. Where that does not
/// fit either, because a write that stopped halfway had begun to delete it, the Service is removed.
fn take_back(services: &mut ServiceTables, unwritten: &mut Unwritten, key: &ServiceKey) -> bool {
    let Some(before) = unwritten.0.remove(key) else { return false };
    if before.is_some() {
        unwritten.0.insert(key.clone(), None);
    }
    services.replace(key, before).is_ok() || services.replace(key, None).is_ok()
}
