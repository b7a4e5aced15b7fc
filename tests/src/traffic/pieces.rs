//! Datagrams in IP fragments sent in a chosen order: raw sockets send them, real UDP sockets receive the whole
//! datagram.

use std::{
    io,
    net::{IpAddr, SocketAddr, UdpSocket},
    os::fd::{AsRawFd, OwnedFd},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    thread,
    time::Duration,
};

use nix::sys::socket::{MsgFlags, SockaddrStorage, bind, sendto, setsockopt, sockopt};

use crate::{
    net::Place,
    packet::{Ip, Link, Packet, Transport, fragment::fragments},
};

/// Payload of a fragment: three carry 2000 bytes, which exceeds any MTU here.
const SIZE: usize = 800;

/// How often a server checks whether it should stop.
const TICK: Duration = Duration::from_millis(100);

/// Identifications; none is used twice.
static IDS: AtomicU32 = AtomicU32::new(1);

/// A datagram of 2000 bytes that begins with `text`.
pub fn big(text: &str) -> Vec<u8> {
    let filling = (0..=255u8).cycle();
    text.bytes().chain([b' ']).chain(filling).take(2000).collect()
}

/// Sends a datagram in fragments, the last one first.
pub fn send_backwards(place: &Place, from: SocketAddr, to: SocketAddr, payload: &[u8]) -> io::Result<()> {
    let (family, ip) = match to {
        SocketAddr::V4(_) => (libc::AF_INET, Ip::V4),
        SocketAddr::V6(_) => (libc::AF_INET6, Ip::V6),
    };
    let mut packet = Packet::new(Link::Ip, ip, from, to, Transport::Udp);
    packet.payload = payload.to_vec();
    let id = IDS.fetch_add(1, Ordering::Relaxed);
    let raw = place.socket(family, libc::SOCK_RAW, libc::IPPROTO_RAW)?;
    // A raw socket's port is its protocol number.
    let to = SockaddrStorage::from(SocketAddr::new(to.ip(), 0));
    for piece in fragments(&packet.bytes(), Link::Ip, id, SIZE).iter().rev() {
        sendto(raw.as_raw_fd(), piece, &to, MsgFlags::empty())?;
    }
    Ok(())
}

/// Sends `to` a request of 2000 bytes, its last fragment first, from a connected UDP socket's own address; returns the
/// data that socket receives.
pub fn ask_backwards(place: &Place, from: SocketAddr, to: SocketAddr) -> io::Result<Vec<u8>> {
    let socket = UdpSocket::from(open(place, from)?);
    place.netns().enter(|| socket.connect(to))?;
    socket.set_read_timeout(Some(Duration::from_millis(1500)))?;
    send_backwards(place, from, to, &big("question"))?;
    receive(&socket)
}

/// The same in the kernel's order.
pub fn ask(place: &Place, from: SocketAddr, to: SocketAddr) -> io::Result<Vec<u8>> {
    let socket = UdpSocket::from(open(place, from)?);
    socket.connect(to)?;
    socket.set_read_timeout(Some(Duration::from_millis(1500)))?;
    socket.send(&big("question"))?;
    receive(&socket)
}

fn receive(socket: &UdpSocket) -> io::Result<Vec<u8>> {
    let mut buffer = vec![0; 4096];
    let length = socket.recv(&mut buffer)?;
    buffer.truncate(length);
    Ok(buffer)
}

fn open(place: &Place, addr: SocketAddr) -> io::Result<OwnedFd> {
    let family = if addr.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
    let fd = place.socket(family, libc::SOCK_DGRAM, 0)?;
    setsockopt(&fd, sockopt::ReuseAddr, &true)?;
    bind(fd.as_raw_fd(), &SockaddrStorage::from(addr))?;
    Ok(fd)
}

/// A server that answers each complete request of 2000 bytes with its name and 2000 bytes, the last fragment first.
#[derive(Debug)]
pub struct Backwards {
    stop: Arc<AtomicBool>,
    threads: Vec<thread::JoinHandle<()>>,
}

impl Backwards {
    pub fn serve(place: &Place, addrs: [IpAddr; 2], port: u16, name: &str) -> io::Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let mut threads = Vec::new();
        for addr in addrs {
            let own = SocketAddr::new(addr, port);
            let socket = UdpSocket::from(open(place, own)?);
            socket.set_read_timeout(Some(TICK))?;
            let (stop, place, name) = (stop.clone(), place.clone(), name.to_owned());
            threads.push(thread::spawn(move || {
                let mut buffer = [0; 4096];
                while !stop.load(Ordering::Relaxed) {
                    let Ok((length, peer)) = socket.recv_from(&mut buffer) else { continue };
                    let right = buffer[..length] == big("question");
                    let answer = big(if right { &name } else { "not the question" });
                    // Ignored: the client may be gone.
                    let _ = send_backwards(&place, own, peer, &answer);
                }
            }));
        }
        Ok(Self { stop, threads })
    }
}

impl Drop for Backwards {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}
