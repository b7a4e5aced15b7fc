//! BPF links: an attachment that can be pinned and updated to another program atomically. aya has no in-place update
//! for cgroup links, so all links are handled here.

use std::{
    io,
    os::fd::{AsRawFd as _, BorrowedFd, OwnedFd},
};

use bytemuck::{Pod, Zeroable};

use super::{Cmd, bpf, bpf_fd, obj_info};

/// Attach types (uapi/linux/bpf.h, `enum bpf_attach_type`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum AttachType {
    Connect4 = 10,
    Connect6 = 11,
    SendMsg4 = 14,
    SendMsg6 = 15,
    RecvMsg4 = 19,
    RecvMsg6 = 20,
    GetPeerName4 = 29,
    GetPeerName6 = 30,
    Xdp = 37,
    TcxIngress = 46,
    TcxEgress = 47,
}

/// Place before the program named, or before all when none is (`BPF_F_BEFORE`).
const BEFORE: u32 = 1 << 3;

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct CreateAttr {
    prog_fd: u32,
    /// A cgroup directory's descriptor or an ifindex.
    target: u32,
    attach_type: u32,
    flags: u32,
    relative: u32,
    reserved: u32,
    expected_revision: u64,
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct UpdateAttr {
    link_fd: u32,
    new_prog_fd: u32,
    flags: u32,
    old_prog_fd: u32,
}

/// The beginning of `struct bpf_link_info`, with the two kinds of target shunt has.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct LinkInfo {
    pub link_type: u32,
    pub id: u32,
    pub prog_id: u32,
    reserved: u32,
    target: [u32; 4],
}

/// `BPF_LINK_TYPE_CGROUP`.
pub const TYPE_CGROUP: u32 = 3;
/// `BPF_LINK_TYPE_XDP`.
pub const TYPE_XDP: u32 = 6;
/// `BPF_LINK_TYPE_TCX`.
pub const TYPE_TCX: u32 = 11;

impl LinkInfo {
    /// The kernel's information about the link behind `fd`.
    pub fn of(fd: BorrowedFd<'_>) -> io::Result<Self> {
        let mut info = Self::zeroed();
        obj_info(fd, &mut info)?;
        Ok(info)
    }

    /// A tcx or XDP link's device; 0 when the device is gone.
    pub fn ifindex(&self) -> Option<u32> {
        matches!(self.link_type, TYPE_TCX | TYPE_XDP).then_some(self.target[0])
    }

    /// A cgroup link's cgroup id: the inode number of its directory; 0 if the cgroup is gone.
    pub fn cgroup_id(&self) -> Option<u64> {
        (self.link_type == TYPE_CGROUP).then(|| u64::from(self.target[0]) | u64::from(self.target[1]) << 32)
    }

    /// The attach type's number.
    pub fn attach_type(&self) -> u32 {
        match self.link_type {
            TYPE_CGROUP => self.target[2],
            TYPE_XDP => AttachType::Xdp as u32,
            _ => self.target[1],
        }
    }
}

/// Attaches a program to a device's tcx hook, before all other programs.
pub fn create_tcx(prog: BorrowedFd<'_>, ifindex: u32, attach_type: AttachType) -> io::Result<OwnedFd> {
    let mut attr = CreateAttr::zeroed();
    attr.prog_fd = prog.as_raw_fd() as u32;
    attr.target = ifindex;
    attr.attach_type = attach_type as u32;
    attr.flags = BEFORE;
    bpf_fd(Cmd::LinkCreate, &mut attr)
}

/// Attaches an XDP program to a device in the mode given by `flags`. EBUSY or EEXIST: another program is attached.
pub fn create_xdp(prog: BorrowedFd<'_>, ifindex: u32, flags: u32) -> io::Result<OwnedFd> {
    let mut attr = CreateAttr::zeroed();
    attr.prog_fd = prog.as_raw_fd() as u32;
    attr.target = ifindex;
    attr.attach_type = AttachType::Xdp as u32;
    attr.flags = flags;
    bpf_fd(Cmd::LinkCreate, &mut attr)
}

/// Attaches a program to a cgroup, next to other programs (links are always "multi").
pub fn create_cgroup(
    prog: BorrowedFd<'_>,
    cgroup: BorrowedFd<'_>,
    attach_type: AttachType,
) -> io::Result<OwnedFd> {
    let mut attr = CreateAttr::zeroed();
    attr.prog_fd = prog.as_raw_fd() as u32;
    attr.target = cgroup.as_raw_fd() as u32;
    attr.attach_type = attach_type as u32;
    bpf_fd(Cmd::LinkCreate, &mut attr)
}

/// Updates a link to another program. ENOLINK: its target is gone.
pub fn update(link: BorrowedFd<'_>, prog: BorrowedFd<'_>) -> io::Result<()> {
    let mut attr = UpdateAttr::zeroed();
    attr.link_fd = link.as_raw_fd() as u32;
    attr.new_prog_fd = prog.as_raw_fd() as u32;
    bpf(Cmd::LinkUpdate, &mut attr).map(drop)
}

/// Detaches at once, even if others hold the link.
pub fn detach(link: BorrowedFd<'_>) -> io::Result<()> {
    bpf(Cmd::LinkDetach, &mut (link.as_raw_fd() as u32)).map(drop)
}
