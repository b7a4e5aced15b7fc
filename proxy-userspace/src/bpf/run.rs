//! Test runs of packet programs (BPF_PROG_TEST_RUN): one frame in, the resulting frame out. The kernel sends nothing,
//! even on a redirect. Frames begin with an Ethernet header, because the kernel expects one.

use std::{
    io,
    os::fd::{AsRawFd as _, BorrowedFd},
};

use bytemuck::{Pod, Zeroable};

use super::{Cmd, bpf, prog::TestRunAttr, ptr, ptr_mut};

/// Headroom for headers that a program adds.
const GROWTH: usize = 256;

/// The result of a test run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ran {
    /// The program's return value.
    pub action: u32,
    pub frame: Vec<u8>,
}

/// `struct __sk_buff`: a caller may set only a few of its fields.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct SkBuff {
    before: [u32; 9],
    ingress_ifindex: u32,
    ifindex: u32,
    after: [u32; 37],
}

const _: () = assert!(size_of::<SkBuff>() == 192);

/// `struct xdp_md`.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct XdpMd {
    data: u32,
    data_end: u32,
    data_meta: u32,
    ingress_ifindex: u32,
    rx_queue_index: u32,
    egress_ifindex: u32,
}

/// Runs a classifier as the hook of `device` on a packet received on `came_in`; 0: sent by the node itself.
pub fn classifier(fd: BorrowedFd<'_>, frame: &[u8], device: u32, came_in: u32) -> io::Result<Ran> {
    let ctx = [SkBuff { ingress_ifindex: came_in, ifindex: device, ..SkBuff::zeroed() }];
    let mut out = vec![0; frame.len() + GROWTH];
    let mut attr = TestRunAttr::zeroed();
    attr.prog_fd = fd.as_raw_fd() as u32;
    (attr.data_in, attr.data_size_in) = (ptr(frame), frame.len() as u32);
    (attr.data_out, attr.data_size_out) = (ptr_mut(&mut out), out.len() as u32);
    (attr.ctx_in, attr.ctx_size_in) = (ptr(&ctx), size_of::<SkBuff>() as u32);
    attr.repeat = 1;
    bpf(Cmd::ProgTestRun, &mut attr)?;
    out.truncate(attr.data_size_out as usize);
    Ok(Ran { action: attr.retval, frame: out })
}

/// Runs an XDP program on a frame received on `device`.
pub fn xdp(fd: BorrowedFd<'_>, frame: &[u8], device: u32) -> io::Result<Ran> {
    let ctx = [XdpMd { data_end: frame.len() as u32, ingress_ifindex: device, ..XdpMd::zeroed() }];
    let mut ctx_out = [XdpMd::zeroed()];
    let mut out = vec![0; frame.len() + GROWTH];
    let mut attr = TestRunAttr::zeroed();
    attr.prog_fd = fd.as_raw_fd() as u32;
    (attr.data_in, attr.data_size_in) = (ptr(frame), frame.len() as u32);
    (attr.data_out, attr.data_size_out) = (ptr_mut(&mut out), out.len() as u32);
    (attr.ctx_in, attr.ctx_size_in) = (ptr(&ctx), size_of::<XdpMd>() as u32);
    (attr.ctx_out, attr.ctx_size_out) = (ptr_mut(&mut ctx_out), size_of::<XdpMd>() as u32);
    attr.repeat = 1;
    bpf(Cmd::ProgTestRun, &mut attr)?;
    out.truncate(attr.data_size_out as usize);
    // Headers that a program added precede the frame.
    let frame = out.split_off((ctx_out[0].data as usize).min(out.len()));
    Ok(Ran { action: attr.retval, frame })
}
