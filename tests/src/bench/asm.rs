//! A minimal eBPF assembler for the bench's programs that are not part of the product: an empty program and yardsticks.

use std::{
    io,
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
};

use bytemuck::{Pod, Zeroable};

/// `enum bpf_cmd`.
const MAP_CREATE: libc::c_int = 0;
const MAP_UPDATE_ELEM: libc::c_int = 2;
const PROG_LOAD: libc::c_int = 5;

/// `enum bpf_map_type`.
pub const HASH: u32 = 1;
pub const LRU_HASH: u32 = 9;

/// `enum bpf_prog_type`.
const SCHED_CLS: u32 = 3;
const XDP: u32 = 6;

/// Helpers (`enum bpf_func_id`).
pub const MAP_LOOKUP: i32 = 1;
pub const MAP_UPDATE: i32 = 2;
pub const PRANDOM: i32 = 7;

/// A sequence of instructions.
#[derive(Clone, Debug, Default)]
pub struct Asm(Vec<u64>);

impl Asm {
    fn put(mut self, op: u8, dst: u8, src: u8, off: i16, imm: i32) -> Self {
        let word = u64::from(op)
            | u64::from(dst) << 8
            | u64::from(src) << 12
            | u64::from(off as u16) << 16
            | u64::from(imm as u32) << 32;
        self.0.push(word);
        self
    }

    /// `dst = imm`
    pub fn set(self, dst: u8, imm: i32) -> Self {
        self.put(0xb7, dst, 0, 0, imm)
    }

    /// `dst = src`
    pub fn copy(self, dst: u8, src: u8) -> Self {
        self.put(0xbf, dst, src, 0, 0)
    }

    /// `dst += imm`
    pub fn add(self, dst: u8, imm: i32) -> Self {
        self.put(0x07, dst, 0, 0, imm)
    }

    /// `*(u64 *)(dst + off) = imm`
    pub fn store(self, dst: u8, off: i16, imm: i32) -> Self {
        self.put(0x7a, dst, 0, off, imm)
    }

    /// `*(u64 *)(dst + off) = src`
    pub fn store_reg(self, dst: u8, off: i16, src: u8) -> Self {
        self.put(0x7b, dst, src, off, 0)
    }

    /// `dst = map`
    pub fn map(self, dst: u8, map: &OwnedFd) -> Self {
        self.put(0x18, dst, 1, 0, map.as_raw_fd()).put(0, 0, 0, 0, 0)
    }

    pub fn call(self, helper: i32) -> Self {
        self.put(0x85, 0, 0, 0, helper)
    }

    pub fn exit(self) -> Self {
        self.put(0x95, 0, 0, 0, 0)
    }

    /// Loads a classifier.
    pub fn classifier(&self) -> io::Result<OwnedFd> {
        self.load(SCHED_CLS)
    }

    /// Loads an XDP program.
    pub fn xdp(&self) -> io::Result<OwnedFd> {
        self.load(XDP)
    }

    fn load(&self, prog_type: u32) -> io::Result<OwnedFd> {
        let license = c"GPL";
        let attr = LoadAttr {
            prog_type,
            insn_cnt: self.0.len() as u32,
            insns: self.0.as_ptr() as u64,
            license: license.as_ptr() as u64,
            ..Zeroable::zeroed()
        };
        new_fd(PROG_LOAD, &attr)
    }
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct LoadAttr {
    prog_type: u32,
    insn_cnt: u32,
    insns: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log_buf: u64,
    kern_version: u32,
    prog_flags: u32,
    prog_name: [u8; 16],
    prog_ifindex: u32,
    expected_attach_type: u32,
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct MapAttr {
    map_type: u32,
    key_size: u32,
    value_size: u32,
    max_entries: u32,
    map_flags: u32,
    reserved: u32,
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct ElemAttr {
    map_fd: u32,
    reserved: u32,
    key: u64,
    value: u64,
    flags: u64,
}

/// Makes a map.
pub fn map(map_type: u32, key_size: u32, value_size: u32, max_entries: u32) -> io::Result<OwnedFd> {
    new_fd(MAP_CREATE, &MapAttr { map_type, key_size, value_size, max_entries, map_flags: 0, reserved: 0 })
}

/// Inserts or replaces an element.
pub fn update(map: &OwnedFd, key: &[u8], value: &[u8]) -> io::Result<()> {
    let (map_fd, key, value) = (map.as_raw_fd() as u32, key.as_ptr() as u64, value.as_ptr() as u64);
    bpf(MAP_UPDATE_ELEM, &ElemAttr { map_fd, reserved: 0, key, value, flags: 0 }).map(drop)
}

fn new_fd<A: Pod>(command: libc::c_int, attr: &A) -> io::Result<OwnedFd> {
    let fd = bpf(command, attr)?;
    // SAFETY: the kernel has just created this descriptor for this process; it has no other owner.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn bpf<A: Pod>(command: libc::c_int, attr: &A) -> io::Result<i32> {
    // SAFETY: `attr` and the buffers it points at live over the call; none of these commands writes to them.
    let ret = unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_ref(attr), size_of::<A>()) };
    if ret < 0 { Err(io::Error::last_os_error()) } else { Ok(ret as i32) }
}
