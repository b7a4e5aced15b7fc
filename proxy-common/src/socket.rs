//! The state of the socket hooks: what they keep for one socket, and how they name its client.

use crate::{Addr, Port, pod};

pod! {
    /// Key of SOCK_REVNAT (a socket and its backend) and of SOCK_BACKEND (a socket and the frontend that it
    /// requested).
    pub struct SockKey [32] {
        /// The socket's cookie, unique until the machine restarts.
        pub cookie: u64,
        pub addr: Addr,
        pub port: Port,
        pub proto: u8,
        pub reserved: [u8; 5],
    }

    /// Value of SOCK_REVNAT: the frontend that the socket requested, which getpeername and recvmsg show. Value of
    /// SOCK_BACKEND: the selected backend, which an unconnected UDP socket keeps.
    pub struct SockPeer [28] {
        pub addr: Addr,
        pub port: Port,
        pub reserved: u16,
        /// The backend's id.
        pub backend: u32,
        /// The id of the service port that selected it: a backend may belong to several, and leave one of them.
        pub service: u32,
    }
}

impl SockKey {
    #[inline(always)]
    pub const fn new(cookie: u64, addr: Addr, port: Port, proto: u8) -> Self {
        Self { cookie, addr, port, proto, reserved: [0; 5] }
    }
}

/// The first word of 100::/64 in network order: the discard prefix (RFC 6666), which no client has.
const DISCARD: u32 = 0x0100_0000_u32.to_be();

/// The client address of the sockets of one network namespace, by the namespace's cookie.
#[inline(always)]
pub const fn netns_addr(cookie: u64) -> Addr {
    Addr::from_v6_be([DISCARD, 0, ((cookie >> 32) as u32).to_be(), (cookie as u32).to_be()])
}

/// The namespace's cookie, if a client address is one of these.
pub const fn netns_of(client: &Addr) -> Option<u64> {
    let words = client.words();
    if words[0] != DISCARD || words[1] != 0 {
        return None;
    }
    Some((u32::from_be(words[2]) as u64) << 32 | u32::from_be(words[3]) as u64)
}

#[cfg(test)]
mod tests {
    use core::net::Ipv4Addr;

    use super::*;

    #[test]
    fn namespaces_are_clients_and_addresses_are_not_namespaces() {
        for cookie in [1, 4242, 1 << 40 | 7, u64::MAX] {
            assert_eq!(netns_of(&netns_addr(cookie)), Some(cookie));
        }
        assert_eq!(netns_of(&Ipv4Addr::new(10, 0, 0, 1).into()), None);
        assert_eq!(netns_of(&Addr::UNSPECIFIED_V6), None);
    }
}
