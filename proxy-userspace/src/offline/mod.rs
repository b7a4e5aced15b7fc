//! `shunt compile`: compiles manifests to the tables of a node, without touching the kernel.
//!
//! The whole config line runs like in `shunt run`, but with maps in memory, and with the addresses of the Node object instead
//! of those of the machine. Called by the command line and by the golden tests.

mod print;
mod view;

use std::{net::IpAddr, path::Path};

pub use self::{print::print_tables_into, view::TablesView};
use crate::{
    config::{CompileConfig, MapSizes},
    controller::{Controller, NodeAddress, SyncError, SyncReport},
    maps::memory::MemoryStore,
    problem::Problem,
    sources::{
        Event,
        directory::{Directory, Ignored, Refused},
        files::{self, FilesError},
    },
};

/// Errors of `shunt compile`.
#[derive(Debug, thiserror::Error)]
pub enum OfflineError {
    #[error(transparent)]
    Files(#[from] FilesError),
    #[error(transparent)]
    Sync(#[from] SyncError),
}

/// The tables of a node, compiled only from manifests.
#[derive(Debug)]
pub struct Offline {
    pub controller: Controller,
    pub store: MemoryStore,
    directory: Directory,
}

impl Offline {
    /// Compiles a manifest file, or all manifests of a directory.
    pub fn compile(path: &Path, node_name: &str, config: CompileConfig) -> Result<Self, OfflineError> {
        let (directory, events) = files::read(path)?;
        let controller = Controller::new(node_name, config, MapSizes::default());
        let mut offline = Self { controller, store: MemoryStore::default(), directory };
        offline.apply(events)?;
        Ok(offline)
    }

    /// Applies further events, like later changes.
    pub fn apply(&mut self, events: Vec<Event>) -> Result<SyncReport, OfflineError> {
        events.into_iter().for_each(|event| self.controller.apply(event));
        self.controller.set_node_addresses(assumed_addresses(&self.controller), &[]);
        Ok(self.controller.sync(&mut self.store)?)
    }

    /// Rejected documents.
    pub fn refused(&self) -> Vec<Refused> {
        self.directory.refused()
    }

    /// Objects of kinds that a proxy does not use.
    pub fn ignored(&self) -> Vec<Ignored> {
        self.directory.ignored()
    }

    /// Services that are not served as specified.
    pub fn problems(&self) -> Vec<Problem> {
        self.controller.problems()
    }

    pub fn view(&self) -> TablesView {
        TablesView::new(self.controller.tables(), self.controller.listeners())
    }
}

/// The known addresses of the node: those of its Node object, and loopback.
fn assumed_addresses(controller: &Controller) -> Vec<NodeAddress> {
    let node = controller.node();
    let loopback = [IpAddr::from([127, 0, 0, 1]), IpAddr::from([0, 0, 0, 0, 0, 0, 0, 1])];
    let own = node.internal_ips.iter().chain(&node.other_ips);
    let own = own.map(|addr| NodeAddress { addr: *addr, device: String::new() });
    own.chain(loopback.map(|addr| NodeAddress { addr, device: "lo".into() })).collect()
}
