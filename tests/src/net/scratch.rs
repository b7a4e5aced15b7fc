//! Directories owned by a cluster: manifests in /tmp, pins on bpffs, cgroups. Their names contain the process id. They
//! are removed in `Drop`; the next process removes those that a killed process left.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};
use nix::mount::{MsFlags, mount};

/// bpffs mount point on every Linux with systemd; the harness mounts it there if it is missing.
pub const BPFFS: &str = "/sys/fs/bpf";

/// A directory that is removed with its contents.
#[derive(Debug)]
pub struct Scratch {
    path: PathBuf,
}

impl Scratch {
    pub fn new(path: PathBuf) -> Result<Self> {
        fs::create_dir_all(&path).with_context(|| format!("making {}", path.display()))?;
        Ok(Self { path })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.path)
            && error.kind() != std::io::ErrorKind::NotFound
        {
            eprintln!("could not remove {}: {error}", self.path.display());
        }
    }
}

/// Mounts bpffs at its usual place unless it is mounted.
pub fn mount_bpffs() -> Result<()> {
    let mounts = fs::read_to_string("/proc/self/mounts")?;
    if mounts.lines().any(|line| line.split(' ').skip(1).take(2).eq([BPFFS, "bpf"])) {
        return Ok(());
    }
    match mount(Some("bpf"), BPFFS, Some("bpf"), MsFlags::empty(), None::<&str>) {
        // EBUSY: another test was faster.
        Ok(()) | Err(nix::Error::EBUSY) => Ok(()),
        Err(error) => {
            bail!("mounting bpffs at {BPFFS}: {error}; run as root, or mount it: mount -t bpf bpf {BPFFS}")
        }
    }
}

/// Whether `name` is `PREFIX-PID-...` (or `PREFIX-PID`) of a process that no longer exists.
pub fn is_orphan(name: &str, prefix: &str) -> bool {
    let Some(rest) = name.strip_prefix(prefix).and_then(|rest| rest.strip_prefix('-')) else { return false };
    let digits = rest.split('-').next().unwrap_or_default();
    digits.parse::<u32>().is_ok_and(|pid| !Path::new("/proc").join(pid.to_string()).exists())
}

/// Removes the entries `PREFIX-PID...` of dead processes from `dir` with `remove`.
pub fn sweep(dir: &Path, prefix: &str, remove: impl Fn(&Path)) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        if is_orphan(&entry.file_name().to_string_lossy(), prefix) {
            remove(&entry.path());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_the_dead_left_is_an_orphan() {
        let me = std::process::id();
        // Above the limit of 2^22 for /proc/sys/kernel/pid_max: never a process.
        let nobody = 5_000_000;
        assert!(is_orphan(&format!("shunt-test-{nobody}-0-node-1"), "shunt-test"));
        assert!(is_orphan(&format!("shunt-test-{nobody}"), "shunt-test"));
        assert!(!is_orphan(&format!("shunt-test-{me}-0"), "shunt-test"));
        assert!(!is_orphan(&format!("other-{nobody}-0"), "shunt-test"));
        assert!(!is_orphan("shunt-test-node", "shunt-test"));
    }
}
