//! Follows one resource: a complete list, then a watch from the list's resourceVersion, then the next watch from where
//! that one ended; a new list when the server no longer has that version, or has gone back to an earlier one.

use std::{
    collections::{HashMap, HashSet},
    time::{Duration, Instant},
};

use serde_json::value::RawValue;
use tokio::time::sleep;

use super::{
    resource::{Head, Line, Page, Resource, decode, malformed},
    sink::{Closed, Sink},
    timing::Timing,
};
use crate::{
    kube_client::{ApiServer, Backoff, Lines, RequestError, Status, chance},
    metrics::METRICS,
    model::ObjectKey,
    sources::event::Event,
};

/// A watch that lasts this long counts as successful.
const LASTED: Duration = Duration::from_secs(10);
/// Minimum interval of watches that the server ends at once.
const PACE: Duration = Duration::from_secs(1);
/// Maximum failed watches from one version before a new list.
const ATTEMPTS: u32 = 5;
/// Maximum changes per batch.
const BATCH: usize = 1000;

#[derive(Debug)]
pub(super) struct Reflector {
    pub(super) resource: Resource,
    pub(super) api: ApiServer,
    pub(super) timing: Timing,
    pub(super) sink: Sink,
    /// Objects delivered and not deleted.
    pub(super) known: HashSet<ObjectKey>,
    /// Objects that cannot be decoded, and why; their last valid state stays.
    refused: HashMap<ObjectKey, String>,
    /// An earlier run left Services in the maps, and no list has been accepted yet.
    pub(super) populated: bool,
    pub(super) empty_since: Option<Instant>,
    pub(super) watch_list: bool,
    backoff: Backoff,
    last_error: Option<String>,
}

/// The start of a watch.
#[derive(Debug)]
pub(super) struct Opened {
    pub(super) version: String,
    /// An open watch, if the list was streamed through it.
    pub(super) lines: Option<Lines>,
}

/// Why a list or a watch ended.
#[derive(Debug)]
pub(super) enum Interrupt {
    Closed,
    Failed(RequestError),
    /// The server's resourceVersions went backwards: its state was restored from a backup.
    Backwards,
    /// The list is empty, which is implausible.
    Implausible,
}

impl From<RequestError> for Interrupt {
    fn from(error: RequestError) -> Self {
        Self::Failed(error)
    }
}

impl From<Closed> for Interrupt {
    fn from(_: Closed) -> Self {
        Self::Closed
    }
}

impl Reflector {
    pub(super) fn new(
        resource: Resource,
        api: ApiServer,
        timing: Timing,
        sink: Sink,
        watch_list: bool,
        populated: bool,
    ) -> Self {
        Self {
            resource,
            api,
            timing,
            sink,
            known: HashSet::new(),
            refused: HashMap::new(),
            populated,
            empty_since: None,
            watch_list,
            backoff: Backoff::default(),
            last_error: None,
        }
    }

    /// Runs until the agent drops the receiver.
    pub(super) async fn run(mut self) {
        while let Ok(opened) = self.fill().await {
            if self.follow(opened).await.is_err() {
                return;
            }
        }
    }

    /// Lists until a list is complete.
    async fn fill(&mut self) -> Result<Opened, Closed> {
        loop {
            let result = if self.watch_list {
                self.stream().await
            } else {
                self.list().await.map(|version| Opened { version, lines: None })
            };
            match result {
                Ok(opened) => {
                    self.recovered();
                    return Ok(opened);
                }
                Err(Interrupt::Closed) => return Err(Closed),
                Err(Interrupt::Implausible) => self.pause(self.timing.ask_again).await?,
                Err(Interrupt::Backwards) => {}
                Err(Interrupt::Failed(error))
                    if error.is_about_fields() && self.resource.leave_fields_out() =>
                {
                    tracing::info!(
                        "{}: an old API server ({error}): selecting by labels only",
                        self.resource.name
                    );
                }
                Err(Interrupt::Failed(error)) if self.watch_list && refuses_streaming(&error) => {
                    tracing::warn!(
                        "{}: the API server does not support streaming lists ({error}): listing",
                        self.resource.name
                    );
                    self.watch_list = false;
                }
                Err(Interrupt::Failed(error)) if error.is_unknown() && self.resource.turn_to_older() => {}
                Err(Interrupt::Failed(error)) if self.is_unserved(&error) => {
                    if self.last_error.replace(error.to_string()).is_none() {
                        tracing::info!("{}: {error}: continuing without this resource", self.resource.name);
                    }
                    // An empty list is complete.
                    self.complete(HashSet::new()).await?;
                    self.pause(self.timing.unserved).await?;
                }
                Err(Interrupt::Failed(error)) => self.wait(&error).await?,
            }
        }
    }

