//! State shared by the listener, the connections and the test.

use std::{
    net::TcpStream,
    sync::{
        Mutex,
        atomic::{AtomicBool, Ordering},
    },
};

use super::{certificates::Certificates, grants::Grants, store::Store};

/// The state of one server.
#[derive(Debug)]
pub struct Shared {
    pub store: Store,
    pub tls: Option<Certificates>,
    pub grants: Grants,
    pub is_up: AtomicBool,
    pub connections: Mutex<Vec<TcpStream>>,
}

impl Shared {
    pub fn is_up(&self) -> bool {
        self.is_up.load(Ordering::SeqCst)
    }
}
