//! The pin directories `<bpffs>/v<SCHEMA>/{maps,progs,links}/NAME`, and the lock by which one agent owns them.

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
};

use nix::{
    fcntl::{Flock, FlockArg},
    sys::statfs::{BPF_FS_MAGIC, statfs},
};

use super::DatapathError;

/// The pin directories of one agent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pins {
    root: PathBuf,
}

impl Pins {
    /// Those under `bpffs` (`--bpffs`), whether they exist or not.
    pub fn under(bpffs: &Path) -> Self {
        Self { root: bpffs.join(format!("v{}", proxy_common::SCHEMA)) }
    }

    /// Makes the directories; `bpffs` must be on a bpf file system.
    pub fn create(bpffs: &Path) -> Result<Self, DatapathError> {
        let pins = Self::under(bpffs);
        let existing = bpffs.ancestors().find(|dir| dir.exists()).unwrap_or(Path::new("/"));
        let filesystem = statfs(existing).map_err(|e| DatapathError::pin(existing, e.into()))?;
        if filesystem.filesystem_type() != BPF_FS_MAGIC {
            return Err(DatapathError::NoBpffs { path: bpffs.to_owned() });
        }
        for dir in [pins.maps(), pins.progs(), pins.links()] {
            fs::create_dir_all(&dir).map_err(|e| DatapathError::pin(&dir, e))?;
        }
        Ok(pins)
    }

    pub fn root(&self) -> &Path {
        &self.root
    }

    pub fn maps(&self) -> PathBuf {
        self.root.join("maps")
    }

    pub fn map(&self, name: &str) -> PathBuf {
        self.root.join("maps").join(name)
    }

    pub fn progs(&self) -> PathBuf {
        self.root.join("progs")
    }

    pub fn prog(&self, name: &str) -> PathBuf {
        self.root.join("progs").join(name)
    }

    pub fn links(&self) -> PathBuf {
        self.root.join("links")
    }

    pub fn link(&self, name: &str) -> PathBuf {
        self.root.join("links").join(name)
    }

    /// Locks the pin directory for the lifetime of this process. The directory itself is locked (bpffs holds no regular
    /// files), so the lock protects it in any mount namespace.
    pub fn lock(&self) -> Result<PinLock, DatapathError> {
        let dir = File::open(&self.root).map_err(|e| DatapathError::pin(&self.root, e))?;
        match Flock::lock(dir, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => Ok(PinLock { _lock: lock }),
            Err((_, nix::errno::Errno::EWOULDBLOCK)) => {
                Err(DatapathError::Running { path: self.root.clone() })
            }
            Err((_, errno)) => Err(DatapathError::pin(&self.root, errno.into())),
        }
    }

    /// The names pinned in a directory; a missing directory has none.
    pub fn names(dir: &Path) -> io::Result<Vec<String>> {
        let entries = match fs::read_dir(dir) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            other => other?,
        };
        entries.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned())).collect()
    }
}

/// Held while an agent owns a pin directory.
#[derive(Debug)]
pub struct PinLock {
    _lock: Flock<File>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_schema_is_part_of_the_path() {
        let pins = Pins::under(Path::new("/sys/fs/bpf/shunt"));
        let want = format!("/sys/fs/bpf/shunt/v{}/maps/SLOTS", proxy_common::SCHEMA);
        assert_eq!(pins.map("SLOTS"), PathBuf::from(want));
    }

    #[test]
    fn a_plain_directory_is_refused_with_the_way_out() {
        let error = Pins::create(Path::new("/proc/shunt")).unwrap_err().to_string();
        assert!(error.contains("mount -t bpf"), "{error}");
    }

    #[test]
    fn an_absent_directory_has_no_pins() {
        assert_eq!(Pins::names(Path::new("/nonexistent")).unwrap(), Vec::<String>::new());
    }
}
