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

/// Long enough for a lost SYN's second try (1 s) to be answered where something is slow; a test that expects silence
/// waits this long.
const PATIENCE: Duration = Duration::from_millis(1500);

/// Someone at a place who opens sockets.
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

    /// Where its sockets are made.
    pub fn place(&self) -> &Place {
        &self.place
    }

    /// Every socket is bound to this port, whatever its state (SO_REUSEADDR).
    pub fn port(self, port: u16) -> Self {
        Self { port, ..self }
    }

    /// Every socket is bound to this address, which must be of the family of what it is for.
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

    /// Every packet has options of the IP header: IPv4's, or IPv6's destination options.
    pub fn with_ip_options(self) -> Self {
        self.tweaked(Tweak::IpOptions)
    }

    /// No packet may be cut into fragments: what is too big for the way is an error, once that is known.
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

    /// Connects, asks once, closes.
    pub fn tcp(&self, to: SocketAddr) -> Attempt {
        self.attempt("tcp", to, || self.connect(to).and_then(|stream| stream.last(self.patience)))
    }

    /// Sends one datagram from a connected socket and waits for the answer.
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

    /// Opens a connection and says no word.
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

    /// A UDP socket that names its peer with each datagram; of the family `to` is of.
    pub fn udp_unconnected(&self, to: SocketAddr) -> io::Result<UdpClient> {
        let (fd, to) = self.bound(libc::SOCK_DGRAM, to)?;
        UdpClient::unconnected(UdpSocket::from(fd), to, self.patience)
    }

    /// A socket for `to`, bound where a port or an address was chosen, and `to` as that socket must name it.
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

/// Binds a UDP socket to a port that no other of this process had before. The kernel's random choice repeats itself after a few
/// hundred sockets, and then the socket continues a flow, and keeps its backend, where the test wants a new flow.
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
