//! ICMP echo over the kernel's ping sockets: it needs neither a `ping` program nor a raw socket.

use std::{
    io,
    net::{IpAddr, SocketAddr, UdpSocket},
    os::fd::AsRawFd,
    time::Duration,
};

use nix::sys::socket::{SockaddrStorage, connect};

use crate::net::Place;

/// Sends one echo request; `true` if `to` itself answered it in time.
pub fn ping(place: &Place, to: IpAddr, patience: Duration) -> io::Result<bool> {
    place.netns().sysctl("net/ipv4/ping_group_range", "0 2147483647").map_err(io::Error::other)?;
    let (family, protocol, request, reply) = match to {
        IpAddr::V4(_) => (libc::AF_INET, libc::IPPROTO_ICMP, 8, 0),
        IpAddr::V6(_) => (libc::AF_INET6, libc::IPPROTO_ICMPV6, 128, 129),
    };
    // Ping sockets work like UDP sockets: datagrams without the IP header, and the identifier is the local port.
    let fd = place.socket(family, libc::SOCK_DGRAM, protocol)?;
    connect(fd.as_raw_fd(), &SockaddrStorage::from(SocketAddr::new(to, 0)))?;
    let socket = UdpSocket::from(fd);
    socket.set_read_timeout(Some(patience))?;
    let sequence = 1u16;
    let mut message = vec![request, 0, 0, 0, 0, 0];
    message.extend(sequence.to_be_bytes());
    message.extend(b"are you there?");
    match socket.send(&message) {
        // A sender on this machine gets this error if an egress hook drops its packet.
        Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => return Ok(false),
        sent => sent?,
    };
    let mut buffer = [0; 128];
    match socket.recv(&mut buffer) {
        Ok(length) => Ok(buffer[0] == reply && buffer[8..length] == message[8..]),
        // No reply, or an ICMP unreachable error about the request.
        Err(error) if matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::ECONNREFUSED)) => Ok(false),
        // An unreachable error is not a reply of `to` itself.
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => Ok(false),
        Err(error) => Err(error),
    }
}
