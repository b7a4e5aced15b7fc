//! BPF_PROG_TEST_RUN of a classifier: one packet in, a verdict and a packet out.
//!
//! aya's version is not used: its attributes lack the flag for CHECKSUM_COMPLETE and the room for it.

use std::{
    io,
    os::fd::{AsRawFd, BorrowedFd},
};

use bytemuck::{Pod, Zeroable};

/// `enum bpf_cmd`.
const BPF_PROG_TEST_RUN: libc::c_int = 10;

/// Kernel 6.16: the skb gets a device checksum. It must still be correct afterwards, or the run fails with EBADMSG.
const BPF_F_TEST_SKB_CHECKSUM_COMPLETE: u32 = 1 << 2;

/// Room for headers that a program adds in front of a packet.
const GROWTH: usize = 256;

/// TC_ACT_UNSPEC, which is TCX_NEXT too.
const NEXT: i32 = -1;
/// TC_ACT_SHOT.
const SHOT: i32 = 2;
/// TC_ACT_REDIRECT.
const REDIRECT: i32 = 7;

/// `union bpf_attr`, its `test` member.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Attr {
    prog_fd: u32,
    retval: u32,
    data_size_in: u32,
    data_size_out: u32,
    data_in: u64,
    data_out: u64,
    repeat: u32,
    duration: u32,
    ctx_size_in: u32,
    ctx_size_out: u32,
    ctx_in: u64,
    ctx_out: u64,
    flags: u32,
    cpu: u32,
    batch_size: u32,
    reserved: u32,
}

/// `struct __sk_buff`: a caller may set only a few of its words.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct SkBuff {
    before: [u32; 9],
    ingress_ifindex: u32,
    ifindex: u32,
    after: [u32; 37],
}

const _: () = assert!(size_of::<SkBuff>() == 192);

/// The devices of a packet, and the origin of its checksum.
#[derive(Clone, Copy, Debug)]
pub struct Way {
    /// The device of the hook.
    pub device: u32,
    /// The device on which the packet arrived; 0 for packets the node itself sends.
    pub came_in: u32,
    /// With a checksum computed by the device, which has to stay correct.
    pub complete: bool,
}

/// `struct xdp_md`: for a frame without metadata only its end and its device are set.
#[repr(C)]
#[derive(Clone, Copy, Default, Pod, Zeroable)]
struct XdpMd {
    data: u32,
    data_end: u32,
    data_meta: u32,
    ingress_ifindex: u32,
    rx_queue_index: u32,
    egress_ifindex: u32,
}

/// The result for a frame at XDP.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct XdpOutcome {
    /// `XDP_PASS` and the like.
    pub action: u32,
    /// Metadata in front of the frame.
    pub mark: Vec<u8>,
    pub bytes: Vec<u8>,
}

impl XdpOutcome {
    pub const PASS: u32 = 2;
    pub const TX: u32 = 3;
    pub const REDIRECT: u32 = 4;
}

/// The result for a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    pub verdict: i32,
    pub bytes: Vec<u8>,
}

impl Outcome {
    /// The packet; it must have been passed on.
    #[track_caller]
    pub fn passed(self) -> Vec<u8> {
        assert_eq!(self.verdict, NEXT, "verdict of a packet that should pass");
        self.bytes
    }

    /// The packet; it must have been redirected.
    #[track_caller]
    pub fn redirected(self) -> Vec<u8> {
        assert_eq!(self.verdict, REDIRECT, "verdict of a packet that should be turned around");
        self.bytes
    }

    #[track_caller]
    pub fn dropped(self) {
        assert_eq!(self.verdict, SHOT, "verdict of a packet that should be dropped");
    }

    pub fn is_dropped(&self) -> bool {
        self.verdict == SHOT
    }

    pub fn is_redirected(&self) -> bool {
        self.verdict == REDIRECT
    }

    pub fn is_passed(&self) -> bool {
        self.verdict == NEXT
    }
}

