//! What the socket hooks remember of one socket.

use crate::{Addr, Port, pod};

pod! {
    /// Key of SOCK_REVNAT (a socket and the backend it talks to) and of SOCK_BACKEND (a socket and the
    /// frontend it asked for).
    pub struct SockKey [32] {
        /// The socket's cookie: unique while the machine is up.
        pub cookie: u64,
        pub addr: Addr,
        pub port: Port,
        pub proto: u8,
        pub reserved: [u8; 5],
    }

    /// Value of SOCK_REVNAT: the frontend that the socket asked for, which getpeername and recvmsg show.
    /// Value of SOCK_BACKEND: the backend it was given, which unconnected UDP keeps.
    pub struct SockPeer [28] {
        pub addr: Addr,
        pub port: Port,
        pub reserved: u16,
        /// The backend's id.
        pub backend: u32,
        /// The id of the service port that chose it: one backend may serve several, and leave one of them.
        pub service: u32,
    }
}

impl SockKey {
    #[inline(always)]
    pub const fn new(cookie: u64, addr: Addr, port: Port, proto: u8) -> Self {
        Self { cookie, addr, port, proto, reserved: [0; 5] }
    }
}
