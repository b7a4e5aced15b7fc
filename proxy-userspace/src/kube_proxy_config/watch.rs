//! Waits until the configuration file says something else, so that the agent can end and be started again with it,
//! as kube-proxy does. Unlike kube-proxy it is the meaning that counts: a touched file, a comment, another order
//! of fields change nothing, and a file that would be refused at the start does not end an agent that runs. Whether it
//! would be is for the caller to say ([`WouldStart`]): it knows what a file is resolved to, and what stands beside it.
//!
//! What is watched are the directories of the file and of every symbolic link on the way to it: a ConfigMap is
//! mounted as a link (`..data`) that is swapped, an editor renames a new file over the old one.

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

use super::{ConfigFile, read};

/// The file is read once nothing has happened for this long: whoever writes it may do so in pieces.
const QUIET: Duration = Duration::from_millis(100);
/// How often to look without being told: not every file system tells.
const LOOK: Duration = Duration::from_secs(5);
/// So often in a row a directory may go between being found and being watched; then LOOK has to do.
const MAX_SWAPS: usize = 8;
/// As many links as the kernel follows.
const MAX_LINKS: usize = 40;

/// Whether an agent would start with the file as it is now, and else why not. Called within a runtime, by a thread that
/// may wait.
pub type WouldStart = Box<dyn FnMut() -> Result<(), String> + Send>;

/// Tells of a change. Dropping it ends the watching.
#[derive(Debug)]
pub struct Watcher {
    changed: mpsc::Receiver<()>,
}

impl Watcher {
    /// Watches from now on; what has changed since `file` was read counts. Within a runtime only.
    pub fn start(file: ConfigFile, would_start: WouldStart) -> io::Result<Self> {
        let (changed_in, changed) = mpsc::channel(1);
        let follower = Follower { file, would_start, refused: None, watched: BTreeSet::new() };
        let runtime = Handle::current();
        thread::Builder::new().name("config-file".into()).spawn(move || {
            let _within = runtime.enter();
            follower.run(&changed_in);
        })?;
        Ok(Self { changed })
    }

    /// Returns once the file says something else.
    pub async fn changed(&mut self) {
        if self.changed.recv().await.is_none() {
            std::future::pending().await
        }
    }
}

struct Follower {
    file: ConfigFile,
    would_start: WouldStart,
    /// Why the file as it is now was refused.
    refused: Option<String>,
    /// The directories that are watched, with device and inode.
    watched: BTreeSet<(PathBuf, u64, u64)>,
}

impl Follower {
    fn run(mut self, changed: &mpsc::Sender<()>) {
        let (notices_in, notices) = sync_mpsc::channel();
        let mut watcher = None;
        loop {
            // Watch first, read then: a change in between is seen twice instead of never.
            self.renew(&mut watcher, &notices_in);
            if self.has_changed() {
                // The receiver is gone only when the agent ends anyway.
                let _ = changed.blocking_send(());
                return;
            }
            // Some end of the channel is always here: the error is the time that has passed.
            if notices.recv_timeout(LOOK).is_ok() {
                while notices.recv_timeout(QUIET).is_ok() {}
            }
            if changed.is_closed() {
                return;
            }
        }
    }

    /// Watches the directories of now; those of before may have been replaced, and those of now may be meanwhile.
    fn renew(&mut self, watcher: &mut Option<RecommendedWatcher>, notices: &sync_mpsc::Sender<()>) {
        for _ in 0..MAX_SWAPS {
            let now = directories(&self.file.path);
            if now == self.watched {
                return;
            }
            match watch(&now, notices.clone()) {
                Ok(new) => *watcher = Some(new),
                Err(_) if directories(&self.file.path) != now => continue,
                Err(error) => {
                    let path = self.file.path.display();
                    tracing::warn!("cannot watch {path}: {error}; looking at it every {LOOK:?} instead");
                }
            }
            self.watched = now;
            return;
        }
    }

    fn has_changed(&mut self) -> bool {
        let verdict = match read(&self.file.path) {
            // What stands beside the file may come and go: nobody ends an agent for that.
            Ok(now) if now.said == self.file.said => Ok(false),
            Ok(_) => (self.would_start)().map(|()| true).map_err(|why| {
                format!("--config {} has changed, and would be refused: {why}", self.file.path.display())
            }),
            Err(error) => Err(error.to_string()),
        };
        match verdict {
            Ok(has_changed) => {
                self.refused = None;
                has_changed
            }
            Err(why) => {
                if self.refused.as_ref() != Some(&why) {
                    tracing::warn!("{why}; going on with the configuration of the start");
                    self.refused = Some(why);
                }
                false
            }
        }
    }
}

