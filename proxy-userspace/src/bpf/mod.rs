//! The bpf(2) system call: commands that aya lacks (batches, link updates, test runs), and the basic ones, so that a
//! pinned object needs no aya type.
//!
//! All `unsafe` of shunt's own BPF use is here and in [`probe`]. No policy: the map store, the loader and the inspect
//! commands call it.

pub mod link;
pub mod map;
pub mod probe;
pub mod prog;
pub mod run;
pub mod shared;

use std::{
    ffi::CString,
    io, mem,
    os::{
        fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd},
        unix::ffi::OsStrExt as _,
    },
    path::Path,
};

use bytemuck::{Pod, Zeroable};

/// Commands of bpf(2) that shunt uses (uapi/linux/bpf.h, `enum bpf_cmd`).
#[derive(Clone, Copy, Debug)]
#[repr(i32)]
pub(crate) enum Cmd {
    MapLookupElem = 1,
    MapUpdateElem = 2,
    MapDeleteElem = 3,
    MapGetNextKey = 4,
    ProgLoad = 5,
    ObjPin = 6,
    ObjGet = 7,
    ProgTestRun = 10,
    ProgGetFdById = 13,
    ObjGetInfoByFd = 15,
    ProgQuery = 16,
    MapLookupBatch = 24,
    MapUpdateBatch = 26,
    MapDeleteBatch = 27,
    LinkCreate = 28,
    LinkUpdate = 29,
    LinkDetach = 34,
}

/// The kernel's ENOTSUPP, which is not in libc: the map type has no batch operation.
pub(crate) const ENOTSUPP: i32 = 524;

/// One bpf(2) call with `attr`, which the kernel may write to. Returns the call's non-negative result.
pub(crate) fn bpf<A: Pod>(cmd: Cmd, attr: &mut A) -> io::Result<i32> {
    // SAFETY: `attr` is a live, initialised, exclusively borrowed object of the size that is passed; the
    // pointers inside it were made from buffers that its caller keeps alive over the call.
    let ret =
        unsafe { libc::syscall(libc::SYS_bpf, cmd as i32, std::ptr::from_mut(attr), mem::size_of::<A>()) };
    if ret < 0 { Err(io::Error::last_os_error()) } else { Ok(ret as i32) }
}

/// Like [`bpf`], for commands that return a new file descriptor.
pub(crate) fn bpf_fd<A: Pod>(cmd: Cmd, attr: &mut A) -> io::Result<OwnedFd> {
    let fd = bpf(cmd, attr)?;
    // SAFETY: the kernel just created this descriptor for us, close-on-exec; nothing else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// A buffer's address for bpf(2).
pub(crate) fn ptr<T>(buffer: &[T]) -> u64 {
    buffer.as_ptr() as u64
}

/// A buffer's address for the kernel to write to.
pub(crate) fn ptr_mut<T>(buffer: &mut [T]) -> u64 {
    buffer.as_mut_ptr() as u64
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct ObjAttr {
    pathname: u64,
    bpf_fd: u32,
    file_flags: u32,
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct InfoAttr {
    bpf_fd: u32,
    info_len: u32,
    info: u64,
}

fn c_path(path: &Path) -> io::Result<CString> {
    CString::new(path.as_os_str().as_bytes()).map_err(|_| io::ErrorKind::InvalidInput.into())
}

/// Opens the map, program or link pinned at `path`.
pub fn obj_get(path: &Path) -> io::Result<OwnedFd> {
    let path = c_path(path)?;
    bpf_fd(Cmd::ObjGet, &mut ObjAttr { pathname: path.as_ptr() as u64, bpf_fd: 0, file_flags: 0 })
}

/// Pins a map, program or link at `path`; EEXIST if the path exists.
pub fn obj_pin(fd: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    let path = c_path(path)?;
    let mut attr = ObjAttr { pathname: path.as_ptr() as u64, bpf_fd: fd.as_raw_fd() as u32, file_flags: 0 };
    bpf(Cmd::ObjPin, &mut attr).map(drop)
}

/// Pins `fd` at `path`, atomically replacing an existing pin: bpffs renames over it.
pub fn obj_repin(fd: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    // bpffs refuses names with a dot.
    name.push("__new");
    let fresh = path.with_file_name(name);
    remove_pin(&fresh)?;
    obj_pin(fd, &fresh)?;
    std::fs::rename(&fresh, path).inspect_err(|_| drop(std::fs::remove_file(&fresh)))
}

/// Removes a pin; a missing one is not an error.
pub fn remove_pin(path: &Path) -> io::Result<()> {
    match std::fs::remove_file(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// Reads the kernel's information about an object into `info` (`struct bpf_{map,prog,link}_info`; a shorter struct is
/// filled as far as it goes).
pub(crate) fn obj_info<I: Pod>(fd: BorrowedFd<'_>, info: &mut I) -> io::Result<()> {
    let mut attr = InfoAttr {
        bpf_fd: fd.as_raw_fd() as u32,
        info_len: mem::size_of::<I>() as u32,
        info: std::ptr::from_mut(info) as u64,
    };
    bpf(Cmd::ObjGetInfoByFd, &mut attr).map(drop)
}
