//! Mount points by file system type, from the text of /proc/self/mountinfo (proc_pid_mountinfo(5)).

use std::path::PathBuf;

/// The first mount point of this file system type. Of cgroup2, only a mount that shows the root of the hierarchy counts: a
/// bind mount of a subdirectory would miss sockets of other cgroups.
pub fn mount_of(mountinfo: &str, fstype: &str) -> Option<PathBuf> {
    mountinfo.lines().find_map(|line| {
        let (fields, rest) = line.split_once(" - ")?;
        let mut fields = fields.split(' ').skip(3);
        let (root, point) = (fields.next()?, fields.next()?);
        (rest.split(' ').next() == Some(fstype) && (root == "/" || fstype != "cgroup2"))
            .then(|| PathBuf::from(unescape(point)))
    })
}

/// Decodes the octal escapes of mountinfo (`\040` is a space).
fn unescape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('\\') {
        out.push_str(&rest[..at]);
        match rest.get(at + 1..at + 4).and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(byte) => {
                out.push(byte.into());
                rest = &rest[at + 4..];
            }
            None => {
                out.push('\\');
                rest = &rest[at + 1..];
            }
        }
    }
    out.push_str(rest);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mountinfo_with_bind_mounts_and_escapes() {
        let text = "30 25 0:26 /kubepods /sys/fs/cgroup ro - cgroup2 cgroup2 rw\n\
                    41 31 0:38 / /mnt/with\\040space rw,relatime shared:1 master:2 - cgroup2 cgroup2 rw\n\
                    42 31 0:39 / /sys/fs/bpf rw - bpf bpf rw,mode=700\n";
        assert_eq!(mount_of(text, "cgroup2"), Some("/mnt/with space".into()));
        assert_eq!(mount_of(text, "bpf"), Some("/sys/fs/bpf".into()));
        assert_eq!(mount_of(text, "xfs"), None);
    }
}
