//! Sends Events one after the other, rate-limited. Repetitions within a while are counted, and sent as at most one
//! patch a minute.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use http::Method;
use jiff::Timestamp;
use serde_json::Value;
use tokio::{sync::mpsc, time::sleep};

use super::{event::Event, object};
use crate::{
    kube_client::{ApiServer, Backoff, RequestError},
    metrics::METRICS,
};

/// Token bucket: this many at once, then one per `PACE`.
const BURST: u32 = 25;
const PACE: Duration = Duration::from_secs(1);
/// A repetition within this time belongs to the same Event.
const SERIES: Duration = Duration::from_secs(360);
/// Minimum between two patches of one Event.
const PATCH: Duration = Duration::from_secs(60);
/// Maximum number of remembered Events; beyond it the oldest are forgotten.
const REMEMBERED: usize = 512;
/// An Event that could not be sent for this long is discarded.
const STALE: Duration = Duration::from_secs(600);

const JSON: &str = "application/json";
const MERGE_PATCH: &str = "application/merge-patch+json";

/// The task's state.
#[derive(Debug)]
pub struct Writer {
    api: ApiServer,
    node: String,
    seen: HashMap<Event, Series>,
    tokens: u32,
    refilled: Instant,
    backoff: Backoff,
    was_refused: bool,
}

/// An Event that was sent, and how often it occurred since.
#[derive(Clone, Debug)]
struct Series {
    name: String,
    count: u32,
    /// The count that the API server knows.
    patched_count: u32,
    last: Instant,
    patched_at: Instant,
}

impl Writer {
    pub fn new(api: ApiServer, node: &str) -> Self {
        Self {
            api,
            node: node.to_owned(),
            seen: HashMap::new(),
            tokens: BURST,
            refilled: Instant::now(),
            backoff: Backoff::default(),
            was_refused: false,
        }
    }

    /// Runs until all recorders are dropped.
    pub async fn run(mut self, mut queue: mpsc::Receiver<Event>) {
        loop {
            tokio::select! {
                event = queue.recv() => match event {
                    Some(event) => self.take(event).await,
                    None => return,
                },
                () = sleep(PATCH), if !self.seen.is_empty() => self.patch_repeated().await,
            }
            if self.seen.values().any(|series| series.is_due(Instant::now())) {
                self.patch_repeated().await;
            }
        }
    }

    async fn take(&mut self, event: Event) {
        let now = Instant::now();
        if let Some(series) = self.seen.get_mut(&event)
            && now.duration_since(series.last) < SERIES
        {
            series.count += 1;
            series.last = now;
            return;
        }
        let name = object::name(&event, &self.node, Timestamp::now());
        let (path, body) = object::new(&event, &self.node, &name, Timestamp::now());
        if self.send(Method::POST, &path, JSON, &body).await {
            if self.seen.len() >= REMEMBERED {
                self.forget_half();
            }
            let series = Series { name, count: 1, patched_count: 1, last: now, patched_at: Instant::now() };
            self.seen.insert(event, series);
        }
    }

    /// Patches Events that were repeated, and forgets finished series.
    async fn patch_repeated(&mut self) {
        let now = Instant::now();
        self.seen.retain(|_, series| now.duration_since(series.last) < SERIES || series.is_unpatched());
        let due: Vec<_> = self.seen.iter().filter(|(_, series)| series.is_due(now)).collect();
        let due: Vec<(Event, Series)> =
            due.into_iter().map(|(event, series)| (event.clone(), series.clone())).collect();
        for (event, series) in due {
            let (path, patch) = object::repeated(&event, &series.name, series.count, Timestamp::now());
            if self.send(Method::PATCH, &path, MERGE_PATCH, &patch).await {
                if let Some(known) = self.seen.get_mut(&event) {
                    known.patched_count = series.count;
                    known.patched_at = Instant::now();
                }
            } else {
                // The API server keeps Events for an hour: it may be gone; the next occurrence is a new one.
                self.seen.remove(&event);
            }
        }
    }

    fn forget_half(&mut self) {
        let mut times: Vec<_> = self.seen.values().map(|series| series.last).collect();
        times.sort_unstable();
        let middle = times[times.len() / 2];
        self.seen.retain(|_, series| series.last > middle);
    }

    /// Sends one, and retries while the API server is unreachable; returns whether it was accepted.
    async fn send(&mut self, method: Method, path: &str, kind: &'static str, body: &Value) -> bool {
        let begun = Instant::now();
        self.wait_for_token().await;
        loop {
            let result = self.api.write(method.clone(), path, kind, body.to_string()).await;
            let Err(error) = result else {
                self.backoff.reset();
                self.was_refused = false;
                METRICS.own.events.with_label_values(&["sent"]).inc();
                return true;
            };
            let may_pass = match &error {
                RequestError::Refused { code, .. } => *code == 401 || *code == 429 || *code >= 500,
                _ => true,
            };
            if error.is_about_credentials() {
                self.api.renew().await;
            }
            if !may_pass || begun.elapsed() > STALE {
                if !std::mem::replace(&mut self.was_refused, true) {
                    tracing::warn!(
                        "an Event could not be sent: {error} (needs create and patch of events in events.k8s.io)"
                    );
                }
                METRICS.own.events.with_label_values(&["failed"]).inc();
                return false;
            }
            sleep(self.backoff.after(&error)).await;
        }
    }

    async fn wait_for_token(&mut self) {
        let gained = (self.refilled.elapsed().as_secs_f64() / PACE.as_secs_f64()) as u32;
        if gained > 0 {
            self.tokens = self.tokens.saturating_add(gained).min(BURST);
            self.refilled = Instant::now();
        }
        if self.tokens == 0 {
            sleep(PACE).await;
            self.refilled = Instant::now();
            return;
        }
        self.tokens -= 1;
    }
}

impl Series {
    fn is_unpatched(&self) -> bool {
        self.count > self.patched_count
    }

    fn is_due(&self, now: Instant) -> bool {
        self.is_unpatched() && now.duration_since(self.patched_at) >= PATCH
    }
}
