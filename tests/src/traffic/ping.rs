//! ICMP echo by the kernel's ping sockets: no `ping` program and no raw socket is needed.

use std::{
    io,
    net::{IpAddr, SocketAddr, UdpSocket},
    os::fd::AsRawFd,
    time::Duration,
};

use nix::sys::socket::{SockaddrStorage, connect};

use crate::net::Place;

/// Sends one echo request; `true` when `to` itself answered it in time.
pub fn ping(place: &Place, to: IpAddr, patience: Duration) -> io::Result<bool> {
    place.netns().sysctl("net/ipv4/ping_group_range", "0 2147483647").map_err(io::Error::other)?;
    let (family, protocol, request, reply) = match to {
        IpAddr::V4(_) => (libc::AF_INET, libc::IPPROTO_ICMP, 8, 0),
        IpAddr::V6(_) => (libc::AF_INET6, libc::IPPROTO_ICMPV6, 128, 129),
    };
    // A ping socket is handled like UDP's: datagrams without the IP header, whose identifier is the local port.
    let fd = place.socket(family, libc::SOCK_DGRAM, protocol)?;
    connect(fd.as_raw_fd(), &SockaddrStorage::from(SocketAddr::new(to, 0)))?;
    let socket = UdpSocket::from(fd);
    socket.set_read_timeout(Some(patience))?;
    let sequence = 1u16;
    let mut message = vec![request, 0, 0, 0, 0, 0];
    message.extend(sequence.to_be_bytes());
    message.extend(b"are you there?");
    match socket.send(&message) {
        // How a sender on this machine learns that an egress hook has dropped its packet.
        Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => return Ok(false),
        sent => sent?,
    };
    let mut buffer = [0; 128];
    match socket.recv(&mut buffer) {
        Ok(length) => Ok(buffer[0] == reply && buffer[8..length] == message[8..]),
        // Silence, or an unreachable about it.
        Err(error) if matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::ECONNREFUSED)) => Ok(false),
        // Unreachable is no answer of `to` itself.
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => Ok(false),
        Err(error) => Err(error),
    }
}
