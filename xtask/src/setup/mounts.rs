//! The file system that holds pinned maps and links.

use std::{fs, path::Path};

use anyhow::{Context as _, Result};
use nix::mount::{MsFlags, mount};

use crate::{process, progress::say};

const BPFFS: &str = "/sys/fs/bpf";

pub fn bpffs_mounted() -> Result<bool> {
    let mounts = fs::read_to_string("/proc/self/mounts").context("reading the mounts")?;
    Ok(mounted(&mounts))
}

fn mounted(mounts: &str) -> bool {
    mounts.lines().any(|line| {
        let mut words = line.split(' ').skip(1);
        (words.next(), words.next()) == (Some(BPFFS), Some("bpf"))
    })
}

pub fn mount_bpffs() -> Result<()> {
    if bpffs_mounted()? {
        say("bpffs", format_args!("is mounted at {BPFFS}"));
    } else if !process::is_root() {
        say("bpffs", format_args!("is not mounted: sudo mount -t bpf bpf {BPFFS}"));
    } else {
        say("bpffs", format_args!("mounting it at {BPFFS}"));
        mount(Some("bpf"), Path::new(BPFFS), Some("bpf"), MsFlags::empty(), None::<&str>)
            .with_context(|| format!("mounting bpffs at {BPFFS}"))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_bpf_mount_at_its_place_counts() {
        assert!(mounted("proc /proc proc rw 0 0\nbpf /sys/fs/bpf bpf rw,nosuid,mode=700 0 0\n"));
        assert!(!mounted("tmpfs /sys/fs/bpf tmpfs rw 0 0\nbpf /run/bpf bpf rw 0 0\n"));
    }
}
