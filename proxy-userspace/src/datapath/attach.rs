//! Puts the loaded programs on devices and on the cgroup, keeps them there, and takes them off.
//!
//! An attachment outlives the process: tcx and cgroup links are pinned and re-pointed in place at the next
//! start, clsact filters are replaced in place. There is no moment without a program, at start or at exit.

use std::{
    fs::File,
    io,
    os::{
        fd::{AsFd as _, BorrowedFd, OwnedFd},
        unix::fs::MetadataExt as _,
    },
    path::{Path, PathBuf},
};

use nix::sys::statfs::{CGROUP2_SUPER_MAGIC, statfs};
use proxy_common::map;

use super::{DatapathError, clsact, devices::select::Hook, load::Loaded, netlink::Socket, pins::Pins};
use crate::bpf::{
    self,
    link::{self, AttachType, LinkInfo},
    prog,
};

/// Which of a device's two hooks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    Ingress,
    Egress,
}

impl Direction {
    pub const BOTH: [Self; 2] = [Self::Ingress, Self::Egress];

    fn name(self) -> &'static str {
        match self {
            Self::Ingress => "ingress",
            Self::Egress => "egress",
        }
    }

    fn attach_type(self) -> AttachType {
        match self {
            Self::Ingress => AttachType::TcxIngress,
            Self::Egress => AttachType::TcxEgress,
        }
    }

    /// With `lane` the device has our XDP program too.
    fn program(self, hook: Hook, lane: bool) -> &'static str {
        match (self, hook) {
            (Self::Ingress, Hook::L2) if lane => "ingress_xdp",
            (Self::Ingress, Hook::L3) => "ingress_l3",
            (Self::Egress, Hook::L3) => "egress_l3",
            (Self::Ingress, _) => "ingress_l2",
            (Self::Egress, _) => "egress_l2",
        }
    }
}

/// The socket-address programs and where each goes.
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

/// How programs are put on devices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    /// Pinned links (Linux 6.6).
    Tcx,
    /// Filters on the clsact qdisc.
    Clsact,
}

/// Puts programs on devices.
#[derive(Debug)]
pub struct Attacher {
    pins: Pins,
    method: Method,
    netlink: Socket,
}

impl Attacher {
    pub fn new(pins: Pins, method: Method) -> io::Result<Self> {
        Ok(Self { pins, method, netlink: Socket::open()? })
    }

    pub fn method(&self) -> Method {
        self.method
    }

    fn pin_path(&self, direction: Direction, ifindex: u32) -> PathBuf {
        self.pins.link(&link_name(direction, ifindex))
    }

    /// Hooks a device, or re-points what is there at the programs of `loaded`. `NotFound`: it is gone.
    pub fn hook(&mut self, loaded: &Loaded, ifindex: u32, hook: Hook, lane: bool) -> io::Result<()> {
        for direction in Direction::BOTH {
            let name = direction.program(hook, lane);
            let program = loaded.program(name).map_err(io::Error::other)?;
            let result = match self.method {
                Method::Tcx => self.hook_tcx(program, ifindex, direction),
                Method::Clsact => clsact::attach(&mut self.netlink, ifindex, direction, program, name),
            };
            result.map_err(|e| match e.raw_os_error() {
                Some(libc::ENODEV) => io::Error::new(io::ErrorKind::NotFound, e),
                _ => e,
            })?;
        }
        Ok(())
    }

