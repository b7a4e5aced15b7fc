//! Netlink, as much as shunt needs: dumps and requests on a blocking socket, events on a non-blocking one, and an
//! attribute parser.
//!
//! Messages are parsed field by field, not into complete types: a newer kernel may add or extend any attribute, and a
//! device must never stay unhooked because one of its statistics grew. [`super::devices`] interprets links and
//! addresses; [`super::clsact`] creates filters.

use std::{
    io,
    os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd},
};

use nix::sys::{
    socket::{
        AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, send, setsockopt,
        socket, sockopt,
    },
    time::{TimeVal, TimeValLike as _},
};

pub const NLM_F_REQUEST: u16 = 0x1;
pub const NLM_F_ACK: u16 = 0x4;
pub const NLM_F_CREATE: u16 = 0x400;
pub const NLM_F_EXCL: u16 = 0x200;
const NLM_F_DUMP: u16 = 0x300;
const NLM_F_DUMP_INTR: u16 = 0x10;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const HEADER: usize = 16;

/// One netlink message without its header.
#[derive(Clone, Copy, Debug)]
pub struct Message<'a> {
    pub kind: u16,
    flags: u16,
    pub body: &'a [u8],
}

/// The messages in one datagram; stops at the first truncated one.
pub fn messages(mut data: &[u8]) -> impl Iterator<Item = Message<'_>> {
    std::iter::from_fn(move || {
        let len = read_u32(data, 0)? as usize;
        let message =
            Message { kind: read_u16(data, 4)?, flags: read_u16(data, 6)?, body: data.get(HEADER..len)? };
        data = data.get(len.next_multiple_of(4)..).unwrap_or_default();
        Some(message)
    })
}

/// The attributes in `data`: type (without its flag bits) and payload.
pub fn attributes(mut data: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let len = usize::from(read_u16(data, 0)?);
        let attribute = (read_u16(data, 2)? & 0x3fff, data.get(4..len)?);
        data = data.get(len.next_multiple_of(4)..).unwrap_or_default();
        Some(attribute)
    })
}

pub fn read_u16(data: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(data.get(at..at + 2)?.try_into().ok()?))
}

pub fn read_u32(data: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(data.get(at..at + 4)?.try_into().ok()?))
}

/// A zero-terminated string.
pub fn read_str(data: &[u8]) -> String {
    let len = data.iter().position(|b| *b == 0).unwrap_or(data.len());
    String::from_utf8_lossy(&data[..len]).into_owned()
}

/// A request under construction.
#[derive(Clone, Debug)]
pub struct Request {
    bytes: Vec<u8>,
}

impl Request {
    /// A message of `kind` whose fixed part is `body`.
    pub fn new(kind: u16, flags: u16, body: &[u8]) -> Self {
        let mut bytes = vec![0; HEADER];
        bytes[4..6].copy_from_slice(&kind.to_ne_bytes());
        bytes[6..8].copy_from_slice(&(flags | NLM_F_REQUEST).to_ne_bytes());
        bytes.extend_from_slice(body);
        Self { bytes }
    }

    /// Appends an attribute.
    pub fn attribute(&mut self, kind: u16, payload: &[u8]) -> &mut Self {
        self.bytes.extend_from_slice(&(payload.len() as u16 + 4).to_ne_bytes());
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.bytes.extend_from_slice(payload);
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
        self
    }

    /// Appends an attribute that holds what `fill` appends.
    pub fn nested(&mut self, kind: u16, fill: impl FnOnce(&mut Self)) -> &mut Self {
        let start = self.bytes.len();
        self.attribute(kind, &[]);
        fill(self);
        let len = (self.bytes.len() - start) as u16;
        self.bytes[start..start + 2].copy_from_slice(&len.to_ne_bytes());
        self
    }

    /// The message as sent, for tests of parsers.
    #[cfg(test)]
    pub fn encoded(self) -> Vec<u8> {
        self.finish(0)
    }