fn watch(
    directories: &BTreeSet<(PathBuf, u64, u64)>,
    notices: sync_mpsc::Sender<()>,
) -> notify::Result<RecommendedWatcher> {
    let mut watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
        // Our own reading of the file is no change of it.
        if event.is_ok_and(|event| !event.kind.is_access()) {
            let _ = notices.send(());
        }
    })?;
    directories.iter().try_for_each(|(path, ..)| watcher.watch(path, RecursiveMode::NonRecursive))?;
    Ok(watcher)
}

/// The directories in which a name on the way to the file stands.
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

    /// Of an agent that would start with any file.
    fn start(file: &Path) -> Watcher {
        Watcher::start(read(file).unwrap(), Box::new(|| Ok(()))).unwrap()
    }

    async fn is_told(watcher: &mut Watcher) -> bool {
        timeout(Duration::from_secs(3), watcher.changed()).await.is_ok()
    }

    async fn is_silent(watcher: &mut Watcher) -> bool {
        timeout(Duration::from_millis(600), watcher.changed()).await.is_err()
    }

    #[tokio::test]
    async fn only_another_meaning_is_a_change() {
        let dir = Scratch::new("meaning");
        let file = dir.0.join("config.conf");
        fs::write(&file, format!("{HEAD}mode: iptables\n")).unwrap();
        let mut watcher = start(&file);
        assert!(is_silent(&mut watcher).await, "nothing happened");
        fs::File::options()
            .append(true)
            .open(&file)
            .unwrap()
            .set_modified(std::time::SystemTime::now())
            .unwrap();
        fs::write(&file, format!("# by hand\nmode: iptables\n{HEAD}")).unwrap();
        assert!(is_silent(&mut watcher).await, "a comment and another order");
        fs::write(&file, format!("{HEAD}mode: nonsense\n")).unwrap();
        assert!(is_silent(&mut watcher).await, "refused");
        fs::remove_file(&file).unwrap();
        assert!(is_silent(&mut watcher).await, "gone");
        fs::write(&file, format!("{HEAD}mode: ipvs\n")).unwrap();
        assert!(is_told(&mut watcher).await);
    }

    #[tokio::test]
    async fn a_file_that_no_agent_would_start_with_is_no_change_yet() {
        let dir = Scratch::new("refused");
        let file = dir.0.join("config.conf");
        let beside = dir.0.join("kubeconfig");
        fs::write(&file, HEAD).unwrap();
        let asked = Arc::new(AtomicU32::new(0));
        let would_start = {
            let (asked, beside) = (asked.clone(), beside.clone());
            move || {
                asked.fetch_add(1, Ordering::Relaxed);
                assert!(Handle::try_current().is_ok(), "credentials are looked at within a runtime");
                if beside.exists() { Ok(()) } else { Err("there is no kubeconfig".to_owned()) }
            }
        };
        let mut watcher = Watcher::start(read(&file).unwrap(), Box::new(would_start)).unwrap();
        fs::write(&file, format!("# by hand\n{HEAD}")).unwrap();
        assert!(is_silent(&mut watcher).await);
        assert_eq!(asked.load(Ordering::Relaxed), 0, "the same meaning is not resolved");
        fs::write(&file, format!("{HEAD}mode: ipvs\n")).unwrap();
        assert!(is_silent(&mut watcher).await);
        assert!(asked.load(Ordering::Relaxed) > 0);
        fs::write(&beside, "").unwrap();
        assert!(is_told(&mut watcher).await, "what it lacked has come");
    }

    #[tokio::test]
    async fn an_editors_rename_is_seen() {
        let dir = Scratch::new("rename");
        let file = dir.0.join("config.conf");
        fs::write(&file, HEAD).unwrap();
        let mut watcher = start(&file);
        fs::write(dir.0.join(".new"), format!("{HEAD}mode: ipvs\n")).unwrap();
        fs::rename(dir.0.join(".new"), &file).unwrap();
        assert!(is_told(&mut watcher).await);
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
        assert!(is_silent(&mut watcher).await, "the same in another directory");
        version("..2026_03", &format!("{HEAD}mode: ipvs\n"));
        assert!(is_told(&mut watcher).await);
    }

    #[test]
    fn every_name_on_the_way_is_watched() {
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
