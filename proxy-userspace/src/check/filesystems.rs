//! The file systems that shunt needs: bpffs for its pins, cgroup2 for the socket hooks.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use nix::sys::statfs::{BPF_FS_MAGIC, CGROUP2_SUPER_MAGIC, FsType, statfs};

use super::finding::Finding;
use crate::mountinfo::mount_of;

pub(super) fn examine(bpffs: &Path, cgroup: Option<&Path>) -> Vec<Finding> {
    let mountinfo = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let existing = bpffs.ancestors().find(|dir| dir.exists()).unwrap_or(Path::new("/")).to_owned();
    let cgroup = cgroup.map(Path::to_owned).or_else(|| mount_of(&mountinfo, "cgroup2"));
    let type_of = |dir: &Path| statfs(dir).map(|found| found.filesystem_type()).map_err(io::Error::from);
    let bpffs_type = type_of(&existing);
    let cgroup_type = cgroup.as_deref().map(type_of);
    vec![evaluate_bpffs(bpffs, &existing, bpffs_type), evaluate_cgroup(cgroup, cgroup_type)]
}

fn evaluate_bpffs(wanted: &Path, existing: &Path, found: io::Result<FsType>) -> Finding {
    match found {
        Ok(BPF_FS_MAGIC) => Finding::ok("bpffs", format!("{} is on a bpf file system", wanted.display())),
        Ok(_) => Finding::fail(
            "bpffs",
            format!(
                "{} is not on a bpf file system ({} is of another type)",
                wanted.display(),
                existing.display()
            ),
            "mount -t bpf bpf /sys/fs/bpf; in a pod, mount the host's /sys/fs/bpf; `ip netns exec` hides the mount: use \
             nsenter --net=/run/netns/NAME instead",
        ),
        Err(error) => Finding::fail(
            "bpffs",
            format!("{} cannot be examined: {error}", existing.display()),
            "give a directory on a bpf file system with --bpffs",
        ),
    }
}

fn evaluate_cgroup(dir: Option<PathBuf>, found: Option<io::Result<FsType>>) -> Finding {
    const FIX: &str = "mount -t cgroup2 none /sys/fs/cgroup/unified and name it with --cgroup, or run with \
                       --socket-lb off (processes of the node then cannot reach Services)";
    match (dir, found) {
        (Some(dir), Some(Ok(CGROUP2_SUPER_MAGIC))) => Finding::ok("cgroup2", dir.display().to_string()),
        (Some(dir), Some(Ok(_))) => {
            Finding::fail("cgroup2", format!("{} is not on a cgroup2 file system", dir.display()), FIX)
        }
        (Some(dir), Some(Err(error))) => {
            Finding::fail("cgroup2", format!("{} cannot be examined: {error}", dir.display()), FIX)
        }
        _ => Finding::fail("cgroup2", "no mount in /proc/self/mountinfo", FIX),
    }
}

#[cfg(test)]
mod tests {
    use nix::sys::statfs::TMPFS_MAGIC;

    use super::*;
    use crate::check::finding::Level;

    #[test]
    fn another_file_system_fails() {
        let dir = Path::new("/b/shunt");
        assert_eq!(evaluate_bpffs(dir, dir, Ok(BPF_FS_MAGIC)).level, Level::Ok);
        let wrong = evaluate_bpffs(dir, Path::new("/b"), Ok(TMPFS_MAGIC));
        assert!(wrong.level == Level::Fail && wrong.fix.contains("mount -t bpf"), "{wrong:?}");
        assert_eq!(evaluate_cgroup(None, None).level, Level::Fail);
        assert_eq!(evaluate_cgroup(Some("/c".into()), Some(Ok(CGROUP2_SUPER_MAGIC))).level, Level::Ok);
        assert_eq!(evaluate_cgroup(Some("/c".into()), Some(Ok(TMPFS_MAGIC))).level, Level::Fail);
    }
}
