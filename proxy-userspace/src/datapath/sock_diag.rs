//! The sockets of a network namespace: which TCP connections and connected UDP sockets there are. And:
//!
//! Closes connected UDP sockets (SOCK_DESTROY of sock_diag(7)): their owner gets ECONNABORTED and reconnects, instead
//! of waiting for a removed endpoint. The kernel does not evaluate connect()'s translation again, so there is no other
//! way.
//!
//! The caller chooses the sockets (the agent's udp-flush thread). TCP sockets are never touched.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    io,
    os::unix::fs::MetadataExt as _,
};

use nix::sched::{CloneFlags, setns};
use proxy_common::{Addr, Port, Proto};

use super::netlink::{Message, Request, Socket, read_u32};

/// Message types of sock_diag (uapi/linux/sock_diag.h).
const SOCK_DIAG_BY_FAMILY: u16 = 20;
const SOCK_DESTROY: u16 = 21;

/// Connected UDP sockets have this TCP state.
const ESTABLISHED: u32 = 1;

/// `struct inet_diag_sockid`: ports, addresses, device, cookie; identifies a socket in a request.
const ID: usize = 48;
/// Its offset in `struct inet_diag_msg`.
const ID_AT: usize = 4;

/// States of TCP sockets that have a peer and are not over: all but CLOSE, LISTEN, TIME_WAIT and NEW_SYN_RECV.
const WITH_PEER: u32 = 1 << ESTABLISHED | 1 << 2 | 1 << 3 | 1 << 4 | 1 << 5 | 1 << 8 | 1 << 9 | 1 << 11;

/// A socket with a peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Connected {
    family: u8,
    id: [u8; ID],
    pub cookie: u64,
    pub local: Addr,
    pub peer: Addr,
    pub port: Port,
}

impl Connected {
    pub fn local_port(&self) -> Port {
        Port::from_be(u16::from_ne_bytes([self.id[0], self.id[1]]))
    }
}

/// A network namespace's sockets.
#[derive(Debug)]
pub struct SockDiag {
    netlink: Socket,
}

impl SockDiag {
    /// For the calling thread's namespace.
    pub fn open() -> io::Result<Self> {
        Ok(Self { netlink: Socket::open_sock_diag()? })
    }

    /// All connected UDP sockets, including v4-mapped ones of IPv6.
    pub fn connected_udp(&mut self) -> io::Result<Vec<Connected>> {
        self.connected(Proto::UDP, 1 << ESTABLISHED)
    }

    /// All TCP connections that are not over, likewise.
    pub fn connections(&mut self) -> io::Result<Vec<Connected>> {
        self.connected(Proto::TCP, WITH_PEER)
    }

    fn connected(&mut self, proto: u8, states: u32) -> io::Result<Vec<Connected>> {
        let mut found = Vec::new();
        for family in [libc::AF_INET, libc::AF_INET6] {
            let mut here = Vec::new();
            let body = request(family as u8, proto, states, &[0; ID]);
            self.netlink.dump(SOCK_DIAG_BY_FAMILY, &body, |message| here.extend(read(&message)))?;
            found.append(&mut here);
        }
        Ok(found)
    }

