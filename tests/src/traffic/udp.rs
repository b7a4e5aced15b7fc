//! UDP sockets that stay open.

use std::{
    cell::Cell,
    io,
    net::{SocketAddr, UdpSocket},
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant},
};

use super::{Answer, tweak};

/// Number of sockets of this process: a request names its socket.
static SOCKETS: AtomicU64 = AtomicU64::new(0);

/// A UDP socket, connected or not, that sends requests to one server.
#[derive(Debug)]
pub struct UdpClient {
    socket: UdpSocket,
    /// Destination of datagrams; `None` on a connected socket.
    to: Option<SocketAddr>,
    asked: Cell<usize>,
    number: u64,
}

impl UdpClient {
    pub(super) fn connected(socket: UdpSocket, patience: Duration) -> io::Result<Self> {
        socket.set_read_timeout(Some(patience))?;
        Ok(Self { socket, to: None, asked: Cell::new(0), number: SOCKETS.fetch_add(1, Ordering::Relaxed) })
    }

    pub(super) fn unconnected(socket: UdpSocket, to: SocketAddr, patience: Duration) -> io::Result<Self> {
        socket.set_read_timeout(Some(patience))?;
        let number = SOCKETS.fetch_add(1, Ordering::Relaxed);
        Ok(Self { socket, to: Some(to), asked: Cell::new(0), number })
    }

    /// Sets a new destination for the same unconnected socket.
    pub fn redirect(&mut self, to: SocketAddr) {
        self.to = Some(to);
    }

    /// Sends a datagram and waits for its own reply, which must come from the address the datagram was sent to. A reply
    /// to another socket's request is an error.
    pub fn ask(&self) -> io::Result<Answer> {
        self.send()?;
        self.receive()
    }

    /// Sends a request.
    pub fn send(&self) -> io::Result<()> {
        self.asked.set(self.asked.get() + 1);
        let question = self.question();
        match self.to {
            Some(to) => self.socket.send_to(question.as_bytes(), to)?,
            None => self.socket.send(question.as_bytes())?,
        };
        Ok(())
    }

    /// Waits for the reply to the last request.
    pub fn receive(&self) -> io::Result<Answer> {
        let question = self.question();
        let mut buffer = [0; 2048];
        loop {
            let (length, from) = match self.to {
                Some(_) => self.socket.recv_from(&mut buffer)?,
                None => (self.socket.recv(&mut buffer)?, self.socket.peer_addr()?),
            };
            let text = String::from_utf8_lossy(&buffer[..length]);
            let wrong = |what: String| Err(io::Error::new(io::ErrorKind::InvalidData, what));
            if !text.ends_with(&question) {
                if text.contains(&format!("u{}q", self.number)) {
                    // A late reply to an earlier request.
                    continue;
                }
                return wrong(format!("asked {question:?}, and got from {from}: {text}"));
            }
            if let Some(to) = self.to
                && from != to
            {
                return wrong(format!("asked {to}, but {from} answered: {text}"));
            }
            return Answer::parse(&text);
        }
    }

    /// The last request, as it was sent.
    pub fn question(&self) -> String {
        format!("u{}q{}", self.number, self.asked.get())
    }

    /// Sends one request on each of these sockets, then waits for all replies, for `patience` in total; returns the
    /// result of each.
    pub fn ask_all(sockets: &[Self], patience: Duration) -> Vec<io::Result<Answer>> {
        let sent: Vec<_> = sockets.iter().map(Self::send).collect();
        let deadline = Instant::now() + patience;
        let receive = |socket: &Self| {
            // Replies that have already arrived are read even after the deadline.
            let left = deadline.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
            socket.socket.set_read_timeout(Some(left))?;
            socket.receive()
        };
        sockets.iter().zip(sent).map(|(socket, sent)| sent.and_then(|()| receive(socket))).collect()
    }

    /// Sends `count` datagrams without waiting, then collects the replies.
    pub fn burst(&self, count: usize) -> io::Result<Vec<Answer>> {
        for nth in 0..count {
            match self.to {
                Some(to) => self.socket.send_to(format!("b{nth}").as_bytes(), to)?,
                None => self.socket.send(format!("b{nth}").as_bytes())?,
            };
        }
        let mut buffer = [0; 2048];
        let mut answer = || {
            let length = self.socket.recv(&mut buffer)?;
            Answer::parse(&String::from_utf8_lossy(&buffer[..length]))
        };
        (0..count).map(|_| answer()).collect()
    }

    /// Takes the socket's pending error, which the next recv(2) or poll(2) would report.
    pub fn take_error(&self) -> io::Result<Option<io::Error>> {
        self.socket.take_error()
    }

    /// Sends a datagram of `length` bytes and waits for the reply, which repeats the request.
    pub fn ask_long(&self, length: usize) -> io::Result<Answer> {
        self.asked.set(self.asked.get() + 1);
        let question = self.question();
        let question = format!("{:x<width$}{question}", "", width = length - question.len());
        match self.to {
            Some(to) => self.socket.send_to(question.as_bytes(), to)?,
            None => self.socket.send(question.as_bytes())?,
        };
        let mut buffer = vec![0; 65536];
        loop {
            let got = self.socket.recv(&mut buffer)?;
            let text = String::from_utf8_lossy(&buffer[..got]);
            if text.ends_with(&question) {
                return Answer::parse(&text);
            }
        }
    }

    /// A clone of the same socket.
    pub fn try_clone(&self) -> io::Result<Self> {
        let socket = self.socket.try_clone()?;
        Ok(Self { socket, to: self.to, asked: self.asked.clone(), number: self.number })
    }

    /// The bare socket, for datagrams of another kind.
    pub fn into_inner(self) -> UdpSocket {
        self.socket
    }

    /// The kernel's path MTU to the peer of a connected socket.
    pub fn path_mtu(&self) -> io::Result<i32> {
        tweak::path_mtu(&self.socket, self.socket.peer_addr()?.is_ipv4())
    }

    /// The address getpeername returns.
    pub fn peer_addr(&self) -> io::Result<SocketAddr> {
        self.socket.peer_addr()
    }

    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.socket.local_addr()
    }
}
