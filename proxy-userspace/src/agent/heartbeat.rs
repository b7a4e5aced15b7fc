//! AGENT, the map element by which `shunt status` knows whether an agent runs.

use std::sync::Arc;

use bytemuck::bytes_of;
use proxy_common::{Agent as AgentState, map};

use crate::{
    health::{Health, unix_now},
    maps::{MapStore, Op},
};

/// What AGENT holds; it stays there when the agent has stopped.
#[derive(Debug)]
pub(super) struct Heartbeat {
    state: AgentState,
    health: Arc<Health>,
}

impl Heartbeat {
    pub(super) fn new(health: Arc<Health>) -> Self {
        let state =
            AgentState { started: unix_now(), pid: std::process::id(), ..bytemuck::Zeroable::zeroed() };
        Self { state, health }
    }

    /// The programs are attached.
    pub(super) fn set_ready(&mut self) {
        self.state.ready = 1;
    }

    /// The maps are up to date.
    pub(super) fn synced(&mut self, services: usize, store: &mut dyn MapStore) {
        self.state.last_sync = unix_now();
        self.state.services = services as u32;
        self.beat(store);
    }

    /// The agent's task is running.
    pub(super) fn beat(&mut self, store: &mut dyn MapStore) {
        self.health.beat();
        self.state.heartbeat = unix_now();
        let op = Op::Put { map: map::AGENT, key: vec![0; 4], value: bytes_of(&self.state).to_vec() };
        if let Err((_, error)) = store.write(&[op]) {
            tracing::warn!(%error, "cannot write the heartbeat");
        }
    }

    /// The agent stops. Without a pid, `shunt status` need not wait for the heartbeat to become stale.
    pub(super) fn stop(&mut self, store: &mut dyn MapStore) {
        self.state.ready = 0;
        self.state.pid = 0;
        self.beat(store);
    }
}