    /// Closes the socket; returns false if it is already gone.
    pub fn destroy(&mut self, socket: &Connected) -> io::Result<bool> {
        let request =
            Request::new(SOCK_DESTROY, 0, &request(socket.family, Proto::UDP, 1 << ESTABLISHED, &socket.id));
        match self.netlink.request(request) {
            Ok(()) => Ok(true),
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Whether the kernel supports it (CONFIG_INET_DIAG_DESTROY), tried on a socket that does not exist.
    pub fn can_destroy(&mut self) -> io::Result<()> {
        let mut id = [0; ID];
        // Cookies count up from 1: no socket has this one.
        id[ID - 8..].fill(0xfe);
        let absent = Connected {
            family: libc::AF_INET as u8,
            id,
            cookie: 0,
            local: Addr::UNSPECIFIED_V4,
            peer: Addr::UNSPECIFIED_V4,
            port: Port::ZERO,
        };
        // Without UDP support in sock_diag the dump fails; destroying returns ENOENT in either case.
        self.connected_udp()?;
        self.destroy(&absent).map(drop)
    }
}

/// `struct inet_diag_req_v2`.
fn request(family: u8, proto: u8, states: u32, id: &[u8; ID]) -> Vec<u8> {
    let mut body = vec![family, proto, 0, 0];
    body.extend(states.to_ne_bytes());
    body.extend(id);
    body
}

/// From a `struct inet_diag_msg`.
fn read(message: &Message<'_>) -> Option<Connected> {
    let body = message.body;
    let family = *body.first()?;
    let id: [u8; ID] = body.get(ID_AT..ID_AT + ID)?.try_into().ok()?;
    let word = |at: usize| read_u32(&id, at);
    let addr = |at: usize| match i32::from(family) {
        libc::AF_INET => Some(Addr::from_v4_be(word(at)?)),
        libc::AF_INET6 => Some(Addr::from_v6_be([word(at)?, word(at + 4)?, word(at + 8)?, word(at + 12)?])),
        _ => None,
    };
    Some(Connected {
        family,
        id,
        cookie: u64::from(word(40)?) | u64::from(word(44)?) << 32,
        local: addr(4)?,
        peer: addr(20)?,
        port: Port::from_be(u16::from_ne_bytes([id[2], id[3]])),
    })
}

/// The network namespaces that [`elsewhere`] found, except this process's own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Elsewhere {
    pub entered: usize,
    /// Found, but cannot be entered.
    pub closed: usize,
}

/// Calls `each` with the sockets of every other network namespace that a visible process is in, until it returns
/// `false`. For `--socket-lb all`, which translates pods' sockets too. Needs the host's /proc and CAP_SYS_ADMIN;
/// namespaces that cannot be entered are skipped and counted. In a container without the host's process ids no other
/// namespace is visible.
pub fn elsewhere(mut each: impl FnMut(SockDiag) -> io::Result<bool>) -> io::Result<Elsewhere> {
    let own = File::open("/proc/thread-self/ns/net")?;
    let mut seen = BTreeSet::from([own.metadata()?.ino()]);
    let mut found = Elsewhere::default();
    for entry in fs::read_dir("/proc")?.flatten() {
        if !entry.file_name().as_encoded_bytes().first().is_some_and(u8::is_ascii_digit) {
            continue;
        }
        let netns = match File::open(entry.path().join("ns/net")) {
            Ok(netns) => netns,
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                found.closed += 1;
                continue;
            }
            // The process has ended, or is a zombie.
            Err(_) => continue,
        };
        if !seen.insert(netns.metadata()?.ino()) {
            continue;
        }
        if setns(&netns, CloneFlags::CLONE_NEWNET).is_err() {
            found.closed += 1;
            continue;
        }
        found.entered += 1;
        let inside = SockDiag::open();
        // The thread must return to its own namespace; if it cannot, it must not continue.
        setns(&own, CloneFlags::CLONE_NEWNET)?;
        if !each(inside?)? {
            break;
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;

    use super::*;

    /// The kernel's report about a socket of this process, in both families.
    #[test]
    fn connected_sockets_are_found_by_their_peer() {
        for (from, to) in
            [("127.0.0.1:0", "127.0.0.1:9"), ("[::1]:0", "[::1]:9"), ("[::]:0", "[::ffff:127.0.0.1]:9")]
        {
            let socket = UdpSocket::bind(from).unwrap();
            let unconnected = UdpSocket::bind(from).unwrap();
            socket.connect(to).unwrap();
            let found = SockDiag::open().unwrap().connected_udp().unwrap();
            let peer: std::net::SocketAddr = to.parse().unwrap();
            let local = socket.local_addr().unwrap().port();
            let port_of = |one: &Connected| one.local_port().host();
            let mine: Vec<_> = found.iter().filter(|one| port_of(one) == local).collect();
            assert_eq!(mine.len(), 1, "{to}: {found:?}");
            assert_eq!((mine[0].peer, mine[0].port), (peer.ip().into(), Port::new(9)));
            assert_ne!(mine[0].cookie, 0);
            let other = unconnected.local_addr().unwrap().port();
            assert!(found.iter().all(|one| port_of(one) != other));
        }
    }
}
