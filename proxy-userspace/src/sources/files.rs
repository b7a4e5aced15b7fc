//! `--manifests DIR`: reads a directory of manifests and follows its changes.
//!
//! [`read`] reads once, for `shunt compile` and tests; [`follow`] adds a thread that watches with inotify and sends
//! changes as events. `directory` interprets the files.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fs, io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    sync::mpsc as sync_mpsc,
    thread,
    time::{Duration, Instant},
};

use notify::{
    EventKind, RecommendedWatcher, RecursiveMode, Watcher as _,
    event::{AccessKind, AccessMode, ModifyKind},
};
use tokio::sync::mpsc;

use super::{
    directory::{Directory, Ignored, Refused},
    event::Event,
};

/// Why a directory of manifests cannot be followed.
#[derive(Debug, thiserror::Error)]
pub enum FilesError {
    #[error("cannot read {}: {source}", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("cannot watch {}: {source}", path.display())]
    Watch { path: PathBuf, source: notify::Error },
    #[error("cannot start the thread that watches manifests: {0}")]
    Thread(io::Error),
}

/// A directory that is being followed. Dropping it ends the watching.
#[derive(Debug)]
pub struct FilesSource {
    /// Batches of changes; the first ends with [`Event::Synced`].
    pub events: mpsc::Receiver<Vec<Event>>,
}

/// Changes are read when nothing has happened for this long...
const QUIET: Duration = Duration::from_millis(20);
/// ...or this long after the first.
const DEBOUNCE: Duration = Duration::from_millis(80);
/// A file that is still open for writing is read this long after the last write.
const UNCLOSED: Duration = Duration::from_secs(3);
/// Interval of checks without a notification: the directory itself may have been replaced.
const LOOK: Duration = Duration::from_secs(1);

/// Reads a file, or every manifest of a directory, once.
pub fn read(path: &Path) -> Result<(Directory, Vec<Event>), FilesError> {
    let failed = |source| FilesError::Read { path: path.into(), source };
    let mut directory = Directory::default();
    let mut events = Vec::new();
    if fs::metadata(path).map_err(failed)?.is_dir() {
        for file in manifests(path).map_err(failed)?.into_keys() {
            let text = fs::read_to_string(&file);
            events.extend(directory.update(&file, text));
        }
    } else {
        let text = fs::read_to_string(path).map_err(failed)?;
        events.extend(directory.update(path, Ok(text)));
    }
    events.push(Event::Synced);
    Ok((directory, events))
}

/// Reads the directory and follows its changes from then on.
pub fn follow(path: &Path) -> Result<FilesSource, FilesError> {
    let (notices_in, notices) = sync_mpsc::channel();
    // Watch before reading: a change in between is seen twice instead of never.
    let watch = Watch::new(path, notices_in)?;
    let mut follower = Follower {
        path: path.into(),
        directory: Directory::default(),
        seen: BTreeMap::new(),
        open: HashMap::new(),
        refused: Vec::new(),
        ignored: Vec::new(),
    };
    let mut first =
        follower.look(&BTreeSet::new()).map_err(|source| FilesError::Read { path: path.into(), source })?;
    first.push(Event::Synced);
    let (events_in, events) = mpsc::channel(16);
    let run = move || follower.run(watch, &notices, first, &events_in);
    thread::Builder::new().name("manifests".into()).spawn(run).map_err(FilesError::Thread)?;
    Ok(FilesSource { events })
}

/// Identifies a state of a file.
type Signature = (u64, u64, u64, i64, i64, i64, i64);

/// The manifests of a directory, in order of their names.
fn manifests(path: &Path) -> io::Result<BTreeMap<PathBuf, Signature>> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(path)? {
        let file = entry?.path();
        // Follows symbolic links, as in a mounted ConfigMap; a dangling one is not a manifest.
        let Some(metadata) = is_manifest(&file).then(|| fs::metadata(&file)).and_then(Result::ok) else {
            continue;
        };
        if metadata.is_file() {
            let m = metadata;
            let signature =
                (m.dev(), m.ino(), m.size(), m.mtime(), m.mtime_nsec(), m.ctime(), m.ctime_nsec());
            found.insert(file, signature);
        }
    }
    Ok(found)
}

/// Whether the name is a new hard link to an existing file: there will be no close event.
fn is_linked(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|metadata| metadata.is_symlink() || metadata.nlink() > 1)
}

fn is_manifest(path: &Path) -> bool {
    let is_hidden = path.file_name().and_then(|name| name.to_str()).is_none_or(|name| name.starts_with('.'));
    let extension = path.extension().and_then(|extension| extension.to_str());
    !is_hidden && matches!(extension, Some("yaml" | "yml" | "json"))
}

/// The inotify watch of the directory.
struct Watch {
    path: PathBuf,
    watcher: RecommendedWatcher,
    /// Device and inode of the watched directory.
    target: Option<(u64, u64)>,
}

