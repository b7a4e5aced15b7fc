//! More clients than a process can have descriptors: sixteen addresses with all their UDP ports, on a device of their
//! own in the outside namespace, played by the owner of this value. Each request names its client, and so does its
//! reply.

use std::{
    fs::File,
    io::{ErrorKind, Read as _, Write as _},
    net::{IpAddr, SocketAddr},
    ops::Range,
    os::fd::AsFd as _,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::{Cluster, plan::OUTSIDE, tun};
use crate::packet::{Ip, Link, Packet, Transport, frame::ends};

/// Address range of the clients; each node has a route to it.
const RANGE_V4: &str = "198.18.0.0/24";
const RANGE_V6: &str = "fd00:9::/64";

/// Ports per address, starting at 5000.
const PORTS: usize = 4100;
const FIRST_PORT: u16 = 5000;

/// The clients.
#[derive(Debug)]
pub struct Crowd {
    device: File,
}

/// Result of a client's request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    Answered,
    /// Port unreachable, after this time.
    Refused(Duration),
    /// A text other than the reply to its own request.
    Wrong(String),
    Silence,
}

impl Crowd {
    /// Attaches the clients to the outside client.
    pub fn new(cluster: &Cluster) -> Result<Self> {
        let outside = cluster.outside().netns();
        outside.sysctl("net/ipv4/ip_forward", "1")?;
        outside.sysctl("net/ipv6/conf/all/forwarding", "1")?;
        let device = outside.enter(|| tun::make("crowd", false))?;
        outside.ip(&format!(
            "link set crowd txqueuelen 10000 up\nroute add {RANGE_V4} dev crowd\nroute add {RANGE_V6} dev crowd\n"
        ))?;
        for node in cluster.nodes() {
            node.netns().ip(&format!(
                "route add {RANGE_V4} via {}\nroute add {RANGE_V6} via {}\n",
                OUTSIDE.v4, OUTSIDE.v6
            ))?;
        }
        Ok(Self { device })
    }

    /// These clients send a request to `to` at the same time; the result of each within `patience`.
    pub fn ask(&mut self, clients: Range<usize>, to: SocketAddr, patience: Duration) -> Result<Vec<Reply>> {
        let start = Instant::now();
        for nth in clients.clone() {
            let mut packet = Packet::new(
                Link::Ip,
                if to.is_ipv4() { Ip::V4 } else { Ip::V6 },
                client(nth, to.is_ipv4()),
                to,
                Transport::Udp,
            );
            packet.payload = question(nth).into_bytes();
            self.device.write_all(&packet.bytes()).context("sending")?;
        }
        let mut replies = vec![Reply::Silence; clients.len()];
        let mut missing = clients.len();
        let mut buffer = [0; 4096];
        while missing > 0 {
            let length = match self.device.read(&mut buffer) {
                Ok(length) => length,
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    let left = patience.saturating_sub(start.elapsed());
                    if left.is_zero() {
                        break;
                    }
                    let mut fds = [PollFd::new(self.device.as_fd(), PollFlags::POLLIN)];
                    poll(&mut fds, PollTimeout::try_from(left.min(Duration::from_millis(50)))?)?;
                    continue;
                }
                Err(error) => return Err(error).context("receiving"),
            };
            let Some((nth, reply)) = parse(&buffer[..length], start) else { continue };
            // Replies after the deadline are not read.
            let Some(slot) = nth.checked_sub(clients.start).and_then(|slot| replies.get_mut(slot)) else {
                continue;
            };
            missing -= usize::from(*slot == Reply::Silence);
            *slot = reply;
        }
        Ok(replies)
    }
}

fn question(nth: usize) -> String {
    format!("crowd-{nth}")
}

/// The address of a client.
pub fn client(nth: usize, is_v4: bool) -> SocketAddr {
    let host = 1 + (nth / PORTS) as u8;
    let addr: IpAddr =
        if is_v4 { [198, 18, 0, host].into() } else { [0xfd00, 9, 0, 0, 0, 0, 0, host.into()].into() };
    (addr, FIRST_PORT + (nth % PORTS) as u16).into()
}

/// The client with this address.
fn number(client: SocketAddr) -> Option<usize> {
    let host = match client.ip() {
        IpAddr::V4(v4) => v4.octets()[3],
        IpAddr::V6(v6) => v6.octets()[15],
    };
    Some(usize::from(host.checked_sub(1)?) * PORTS + usize::from(client.port().checked_sub(FIRST_PORT)?))
}

/// The client a packet belongs to and its text; `None` for packets of no client (neighbour discovery).
fn parse(packet: &[u8], start: Instant) -> Option<(usize, Reply)> {
    let (header, protocol) = match packet.first()? >> 4 {
        4 => (20, *packet.get(9)?),
        _ => (40, *packet.get(6)?),
    };
    let body = packet.get(header..)?;
    match protocol {
        17 => {
            let (_, to) = ends(packet, Link::Ip);
            let nth = number(to)?;
            let text = String::from_utf8_lossy(body.get(8..)?);
            let is_own = text.ends_with(&format!(" {}", question(nth)));
            Some((nth, if is_own { Reply::Answered } else { Reply::Wrong(text.into_owned()) }))
        }
        // Port unreachable: the quoted packet starts with its client.
        1 if body.starts_with(&[3, 3]) => {
            let (from, _) = ends(body.get(8..)?, Link::Ip);
            Some((number(from)?, Reply::Refused(start.elapsed())))
        }
        58 if body.starts_with(&[1, 4]) => {
            let (from, _) = ends(body.get(8..)?, Link::Ip);
            Some((number(from)?, Reply::Refused(start.elapsed())))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_client_is_one_address_and_port() {
        for is_v4 in [true, false] {
            for nth in [0, 1, PORTS - 1, PORTS, 65_000] {
                assert_eq!(number(client(nth, is_v4)), Some(nth));
            }
        }
        assert_eq!(number("198.18.0.2:4999".parse().unwrap()), None);
    }

    #[test]
    fn answers_are_known_by_what_they_say() {
        let start = Instant::now();
        let mut packet =
            Packet::new(Link::Ip, Ip::V4, "192.0.2.1:80".parse().unwrap(), client(7, true), Transport::Udp);
        packet.payload = b"far saw 192.0.2.9:1 crowd-7".to_vec();
        assert_eq!(parse(&packet.bytes(), start), Some((7, Reply::Answered)));
        packet.payload = b"far saw 192.0.2.9:1 crowd-17".to_vec();
        assert!(matches!(parse(&packet.bytes(), start), Some((7, Reply::Wrong(_)))));
    }
}
