//! A small server: answers HTTP requests (TCP) or datagrams (UDP) with its name and the client's address. Uploads are
//! answered with a digest; `GET /N` is answered with N bytes of [`bulk`]'s pattern.

use std::{
    io::{self, BufRead, BufReader, Write},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::fd::{AsRawFd, OwnedFd},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use anyhow::{Context, Result};
use nix::sys::socket::{Backlog, SockaddrStorage, bind, listen, setsockopt, sockopt};

use super::{Answer, bulk};
use crate::net::Place;

/// How often a UDP server checks whether it should stop.
const TICK: Duration = Duration::from_millis(100);

/// A running server. Dropping it closes its port; open connections stay until the client closes them.
#[derive(Debug)]
pub struct Server {
    listener: Option<TcpListener>,
    datagrams: Option<(Arc<AtomicBool>, thread::JoinHandle<()>)>,
    strays: Arc<Mutex<Vec<String>>>,
}

impl Server {
    /// Serves HTTP/1.1 on `addr` (`[::]` for both families).
    pub fn tcp(place: &Place, addr: SocketAddr, name: &str) -> Result<Self> {
        let fd = open(place, addr, libc::SOCK_STREAM)?;
        listen(&fd, Backlog::new(1024)?)?;
        let listener = TcpListener::from(fd);
        let (accepting, name) = (listener.try_clone()?, name.to_owned());
        thread::spawn(move || {
            // Ends when the listener is shut down.
            while let Ok((stream, peer)) = accepting.accept() {
                let name = name.clone();
                thread::spawn(move || converse(stream, peer, &name));
            }
        });
        Ok(Self { listener: Some(listener), datagrams: None, strays: Arc::default() })
    }

    /// Answers each datagram on `addr` (`[::]` for both families).
    pub fn udp(place: &Place, addr: SocketAddr, name: &str) -> Result<Self> {
        Self::answer(UdpSocket::from(open(place, addr, libc::SOCK_DGRAM)?), name)
    }

    /// The same for IPv6, accepting only datagrams without a checksum, as a tunnel endpoint is configured (RFC 6935);
    /// its replies have no checksum either.
    pub fn udp_without_checksum(place: &Place, addr: SocketAddr, name: &str) -> Result<Self> {
        let fd = open(place, addr, libc::SOCK_DGRAM)?;
        super::tweak::apply(super::tweak::Tweak::NoChecksum, &fd, false)?;
        Self::answer(UdpSocket::from(fd), name)
    }

    fn answer(socket: UdpSocket, name: &str) -> Result<Self> {
        socket.set_read_timeout(Some(TICK))?;
        let (stop, name) = (Arc::new(AtomicBool::new(false)), name.to_owned());
        let (stopped, strays) = (stop.clone(), Arc::<Mutex<Vec<String>>>::default());
        let found = strays.clone();
        let thread = thread::spawn(move || {
            let mut buffer = [0; 2048];
            while !stopped.load(Ordering::Relaxed) {
                let Ok((length, peer)) = socket.recv_from(&mut buffer) else { continue };
                let said = String::from_utf8_lossy(&buffer[..length]).into_owned();
                if Answer::parse(&said).is_ok() {
                    // Replying to it would let two servers exchange packets forever.
                    found.lock().expect("no holder panics").push(format!("{name} got from {peer}: {said}"));
                    continue;
                }
                let answer = Answer { backend: name.clone(), peer: canonical(peer) };
                // Ignored: the client may be gone.
                let _ = socket.send_to(format!("{answer} {said}").as_bytes(), peer);
            }
        });
        Ok(Self { listener: None, datagrams: Some((stop, thread)), strays })
    }

    /// Datagrams received here that are replies to other flows: a server sends no requests.
    pub fn strays(&self) -> Vec<String> {
        self.strays.lock().expect("no holder panics").clone()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(listener) = &self.listener {
            let _ = nix::sys::socket::shutdown(listener.as_raw_fd(), nix::sys::socket::Shutdown::Both);
        }
        if let Some((stop, thread)) = self.datagrams.take() {
            stop.store(true, Ordering::Relaxed);
            let _ = thread.join();
        }
    }
}

fn open(place: &Place, addr: SocketAddr, kind: i32) -> Result<OwnedFd> {
    let family = if addr.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
    let fd = place.socket(family, kind, 0)?;
    setsockopt(&fd, sockopt::ReuseAddr, &true)?;
    bind(fd.as_raw_fd(), &SockaddrStorage::from(addr))
        .with_context(|| format!("{}: binding {addr}", place.name()))?;
    Ok(fd)
}

/// One connection: answers requests until the client closes it.
fn converse(stream: TcpStream, peer: SocketAddr, name: &str) {
    let answer = Answer { backend: name.to_owned(), peer: canonical(peer) };
    let mut reader = BufReader::new(&stream);
    while let Ok(Some(request)) = read_request(&mut reader) {
        let body = match request.digest {
            _ if request.wanted > 0 => String::new(),
            None => format!("{answer}\n"),
            Some(digest) => format!("{answer} sum {}\n", digest.value()),
        };
        let head = format!(
            "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: {}\r\n{}\r\n",
            body.len() + request.wanted,
            if request.close { "Connection: close\r\n" } else { "" }
        );
        let mut written = (&stream).write_all((head + &body).as_bytes());
        if request.wanted > 0 {
            written = written.and_then(|()| bulk::write(&mut &stream, request.wanted).map(drop));
        }
        if written.is_err() || request.close {
            break;
        }
    }
    let _ = stream.shutdown(Shutdown::Both);
}

struct Request {
    /// Digest of the body, if there was one.
    digest: Option<bulk::Digest>,
    /// Number of bytes to send back.
    wanted: usize,
    close: bool,
}

/// Reads one request; `None` if the client has closed the connection.
fn read_request(reader: &mut impl BufRead) -> io::Result<Option<Request>> {
    let mut line = String::new();
    if reader.read_line(&mut line)? == 0 {
        return Ok(None);
    }
    let wanted = line.split(' ').nth(1).and_then(|path| path.trim_start_matches('/').parse().ok());
    let mut request = Request {
        digest: None,
        wanted: wanted.unwrap_or_default(),
        close: line.trim_end().ends_with("HTTP/1.0"),
    };
    let mut body = 0;
    loop {
        line.clear();
        if reader.read_line(&mut line)? == 0 {
            return Ok(None);
        }
        let field = line.trim_end().to_ascii_lowercase();
        if field.is_empty() {
            break;
        }
        match field.split_once(':') {
            Some(("content-length", value)) => body = value.trim().parse().unwrap_or_default(),
            Some(("connection", value)) => request.close |= value.trim() == "close",
            _ => {}
        }
    }
    if body > 0 {
        request.digest = Some(bulk::read(reader, body)?);
    }
    Ok(Some(request))
}

/// A v4-mapped peer of a socket for both families as IPv4.
fn canonical(peer: SocketAddr) -> SocketAddr {
    SocketAddr::new(peer.ip().to_canonical(), peer.port())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_read_one_after_the_other() {
        let mut input = &b"POST / HTTP/1.1\r\nContent-Length: 3\r\n\r\nabcGET /800 HTTP/1.0\r\n\r\n"[..];
        let first = read_request(&mut input).unwrap().unwrap();
        assert!(first.digest.is_some() && first.wanted == 0 && !first.close);
        let second = read_request(&mut input).unwrap().unwrap();
        assert!(second.digest.is_none() && second.wanted == 800 && second.close);
        assert!(read_request(&mut input).unwrap().is_none());
    }
}
