//! The cluster's API server as a source: complete lists, then watches, of the resources that a proxy reads.
//!
//! One [`reflector`] per resource, each a task of its own; they share the client and the channel to the agent. While the
//! API server is unreachable nothing changes: delivered objects stay valid until a complete list replaces them.
//! What the objects mean is decided in `api` and `snapshot`.

mod list;
mod reflector;
mod resource;
mod sink;
mod timing;

use std::sync::{Arc, atomic::AtomicUsize};

use tokio::sync::mpsc;

pub use self::timing::Timing;
use self::{reflector::Reflector, resource::Resource, sink::Sink};
use super::event::Event;
use crate::{
    config::Cluster,
    events::Recorder,
    kube_client::{AccessError, ApiServer},
};

/// An API server that can be followed.
#[derive(Debug)]
pub struct KubeSource {
    api: ApiServer,
    node_name: String,
    watch_list: bool,
    timing: Timing,
}

impl KubeSource {
    /// Reads the credentials; sends no request yet. Must be called within a runtime.
    pub fn open(cluster: &Cluster, node_name: &str) -> Result<Self, AccessError> {
        Ok(Self {
            api: ApiServer::new(cluster.clone())?,
            node_name: node_name.to_owned(),
            watch_list: cluster.watch_list,
            timing: Timing::default(),
        })
    }

    /// Replaces the default times; tests need not wait.
    pub fn with_timing(self, timing: Timing) -> Self {
        Self { timing, ..self }
    }

    /// Records Events at the same API server. Must be called within a runtime.
    pub fn recorder(&self) -> Recorder {
        Recorder::start(self.api.clone(), &self.node_name)
    }

    /// Batches of changes; [`Event::Synced`] comes once all initial lists are complete. `populated`: an earlier run
    /// left Services in the maps. Dropping the receiver stops the reflectors.
    pub fn follow(self, populated: bool) -> mpsc::Receiver<Vec<Event>> {
        let (sender, events) = mpsc::channel(16);
        let resources = [
            Resource::services(),
            Resource::slices(),
            Resource::node(&self.node_name),
            Resource::service_cidrs(),
        ];
        let incomplete = Arc::new(AtomicUsize::new(resources.len()));
        tracing::info!("following the API server {}", self.api.address());
        for resource in resources {
            let sink = Sink::new(sender.clone(), incomplete.clone());
            let reflector =
                Reflector::new(resource, self.api.clone(), self.timing, sink, self.watch_list, populated);
            tokio::spawn(reflector.run());
        }
        events
    }
}
