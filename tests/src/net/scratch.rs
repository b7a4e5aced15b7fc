//! Directories a cluster owns: manifests in /tmp, pins on bpffs, cgroups. All carry the process id in their names, all
//! go away in `Drop`, and what a killed process left is swept by the next one.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};
use nix::mount::{MsFlags, mount};

/// Where bpffs is mounted on every Linux with systemd, and by us where it is not.
pub const BPFFS: &str = "/sys/fs/bpf";

/// A directory that is removed with everything in it.
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

/// Makes sure that bpffs is mounted at its usual place.
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

/// Whether `name` is `PREFIX-PID-...` (or `PREFIX-PID`) of a process that no longer lives.
pub fn is_orphan(name: &str, prefix: &str) -> bool {
    let Some(rest) = name.strip_prefix(prefix).and_then(|rest| rest.strip_prefix('-')) else { return false };
    let digits = rest.split('-').next().unwrap_or_default();
    digits.parse::<u32>().is_ok_and(|pid| !Path::new("/proc").join(pid.to_string()).exists())
}

/// Removes what dead processes left in `dir` under `PREFIX-PID...`; `remove` is how.
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
        // Above /proc/sys/kernel/pid_max's limit of 2^22: never a process.
        let nobody = 5_000_000;
        assert!(is_orphan(&format!("shunt-test-{nobody}-0-node-1"), "shunt-test"));
        assert!(is_orphan(&format!("shunt-test-{nobody}"), "shunt-test"));
        assert!(!is_orphan(&format!("shunt-test-{me}-0"), "shunt-test"));
        assert!(!is_orphan(&format!("other-{nobody}-0"), "shunt-test"));
        assert!(!is_orphan("shunt-test-node", "shunt-test"));
    }
}
