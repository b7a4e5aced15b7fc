//! One program by its file descriptor: its properties, where it is attached, and test runs.

use std::{
    io,
    os::fd::{AsRawFd as _, BorrowedFd, OwnedFd},
};

use bytemuck::{Pod, Zeroable};

use super::{Cmd, bpf, bpf_fd, obj_info, ptr, ptr_mut};

/// `BPF_PROG_TYPE_SCHED_CLS`.
pub const SCHED_CLS: u32 = 3;
/// `BPF_PROG_TYPE_CGROUP_SOCK_ADDR`.
pub const CGROUP_SOCK_ADDR: u32 = 18;

/// The beginning of `struct bpf_prog_info`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub struct ProgInfo {
    pub prog_type: u32,
    pub id: u32,
    pub tag: [u8; 8],
    pub jited_prog_len: u32,
    pub xlated_prog_len: u32,
    jited_prog_insns: u64,
    xlated_prog_insns: u64,
    /// Nanoseconds since boot when it was loaded.
    pub load_time: u64,
    pub created_by_uid: u32,
    nr_map_ids: u32,
    map_ids: u64,
    name: [u8; 16],
    ifindex: u32,
    gpl_compatible: u32,
    netns_dev: u64,
    netns_ino: u64,
    nr_jited_ksyms: u32,
    nr_jited_func_lens: u32,
    jited_ksyms: u64,
    jited_func_lens: u64,
    btf_id: u32,
    func_info_rec_size: u32,
    func_info: u64,
    nr_func_info: u32,
    nr_line_info: u32,
    line_info: u64,
    jited_line_info: u64,
    nr_jited_line_info: u32,
    line_info_rec_size: u32,
    jited_line_info_rec_size: u32,
    nr_prog_tags: u32,
    prog_tags: u64,
    pub run_time_ns: u64,
    pub run_cnt: u64,
    pub recursion_misses: u64,
    /// Instructions processed by the verifier (0 before kernel 5.16).
    pub verified_insns: u32,
    attach_btf_obj_id: u32,
    attach_btf_id: u32,
    reserved: u32,
}

impl ProgInfo {
    /// The kernel's information about the program behind `fd`.
    pub fn of(fd: BorrowedFd<'_>) -> io::Result<Self> {
        let mut info = Self::zeroed();
        obj_info(fd, &mut info)?;
        Ok(info)
    }

    /// The name it was loaded with, at most 15 bytes.
    pub fn name(&self) -> &str {
        let len = self.name.iter().position(|b| *b == 0).unwrap_or(self.name.len());
        std::str::from_utf8(&self.name[..len]).unwrap_or("")
    }
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
pub(super) struct TestRunAttr {
    pub prog_fd: u32,
    pub retval: u32,
    pub data_size_in: u32,
    pub data_size_out: u32,
    pub data_in: u64,
    pub data_out: u64,
    pub repeat: u32,
    duration: u32,
    pub ctx_size_in: u32,
    pub ctx_size_out: u32,
    pub ctx_in: u64,
    pub ctx_out: u64,
    flags: u32,
    cpu: u32,
    batch_size: u32,
    reserved: u32,
}

/// Runs a program once on `packet` and returns its return value.
pub fn test_run(fd: BorrowedFd<'_>, packet: &[u8]) -> io::Result<u32> {
    let mut attr = TestRunAttr::zeroed();
    attr.prog_fd = fd.as_raw_fd() as u32;
    attr.data_in = ptr(packet);
    attr.data_size_in = packet.len() as u32;
    attr.repeat = 1;
    bpf(Cmd::ProgTestRun, &mut attr)?;
    Ok(attr.retval)
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct QueryAttr {
    target: u32,
    attach_type: u32,
    query_flags: u32,
    attach_flags: u32,
    prog_ids: u64,
    count: u32,
    reserved: u32,
    prog_attach_flags: u64,
    link_ids: u64,
    link_attach_flags: u64,
    revision: u64,
}

/// An attached program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attached {
    pub prog_id: u32,
    /// 0 if it is attached without a link.
    pub link_id: u32,
}

/// The programs attached to `target` (an ifindex for tcx, a directory's descriptor for cgroups), in execution order.
/// Only tcx reports the links.
pub fn query(target: u32, attach_type: u32) -> io::Result<Vec<Attached>> {
    let (mut progs, mut links) = (vec![0u32; 64], vec![0u32; 64]);
    let mut attr = QueryAttr::zeroed();
    attr.target = target;
    attr.attach_type = attach_type;
    attr.prog_ids = ptr_mut(&mut progs);
    if attach_type >= super::link::AttachType::TcxIngress as u32 {
        attr.link_ids = ptr_mut(&mut links);
    }
    attr.count = progs.len() as u32;
    bpf(Cmd::ProgQuery, &mut attr)?;
    let found = progs.into_iter().zip(links).take(attr.count as usize);
    Ok(found.map(|(prog_id, link_id)| Attached { prog_id, link_id }).collect())
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

/// Loads a program made of raw instructions, without a verifier log: for probes.
pub(crate) fn load(prog_type: u32, expected_attach_type: u32, insns: &[u64]) -> io::Result<OwnedFd> {
    let license = c"GPL";
    let mut attr = LoadAttr::zeroed();
    attr.prog_type = prog_type;
    attr.expected_attach_type = expected_attach_type;
    attr.insns = ptr(insns);
    attr.insn_cnt = insns.len() as u32;
    attr.license = license.as_ptr() as u64;
    bpf_fd(Cmd::ProgLoad, &mut attr)
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct IdAttr {
    id: u32,
    next_id: u32,
    open_flags: u32,
}

/// Opens a program by its id; needs SYS_ADMIN.
pub fn by_id(id: u32) -> io::Result<OwnedFd> {
    bpf_fd(Cmd::ProgGetFdById, &mut IdAttr { id, next_id: 0, open_flags: 0 })
}