    /// Watches until a new list is needed.
    async fn follow(&mut self, opened: Opened) -> Result<(), Closed> {
        let Opened { mut version, mut lines } = opened;
        let mut attempts = 0;
        loop {
            let (begun, before) = (Instant::now(), version.clone());
            let result = self.watch(&mut version, lines.take()).await;
            if begun.elapsed() >= LASTED {
                self.backoff.reset();
            }
            attempts = if version == before { attempts + 1 } else { 0 };
            match result {
                // Ended as requested.
                Ok(true) => attempts = 0,
                // A server that shuts down ends its watches without an error, too.
                Ok(false) => {
                    self.pause(PACE.saturating_sub(begun.elapsed())).await?;
                    if !self.is_ahead(&version).await? {
                        return Ok(());
                    }
                }
                Err(Interrupt::Closed) => return Err(Closed),
                Err(Interrupt::Backwards | Interrupt::Implausible) => return Ok(()),
                Err(Interrupt::Failed(error)) if error.is_expired() => {
                    tracing::info!("{}: {error}: listing again", self.resource.name);
                    // If a version expires right after it was listed, do not loop without a pause.
                    if version == before && begun.elapsed() < PACE {
                        self.wait(&error).await?;
                    }
                    return Ok(());
                }
                Err(Interrupt::Failed(error)) => {
                    self.wait(&error).await?;
                    if attempts >= ATTEMPTS || !self.is_ahead(&version).await? {
                        return Ok(());
                    }
                }
            }
        }
    }

    /// One watch, until the server ends it; returns whether it lasted as long as requested.
    async fn watch(&mut self, version: &mut String, open: Option<Lines>) -> Result<bool, Interrupt> {
        let begun = Instant::now();
        let asked = self.seconds();
        let mut lines = match open {
            Some(lines) => lines,
            None => self.api.watch(&self.resource.watch(version, asked.as_secs())).await?,
        };
        self.log_recovered();
        let mut silence = asked + LASTED;
        while let Some(line) = lines.next(silence).await? {
            let (mut events, mut outcome, mut line) = (Vec::new(), Ok(()), Some(line));
            while let Some(text) = line {
                match self.take_line(&text, version, &mut events) {
                    Ok(is_bookmark) if is_bookmark => silence = silence.min(self.timing.bookmark),
                    Ok(_) => {}
                    Err(interrupt) => outcome = Err(interrupt),
                }
                let is_full = events.len() >= BATCH || outcome.is_err();
                line = if is_full { None } else { lines.ready() };
            }
            self.sink.send(events).await?;
            outcome?;
            self.backoff.reset();
        }
        Ok(begun.elapsed() + LASTED >= asked)
    }