    pub(crate) fn finish(mut self, sequence: u32) -> Vec<u8> {
        let len = self.bytes.len() as u32;
        self.bytes[..4].copy_from_slice(&len.to_ne_bytes());
        self.bytes[8..12].copy_from_slice(&sequence.to_ne_bytes());
        self.bytes
    }
}

/// A blocking socket for requests, with a timeout of five seconds.
#[derive(Debug)]
pub struct Socket {
    fd: OwnedFd,
    sequence: u32,
}

impl Socket {
    pub fn open() -> io::Result<Self> {
        Self::of(SockProtocol::NetlinkRoute)
    }

    /// For netfilter's subsystems instead of rtnetlink's: `shunt check` looks for other proxies' rules.
    pub fn open_netfilter() -> io::Result<Self> {
        Self::of(SockProtocol::NetlinkNetFilter)
    }

    /// For generic netlink families, such as a driver's XDP features.
    pub fn open_generic() -> io::Result<Self> {
        Self::of(SockProtocol::NetlinkGeneric)
    }

    /// For the sockets of this network namespace.
    pub fn open_sock_diag() -> io::Result<Self> {
        Self::of(SockProtocol::NetlinkSockDiag)
    }

    fn of(protocol: SockProtocol) -> io::Result<Self> {
        let fd = socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, protocol)?;
        setsockopt(&fd, sockopt::ReceiveTimeout, &TimeVal::seconds(5))?;
        Ok(Self { fd, sequence: 0 })
    }

    /// Sends a request and waits for the acknowledgement.
    pub fn request(&mut self, mut request: Request) -> io::Result<()> {
        request.bytes[6] |= NLM_F_ACK as u8;
        self.exchange(request, |_| {}).map(drop)
    }

    /// Sends a request, calls `each` with every message of the response, and waits for the acknowledgement.
    pub fn ask(&mut self, mut request: Request, each: impl FnMut(Message<'_>)) -> io::Result<()> {
        request.bytes[6] |= NLM_F_ACK as u8;
        self.exchange(request, each).map(drop)
    }

    /// A transaction in one of netfilter's subsystems: all changes or none.
    pub fn transaction(&mut self, subsystem: u16, requests: Vec<Request>) -> io::Result<()> {
        const BATCH_BEGIN: u16 = 16;
        const BATCH_END: u16 = 17;
        // `struct nfgenmsg`: no family, version 0, and the subsystem in network order.
        let body = |subsystem: u16| [&[0, 0][..], &subsystem.to_be_bytes()].concat();
        let Some(last) = requests.len().checked_sub(1) else { return Ok(()) };
        let mut bytes = Vec::new();
        self.sequence += 1;
        bytes.extend(Request::new(BATCH_BEGIN, 0, &body(subsystem)).finish(self.sequence));
        for (number, mut request) in requests.into_iter().enumerate() {
            // Only the last is acknowledged: the kernel answers in order, and always reports errors.
            if number == last {
                request.bytes[6] |= NLM_F_ACK as u8;
            }
            self.sequence += 1;
            bytes.extend(request.finish(self.sequence));
        }
        bytes.extend(Request::new(BATCH_END, 0, &body(subsystem)).finish(self.sequence + 1));
        self.sequence += 1;
        send(self.fd.as_raw_fd(), &bytes, MsgFlags::empty())?;
        self.answer(|_| {}).map(drop)
    }

    /// Calls `each` with every message of a dump. If a change interrupted the dump, it is repeated from the beginning,
    /// so `each` must accept a message twice.
    pub fn dump(&mut self, kind: u16, body: &[u8], each: impl FnMut(Message<'_>)) -> io::Result<()> {
        self.dump_request(Request::new(kind, 0, body), each)
    }

    /// A dump whose request has attributes.
    pub fn dump_request(
        &mut self,
        mut request: Request,
        mut each: impl FnMut(Message<'_>),
    ) -> io::Result<()> {
        let flags = NLM_F_DUMP | NLM_F_REQUEST;
        request.bytes[6..8].copy_from_slice(&flags.to_ne_bytes());
        for _ in 0..8 {
            if !self.exchange(request.clone(), &mut each)? {
                return Ok(());
            }
        }
        Err(io::Error::other("the kernel's tables change faster than they can be read"))
    }

    /// Sends a request and reads the response; returns whether the dump was interrupted (`NLM_F_DUMP_INTR`).
    fn exchange(&mut self, request: Request, each: impl FnMut(Message<'_>)) -> io::Result<bool> {
        self.sequence += 1;
        send(self.fd.as_raw_fd(), &request.finish(self.sequence), MsgFlags::empty())?;
        self.answer(each)
    }

    /// Reads up to the acknowledgement or the end of a dump.
    fn answer(&mut self, mut each: impl FnMut(Message<'_>)) -> io::Result<bool> {
        let mut buffer = vec![0u8; 64 * 1024];
        let mut torn = false;
        loop {
            let len = recv(self.fd.as_raw_fd(), &mut buffer, MsgFlags::empty())?;
            for message in messages(&buffer[..len]) {
                torn |= message.flags & NLM_F_DUMP_INTR != 0;
                match message.kind {
                    NLMSG_DONE => return Ok(torn),
                    NLMSG_ERROR => match read_u32(message.body, 0).unwrap_or(0) as i32 {
                        0 => return Ok(torn),
                        code => return Err(io::Error::from_raw_os_error(-code)),
                    },
                    _ => each(message),
                }
            }
        }
    }
}

/// A non-blocking socket that receives events of multicast groups.
#[derive(Debug)]
pub struct Events {
    fd: OwnedFd,
}

impl Events {
    /// Joins `groups` (`RTMGRP_*` bits).
    pub fn open(groups: u32) -> io::Result<Self> {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let fd = socket(AddressFamily::Netlink, SockType::Raw, flags, SockProtocol::NetlinkRoute)?;
        // Large enough for a burst of several thousand devices; CAP_NET_ADMIN may exceed rmem_max.
        setsockopt(&fd, sockopt::RcvBufForce, &(8 << 20))
            .or_else(|_| setsockopt(&fd, sockopt::RcvBuf, &(1 << 20)))?;
        bind(fd.as_raw_fd(), &NetlinkAddr::new(0, groups))?;
        Ok(Self { fd })
    }

    /// One datagram of events into `buffer`. `WouldBlock`: none; ENOBUFS: some were lost.
    pub fn receive<'b>(&self, buffer: &'b mut [u8]) -> io::Result<&'b [u8]> {
        let len = recv(self.fd.as_raw_fd(), buffer, MsgFlags::empty())?;
        Ok(&buffer[..len])
    }
}

impl AsFd for Events {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl std::os::fd::AsRawFd for Events {
    fn as_raw_fd(&self) -> std::os::fd::RawFd {
        self.fd.as_raw_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_built_is_read_back() {
        let mut request = Request::new(44, NLM_F_CREATE, &[1, 2, 3, 4]);
        request.attribute(1, b"bpf\0").nested(2, |r| {
            r.attribute(6, &7u32.to_ne_bytes()).attribute(7, b"odd");
        });
        let bytes = request.finish(9);
        let message = messages(&bytes).next().unwrap();
        assert_eq!(message.kind, 44);
        let found: Vec<_> = attributes(&message.body[4..]).collect();
        assert_eq!(found[0], (1, &b"bpf\0"[..]));
        let inner: Vec<_> = attributes(found[1].1).collect();
        assert_eq!(inner, [(6, &7u32.to_ne_bytes()[..]), (7, &b"odd"[..])]);
        assert_eq!(messages(&bytes).count(), 1);
    }

    #[test]
    fn what_is_cut_short_ends_the_reading() {
        let mut bytes = Request::new(16, 0, &[0; 16]).finish(1);
        bytes.truncate(20);
        assert_eq!(messages(&bytes).count(), 0);
        assert_eq!(attributes(&[8, 0, 1, 0, 1]).count(), 0);
        assert_eq!(attributes(&[0, 0, 0, 0]).count(), 0);
        assert_eq!(read_str(b"eth0\0junk"), "eth0");
    }
}
