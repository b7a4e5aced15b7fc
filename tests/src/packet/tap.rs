//! Captures a device's traffic with an AF_PACKET socket. A test run's result does not include frames that a program
//! sends itself (bpf_clone_redirect).

use std::{
    io,
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
    time::{Duration, Instant},
};

use super::Hook;

/// Longest time from a queue to the tap for a frame.
const SOON: Duration = Duration::from_millis(500);

/// Both directions of one device.
#[derive(Debug)]
pub struct Tap(OwnedFd);

impl Tap {
    /// Opens a tap on a device of the calling thread's namespace.
    pub fn on(ifindex: u32) -> io::Result<Self> {
        let all = (libc::ETH_P_ALL as u16).to_be();
        let kind = libc::SOCK_RAW | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
        // SAFETY: socket(2) takes no pointers.
        let fd = unsafe { libc::socket(libc::AF_PACKET, kind, 0) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the kernel has just created this descriptor for this process; it has no other owner.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        let mut addr = empty();
        (addr.sll_family, addr.sll_protocol, addr.sll_ifindex) =
            (libc::AF_PACKET as u16, all, ifindex as i32);
        let len = size_of_val(&addr) as u32;
        // SAFETY: one address of the length given, which outlives the call.
        if unsafe { libc::bind(fd.as_raw_fd(), (&raw const addr).cast(), len) } != 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(Self(fd))
    }

    /// The next `count` received (ingress) or sent (egress) frames; fewer if they do not arrive soon.
    pub fn frames(&self, hook: Hook, count: usize) -> Vec<Vec<u8>> {
        let (mut frames, deadline) = (Vec::new(), Instant::now() + SOON);
        while frames.len() < count && Instant::now() < deadline {
            match self.next() {
                Some((direction, frame)) if direction == hook => frames.push(frame),
                Some(_) => {}
                None => std::thread::sleep(Duration::from_micros(200)),
            }
        }
        frames
    }

    /// Frames of this direction that have already arrived.
    pub fn pending(&self, hook: Hook) -> Vec<Vec<u8>> {
        std::iter::from_fn(|| self.next())
            .filter(|(found, _)| *found == hook)
            .map(|(_, frame)| frame)
            .collect()
    }

    fn next(&self) -> Option<(Hook, Vec<u8>)> {
        let mut frame = vec![0; 1 << 16];
        let mut from = empty();
        let mut len = size_of_val(&from) as u32;
        // SAFETY: the buffer and the address have the lengths given, and outlive the call.
        let got = unsafe {
            libc::recvfrom(
                self.0.as_raw_fd(),
                frame.as_mut_ptr().cast(),
                frame.len(),
                0,
                (&raw mut from).cast(),
                &raw mut len,
            )
        };
        frame.truncate(usize::try_from(got).ok()?);
        let out = from.sll_pkttype == libc::PACKET_OUTGOING;
        Some((if out { Hook::Egress } else { Hook::Ingress }, frame))
    }
}

fn empty() -> libc::sockaddr_ll {
    // SAFETY: an all-zero sockaddr_ll is valid.
    unsafe { std::mem::zeroed() }
}
