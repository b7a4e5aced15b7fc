//! A complete list, page by page or streamed, and what it replaces: an object that was deleted while no watch was open
//! is never reported as deleted, so everything that a complete list does not contain is gone.

use std::{
    collections::HashSet,
    time::{Duration, Instant},
};

use super::{
    reflector::{Interrupt, Opened, Reflector},
    resource::{Bookmark, Head, Line, Page, decode, malformed},
    sink::Closed,
};
use crate::{
    kube_client::{RequestError, Status},
    model::ObjectKey,
    sources::event::Event,
};

/// Timeout between two objects of a streamed list.
const PIECE: Duration = Duration::from_secs(10);

impl Reflector {
    /// Lists everything; returns the resourceVersion to watch from.
    pub(super) async fn list(&mut self) -> Result<String, Interrupt> {
        match self.pages(true).await {
            // The list's version was compacted while its pages were read; a single response cannot fail that way.
            Err(Interrupt::Failed(error)) if error.is_expired() => self.pages(false).await,
            result => result,
        }
    }

    async fn pages(&mut self, paged: bool) -> Result<String, Interrupt> {
        let mut seen = HashSet::new();
        let mut token = None;
        loop {
            let text = self.api.get(&self.resource.list(paged, token.as_deref())).await?;
            let page: Page = decode(&text)?;
            let mut events = Vec::new();
            for item in page.items.unwrap_or_default() {
                let key = decode::<Head>(item.get().as_bytes())?.metadata.key();
                seen.insert(key.clone());
                events.extend(self.take(item, key));
            }
            // Each page is sent as it arrives, so that only one is kept in memory.
            self.sink.send(events).await?;
            let version = page.metadata.resource_version;
            if version.is_empty() {
                return Err(malformed("a list without a version").into());
            }
            if page.metadata.r#continue.is_empty() {
                self.check_plausible(&seen)?;
                self.complete(seen).await?;
                return Ok(version);
            }
            token = Some(page.metadata.r#continue);
        }
    }

    /// Lists everything through a watch, which then continues.
    pub(super) async fn stream(&mut self) -> Result<Opened, Interrupt> {
        let asked = self.seconds();
        let mut lines = self.api.watch(&self.resource.watch_list(asked.as_secs())).await?;
        let mut seen: HashSet<ObjectKey> = HashSet::new();
        let mut events = Vec::new();
        while let Some(text) = lines.next(PIECE).await? {
            let mut text = Some(text);
            while let Some(line) = text {
                if let Some(version) = self.streamed(&line, &mut seen, &mut events)? {
                    self.sink.send(events).await?;
                    self.check_plausible(&seen)?;
                    self.complete(seen).await?;
                    return Ok(Opened { version, lines: Some(lines) });
                }
                text = lines.ready();
            }
            self.sink.send(std::mem::take(&mut events)).await?;
        }
        Err(RequestError::Unreachable("the watch ended before the end of its list".into()).into())
    }

    /// Takes a line of a streamed list; returns the resourceVersion at its end.
    fn streamed(
        &mut self,
        text: &[u8],
        seen: &mut HashSet<ObjectKey>,
        events: &mut Vec<Event>,
    ) -> Result<Option<String>, Interrupt> {
        let line: Line = decode(text)?;
        let object = line.object.get().as_bytes();
        match line.r#type.as_str() {
            "ERROR" => return Err(decode::<Status>(object)?.into_error().into()),
            "BOOKMARK" => {
                let ends = decode::<Bookmark>(object)?.ends_list();
                return Ok(if ends { Some(decode::<Head>(object)?.metadata.resource_version) } else { None });
            }
            _ => {}
        }
        let head: Head = decode(object)?;
        if line.r#type == "DELETED" {
            seen.remove(&head.metadata.key());
        } else {
            seen.insert(head.metadata.key());
        }
        self.take_change(&line, &head, events)?;
        Ok(None)
    }

    /// An empty list of a resource that is never empty (a server that lost its store, a load balancer's default
    /// response) is accepted only after a while, if objects are known.
    fn check_plausible(&mut self, seen: &HashSet<ObjectKey>) -> Result<(), Interrupt> {
        let has_much_to_lose = self.populated || !self.known.is_empty();
        if !seen.is_empty() || !self.resource.is_never_empty() || !has_much_to_lose {
            self.empty_since = None;
            return Ok(());
        }
        let is_new = self.empty_since.is_none();
        let since = *self.empty_since.get_or_insert_with(Instant::now);
        if since.elapsed() >= self.timing.believe_empty {
            tracing::warn!(
                "{}: the list is still empty after {:?}: accepted",
                self.resource.name,
                since.elapsed()
            );
            self.empty_since = None;
            return Ok(());
        }
        if is_new {
            tracing::error!(
                "{}: the API server {} returns an empty list, which is implausible: known objects stay; accepted if \
                 repeated for {:?}",
                self.resource.name,
                self.api.address(),
                self.timing.believe_empty
            );
        }
        Err(Interrupt::Implausible)
    }

    /// The list is complete: objects that it does not contain are gone.
    pub(super) async fn complete(&mut self, seen: HashSet<ObjectKey>) -> Result<(), Closed> {
        let gone: Vec<ObjectKey> = self.known.iter().filter(|key| !seen.contains(key)).cloned().collect();
        let mut events = Vec::with_capacity(gone.len());
        for key in gone {
            self.known.remove(&key);
            events.push(self.resource.gone(key));
        }
        self.forget_refused(&seen);
        self.populated = false;
        self.sink.send(events).await?;
        self.sink.listed().await
    }
}
