//! The harness's server: a listener that can be stopped and restarted, and a thread per connection.

use std::{
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::{Arc, Mutex, atomic::Ordering},
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result};

use super::{certificates::Certificates, connection, grants::Grants, shared::Shared, store::Store};
use crate::net::Netns;

/// A running API server.
#[derive(Debug)]
pub struct ApiServer {
    pub(super) shared: Arc<Shared>,
    /// The listener's namespace; without it, this process's own.
    netns: Option<Arc<Netns>>,
    addr: SocketAddr,
    listener: Mutex<Option<thread::JoinHandle<()>>>,
}

impl ApiServer {
    /// Starts one on this machine's loopback address, without TLS.
    pub fn local() -> Result<Self> {
        Self::start_at(None, "127.0.0.1:0".parse()?, None)
    }

    /// Starts one with TLS on this machine's loopback address.
    pub fn local_tls() -> Result<Self> {
        Self::start_at(None, "127.0.0.1:0".parse()?, Some(Certificates::new()?))
    }

    /// Starts one in a namespace.
    pub fn start_at(netns: Option<Arc<Netns>>, addr: SocketAddr, tls: Option<Certificates>) -> Result<Self> {
        let (connections, is_up) = Default::default();
        let grants = Grants::of_manifest()?;
        let shared = Arc::new(Shared { store: Store::default(), tls, grants, is_up, connections });
        let mut server = Self { shared, netns, addr, listener: Mutex::new(None) };
        server.addr = server.listen()?;
        Ok(server)
    }

    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    pub fn url(&self) -> String {
        let scheme = if self.shared.tls.is_some() { "https" } else { "http" };
        format!("{scheme}://{}", self.addr)
    }

    /// Objects and faults.
    pub fn store(&self) -> &Store {
        &self.shared.store
    }

    /// Requests that RBAC would reject.
    pub fn violations(&self) -> Vec<String> {
        self.store().violations()
    }

    /// Stops the server: no listener, all connections closed. It keeps its objects.
    pub fn stop(&self) {
        self.shared.is_up.store(false, Ordering::SeqCst);
        if let Some(listener) = self.listener.lock().expect("no holder panics").take() {
            listener.join().expect("the listener does not panic");
        }
        self.reset_connections();
    }

    /// Starts it again at the same address.
    pub fn start(&self) -> Result<()> {
        self.listen().map(drop)
    }

    /// Closes every connection.
    pub fn reset_connections(&self) {
        for connection in self.shared.connections.lock().expect("no holder panics").drain(..) {
            // Most of them have been closed by the peer already.
            let _ = connection.shutdown(Shutdown::Both);
        }
    }

    fn listen(&self) -> Result<SocketAddr> {
        let bind = || TcpListener::bind(self.addr);
        let socket = match &self.netns {
            Some(netns) => netns.enter(bind),
            None => bind(),
        }
        .with_context(|| format!("listening at {}", self.addr))?;
        socket.set_nonblocking(true)?;
        let addr = socket.local_addr()?;
        self.shared.is_up.store(true, Ordering::SeqCst);
        let shared = self.shared.clone();
        let listener = thread::spawn(move || {
            while shared.is_up() {
                match socket.accept() {
                    Ok((stream, _)) => accept(&shared, stream),
                    Err(_) => thread::sleep(Duration::from_millis(2)),
                }
            }
        });
        *self.listener.lock().expect("no holder panics") = Some(listener);
        Ok(addr)
    }
}

fn accept(shared: &Arc<Shared>, stream: TcpStream) {
    let prepared = stream.set_nonblocking(false).and_then(|()| stream.set_nodelay(true));
    let copies = prepared.and_then(|()| Ok((stream.try_clone()?, stream.try_clone()?)));
    let Ok((copy, end)) = copies else { return };
    shared.connections.lock().expect("no holder panics").push(copy);
    let shared = shared.clone();
    thread::spawn(move || {
        // A broken connection is for the client to handle.
        let _ = connection::serve(&shared, stream);
        // The stored copy would keep it open.
        let _ = end.shutdown(Shutdown::Both);
    });
}

impl Drop for ApiServer {
    fn drop(&mut self) {
        self.stop();
        self.store().wake();
        let violations = self.violations();
        // A test that already failed has reported the reason itself.
        assert!(
            violations.is_empty() || thread::panicking(),
            "requests that the agent's ClusterRole does not grant: {violations:?}"
        );
    }
}
