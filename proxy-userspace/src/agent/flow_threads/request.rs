//! What the threads and the agent's task say to each other, and the map handles of a thread.

use std::{
    collections::HashSet,
    io,
    os::fd::OwnedFd,
    sync::mpsc as sync_mpsc,
    time::{Duration, Instant},
};

use proxy_common::map;
use tokio::sync::mpsc;

use crate::{
    bpf::map::RawMap,
    controller::InUse,
    datapath::{conntrack_gc::udp_flush::Pair, load::Loaded},
};

/// How long a thread waits for an answer of the agent's task, which may be writing all maps.
const PATIENCE: Duration = Duration::from_secs(30);

/// From a thread to the agent's task.
#[derive(Debug)]
pub enum Report {
    /// Which of these pairs no longer belong together? The answer is to be removed from the maps.
    Ask { pairs: HashSet<Pair>, answer: sync_mpsc::SyncSender<HashSet<Pair>> },
    /// The ids that flows name, as read since `began`.
    InUse { began: Instant, in_use: InUse },
    /// CONNTRACK had no room for this many new flows since the last report; at most once a minute.
    Full { refused: u64, max: usize },
}

/// From the agent's task to the udp-flush thread.
#[derive(Debug)]
pub(super) enum Order {
    /// Flush these pairs.
    Flush(Vec<Pair>),
    /// Check every pair that flows and sockets name: endpoints may have been removed while no agent ran.
    FlushAll,
    /// UDP frontends have a backend that had none before.
    Served,
}

/// A thread's own map handles.
#[derive(Debug)]
pub(super) struct Maps {
    pub(super) conntrack: RawMap,
    pub(super) counters: RawMap,
    pub(super) sock_backend: RawMap,
    pub(super) sock_revnat: RawMap,
    pub(super) frontends: RawMap,
    /// The program that returns the clock of the maps.
    pub(super) clock: OwnedFd,
    pub(super) reports: mpsc::UnboundedSender<Report>,
}

impl Maps {
    pub(super) fn open(loaded: &Loaded, reports: &mpsc::UnboundedSender<Report>) -> io::Result<Self> {
        let open = |name| loaded.store.map(name).map_err(io::Error::other)?.try_clone();
        Ok(Self {
            conntrack: open(map::CONNTRACK)?,
            counters: open(map::COUNTERS)?,
            sock_backend: open(map::SOCK_BACKEND)?,
            sock_revnat: open(map::SOCK_REVNAT)?,
            frontends: open(map::FRONTENDS)?,
            clock: loaded.program("clock").map_err(io::Error::other)?.try_clone_to_owned()?,
            reports: reports.clone(),
        })
    }

    /// Which of `pairs` no longer belong together. Empty when the agent does not answer, because it is stopping.
    pub(super) fn removed_of(&self, pairs: HashSet<Pair>) -> HashSet<Pair> {
        if pairs.is_empty() {
            return pairs;
        }
        let (answer, answers) = sync_mpsc::sync_channel(1);
        let asked = self.reports.send(Report::Ask { pairs, answer });
        asked.ok().and_then(|()| answers.recv_timeout(PATIENCE).ok()).unwrap_or_default()
    }
}
