//! UDP sockets that stay open.

use std::{
    cell::Cell,
    io,
    net::{SocketAddr, UdpSocket},
    time::Duration,
};

use super::{Answer, tweak};

/// A UDP socket, connected or not, that asks one server.
#[derive(Debug)]
pub struct UdpClient {
    socket: UdpSocket,
    /// Where datagrams go; `None` on a connected socket.
    to: Option<SocketAddr>,
    asked: Cell<usize>,
}

impl UdpClient {
    pub(super) fn connected(socket: UdpSocket, patience: Duration) -> io::Result<Self> {
        socket.set_read_timeout(Some(patience))?;
        Ok(Self { socket, to: None, asked: Cell::new(0) })
    }

    pub(super) fn unconnected(socket: UdpSocket, to: SocketAddr, patience: Duration) -> io::Result<Self> {
        socket.set_read_timeout(Some(patience))?;
        Ok(Self { socket, to: Some(to), asked: Cell::new(0) })
    }

    /// The same unconnected socket from now on talks to `to`.
    pub fn redirect(&mut self, to: SocketAddr) {
        self.to = Some(to);
    }

    /// Sends a datagram and waits for its own answer, which must come from whom it was sent to.
    pub fn ask(&self) -> io::Result<Answer> {
        let nth = self.asked.replace(self.asked.get() + 1);
        let question = format!("q{nth}");
        match self.to {
            Some(to) => self.socket.send_to(question.as_bytes(), to)?,
            None => self.socket.send(question.as_bytes())?,
        };
        let mut buffer = [0; 2048];
        loop {
            let (length, from) = match self.to {
                Some(_) => self.socket.recv_from(&mut buffer)?,
                None => (self.socket.recv(&mut buffer)?, self.socket.peer_addr()?),
            };
            let text = String::from_utf8_lossy(&buffer[..length]);
            // An answer to an earlier question, late.
            if !text.ends_with(&question) {
                continue;
            }
            if let Some(to) = self.to
                && from != to
            {
                let what = format!("asked {to}, but {from} answered: {text}");
                return Err(io::Error::new(io::ErrorKind::InvalidData, what));
            }
            return Answer::parse(&text);
        }
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
        let nth = self.asked.replace(self.asked.get() + 1);
        let question = format!("{:x<width$}q{nth}", "", width = length - format!("q{nth}").len());
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
