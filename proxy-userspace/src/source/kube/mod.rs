//! The cluster's API server as a source: complete lists, then watches, of what a proxy reads.
//!
//! One [`reflector`] a resource, each a task of its own; they share the address of the API server and the
//! channel to the agent. An API server that is away changes nothing: what was delivered stays true until a
//! complete list says otherwise. What the objects mean is the business of `api` and `snapshot`.

mod access;
mod backoff;
mod error;
mod list;
mod reflector;
mod request;
mod resource;
mod token;

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::sync::mpsc;

pub use self::{access::AccessError, backoff::Backoff, error::RequestError, request::ApiServer};
use self::{reflector::Reflector, resource::Resource};
use super::Event;
use crate::{config::Cluster, events::Recorder};

/// Times that the reflectors keep.
#[derive(Clone, Copy, Debug)]
pub struct Timing {
    /// How long the server is asked to keep a watch open; up to a fifth more, so that not all end together.
    pub watch: Duration,
    /// Servers that send bookmarks send one a minute. One that has sent some and is silent for this long hangs,
    /// or waits for a version that it will not reach.
    pub bookmark: Duration,
    /// An empty list of something that is never empty is believed once it has been repeated for this long.
    pub believe_empty: Duration,
    /// How soon such a list is asked for again.
    pub ask_again: Duration,
    /// How often to look for a resource that the server does not know.
    pub unserved: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            watch: Duration::from_secs(290),
            bookmark: Duration::from_secs(150),
            believe_empty: Duration::from_secs(60),
            ask_again: Duration::from_secs(5),
            unserved: Duration::from_secs(600),
        }
    }
}

/// An API server that can be followed.
#[derive(Debug)]
pub struct KubeSource {
    api: ApiServer,
    node_name: String,
    watch_list: bool,
    timing: Timing,
}

/// The agent no longer listens.
#[derive(Debug)]
struct Closed;

/// Where a reflector's events go.
#[derive(Debug)]
struct Sink {
    events: mpsc::Sender<Vec<Event>>,
    /// Resources whose initial list is not complete yet.
    waiting: Arc<AtomicUsize>,
    is_done: bool,
}

impl KubeSource {
    /// Reads the credentials; asks nobody yet. Within a runtime only.
    pub fn open(cluster: &Cluster, node_name: &str) -> Result<Self, AccessError> {
        Ok(Self {
            api: ApiServer::new(cluster.clone())?,
            node_name: node_name.to_owned(),
            watch_list: cluster.watch_list,
            timing: Timing::default(),
        })
    }

    /// Other times than the usual ones; tests need not wait.
    pub fn with_timing(self, timing: Timing) -> Self {
        Self { timing, ..self }
    }

    /// Sends events to the same API server. Within a runtime only.
    pub fn recorder(&self) -> Recorder {
        Recorder::start(self.api.clone(), &self.node_name)
    }

    /// Batches of changes; [`Event::Synced`] comes once all initial lists are complete. `populated` says that
    /// an earlier run left Services in the maps. Dropping the receiver ends the following.
    pub fn follow(self, populated: bool) -> mpsc::Receiver<Vec<Event>> {
        let (events_in, events) = mpsc::channel(16);
        let resources = [
            Resource::services(),
            Resource::slices(),
            Resource::node(&self.node_name),
            Resource::service_cidrs(),
        ];
        let waiting = Arc::new(AtomicUsize::new(resources.len()));
        tracing::info!("following the API server {}", self.api.address());
        for resource in resources {
            let sink = Sink { events: events_in.clone(), waiting: waiting.clone(), is_done: false };
            let reflector =
                Reflector::new(resource, self.api.clone(), self.timing, sink, self.watch_list, populated);
            tokio::spawn(reflector.run());
        }
        events
    }
}

impl Sink {
    async fn send(&self, events: Vec<Event>) -> Result<(), Closed> {
        if events.is_empty() {
            return Ok(());
        }
        self.events.send(events).await.map_err(|_| Closed)
    }

    /// The resource's list is complete, and everything of it was sent.
    async fn listed(&mut self) -> Result<(), Closed> {
        let is_first = !std::mem::replace(&mut self.is_done, true);
        // The one that counts down to zero comes after all others' events: they are in the channel.
        if is_first && self.waiting.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.send(vec![Event::Synced]).await?;
        }
        Ok(())
    }
}
