//! Watches the configuration file for changes, so that the agent can exit and be restarted with the new configuration, like
//! kube-proxy. Unlike kube-proxy, it compares the parsed configuration: a new time stamp, a comment or another order of
//! fields is no change. A file that would be rejected at start does not stop a running agent; the caller decides that with a
//! [`DryRun`], because it knows how a file is resolved together with the flags.
//!
//! It watches the directories of the file and of every symbolic link in its path: a ConfigMap is mounted as a link
//! (`..data`) that is replaced, and an editor renames a new file over the old one.

use std::{
    collections::BTreeSet,
    fs, io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    sync::mpsc as sync_mpsc,
    thread,
    time::Duration,
};

use notify::{RecommendedWatcher, RecursiveMode, Watcher as _};
use tokio::{runtime::Handle, sync::mpsc};

use super::parse::{ConfigFile, read};

/// The file is read after this long without an event: it may be written in several steps.
const DEBOUNCE: Duration = Duration::from_millis(100);
/// Polling interval in addition to events: not every file system reports them.
const POLL: Duration = Duration::from_secs(5);
/// Attempts to watch directories that are replaced meanwhile. Afterwards only polling is left until the next change.
const MAX_SWAPS: usize = 8;
/// The kernel's limit.
const MAX_LINKS: usize = 40;

/// Whether an agent would start with the current file, and if not, why. Called on a thread that may block, inside the tokio
/// runtime.
pub type DryRun = Box<dyn FnMut() -> Result<(), String> + Send>;

/// Reports a change. Dropping it stops the watching.
#[derive(Debug)]
pub struct Watcher {
    changed: mpsc::Receiver<()>,
}

impl Watcher {
    /// Starts to watch. Changes since `file` was read are reported, too. Needs a tokio runtime.
    pub fn start(file: ConfigFile, dry_run: DryRun) -> io::Result<Self> {
        let (changed_in, changed) = mpsc::channel(1);
        let follower = Follower { file, dry_run, rejected: None, watched: BTreeSet::new() };
        let runtime = Handle::current();
        thread::Builder::new().name("config-file".into()).spawn(move || {
            let _within = runtime.enter();
            follower.run(&changed_in);
        })?;
        Ok(Self { changed })
    }

    /// Returns when the configuration has changed.
    pub async fn changed(&mut self) {
        if self.changed.recv().await.is_none() {
            std::future::pending().await
        }
    }
}

struct Follower {
    file: ConfigFile,
    dry_run: DryRun,
    /// Why the current file was rejected.
    rejected: Option<String>,
    /// The watched directories, with device and inode.
    watched: BTreeSet<(PathBuf, u64, u64)>,
}

impl Follower {
    fn run(mut self, changed: &mpsc::Sender<()>) {
        let (events_in, events) = sync_mpsc::channel();
        let mut watcher = None;
        loop {
            // Watch before reading: a change in between is then seen twice instead of never.
            self.update_watches(&mut watcher, &events_in);
            if self.has_changed() {
                // The receiver is closed only if the agent exits anyway.
                let _ = changed.blocking_send(());
                return;
            }
            // A sender is alive here, so the only possible error is the timeout.
            if events.recv_timeout(POLL).is_ok() {
                while events.recv_timeout(DEBOUNCE).is_ok() {}
            }
            if changed.is_closed() {
                return;
            }
        }
    }

    /// Updates the watched directories. They may be replaced at any time, even while this runs.
    fn update_watches(&mut self, watcher: &mut Option<RecommendedWatcher>, events: &sync_mpsc::Sender<()>) {
        for _ in 0..MAX_SWAPS {
            let now = directories(&self.file.path);
            if now == self.watched {
                return;
            }
            match watch(&now, events.clone()) {
                Ok(new) => *watcher = Some(new),
                Err(_) if directories(&self.file.path) != now => continue,
                Err(error) => {
                    let path = self.file.path.display();
                    tracing::warn!("cannot watch {path}: {error}; polling every {POLL:?} instead");
                }
            }
            self.watched = now;
            return;
        }
    }

