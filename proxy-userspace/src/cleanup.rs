//! `shunt cleanup`: detaches and removes shunt's state under `--bpffs`, and nothing else. Hooks are removed before programs
//! and maps, so that no packet sees a partial datapath. Idempotent.

use std::{
    collections::BTreeSet,
    fs,
    io::{self, Write},
    os::fd::{AsFd as _, AsRawFd as _, OwnedFd},
    path::{Path, PathBuf},
};

use proxy_common::map;
use serde::Serialize;

use crate::{
    bpf::{
        self,
        link::{self, LinkInfo, TYPE_CGROUP, TYPE_TCX, TYPE_XDP},
        map::MapInfo,
        prog::ProgInfo,
    },
    datapath::{
        DatapathError, clsact,
        devices::Devices,
        direction::Direction,
        load::{GLOBALS_SECTION, PROGRAMS},
        netlink::Socket,
        pins::Pins,
    },
    inspect::{self, status},
};

/// The default pin directory, which shunt creates.
pub const DEFAULT_BPFFS: &str = "/sys/fs/bpf/shunt";
/// The kernel truncates names to 15 bytes.
const NAME_LEN: usize = 15;
/// Suffix of a pin that was to replace another one when its process died.
const UNFINISHED: &str = "__new";

/// Errors of `shunt cleanup`.
#[derive(Debug, thiserror::Error)]
pub enum CleanupError {
    #[error(
        "shunt is running on {} (pid {pid}): stop it first, or use --force; Services on this node then stop working \
         immediately",
        bpffs.display()
    )]
    Alive { bpffs: PathBuf, pid: u32 },
    #[error(transparent)]
    Pins(DatapathError),
    #[error("{action} {}", path.display())]
    Io { action: &'static str, path: PathBuf, source: io::Error },
    #[error("listing clsact filters failed")]
    Netlink(#[source] io::Error),
}

/// The result.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Report {
    /// Paths of pins, and `DEVICE DIRECTION` of clsact filters.
    pub removed: Vec<String>,
    /// Files in the pin directories that do not belong to shunt and were kept.
    pub kept: Vec<String>,
}

/// Removes everything under `bpffs` that belongs to shunt.
pub fn cleanup(bpffs: &Path, force: bool) -> Result<Report, CleanupError> {
    let pins = Pins::under(bpffs);
    let mut report = Report::default();
    if !pins.root().is_dir() {
        return Ok(report);
    }
    // A running agent holds this lock. It is held here until the end, so that no agent can start meanwhile.
    let lock = if force { None } else { Some(pins.lock().map_err(|source| lock_error(bpffs, source))?) };
    let programs = ours_among_programs(&pins)?;
    let ids: BTreeSet<u32> = programs.iter().map(|(_, id)| *id).collect();
    remove_filters(&ids, &mut report)?;
    sweep(&pins.links(), &mut report, |fd, _| match LinkInfo::of(fd.as_fd()) {
        Ok(info) if kind_of(fd) == Kind::Link => {
            let known =
                matches!(info.link_type, TYPE_CGROUP | TYPE_TCX | TYPE_XDP) && is_ours(info.prog_id, &ids);
            if known { link::detach(fd.as_fd()).or_else(already_gone).map(|()| true) } else { Ok(false) }
        }
        _ => Ok(false),
    })?;
    sweep(&pins.progs(), &mut report, |fd, name| Ok(program_of(fd, name).is_some()))?;
    sweep(&pins.maps(), &mut report, |fd, name| Ok(is_our_map(fd, name)))?;
    drop(lock);
    for dir in [pins.links(), pins.progs(), pins.maps(), pins.root().to_owned()] {
        remove_empty(&dir)?;
    }
    // Any other directory may have been created by the user.
    if bpffs == Path::new(DEFAULT_BPFFS) {
        remove_empty(bpffs)?;
    }
    Ok(report)
}