/// Runs a classifier over one packet.
pub fn run(program: BorrowedFd<'_>, packet: &[u8], way: Way) -> io::Result<Outcome> {
    let mut out = vec![0; packet.len() + GROWTH];
    let flags = if way.complete { BPF_F_TEST_SKB_CHECKSUM_COMPLETE } else { 0 };
    let attr = call(program, packet, way, Some(&mut out), 1, flags)?;
    out.truncate(attr.data_size_out as usize);
    Ok(Outcome { verdict: attr.retval as i32, bytes: out })
}

/// Runs a classifier `repeat` times, first on this packet and then on the output of the previous run; returns the
/// kernel's mean in nanoseconds per run.
pub fn time(program: BorrowedFd<'_>, packet: &[u8], way: Way, repeat: u32) -> io::Result<u32> {
    Ok(call(program, packet, way, None, repeat, 0)?.duration)
}

/// Runs an XDP program on a frame that arrived at this device, which must have an XDP program in its driver.
pub fn run_xdp(program: BorrowedFd<'_>, frame: &[u8], device: u32) -> io::Result<XdpOutcome> {
    let mut out = vec![0; frame.len() + GROWTH];
    let (attr, md) = call_xdp(program, frame, device, Some(&mut out), 1)?;
    out.truncate(attr.data_size_out as usize);
    let bytes = out.split_off(md.data as usize);
    Ok(XdpOutcome { action: attr.retval, mark: out, bytes })
}

/// As [`time`], for an XDP program. Metadata accumulates from run to run; there is room for some sixty runs that add a
/// mark.
pub fn time_xdp(program: BorrowedFd<'_>, frame: &[u8], device: u32, repeat: u32) -> io::Result<u32> {
    Ok(call_xdp(program, frame, device, None, repeat)?.0.duration)
}

fn call_xdp(
    program: BorrowedFd<'_>,
    frame: &[u8],
    device: u32,
    out: Option<&mut [u8]>,
    repeat: u32,
) -> io::Result<(Attr, XdpMd)> {
    let md = XdpMd { data_end: frame.len() as u32, ingress_ifindex: device, ..Default::default() };
    let mut md_out = XdpMd::default();
    let (data_out, data_size_out) = out.map_or((0, 0), |out| (out.as_mut_ptr() as u64, out.len() as u32));
    let mut attr = Attr {
        prog_fd: program.as_raw_fd() as u32,
        data_size_in: frame.len() as u32,
        data_in: frame.as_ptr() as u64,
        data_size_out,
        data_out,
        repeat,
        ctx_size_in: size_of::<XdpMd>() as u32,
        ctx_in: &raw const md as u64,
        ctx_size_out: size_of::<XdpMd>() as u32,
        ctx_out: &raw mut md_out as u64,
        ..Zeroable::zeroed()
    };
    // SAFETY: `attr` and all buffers it points at live over the call and have the lengths it names.
    let ret = unsafe { libc::syscall(libc::SYS_bpf, BPF_PROG_TEST_RUN, &raw mut attr, size_of::<Attr>()) };
    if ret < 0 { Err(io::Error::last_os_error()) } else { Ok((attr, md_out)) }
}

fn call(
    program: BorrowedFd<'_>,
    packet: &[u8],
    way: Way,
    out: Option<&mut [u8]>,
    repeat: u32,
    flags: u32,
) -> io::Result<Attr> {
    let ctx = SkBuff { ingress_ifindex: way.came_in, ifindex: way.device, ..Zeroable::zeroed() };
    let (data_out, data_size_out) = out.map_or((0, 0), |out| (out.as_mut_ptr() as u64, out.len() as u32));
    let mut attr = Attr {
        prog_fd: program.as_raw_fd() as u32,
        data_size_in: packet.len() as u32,
        data_in: packet.as_ptr() as u64,
        data_size_out,
        data_out,
        repeat,
        ctx_size_in: size_of::<SkBuff>() as u32,
        ctx_in: &raw const ctx as u64,
        flags,
        ..Zeroable::zeroed()
    };
    // SAFETY: `attr` and all buffers it points at live over the call and have the lengths it names.
    let ret = unsafe { libc::syscall(libc::SYS_bpf, BPF_PROG_TEST_RUN, &raw mut attr, size_of::<Attr>()) };
    if ret < 0 { Err(io::Error::last_os_error()) } else { Ok(attr) }
}
