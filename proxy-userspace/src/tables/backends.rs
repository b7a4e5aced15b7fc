//! Backends: one for each address, port and protocol, shared by every service port that uses it.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Instant,
};

use proxy_common::{Backend, FrontendKey};

use super::{
    desired::{NodeName, Tables},
    ids::IdPool,
    port_bits::PortBits,
};
use crate::compile::CompiledBackend;

/// Backends in use and retired.
///
/// A retired backend stays in BACKENDS (not active) and BACKEND_ADDRS while CONNTRACK names it: its flows continue, and
/// a direct flow that reuses the port of an old Service flow must still be recognised as one to a backend.
#[derive(Debug)]
pub struct Backends {
    pool: IdPool,
    states: HashMap<FrontendKey, State>,
    /// Retired ids, and since when the store no longer sends new flows to them; `None` until written.
    retired: HashMap<u32, (FrontendKey, Option<Instant>)>,
    /// Ids that no written frontend has used yet.
    fresh: HashSet<u32>,
}

/// The number of service ports that use the backend, and their states of it.
#[derive(Clone, Copy, Debug, Default)]
struct State {
    id: u32,
    uses: u32,
    local: u32,
    ready: u32,
    terminating: u32,
}

impl Backends {
    pub fn new(len: u32) -> Self {
        Self {
            pool: IdPool::new(len),
            states: HashMap::new(),
            retired: HashMap::new(),
            fresh: HashSet::new(),
        }
    }

    pub fn available(&self) -> usize {
        self.pool.available()
    }

    pub fn is_valid(&self, id: u32) -> bool {
        self.pool.is_valid(id)
    }

    pub fn id(&self, key: &FrontendKey) -> Option<u32> {
        self.states.get(key).map(|state| state.id)
    }

    pub fn has_retired(&self) -> bool {
        !self.retired.is_empty()
    }

    /// One more service port uses it. `None` when no id is left.
    pub fn acquire(
        &mut self,
        key: FrontendKey,
        backend: &CompiledBackend,
        tables: &mut Tables,
        bits: &mut PortBits,
    ) -> Option<u32> {
        if !self.states.contains_key(&key) {
            let id = self.pool.take()?;
            self.states.insert(key, State { id, ..State::default() });
            self.fresh.insert(id);
            bits.add_backend(key, tables);
            tables.backend_addrs.set(key, id);
        }
        let state = self.states.get_mut(&key)?;
        state.count(backend, |n| *n += 1);
        let id = state.id;
        self.retired.remove(&id);
        match &backend.node {
            Some(node) => tables.backend_meta.set(id, NodeName(node.clone())),
            None if state.uses == 1 => tables.backend_meta.set(id, NodeName(Arc::from(""))),
            None => {}
        }
        tables.backends.set(id, state.value(key));
        Some(id)
    }

    /// One service port less uses it; the last one retires it, or frees it if no packet can have used it. `backend` is
    /// the state that this port had.
    pub fn release(
        &mut self,
        key: FrontendKey,
        backend: &CompiledBackend,
        tables: &mut Tables,
        bits: &mut PortBits,
    ) {
        let Some(state) = self.states.get_mut(&key) else { return };
        state.count(backend, |n| *n = n.saturating_sub(1));
        let id = state.id;
        if state.uses == 0 && self.fresh.remove(&id) {
            return self.free(id, key, tables, bits);
        }
        if state.uses == 0 {
            self.retired.insert(id, (key, None));
        }
        tables.backends.set(id, state.value(key));
    }

    /// Frontends were written: packets may use any backend from now on.
    pub fn named(&mut self) {
        self.fresh.clear();
    }

    fn free(&mut self, id: u32, key: FrontendKey, tables: &mut Tables, bits: &mut PortBits) {
        self.states.remove(&key);
        tables.backend_addrs.remove(&key);
        tables.backend_meta.remove(&id);
        tables.backends.remove(&id);
        bits.remove_backend(key, tables);
        self.pool.give_back(id);
    }

    /// The store no longer sends new flows to retired backends.
    pub fn flushed(&mut self, now: Instant) {
        let waiting = self.retired.values_mut().filter(|(_, since)| since.is_none());
        waiting.for_each(|(_, since)| *since = Some(now));
    }

    /// Frees the ids retired before `before` that are not in use; returns whether there were any.
    pub fn free_unused(
        &mut self,
        before: Instant,
        in_use: &HashSet<u32>,
        tables: &mut Tables,
        bits: &mut PortBits,
    ) -> bool {
        let unused = |(id, (key, since)): (&u32, &(FrontendKey, Option<Instant>))| {
            (since.is_some_and(|since| since <= before) && !in_use.contains(id)).then_some((*id, *key))
        };
        let mut freed: Vec<_> = self.retired.iter().filter_map(unused).collect();
        freed.sort_unstable();
        for (id, key) in &freed {
            self.retired.remove(id);
            self.free(*id, *key, tables, bits);
        }
        !freed.is_empty()
    }

    /// Takes over the backends found in the store; once, before any other call. All count as retired until a Service
    /// uses them.
    pub fn adopt(
        &mut self,
        found: Vec<(FrontendKey, u32, Option<NodeName>)>,
        tables: &mut Tables,
        bits: &mut PortBits,
    ) {
        let mut taken = HashSet::new();
        for (key, id, node) in found {
            if !self.is_valid(id) || !taken.insert(id) {
                continue;
            }
            let state = State { id, ..State::default() };
            tables.backend_addrs.set(key, id);
            tables.backends.set(id, state.value(key));
            tables.backend_meta.set(id, node.unwrap_or_else(|| NodeName(Arc::from(""))));
            bits.add_backend(key, tables);
            self.states.insert(key, state);
            self.retired.insert(id, (key, None));
        }
        self.pool.adopt(&taken);
    }
}

impl State {
    fn count(&mut self, backend: &CompiledBackend, change: impl Fn(&mut u32)) {
        change(&mut self.uses);
        let said = [
            (&mut self.local, backend.local),
            (&mut self.ready, backend.ready),
            (&mut self.terminating, backend.terminating),
        ];
        said.into_iter().filter(|(_, so)| *so).for_each(|(n, _)| change(n));
    }

    /// If service ports differ: local or ready if any of them says so, terminating if all do.
    fn value(&self, key: FrontendKey) -> Backend {
        let flags = [
            (Backend::ACTIVE, self.uses > 0),
            (Backend::LOCAL, self.local > 0),
            (Backend::READY, self.ready > 0),
            (Backend::TERMINATING, self.uses > 0 && self.terminating == self.uses),
        ];
        let flags = flags.into_iter().filter(|(_, set)| *set).fold(0, |all, (flag, _)| all | flag);
        Backend { addr: key.addr, port: key.port, proto: key.proto, flags, reserved: 0 }
    }
}
