//! UDP sockets that stay open.

use std::{
    cell::Cell,
    io,
    net::{SocketAddr, UdpSocket},
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant},
};

use super::{Answer, tweak};

/// Sockets of this process: a question says whose it is.
static SOCKETS: AtomicU64 = AtomicU64::new(0);

/// A UDP socket, connected or not, that asks one server.
#[derive(Debug)]
pub struct UdpClient {
    socket: UdpSocket,
    /// Where datagrams go; `None` on a connected socket.
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

    /// The same unconnected socket from now on talks to `to`.
    pub fn redirect(&mut self, to: SocketAddr) {
        self.to = Some(to);
    }

    /// Sends a datagram and waits for its own answer, which must come from whom it was sent to. Somebody else's answer
    /// is an error.
    pub fn ask(&self) -> io::Result<Answer> {
        self.send()?;
        self.receive()
    }

    /// Sends a question.
    pub fn send(&self) -> io::Result<()> {
        self.asked.set(self.asked.get() + 1);
        let question = self.question();
        match self.to {
            Some(to) => self.socket.send_to(question.as_bytes(), to)?,
            None => self.socket.send(question.as_bytes())?,
        };
        Ok(())
    }

    /// Waits for the answer to the last question.
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
                    // An answer to an earlier question, late.
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

    /// The last question, as it was sent.
    pub fn question(&self) -> String {
        format!("u{}q{}", self.number, self.asked.get())
    }

    /// Sends one question on each of these, then waits for all of their answers, for `patience` altogether; what came
    /// of each.
    pub fn ask_all(sockets: &[Self], patience: Duration) -> Vec<io::Result<Answer>> {
        let sent: Vec<_> = sockets.iter().map(Self::send).collect();
        let deadline = Instant::now() + patience;
        let receive = |socket: &Self| {
            // What is there is read even when time is up.
            let left = deadline.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
            socket.socket.set_read_timeout(Some(left))?;
            socket.receive()
        };
        sockets.iter().zip(sent).map(|(socket, sent)| sent.and_then(|()| receive(socket))).collect()
    }

    /// Sends `count` datagrams without waiting, then collects the answers.
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

    /// The error that the socket's owner would be told with the next recv(2) or poll(2), and takes it.
    pub fn take_error(&self) -> io::Result<Option<io::Error>> {
        self.socket.take_error()
    }

    /// Sends a datagram of `length` bytes and waits for the answer, which says as much again and more.
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

    /// The same socket once more.
    pub fn try_clone(&self) -> io::Result<Self> {
        let socket = self.socket.try_clone()?;
        Ok(Self { socket, to: self.to, asked: self.asked.clone(), number: self.number })
    }

    /// The bare socket, for datagrams of another kind.
    pub fn into_inner(self) -> UdpSocket {
        self.socket
    }

    /// What the kernel knows of the narrowest place on the way to the peer of a connected socket.
    pub fn path_mtu(&self) -> io::Result<i32> {
        tweak::path_mtu(&self.socket, self.socket.peer_addr()?.is_ipv4())
    }

    /// What getpeername says.
    pub fn peer_addr(&self) -> io::Result<SocketAddr> {
        self.socket.peer_addr()
    }

    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.socket.local_addr()
    }
}
