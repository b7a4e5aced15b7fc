//! A complete list, page by page or through a watch, and what it replaces: an object that vanished while nobody
//! watched is never announced as deleted, so whatever a complete list does not hold is gone.

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
    source::event::Event,
};

/// Between two objects of a list that is streamed.
const PIECE: Duration = Duration::from_secs(10);

impl Reflector {
    /// Lists everything; the version to watch from.
    pub(super) async fn list(&mut self) -> Result<String, Interrupt> {
        match self.pages(true).await {
            // The next page's version was compacted away while the pages before it were read. Everything in
            // one answer cannot meet that.
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
            // Each page as it comes: what it says is true, and the next need not be kept beside it.
            self.sink.send(events).await?;
            let version = page.metadata.resource_version;
            if version.is_empty() {
                return Err(malformed("a list without a version").into());
            }
            if page.metadata.r#continue.is_empty() {
                self.believe(&seen)?;
                self.complete(seen).await?;
                return Ok(version);
            }
            token = Some(page.metadata.r#continue);
        }
    }

    /// Everything through a watch, which then goes on.
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
                    self.believe(&seen)?;
                    self.complete(seen).await?;
                    return Ok(Opened { version, lines: Some(lines) });
                }
                text = lines.ready();
            }
            self.sink.send(std::mem::take(&mut events)).await?;
        }
        Err(RequestError::Unreachable("the watch ended before the end of its list".into()).into())
    }

    /// Takes a line of a streamed list; the version where the list ends.
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

    /// An empty list of what is never empty (a server whose store was lost, a proxy's idle answer) is believed
    /// only after a while, when there is something to lose.
    fn believe(&mut self, seen: &HashSet<ObjectKey>) -> Result<(), Interrupt> {
        let has_much_to_lose = self.populated || !self.known.is_empty();
        if !seen.is_empty() || !self.resource.is_never_empty() || !has_much_to_lose {
            self.empty_since = None;
            return Ok(());
        }
        let is_new = self.empty_since.is_none();
        let since = *self.empty_since.get_or_insert_with(Instant::now);
        if since.elapsed() >= self.timing.believe_empty {
            tracing::warn!("{}: still none after {:?}: believed", self.resource.name, since.elapsed());
            self.empty_since = None;
            return Ok(());
        }
        if is_new {
            tracing::error!(
                "{}: the API server {} says there are none, which cannot be: what is known stays; believed if it \
                 says so for {:?}",
                self.resource.name,
                self.api.address(),
                self.timing.believe_empty
            );
        }
        Err(Interrupt::Implausible)
    }

    /// The list is complete: what it does not hold is gone.
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