    /// Takes one line of a watch; returns true for a bookmark.
    fn take_line(
        &mut self,
        text: &[u8],
        version: &mut String,
        events: &mut Vec<Event>,
    ) -> Result<bool, Interrupt> {
        let line: Line = decode(text)?;
        if line.r#type == "ERROR" {
            return Err(decode::<Status>(line.object.get().as_bytes())?.into_error().into());
        }
        let head: Head = decode(line.object.get().as_bytes())?;
        let new = &head.metadata.resource_version;
        if is_older(new, version) {
            tracing::warn!("{}: version {new} after {version}: listing again", self.resource.name);
            return Err(Interrupt::Backwards);
        }
        let is_bookmark = line.r#type == "BOOKMARK";
        if !is_bookmark {
            self.take_change(&line, &head, events)?;
        }
        if new.is_empty() {
            return Err(malformed("an object without a version").into());
        }
        version.clone_from(new);
        Ok(is_bookmark)
    }

    /// Takes an object that was added, changed or deleted.
    pub(super) fn take_change(
        &mut self,
        line: &Line<'_>,
        head: &Head,
        events: &mut Vec<Event>,
    ) -> Result<(), RequestError> {
        let key = head.metadata.key();
        match line.r#type.as_str() {
            "ADDED" | "MODIFIED" => events.extend(self.take(line.object, key)),
            "DELETED" => {
                self.refused.remove(&key);
                if self.known.remove(&key) {
                    events.push(self.resource.gone(key));
                }
            }
            other => return Err(malformed(format!("a change of type {other:?}"))),
        }
        Ok(())
    }

    /// Takes an object's state; if it cannot be decoded, that is logged once, and the last valid state stays.
    pub(super) fn take(&mut self, text: &RawValue, key: ObjectKey) -> Option<Event> {
        match self.resource.event(text) {
            Ok(event) => {
                self.refused.remove(&key);
                self.known.insert(key);
                Some(event)
            }
            Err(error) => {
                let why = error.to_string();
                if self.refused.get(&key) != Some(&why) {
                    tracing::error!("{} {key}: {why}", self.resource.name);
                    self.refused.insert(key, why);
                }
                None
            }
        }
    }

    /// After a failed watch: whether the server has reached `version`. One that was restored from a backup has not, and
    /// would keep a watch from there open without events.
    async fn is_ahead(&mut self, version: &str) -> Result<bool, Closed> {
        loop {
            let answer = self.api.get(&self.resource.version()).await;
            let current = answer.and_then(|text| Ok(decode::<Page>(&text)?.metadata.resource_version));
            match current {
                Ok(current) if is_older(&current, version) => {
                    tracing::warn!(
                        "{}: the server is at version {current}, before {version}: listing again",
                        self.resource.name
                    );
                    return Ok(false);
                }
                Ok(_) => return Ok(true),
                // A different server version: the next list finds out what it supports.
                Err(error) if error.is_about_fields() => return Ok(false),
                Err(error) => self.wait(&error).await?,
            }
        }
    }

    /// Forgets the errors of deleted objects.
    pub(super) fn forget_refused(&mut self, seen: &HashSet<ObjectKey>) {
        self.refused.retain(|key, _| seen.contains(key));
    }

    fn is_unserved(&self, error: &RequestError) -> bool {
        self.resource.is_optional() && (error.is_unknown() || error.code() == Some(403))
    }

    /// The duration to request for a watch.
    pub(super) fn seconds(&self) -> Duration {
        self.timing.watch.mul_f64(1.0 + chance() / 5.0)
    }

    /// Logs the error, once, and waits.
    async fn wait(&mut self, error: &RequestError) -> Result<(), Closed> {
        METRICS.own.watching(self.resource.name, false);
        METRICS.own.watch_failures.with_label_values(&[self.resource.name]).inc();
        let text = error.to_string();
        if self.last_error.as_ref() != Some(&text) {
            let hint = self.api.hint(error).map(|hint| format!(" ({hint})")).unwrap_or_default();
            tracing::warn!(
                "{}: the API server {}: {text}{hint}; trying again; known objects stay",
                self.resource.name,
                self.api.address()
            );
            self.last_error = Some(text);
        }
        if error.is_about_credentials() {
            self.api.renew().await;
        }
        let wait = self.backoff.after(error);
        self.pause(wait).await
    }

    /// Waits, unless the agent drops the receiver.
    async fn pause(&self, wait: Duration) -> Result<(), Closed> {
        tokio::select! {
            () = sleep(wait) => Ok(()),
            () = self.sink.closed() => Err(Closed),
        }
    }

    fn recovered(&mut self) {
        self.backoff.reset();
        self.log_recovered();
    }

    fn log_recovered(&mut self) {
        METRICS.own.watching(self.resource.name, true);
        if self.last_error.take().is_some() {
            tracing::info!("{}: following the API server {} again", self.resource.name, self.api.address());
        }
    }
}

/// Whether the server does not support streaming lists: it says so, or it treats the request as an ordinary watch and
/// the end of the list never comes.
fn refuses_streaming(error: &RequestError) -> bool {
    matches!(error.code(), Some(400 | 422))
        || matches!(error, RequestError::Silent(_) | RequestError::Malformed(_))
}

/// Whether `new` is an earlier resourceVersion than `old`. Versions are increasing numbers (KEP-5504); others cannot be
/// compared.
fn is_older(new: &str, old: &str) -> bool {
    let number = |version: &str| version.parse::<u128>().ok();
    number(new).zip(number(old)).is_some_and(|(new, old)| new < old)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_compared_as_numbers() {
        assert!(is_older("9", "10") && !is_older("10", "9") && !is_older("10", "10"));
        assert!(!is_older("a", "10") && !is_older("9", "") && !is_older("", "1"));
    }
}