    fn hook_tcx(&self, program: BorrowedFd<'_>, ifindex: u32, direction: Direction) -> io::Result<()> {
        let path = self.pin_path(direction, ifindex);
        match bpf::obj_get(&path) {
            Ok(old) => {
                let id = LinkInfo::of(old.as_fd())?.id;
                // The pinned link may be of an earlier device with this number, or of one that was moved to
                // another namespace: only what the kernel lists on our device is ours.
                if prog::query(ifindex, direction.attach_type() as u32)?.iter().any(|a| a.link_id == id) {
                    match link::update(old.as_fd(), program) {
                        Err(e) if e.raw_os_error() == Some(libc::ENOLINK) => {}
                        other => return other,
                    }
                }
                bpf::remove_pin(&path)?;
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => return Err(e),
        }
        let fresh = link::create_tcx(program, ifindex, direction.attach_type())?;
        bpf::obj_pin(fresh.as_fd(), &path)
    }

    /// Whether both programs of `loaded` are on the device.
    pub fn is_hooked(&mut self, loaded: &Loaded, ifindex: u32, hook: Hook, lane: bool) -> io::Result<bool> {
        for direction in Direction::BOTH {
            let program = loaded.program(direction.program(hook, lane)).map_err(io::Error::other)?;
            let id = prog::ProgInfo::of(program)?.id;
            let there = match self.method {
                Method::Tcx => {
                    self.pin_path(direction, ifindex).exists()
                        && prog::query(ifindex, direction.attach_type() as u32)?
                            .iter()
                            .any(|a| a.prog_id == id)
                }
                Method::Clsact => clsact::attached(&mut self.netlink, ifindex, direction)? == Some(id),
            };
            if !there {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Removes the pins of a device's links, which detaches them: a pin holds a link's last reference.
    /// Wherever the device is now, so also from one that left the namespace or was deleted.
    pub fn unpin(&self, ifindex: u32) -> io::Result<()> {
        Direction::BOTH.into_iter().try_for_each(|d| bpf::remove_pin(&self.pin_path(d, ifindex)))
    }

    /// Takes our programs off a device of this namespace.
    pub fn unhook(&mut self, ifindex: u32) -> io::Result<()> {
        self.unpin(ifindex)?;
        if self.method == Method::Clsact {
            for direction in Direction::BOTH {
                clsact::detach(&mut self.netlink, ifindex, direction)?;
            }
        }
        Ok(())
    }

    /// Device numbers that links are pinned for.
    pub fn pinned(&self) -> io::Result<Vec<u32>> {
        let mut found: Vec<_> =
            Pins::names(&self.pins.links())?.iter().filter_map(|name| parse_link_name(name)).collect();
        found.sort_unstable();
        found.dedup();
        Ok(found)
    }
}

fn link_name(direction: Direction, ifindex: u32) -> String {
    format!("tcx_{}_{ifindex}", direction.name())
}

/// The device number in the name of a pinned tcx link.
pub fn parse_link_name(name: &str) -> Option<u32> {
    let rest = name.strip_prefix("tcx_")?;
    let (_, index) = rest.split_once('_')?;
    index.parse().ok()
}

/// Whether socket programs can be attached to the directory at `path`: asked before anything is done.
pub fn check_cgroup(path: &Path) -> Result<(), DatapathError> {
    let filesystem = statfs(path)
        .map_err(|errno| DatapathError::Cgroup { path: path.to_owned(), source: errno.into() })?;
    if filesystem.filesystem_type() != CGROUP2_SUPER_MAGIC {
        return Err(DatapathError::NoCgroup2 { path: path.to_owned() });
    }
    Ok(())
}

/// Attaches the socket programs to the cgroup at `path`, or re-points the pinned links at them.
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

/// Pins the programs of `loaded`, and their globals, in place of those pinned before.
pub fn pin_programs(pins: &Pins, loaded: &Loaded) -> Result<(), DatapathError> {
    for (name, program) in loaded.programs() {
        let path = pins.prog(name);
        bpf::obj_repin(program, &path).map_err(|e| DatapathError::pin(&path, e))?;
    }
    let path = pins.map(map::GLOBALS);
    bpf::obj_repin(loaded.globals()?, &path).map_err(|e| DatapathError::pin(&path, e))?;
    for name in Pins::names(&pins.progs()).map_err(|e| DatapathError::pin(&pins.progs(), e))? {
        if !loaded.programs().any(|(loaded, _)| loaded == name) {
            bpf::remove_pin(&pins.prog(&name)).map_err(|e| DatapathError::pin(&pins.prog(&name), e))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::datapath::load::PROGRAMS;

    #[test]
    fn link_names_lead_back_to_devices() {
        for direction in Direction::BOTH {
            assert_eq!(parse_link_name(&link_name(direction, 42)), Some(42));
        }
        assert_eq!(parse_link_name("connect4"), None);
        assert_eq!(parse_link_name("tcx_ingress_"), None);
    }

    #[test]
    fn a_plain_directory_is_no_cgroup() {
        assert!(matches!(check_cgroup(Path::new("/proc")), Err(DatapathError::NoCgroup2 { .. })));
        assert!(matches!(check_cgroup(Path::new("/nonexistent")), Err(DatapathError::Cgroup { .. })));
    }

    #[test]
    fn every_attached_program_is_loaded() {
        let on_devices = Direction::BOTH.iter().flat_map(|d| {
            [(Hook::L2, true), (Hook::L2, false), (Hook::L3, true)].map(|(hook, lane)| d.program(hook, lane))
        });
        for name in on_devices.chain(SOCKET_PROGRAMS.map(|(name, _)| name)) {
            assert!(PROGRAMS.contains(&name), "{name}");
        }
    }
}