impl Watch {
    fn new(path: &Path, notices: sync_mpsc::Sender<notify::Event>) -> Result<Self, FilesError> {
        let failed = |source| FilesError::Watch { path: path.into(), source };
        let watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
            if let Ok(event) = event {
                // The receiver is dropped only when the follower has ended.
                let _ = notices.send(event);
            }
        });
        let mut watch = Self { path: path.into(), watcher: watcher.map_err(failed)?, target: None };
        watch.watcher.watch(path, RecursiveMode::NonRecursive).map_err(failed)?;
        watch.target = target(path);
        Ok(watch)
    }

    /// Watches again if the directory was replaced.
    fn renew(&mut self) {
        let now = target(&self.path);
        if now.is_none() || now == self.target {
            return;
        }
        // Replaces the old watch, which may have been removed with the old directory.
        let _ = self.watcher.unwatch(&self.path);
        match self.watcher.watch(&self.path, RecursiveMode::NonRecursive) {
            Ok(()) => self.target = now,
            Err(error) => tracing::warn!("cannot watch {}: {error}", self.path.display()),
        }
    }
}

fn target(path: &Path) -> Option<(u64, u64)> {
    fs::metadata(path).ok().map(|metadata| (metadata.dev(), metadata.ino()))
}

struct Follower {
    path: PathBuf,
    directory: Directory,
    seen: BTreeMap<PathBuf, Signature>,
    /// Files that are being written, and the time of the last write.
    open: HashMap<PathBuf, Instant>,
    refused: Vec<Refused>,
    ignored: Vec<Ignored>,
}

impl Follower {
    fn run(
        mut self,
        mut watch: Watch,
        notices: &sync_mpsc::Receiver<notify::Event>,
        first: Vec<Event>,
        events: &mpsc::Sender<Vec<Event>>,
    ) {
        let mut batch = first;
        loop {
            if !batch.is_empty() && events.blocking_send(std::mem::take(&mut batch)).is_err() {
                return;
            }
            let touched = self.wait(notices);
            if events.is_closed() {
                return;
            }
            watch.renew();
            match self.look(&touched) {
                Ok(found) => batch = found,
                // While the directory cannot be read, nothing counts as deleted.
                Err(error) => tracing::debug!("cannot read {}: {error}", self.path.display()),
            }
        }
    }

    /// Waits for events and then until they stop; returns the files concerned.
    fn wait(&mut self, notices: &sync_mpsc::Receiver<notify::Event>) -> BTreeSet<PathBuf> {
        let mut touched = BTreeSet::new();
        let Ok(first) = notices.recv_timeout(LOOK) else { return touched };
        let begun = Instant::now();
        self.note(first, &mut touched);
        while let Some(left) = DEBOUNCE.checked_sub(begun.elapsed()) {
            match notices.recv_timeout(left.min(QUIET)) {
                Ok(notice) => self.note(notice, &mut touched),
                Err(_) => break,
            }
        }
        touched
    }

    fn note(&mut self, notice: notify::Event, touched: &mut BTreeSet<PathBuf>) {
        let is_closed = notice.kind == EventKind::Access(AccessKind::Close(AccessMode::Write));
        let is_written = matches!(
            notice.kind,
            EventKind::Create(_) | EventKind::Modify(ModifyKind::Data(_) | ModifyKind::Any)
        );
        // Caused by our own reads.
        if matches!(notice.kind, EventKind::Access(_)) && !is_closed {
            return;
        }
        for path in notice.paths {
            if is_written && !is_linked(&path) {
                self.open.insert(path.clone(), Instant::now());
            } else {
                self.open.remove(&path);
            }
            touched.insert(path);
        }
    }

    /// Reads files that changed or were touched since the last pass.
    fn look(&mut self, touched: &BTreeSet<PathBuf>) -> io::Result<Vec<Event>> {
        let found = manifests(&self.path)?;
        self.open.retain(|path, since| found.contains_key(path) && since.elapsed() < UNCLOSED);
        let mut events = Vec::new();
        let gone: Vec<PathBuf> =
            self.seen.keys().filter(|path| !found.contains_key(*path)).cloned().collect();
        for path in gone {
            events.extend(self.directory.remove(&path));
            self.seen.remove(&path);
        }
        for (path, signature) in found {
            let is_same = self.seen.get(&path) == Some(&signature) && !touched.contains(&path);
            // Being written; at start, files are read in any state.
            if is_same || self.open.contains_key(&path) {
                continue;
            }
            events.extend(self.directory.update(&path, fs::read_to_string(&path)));
            self.seen.insert(path, signature);
        }
        self.report();
        Ok(events)
    }