/// The error with the pid of the running agent, if AGENT contains it.
fn lock_error(bpffs: &Path, source: DatapathError) -> CleanupError {
    match status::agent(&inspect::pins::Pins::new(bpffs)) {
        Ok(Some(agent)) if matches!(source, DatapathError::Running { .. }) && agent.pid != 0 => {
            CleanupError::Alive { bpffs: bpffs.to_owned(), pid: agent.pid }
        }
        _ => CleanupError::Pins(source),
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Map,
    Program,
    Link,
    Other,
}

/// The kind of a pinned object, from its fdinfo.
fn kind_of(fd: &OwnedFd) -> Kind {
    let text = fs::read_to_string(format!("/proc/self/fdinfo/{}", fd.as_raw_fd())).unwrap_or_default();
    kind_in(&text)
}

fn kind_in(fdinfo: &str) -> Kind {
    let has = |field: &str| fdinfo.lines().any(|line| line.starts_with(field));
    match (has("link_type:"), has("prog_type:"), has("map_type:")) {
        (true, ..) => Kind::Link,
        (_, true, _) => Kind::Program,
        (_, _, true) => Kind::Map,
        _ => Kind::Other,
    }
}

/// The name of a pin without the suffix of an unfinished one.
fn final_name(name: &str) -> &str {
    name.strip_suffix(UNFINISHED).unwrap_or(name)
}

fn cut(name: &str) -> &str {
    &name[..name.len().min(NAME_LEN)]
}

/// The id of a pinned program, if it belongs to shunt: the pin has the name of the program.
fn program_of(fd: &OwnedFd, name: &str) -> Option<u32> {
    let info = (kind_of(fd) == Kind::Program).then(|| ProgInfo::of(fd.as_fd()).ok()).flatten()?;
    let known = PROGRAMS.iter().any(|program| *program == final_name(name) && cut(program) == info.name());
    known.then_some(info.id)
}

/// The kernel's name of the map that is pinned under this name.
fn own_name(pinned: &str) -> &str {
    if pinned == map::GLOBALS { GLOBALS_SECTION } else { pinned }
}

fn is_our_map(fd: &OwnedFd, name: &str) -> bool {
    kind_of(fd) == Kind::Map
        && (map::ALL.contains(&final_name(name)) || map::WITHOUT_ENTRIES.contains(&final_name(name)))
        && MapInfo::of(fd.as_fd()).is_ok_and(|info| info.name() == cut(own_name(final_name(name))))
}

/// Whether a program belongs to shunt: it is pinned or, if the pin is missing, has the name of one.
fn is_ours(prog_id: u32, pinned: &BTreeSet<u32>) -> bool {
    let named = || {
        let fd = bpf::prog::by_id(prog_id).ok()?;
        ProgInfo::of(fd.as_fd()).ok()
    };
    pinned.contains(&prog_id)
        || named().is_some_and(|info| PROGRAMS.iter().any(|program| cut(program) == info.name()))
}

/// Detaching a link whose device or cgroup no longer exists fails with ENOLINK, which is success here. So is EOPNOTSUPP from a
/// kernel that cannot detach: removing the pin then drops the last reference.
fn already_gone(error: io::Error) -> io::Result<()> {
    match error.raw_os_error() {
        Some(libc::ENOLINK | libc::EOPNOTSUPP) => Ok(()),
        _ => Err(error),
    }
}

fn ours_among_programs(pins: &Pins) -> Result<Vec<(String, u32)>, CleanupError> {
    let mut found = Vec::new();
    for (path, name) in entries(&pins.progs())? {
        let id = open(&path)?.and_then(|fd| program_of(&fd, &name));
        found.extend(id.map(|id| (name, id)));
    }
    Ok(found)
}

/// Removes every pin in `dir` for which `recognise` returns true. `recognise` may also detach it.
fn sweep(
    dir: &Path,
    report: &mut Report,
    recognise: impl Fn(&OwnedFd, &str) -> io::Result<bool>,
) -> Result<(), CleanupError> {
    for (path, name) in entries(dir)? {
        let known = match open(&path)? {
            Some(fd) => recognise(&fd, &name).map_err(|source| CleanupError::Io {
                action: "detaching",
                path: path.clone(),
                source,
            })?,
            None => false,
        };
        if known {
            bpf::remove_pin(&path).map_err(|source| CleanupError::Io {
                action: "removing",
                path: path.clone(),
                source,
            })?;
            report.removed.push(path.display().to_string());
        } else {
            report.kept.push(path.display().to_string());
        }
    }
    Ok(())
}

/// Paths and names in a directory, sorted; none if it does not exist.
fn entries(dir: &Path) -> Result<Vec<(PathBuf, String)>, CleanupError> {
    let mut names = Pins::names(dir).map_err(|source| CleanupError::Io {
        action: "listing",
        path: dir.to_owned(),
        source,
    })?;
    names.sort();
    Ok(names.into_iter().map(|name| (dir.join(&name), name)).collect())
}

/// The object pinned at `path`; `None` if it is not a pin, such as a directory.
fn open(path: &Path) -> Result<Option<OwnedFd>, CleanupError> {
    match bpf::obj_get(path) {
        Ok(fd) => Ok(Some(fd)),
        Err(error) if matches!(error.raw_os_error(), Some(libc::EPERM)) => Err(CleanupError::Io {
            action: "opening (run as root, or with CAP_BPF)",
            path: path.to_owned(),
            source: error,
        }),
        Err(_) => Ok(None),
    }
}

/// Removes clsact filters (kernels without tcx) that run a program of shunt, on any device of this network namespace.
fn remove_filters(ids: &BTreeSet<u32>, report: &mut Report) -> Result<(), CleanupError> {
    let mut netlink = Socket::open().map_err(CleanupError::Netlink)?;
    let devices = Devices::dump(&mut netlink).map_err(CleanupError::Netlink)?;
    for link in devices.links.values() {
        for (direction, word) in [(Direction::Ingress, "ingress"), (Direction::Egress, "egress")] {
            let attached =
                clsact::attached(&mut netlink, link.index, direction).map_err(CleanupError::Netlink)?;
            if attached.is_some_and(|id| is_ours(id, ids)) {
                clsact::detach(&mut netlink, link.index, direction).map_err(CleanupError::Netlink)?;
                report.removed.push(format!("clsact filter {} {word}", link.name));
            }
        }
    }
    Ok(())
}

/// Removes an empty directory. One that has entries, is a mount point or does not exist is left alone.
fn remove_empty(dir: &Path) -> Result<(), CleanupError> {
    match fs::remove_dir(dir) {
        Err(error)
            if !matches!(
                error.raw_os_error(),
                Some(libc::ENOENT | libc::ENOTEMPTY | libc::EEXIST | libc::EBUSY)
            ) =>
        {
            Err(CleanupError::Io { action: "removing", path: dir.to_owned(), source: error })
        }
        _ => Ok(()),
    }
}

pub fn print_report_into(out: &mut impl Write, report: &Report) -> io::Result<()> {
    for what in &report.removed {
        writeln!(out, "removed {what}")?;
    }
    for what in &report.kept {
        writeln!(out, "kept    {what} (not shunt's)")?;
    }
    if report.removed.is_empty() && report.kept.is_empty() {
        writeln!(out, "nothing to remove")?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_by_their_fdinfo() {
        assert_eq!(kind_in("pos:\t0\nmap_type:\t1\n"), Kind::Map);
        assert_eq!(kind_in("prog_type:\t3\nprog_tag:\tff\n"), Kind::Program);
        assert_eq!(kind_in("link_type:\ttcx\nlink_id:\t3\nprog_tag:\tff\n"), Kind::Link);
        assert_eq!(kind_in("pos:\t0\n"), Kind::Other);
    }

    #[test]
    fn an_unfinished_pin_is_recognised() {
        assert_eq!(final_name("SLOTS__new"), "SLOTS");
        assert_eq!(final_name("SLOTS"), "SLOTS");
        assert_eq!(cut("a_name_longer_than_fifteen"), "a_name_longer_t");
    }

    #[test]
    fn a_missing_directory_is_no_error() {
        let report = cleanup(Path::new("/nonexistent/shunt"), false).unwrap();
        assert_eq!(report, Report::default());
        let mut out = Vec::new();
        print_report_into(&mut out, &report).unwrap();
        assert_eq!(String::from_utf8(out).unwrap(), "nothing to remove\n");
    }

    #[test]
    fn an_orphaned_link_counts_as_detached() {
        assert!(already_gone(io::Error::from_raw_os_error(libc::ENOLINK)).is_ok());
        assert!(already_gone(io::Error::from_raw_os_error(libc::EPERM)).is_err());
    }
}
