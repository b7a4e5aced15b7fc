//! A Kubernetes API server for tests: list and watch over HTTP or HTTPS, as much of it as a Service proxy asks for,
//! and the faults of real ones on demand.
//!
//! It asserts what the agent's ClusterRole grants ([`grants`]): any other request is refused and remembered, and fails
//! the test whose server it is.

mod answer;
mod certificates;
mod connection;
mod events;
mod grants;
mod selector;
mod store;

use std::{
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result};

pub use self::{
    certificates::{Certificates, NAME},
    store::{Fault, Store},
};
use self::grants::Grants;
use crate::net::Netns;

/// What the harness's agents show.
pub const TOKEN: &str = "token-of-the-harness";

/// A running API server.
#[derive(Debug)]
pub struct ApiServer {
    shared: Arc<Shared>,
    /// Where the listener is made; in this process's own namespace without.
    netns: Option<Arc<Netns>>,
    addr: SocketAddr,
    listener: Mutex<Option<thread::JoinHandle<()>>>,
}

/// What the listener, the connections and the test share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) store: Store,
    pub(crate) tls: Option<Certificates>,
    grants: Grants,
    is_up: AtomicBool,
    connections: Mutex<Vec<TcpStream>>,
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

    /// Requests that RBAC would not allow.
    pub fn violations(&self) -> Vec<String> {
        self.store().violations()
    }

    /// Writes a kubeconfig that names this server, `user` being a map's fields.
    pub fn kubeconfig_as(&self, path: &Path, user: &str) -> Result<PathBuf> {
        let ca = match &self.shared.tls {
            Some(tls) => {
                let file = path.with_extension("ca.pem");
                std::fs::write(&file, tls.authority())?;
                format!(", certificate-authority: {}", file.display())
            }
            None => String::new(),
        };
        let text = format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: test\n\
             contexts: [{{name: test, context: {{cluster: test, user: test}}}}]\n\
             clusters: [{{name: test, cluster: {{server: \"{}\"{ca}}}}}]\n\
             users: [{{name: test, user: {{{user}}}}}]\n",
            self.url()
        );
        std::fs::write(path, text).with_context(|| format!("writing {}", path.display()))?;
        Ok(path.to_owned())
    }

    /// The same with the harness's token.
    pub fn kubeconfig(&self, path: &Path) -> Result<PathBuf> {
        self.kubeconfig_as(path, &format!("token: {TOKEN}"))
    }

    /// A user's client certificate, as the fields of a kubeconfig's user.
    pub fn client_certificate(&self, path: &Path) -> Result<String> {
        let tls = self.shared.tls.as_ref().context("the server speaks no TLS")?;
        let (certificate, key) = (path.with_extension("client.pem"), path.with_extension("client.key"));
        let (certificate_pem, key_pem) = tls.client()?;
        std::fs::write(&certificate, certificate_pem)?;
        std::fs::write(&key, key_pem)?;
        Ok(format!("client-certificate: {}, client-key: {}", certificate.display(), key.display()))
    }

    /// Goes away: no listener, all connections closed. What it stores stays.
    pub fn stop(&self) {
        self.shared.is_up.store(false, Ordering::SeqCst);
        if let Some(listener) = self.listener.lock().expect("no holder panics").take() {
            listener.join().expect("the listener does not panic");
        }
        self.reset_connections();
    }

    /// Comes back at the same address.
    pub fn start(&self) -> Result<()> {
        self.listen().map(drop)
    }

    /// Closes every connection.
    pub fn reset_connections(&self) {
        for connection in self.shared.connections.lock().expect("no holder panics").drain(..) {
            // Closed already by the other side, most of them.
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
        // A connection that breaks is the client's affair.
        let _ = connection::serve(&shared, stream);
        // The copy that is kept would hold it open.
        let _ = end.shutdown(Shutdown::Both);
    });
}

impl Shared {
    pub(crate) fn is_up(&self) -> bool {
        self.is_up.load(Ordering::SeqCst)
    }
}

impl Drop for ApiServer {
    fn drop(&mut self) {
        self.stop();
        self.store().wake();
        let violations = self.violations();
        // A test that failed already says why itself.
        assert!(
            violations.is_empty() || thread::panicking(),
            "requests that the agent's ClusterRole does not grant: {violations:?}"
        );
    }
}
