//! Where the reflectors' events go: the channel to the agent, and the count of initial lists still missing.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use tokio::sync::mpsc;

use crate::sources::event::Event;

/// The agent has dropped the receiver.
#[derive(Debug)]
pub(super) struct Closed;

/// One reflector's end of the channel.
#[derive(Debug)]
pub(super) struct Sink {
    events: mpsc::Sender<Vec<Event>>,
    /// Resources whose initial list is not complete yet; shared by all reflectors.
    incomplete: Arc<AtomicUsize>,
    is_listed: bool,
}

impl Sink {
    pub(super) fn new(events: mpsc::Sender<Vec<Event>>, incomplete: Arc<AtomicUsize>) -> Self {
        Self { events, incomplete, is_listed: false }
    }

    pub(super) async fn send(&self, events: Vec<Event>) -> Result<(), Closed> {
        if events.is_empty() {
            return Ok(());
        }
        self.events.send(events).await.map_err(|_| Closed)
    }

    /// The resource's list is complete and was sent. The last resource's initial list is followed by
    /// [`Event::Synced`].
    pub(super) async fn listed(&mut self) -> Result<(), Closed> {
        let is_first = !std::mem::replace(&mut self.is_listed, true);
        // Whoever counts down to zero does so after all other reflectors' events are in the channel.
        if is_first && self.incomplete.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.send(vec![Event::Synced]).await?;
        }
        Ok(())
    }

    /// Returns once the agent has dropped the receiver.
    pub(super) async fn closed(&self) {
        self.events.closed().await;
    }
}
