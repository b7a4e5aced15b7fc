//! TCP clients and one-shot UDP.

use std::{
    io,
    net::{IpAddr, SocketAddr, TcpStream, UdpSocket},
    ops::RangeInclusive,
    os::fd::{AsRawFd, OwnedFd},
    sync::atomic::{AtomicU16, Ordering},
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    sys::{
        socket::{SockaddrStorage, bind, connect, setsockopt, sockopt},
        time::{TimeVal, TimeValLike},
    },
};

use super::{
    Answer, Attempt, Outcome, Stream, UdpClient,
    tweak::{self, Tweak},
};
use crate::net::Place;

/// Long enough for a reply to a lost SYN's retry (1 s) on a slow machine; a test that expects no reply waits this long.
const PATIENCE: Duration = Duration::from_millis(1500);

/// A client that opens sockets at a place.
#[derive(Clone, Debug)]
pub struct Client {
    place: Place,
    patience: Duration,
    port: u16,
    source: Option<IpAddr>,
    mapped: bool,
    tweaks: Vec<Tweak>,
}

impl Client {
    pub fn at(place: &Place) -> Self {
        Self {
            place: place.clone(),
            patience: PATIENCE,
            port: 0,
            source: None,
            mapped: false,
            tweaks: Vec::new(),
        }
    }

    /// The place where its sockets are created.
    pub fn place(&self) -> &Place {
        &self.place
    }

    /// Every socket is bound to this port, whatever its state (SO_REUSEADDR).
    pub fn port(self, port: u16) -> Self {
        Self { port, ..self }
    }

    /// Every socket is bound to this address, which must have the destination's family.
    pub fn source(self, source: IpAddr) -> Self {
        Self { source: Some(source), ..self }
    }

    pub fn patience(self, patience: Duration) -> Self {
        Self { patience, ..self }
    }

    /// IPv4 destinations are reached from IPv6 sockets, as `::ffff:a.b.c.d`.
    pub fn v4_mapped(self) -> Self {
        Self { mapped: true, ..self }
    }

    /// Every packet carries IP options: IPv4 options, or IPv6 destination options.
    pub fn with_ip_options(self) -> Self {
        self.tweaked(Tweak::IpOptions)
    }

    /// No packet may be fragmented: a packet that exceeds the path MTU is an error, once that MTU is known.
    pub fn dont_fragment(self) -> Self {
        self.tweaked(Tweak::DontFragment)
    }

    /// Datagrams are sent without a checksum.
    pub fn without_checksum(self) -> Self {
        self.tweaked(Tweak::NoChecksum)
    }

    fn tweaked(mut self, tweak: Tweak) -> Self {
        self.tweaks.push(tweak);
        self
    }

    /// Connects, sends one request, closes.
    pub fn tcp(&self, to: SocketAddr) -> Attempt {
        self.attempt("tcp", to, || self.connect(to).and_then(|stream| stream.last(self.patience)))
    }

    /// Sends one datagram from a connected socket and waits for the reply.
    pub fn udp(&self, to: SocketAddr) -> Attempt {
        self.attempt("udp", to, || self.udp_connected(to).and_then(|socket| socket.ask()))
    }

    /// A connection that stays open.
    #[track_caller]
    pub fn stream(&self, to: SocketAddr) -> Stream {
        match self.connect(to) {
            Ok(stream) => stream,
            Err(error) => panic!("tcp {} -> {to}: {error}", self.place.name()),
        }
    }

    /// Opens a connection and sends nothing.
    pub fn connect(&self, to: SocketAddr) -> io::Result<Stream> {
        let (fd, to) = self.bound(libc::SOCK_STREAM, to)?;
        let patience = TimeVal::milliseconds(self.patience.as_millis() as i64);
        setsockopt(&fd, sockopt::SendTimeout, &patience)?;
        connect(fd.as_raw_fd(), &SockaddrStorage::from(to))?;
        Stream::new(TcpStream::from(fd), self.patience)
    }

    /// A UDP socket connected to `to`.
    pub fn udp_connected(&self, to: SocketAddr) -> io::Result<UdpClient> {
        let (fd, to) = self.bound(libc::SOCK_DGRAM, to)?;
        connect(fd.as_raw_fd(), &SockaddrStorage::from(to))?;
        UdpClient::connected(UdpSocket::from(fd), self.patience)
    }

    /// A UDP socket that names its peer with each datagram; it has the family of `to`.
    pub fn udp_unconnected(&self, to: SocketAddr) -> io::Result<UdpClient> {
        let (fd, to) = self.bound(libc::SOCK_DGRAM, to)?;
        UdpClient::unconnected(UdpSocket::from(fd), to, self.patience)
    }

    /// A socket for `to`, bound if a port or an address was chosen, and `to` in the form that socket needs.
    fn bound(&self, kind: i32, to: SocketAddr) -> io::Result<(OwnedFd, SocketAddr)> {
        let to = match to {
            SocketAddr::V4(v4) if self.mapped => (v4.ip().to_ipv6_mapped(), v4.port()).into(),
            _ => to,
        };
        let (family, any): (_, SocketAddr) = match to {
            SocketAddr::V4(_) => (libc::AF_INET, ([0; 4], self.port).into()),
            SocketAddr::V6(_) => (libc::AF_INET6, ([0u16; 8], self.port).into()),
        };
        let own = self.source.map_or(any, |source| SocketAddr::new(source, self.port));
        let fd = self.place.socket(family, kind, 0)?;
        if kind == libc::SOCK_DGRAM && self.port == 0 {
            bind_unused(&fd, own.ip())?;
        } else if own != SocketAddr::new(any.ip(), 0) {
            setsockopt(&fd, sockopt::ReuseAddr, &true)?;
            bind(fd.as_raw_fd(), &SockaddrStorage::from(own))?;
        }
        for tweak in self.tweaks.iter().filter(|tweak| tweak.is_of(kind)) {
            tweak::apply(*tweak, &fd, to.is_ipv4())?;
        }
        Ok((fd, to))
    }

    fn attempt(&self, how: &str, to: SocketAddr, f: impl FnOnce() -> io::Result<Answer>) -> Attempt {
        let start = Instant::now();
        let outcome = Outcome::from_io(f());
        Attempt { what: format!("{how} {} -> {to}", self.place.name()), outcome, took: start.elapsed() }
    }
}

/// Binds a UDP socket to a port that no other socket of this process had before. The kernel's random choice repeats
/// itself after a few hundred sockets; the socket would then continue an existing flow and keep its backend, where the
/// test wants a new flow.
fn bind_unused(socket: &OwnedFd, own: IpAddr) -> io::Result<()> {
    /// The kernel's default for ip_local_port_range.
    const PORTS: RangeInclusive<u16> = 32_768..=60_999;
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let len = PORTS.end() - PORTS.start() + 1;
    for _ in 0..len {
        let port = PORTS.start() + NEXT.fetch_add(1, Ordering::Relaxed) % len;
        match bind(socket.as_raw_fd(), &SockaddrStorage::from(SocketAddr::new(own, port))) {
            Err(Errno::EADDRINUSE) => {}
            bound => return Ok(bound?),
        }
    }
    Err(Errno::EADDRINUSE.into())
}