    fn has_changed(&mut self) -> bool {
        let verdict = match read(&self.file.path) {
            // Ignored fields may change without a restart.
            Ok(now) if now.config == self.file.config => Ok(false),
            Ok(_) => (self.dry_run)().map(|()| true).map_err(|why| {
                format!("--config {} has changed and would be rejected: {why}", self.file.path.display())
            }),
            Err(error) => Err(error.to_string()),
        };
        match verdict {
            Ok(has_changed) => {
                self.rejected = None;
                has_changed
            }
            Err(why) => {
                if self.rejected.as_ref() != Some(&why) {
                    tracing::warn!("{why}; keeping the current configuration");
                    self.rejected = Some(why);
                }
                false
            }
        }
    }
}

fn watch(
    directories: &BTreeSet<(PathBuf, u64, u64)>,
    events: sync_mpsc::Sender<()>,
) -> notify::Result<RecommendedWatcher> {
    let mut watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
        // Reading the file also causes events.
        if event.is_ok_and(|event| !event.kind.is_access()) {
            let _ = events.send(());
        }
    })?;
    directories.iter().try_for_each(|(path, ..)| watcher.watch(path, RecursiveMode::NonRecursive))?;
    Ok(watcher)
}

/// The directories of every name in the path, with symbolic links resolved.
fn directories(path: &Path) -> BTreeSet<(PathBuf, u64, u64)> {
    let mut found = BTreeSet::new();
    let mut path = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    for _ in 0..MAX_LINKS {
        let mut parts: Vec<_> = path.ancestors().collect();
        parts.reverse();
        let link = parts.into_iter().find(|part| part.is_symlink()).map(Path::to_owned);
        let named = link.as_deref().unwrap_or(&path);
        if let Some(parent) = named.parent()
            && let Ok(metadata) = fs::metadata(parent)
        {
            found.insert((parent.to_owned(), metadata.dev(), metadata.ino()));
        }
        let Some(link) = link else { break };
        let (Ok(target), Ok(rest)) = (fs::read_link(&link), path.strip_prefix(&link)) else { break };
        let resolved = link.parent().unwrap_or(Path::new("/")).join(target);
        path = if rest.as_os_str().is_empty() { resolved } else { resolved.join(rest) };
    }
    found
}

#[cfg(test)]
mod tests {
    use std::{
        os::unix::fs::symlink,
        sync::{
            Arc,
            atomic::{AtomicU32, Ordering},
        },
    };

    use tokio::time::timeout;

    use super::*;

    const HEAD: &str = "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n";

    struct Scratch(PathBuf);

    impl Scratch {
        fn new(name: &str) -> Self {
            let path = std::env::temp_dir().join(format!("shunt-config-watch-{name}-{}", std::process::id()));
            fs::create_dir_all(&path).unwrap();
            Self(path.canonicalize().unwrap())
        }
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    /// A watcher whose dry run always succeeds.
    fn start(file: &Path) -> Watcher {
        Watcher::start(read(file).unwrap(), Box::new(|| Ok(()))).unwrap()
    }

    async fn reports_change(watcher: &mut Watcher) -> bool {
        timeout(Duration::from_secs(3), watcher.changed()).await.is_ok()
    }

    async fn stays_silent(watcher: &mut Watcher) -> bool {
        timeout(Duration::from_millis(600), watcher.changed()).await.is_err()
    }

    #[tokio::test]
    async fn only_another_configuration_is_a_change() {
        let dir = Scratch::new("meaning");
        let file = dir.0.join("config.conf");
        fs::write(&file, format!("{HEAD}mode: iptables\n")).unwrap();
        let mut watcher = start(&file);
        assert!(stays_silent(&mut watcher).await, "nothing happened");
        fs::File::options()
            .append(true)
            .open(&file)
            .unwrap()
            .set_modified(std::time::SystemTime::now())
            .unwrap();
        fs::write(&file, format!("# by hand\nmode: iptables\n{HEAD}")).unwrap();
        assert!(stays_silent(&mut watcher).await, "a comment and another order");
        fs::write(&file, format!("{HEAD}mode: nonsense\n")).unwrap();
        assert!(stays_silent(&mut watcher).await, "refused");
        fs::remove_file(&file).unwrap();
        assert!(stays_silent(&mut watcher).await, "gone");
        fs::write(&file, format!("{HEAD}mode: ipvs\n")).unwrap();
        assert!(reports_change(&mut watcher).await);
    }

