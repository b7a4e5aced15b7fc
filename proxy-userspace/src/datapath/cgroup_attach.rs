//! Attaches the socket programs (`--socket-lb`) to a cgroup2 directory, checks them, and detaches them.
//!
//! Links are pinned and updated in place at the next start, like those of tc.

use std::{
    fs::File,
    io,
    os::{
        fd::{AsFd as _, BorrowedFd, OwnedFd},
        unix::fs::MetadataExt as _,
    },
    path::Path,
};

use nix::sys::statfs::{CGROUP2_SUPER_MAGIC, statfs};

use super::{DatapathError, load::Loaded, pins::Pins};
use crate::bpf::{
    self,
    link::{self, AttachType, LinkInfo},
    prog,
};

/// The socket programs and their attach types.
const SOCKET_PROGRAMS: [(&str, AttachType); 8] = [
    ("connect4", AttachType::Connect4),
    ("connect6", AttachType::Connect6),
    ("sendmsg4", AttachType::SendMsg4),
    ("sendmsg6", AttachType::SendMsg6),
    ("recvmsg4", AttachType::RecvMsg4),
    ("recvmsg6", AttachType::RecvMsg6),
    ("getpeername4", AttachType::GetPeerName4),
    ("getpeername6", AttachType::GetPeerName6),
];

/// Whether socket programs can be attached to the directory at `path`. Checked first at start.
pub fn check_cgroup(path: &Path) -> Result<(), DatapathError> {
    let filesystem = statfs(path)
        .map_err(|errno| DatapathError::Cgroup { path: path.to_owned(), source: errno.into() })?;
    if filesystem.filesystem_type() != CGROUP2_SUPER_MAGIC {
        return Err(DatapathError::NoCgroup2 { path: path.to_owned() });
    }
    Ok(())
}

/// Attaches the socket programs to the cgroup at `path`, or updates the pinned links.
pub fn attach_sockets(pins: &Pins, loaded: &Loaded, path: &Path) -> Result<(), DatapathError> {
    let failed = |source| DatapathError::Cgroup { path: path.to_owned(), source };
    let dir = File::open(path).map_err(failed)?;
    // A cgroup's id is its directory's inode number.
    let id = dir.metadata().map_err(failed)?.ino();
    for (name, attach_type) in SOCKET_PROGRAMS {
        let program = loaded.program(name)?;
        attach_socket(&pins.link(name), program, &dir, id, attach_type).map_err(failed)?;
    }
    Ok(())
}

fn attach_socket(
    pin: &Path,
    program: BorrowedFd<'_>,
    cgroup: &File,
    id: u64,
    attach_type: AttachType,
) -> io::Result<()> {
    match bpf::obj_get(pin) {
        Ok(old) => {
            let info = LinkInfo::of(old.as_fd())?;
            if info.cgroup_id() == Some(id) && info.attach_type() == attach_type as u32 {
                match link::update(old.as_fd(), program) {
                    Err(e) if e.raw_os_error() == Some(libc::ENOLINK) => {}
                    other => return other,
                }
            }
        }
        Err(e) if e.kind() == io::ErrorKind::NotFound => {}
        Err(e) => return Err(e),
    }
    let fresh = link::create_cgroup(program, cgroup.as_fd(), attach_type)?;
    bpf::obj_repin(fresh.as_fd(), pin)
}

/// Whether the socket programs of `loaded` are attached through their pins.
pub fn sockets_attached(pins: &Pins, loaded: &Loaded) -> io::Result<bool> {
    for (name, _) in SOCKET_PROGRAMS {
        let program = prog::ProgInfo::of(loaded.program(name).map_err(io::Error::other)?)?.id;
        let link: OwnedFd = match bpf::obj_get(&pins.link(name)) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(false),
            other => other?,
        };
        let info = LinkInfo::of(link.as_fd())?;
        if info.prog_id != program || info.cgroup_id() == Some(0) {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Detaches the socket programs (`--socket-lb off`).
pub fn detach_sockets(pins: &Pins) -> io::Result<()> {
    SOCKET_PROGRAMS.iter().try_for_each(|(name, _)| bpf::remove_pin(&pins.link(name)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::datapath::load::PROGRAMS;

    #[test]
    fn a_plain_directory_is_no_cgroup() {
        assert!(matches!(check_cgroup(Path::new("/proc")), Err(DatapathError::NoCgroup2 { .. })));
        assert!(matches!(check_cgroup(Path::new("/nonexistent")), Err(DatapathError::Cgroup { .. })));
    }

    #[test]
    fn every_socket_program_is_loaded() {
        for (name, _) in SOCKET_PROGRAMS {
            assert!(PROGRAMS.contains(&name), "{name}");
        }
    }
}
