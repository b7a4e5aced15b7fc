//! Socket options for unusual packets that std and nix do not support.

use std::{
    io,
    os::fd::{AsFd, AsRawFd},
};

/// An unusual property of all packets of a socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Tweak {
    IpOptions,
    DontFragment,
    NoChecksum,
}

impl Tweak {
    /// Whether it applies to sockets of this kind.
    pub fn is_of(self, kind: i32) -> bool {
        self != Self::NoChecksum || kind == libc::SOCK_DGRAM
    }
}

/// include/uapi/linux/udp.h: send without a checksum over IPv6, accept such datagrams.
const UDP_NO_CHECK6_TX: i32 = 101;
const UDP_NO_CHECK6_RX: i32 = 102;
/// include/uapi/linux/in6.h; IPPROTO_IPV6.
const IPV6_DSTOPTS: i32 = 59;
/// Three no-operations and the end of the list.
const V4_OPTIONS: [u8; 4] = [1, 1, 1, 0];
/// Next header (filled in by the kernel), one group of eight bytes, and PadN of four bytes in it.
const V6_OPTIONS: [u8; 8] = [0, 0, 1, 4, 0, 0, 0, 0];

pub(super) fn apply(tweak: Tweak, socket: &impl AsFd, v4: bool) -> io::Result<()> {
    let on = 1i32.to_ne_bytes();
    match (tweak, v4) {
        (Tweak::IpOptions, true) => set(socket, libc::IPPROTO_IP, libc::IP_OPTIONS, &V4_OPTIONS),
        (Tweak::IpOptions, false) => set(socket, libc::IPPROTO_IPV6, IPV6_DSTOPTS, &V6_OPTIONS),
        (Tweak::DontFragment, true) => {
            set(socket, libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, &libc::IP_PMTUDISC_DO.to_ne_bytes())
        }
        (Tweak::DontFragment, false) => {
            set(socket, libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER, &libc::IPV6_PMTUDISC_DO.to_ne_bytes())
        }
        (Tweak::NoChecksum, true) => set(socket, libc::SOL_SOCKET, libc::SO_NO_CHECK, &on),
        (Tweak::NoChecksum, false) => {
            set(socket, libc::IPPROTO_UDP, UDP_NO_CHECK6_TX, &on)?;
            set(socket, libc::IPPROTO_UDP, UDP_NO_CHECK6_RX, &on)
        }
    }
}

fn set(socket: &impl AsFd, level: i32, name: i32, value: &[u8]) -> io::Result<()> {
    let fd = socket.as_fd().as_raw_fd();
    // SAFETY: the kernel reads `value.len()` bytes, which outlive the call.
    let result = unsafe { libc::setsockopt(fd, level, name, value.as_ptr().cast(), value.len() as u32) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// IP_MTU or IPV6_MTU of a connected socket.
pub(super) fn path_mtu(socket: &impl AsFd, v4: bool) -> io::Result<i32> {
    let (level, name) =
        if v4 { (libc::IPPROTO_IP, libc::IP_MTU) } else { (libc::IPPROTO_IPV6, libc::IPV6_MTU) };
    let (mut value, mut length) = (0i32, size_of::<i32>() as u32);
    let fd = socket.as_fd().as_raw_fd();
    // SAFETY: the kernel writes at most `length` bytes to `value`; both outlive the call.
    let result = unsafe { libc::getsockopt(fd, level, name, (&raw mut value).cast(), &raw mut length) };
    if result == 0 { Ok(value) } else { Err(io::Error::last_os_error()) }
}