    #[tokio::test]
    async fn a_file_that_fails_the_dry_run_is_not_reported() {
        let dir = Scratch::new("refused");
        let file = dir.0.join("config.conf");
        let beside = dir.0.join("kubeconfig");
        fs::write(&file, HEAD).unwrap();
        let asked = Arc::new(AtomicU32::new(0));
        let dry_run = {
            let (asked, beside) = (asked.clone(), beside.clone());
            move || {
                asked.fetch_add(1, Ordering::Relaxed);
                assert!(Handle::try_current().is_ok(), "the dry run is inside the runtime");
                if beside.exists() { Ok(()) } else { Err("there is no kubeconfig".to_owned()) }
            }
        };
        let mut watcher = Watcher::start(read(&file).unwrap(), Box::new(dry_run)).unwrap();
        fs::write(&file, format!("# by hand\n{HEAD}")).unwrap();
        assert!(stays_silent(&mut watcher).await);
        assert_eq!(asked.load(Ordering::Relaxed), 0, "an equal configuration needs no dry run");
        fs::write(&file, format!("{HEAD}mode: ipvs\n")).unwrap();
        assert!(stays_silent(&mut watcher).await);
        assert!(asked.load(Ordering::Relaxed) > 0);
        fs::write(&beside, "").unwrap();
        assert!(reports_change(&mut watcher).await, "the missing file exists now");
    }

    #[tokio::test]
    async fn an_editors_rename_is_seen() {
        let dir = Scratch::new("rename");
        let file = dir.0.join("config.conf");
        fs::write(&file, HEAD).unwrap();
        let mut watcher = start(&file);
        fs::write(dir.0.join(".new"), format!("{HEAD}mode: ipvs\n")).unwrap();
        fs::rename(dir.0.join(".new"), &file).unwrap();
        assert!(reports_change(&mut watcher).await);
    }

    #[tokio::test]
    async fn a_config_map_is_swapped_by_its_link() {
        let dir = Scratch::new("map");
        let version = |name: &str, text: &str| {
            fs::create_dir(dir.0.join(name)).unwrap();
            fs::write(dir.0.join(name).join("config.conf"), text).unwrap();
            symlink(name, dir.0.join("..data_tmp")).unwrap();
            fs::rename(dir.0.join("..data_tmp"), dir.0.join("..data")).unwrap();
        };
        version("..2026_01", HEAD);
        symlink("..data/config.conf", dir.0.join("config.conf")).unwrap();
        let mut watcher = start(&dir.0.join("config.conf"));
        version("..2026_02", HEAD);
        fs::remove_dir_all(dir.0.join("..2026_01")).unwrap();
        assert!(stays_silent(&mut watcher).await, "the same configuration in another directory");
        version("..2026_03", &format!("{HEAD}mode: ipvs\n"));
        assert!(reports_change(&mut watcher).await);
    }

    #[test]
    fn every_directory_in_the_path_is_watched() {
        let dir = Scratch::new("names");
        fs::create_dir_all(dir.0.join("real/deep")).unwrap();
        fs::write(dir.0.join("real/deep/file"), "").unwrap();
        symlink("real", dir.0.join("link")).unwrap();
        fs::create_dir(dir.0.join("etc")).unwrap();
        symlink("../link/deep/file", dir.0.join("etc/file")).unwrap();
        let found: Vec<_> = directories(&dir.0.join("etc/file")).into_iter().map(|(path, ..)| path).collect();
        let found: Vec<_> =
            found.iter().map(|path| path.strip_prefix(&dir.0).unwrap().display().to_string()).collect();
        assert_eq!(found, ["etc", "etc/..", "etc/../real/deep"]);
    }
}