    /// Logs problems of the files, each once.
    fn report(&mut self) {
        let (refused, ignored) = (self.directory.refused(), self.directory.ignored());
        refused.iter().filter(|new| !self.refused.contains(new)).for_each(|new| tracing::error!("{new}"));
        ignored.iter().filter(|new| !self.ignored.contains(new)).for_each(|new| tracing::info!("{new}"));
        (self.refused, self.ignored) = (refused, ignored);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A temporary directory, removed at the end.
    struct Dir(PathBuf);

    impl Dir {
        fn new(name: &str) -> Self {
            let path = std::env::temp_dir().join(format!("shunt-files-{name}-{}", std::process::id()));
            fs::create_dir_all(&path).unwrap();
            Self(path)
        }

        fn write(&self, file: &str, text: &str) {
            fs::write(self.0.join(file), text).unwrap();
        }
    }

    impl Drop for Dir {
        fn drop(&mut self) {
            fs::remove_dir_all(&self.0).unwrap();
        }
    }

    fn node(name: &str) -> String {
        format!("kind: Node\napiVersion: v1\nmetadata: {{name: {name}}}\n")
    }

    fn names(batch: &[Event]) -> Vec<String> {
        let one = |event: &Event| match event {
            Event::Node(node) => format!("+{}", node.name),
            Event::NodeGone(name) => format!("-{name}"),
            Event::Synced => "synced".into(),
            other => panic!("{other:?}"),
        };
        batch.iter().map(one).collect()
    }

    /// Receives events, in any number of batches, until they equal `want`; at most three seconds.
    async fn next(source: &mut FilesSource, want: &[&str]) {
        let mut got: Vec<String> = Vec::new();
        let begun = Instant::now();
        while got != want {
            let left = Duration::from_secs(3).saturating_sub(begun.elapsed());
            let batch = tokio::time::timeout(left, source.events.recv()).await;
            let batch = batch.unwrap_or_else(|_| panic!("{want:?} did not come, but {got:?}"));
            got.extend(names(&batch.unwrap()));
        }
    }

    #[tokio::test]
    async fn changes_are_followed() {
        let dir = Dir::new("follow");
        dir.write("a.yaml", &node("a"));
        dir.write("b.txt", &node("b"));
        dir.write(".c.yaml", &node("c"));
        let mut source = follow(&dir.0).unwrap();
        next(&mut source, &["+a", "synced"]).await;
        // As an editor does: a new file renamed over the old one.
        dir.write(".a.yaml.new", &node("a2"));
        fs::rename(dir.0.join(".a.yaml.new"), dir.0.join("a.yaml")).unwrap();
        next(&mut source, &["-a", "+a2"]).await;
        dir.write("d.json", "{\"kind\": \"Node\", \"apiVersion\": \"v1\", \"metadata\": {\"name\": \"d\"}}");
        next(&mut source, &["+d"]).await;
        fs::remove_file(dir.0.join("a.yaml")).unwrap();
        next(&mut source, &["-a2"]).await;
    }

    #[tokio::test]
    async fn a_file_being_written_is_not_taken_for_empty() {
        use std::io::Write as _;
        let dir = Dir::new("unclosed");
        dir.write("a.yaml", &node("a"));
        let mut source = follow(&dir.0).unwrap();
        next(&mut source, &["+a", "synced"]).await;
        let mut file = fs::File::create(dir.0.join("a.yaml")).unwrap();
        let early = tokio::time::timeout(Duration::from_millis(500), source.events.recv()).await;
        assert!(early.is_err(), "{early:?}");
        file.write_all((node("a") + "---\n" + &node("b")).as_bytes()).unwrap();
        drop(file);
        next(&mut source, &["+b"]).await;
    }

    #[tokio::test]
    async fn a_link_is_read_at_once() {
        let outer = Dir::new("links");
        let inner = outer.0.join("m");
        fs::create_dir(&inner).unwrap();
        outer.write("a.txt", &node("a"));
        outer.write("b.txt", &node("b"));
        let mut source = follow(&inner).unwrap();
        next(&mut source, &["synced"]).await;
        let begun = Instant::now();
        std::os::unix::fs::symlink(outer.0.join("a.txt"), inner.join("a.yaml")).unwrap();
        next(&mut source, &["+a"]).await;
        fs::hard_link(outer.0.join("b.txt"), inner.join("b.yaml")).unwrap();
        next(&mut source, &["+b"]).await;
        assert!(begun.elapsed() < UNCLOSED, "{:?}", begun.elapsed());
    }

    #[tokio::test]
    async fn a_replaced_directory_is_followed_on() {
        let outer = Dir::new("replaced");
        let inner = outer.0.join("m");
        fs::create_dir(&inner).unwrap();
        fs::write(inner.join("a.yaml"), node("a")).unwrap();
        let mut source = follow(&inner).unwrap();
        next(&mut source, &["+a", "synced"]).await;
        fs::rename(&inner, outer.0.join("old")).unwrap();
        fs::create_dir(&inner).unwrap();
        fs::write(inner.join("b.yaml"), node("b")).unwrap();
        next(&mut source, &["-a", "+b"]).await;
        fs::write(inner.join("c.yaml"), node("c")).unwrap();
        next(&mut source, &["+c"]).await;
    }

    #[test]
    fn a_missing_directory_is_an_error() {
        assert!(matches!(read(Path::new("/nonexistent/shunt")), Err(FilesError::Read { .. })));
        assert!(matches!(follow(Path::new("/nonexistent/shunt")), Err(FilesError::Watch { .. })));
    }
}
