//! A tunnel in user space, like WireGuard's user-space implementations: each node has a `tun0` without a link-layer
//! header, and this process carries packets between them.

use std::{
    fs::{File, OpenOptions},
    io::{Read, Write},
    net::UdpSocket,
    os::{fd::AsRawFd, unix::fs::OpenOptionsExt},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
};

use anyhow::{Context, Result, bail};

use super::Netns;

/// Longest sleep of an idle carrier thread, in milliseconds.
const IDLE: i32 = 50;

/// Carries packets between the nodes until dropped.
#[derive(Debug)]
pub(super) struct Tunnel {
    stop: Arc<AtomicBool>,
    carriers: Vec<thread::JoinHandle<()>>,
}

impl Tunnel {
    /// Creates `tun0` in each namespace; a node's index in `nodes` is that of its pod range.
    pub fn new(nodes: &[Arc<Netns>]) -> Result<Self> {
        let ends =
            nodes.iter().map(|netns| netns.enter(|| make("tun0", false))).collect::<Result<Vec<_>>>()?;
        let stop = Arc::new(AtomicBool::new(false));
        let mut carriers = Vec::new();
        for (from, end) in ends.iter().enumerate() {
            let mut end = end.try_clone()?;
            let others = ends.iter().map(File::try_clone).collect::<std::io::Result<Vec<_>>>()?;
            let stop = stop.clone();
            carriers.push(thread::spawn(move || {
                let mut packet = [0; 4096];
                while !stop.load(Ordering::Relaxed) {
                    let Ok(length) = end.read(&mut packet) else {
                        wait_readable(&end);
                        continue;
                    };
                    if let Some(to) = destination(&packet[..length]).filter(|to| *to != from)
                        && let Some(mut other) = others.get(to)
                    {
                        // A full queue drops the packet, as a wire does.
                        let _ = other.write(&packet[..length]);
                    }
                }
            }));
        }
        Ok(Self { stop, carriers })
    }
}

impl Drop for Tunnel {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for carrier in self.carriers.drain(..) {
            let _ = carrier.join();
        }
    }
}

/// The node of a packet's destination pod: third octet, or fourth group, of the address (see [`super::plan`]).
fn destination(packet: &[u8]) -> Option<usize> {
    match packet.first()? >> 4 {
        4 => packet.get(18).map(|octet| usize::from(*octet)),
        6 => packet.get(24 + 7).map(|octet| usize::from(*octet)),
        _ => None,
    }
}

/// Creates a device in the calling thread's namespace: Ethernet (TAP), or without a link-layer header (TUN). It exists
/// as long as the file is open.
pub fn make(name: &str, ethernet: bool) -> Result<File> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NONBLOCK)
        .open("/dev/net/tun")
        .context("opening /dev/net/tun: the kernel needs TUN for this test")?;
    let mut request = request(name);
    let kind = if ethernet { libc::IFF_TAP } else { libc::IFF_TUN };
    request.ifr_ifru.ifru_flags = (kind | libc::IFF_NO_PI) as i16;
    // SAFETY: TUNSETIFF reads and writes one ifreq, which outlives the call.
    if unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, &raw mut request) } != 0 {
        bail!("making {name}: {}", std::io::Error::last_os_error());
    }
    Ok(file)
}

/// Brings a device of the calling thread's namespace up with one system call, for measurements.
pub fn set_up(name: &str) -> Result<()> {
    let socket = UdpSocket::bind("0.0.0.0:0")?;
    let mut request = request(name);
    request.ifr_ifru.ifru_flags = libc::IFF_UP as i16;
    // SAFETY: SIOCSIFFLAGS reads one ifreq, which outlives the call.
    if unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &raw const request) } != 0 {
        bail!("setting {name} up: {}", std::io::Error::last_os_error());
    }
    Ok(())
}

/// An otherwise empty request for the device `name`, truncated where the kernel does.
pub(super) fn request(name: &str) -> libc::ifreq {
    // SAFETY: an all-zero ifreq is valid.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().take(libc::IFNAMSIZ - 1).zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    request
}

fn wait_readable(file: &File) {
    let mut poll = libc::pollfd { fd: file.as_raw_fd(), events: libc::POLLIN, revents: 0 };
    // SAFETY: one pollfd, which outlives the call.
    unsafe { libc::poll(&raw mut poll, 1, IDLE) };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packets_go_to_the_node_of_their_pod_range() {
        let mut v4 = [0u8; 20];
        v4[0] = 0x45;
        v4[16..].copy_from_slice(&super::super::plan::pod_addr(1, 9).v4.octets());
        assert_eq!(destination(&v4), Some(1));
        let mut v6 = [0u8; 40];
        v6[0] = 0x60;
        v6[24..].copy_from_slice(&super::super::plan::pod_addr(2, 9).v6.octets());
        assert_eq!(destination(&v6), Some(2));
        assert_eq!(destination(&[]), None);
    }
}
