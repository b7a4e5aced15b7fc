//! The listeners for health and metrics ([`Page`]), and those of healthCheckNodePorts ([`checks`]).
//!
//! The agent updates [`Health`]; the listeners only read it, and run outside the agent's task.

pub mod checks;
mod http;
mod pages;
mod places;
mod state;

use std::{
    io,
    net::{Ipv6Addr, SocketAddr},
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use nix::sys::socket::{setsockopt, sockopt::Ipv6V6Only};
use tokio::net::{TcpListener, TcpSocket};

pub use self::{
    pages::{MetricsPages, Page},
    state::Health,
};

/// Seconds since 1970.
pub fn unix_now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |passed| passed.as_secs())
}

/// Between two attempts to bind an address that is in use.
const REBIND: Duration = Duration::from_secs(2);

/// Serves `page` at `addr` until the runtime ends. If the address cannot be bound, the agent continues and tries again;
/// `Err` has the reason of the first failure.
pub async fn keep_listening(addr: SocketAddr, what: &'static str, page: Page) -> io::Result<()> {
    let error = match listen(addr, page.clone()).await {
        Ok(bound) => {
            tracing::info!(addr = %bound, "listening for {what}");
            return Ok(());
        }
        Err(error) => error,
    };
    tracing::warn!(%addr, %error, "cannot listen for {what}: trying again");
    tokio::spawn(async move {
        loop {
            tokio::time::sleep(REBIND).await;
            if let Ok(bound) = listen(addr, page.clone()).await {
                tracing::info!(addr = %bound, "listening for {what}");
                return;
            }
        }
    });
    Err(error)
}

/// Binds `addr` and serves `page` until the runtime ends. 0.0.0.0 stands for all addresses of both families, as in
/// kube-proxy.
pub async fn listen(addr: SocketAddr, page: Page) -> io::Result<SocketAddr> {
    let listener = match addr {
        SocketAddr::V4(v4) if v4.ip().is_unspecified() => match both_families(v4.port()) {
            Ok(listener) => listener,
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => return Err(error),
            Err(_) => TcpListener::bind(addr).await?,
        },
        _ => TcpListener::bind(addr).await?,
    };
    let bound = listener.local_addr()?;
    // Lives as long as the runtime.
    drop(http::accept(listener, Arc::new(move |path: &str| page.answer(path)), Arc::default()));
    Ok(bound)
}

/// A listener at `[::]` that accepts IPv4 connections as well.
fn both_families(port: u16) -> io::Result<TcpListener> {
    const BACKLOG: u32 = 1024;
    let socket = TcpSocket::new_v6()?;
    setsockopt(&socket, Ipv6V6Only, &false)?;
    socket.set_reuseaddr(true)?;
    socket.bind((Ipv6Addr::UNSPECIFIED, port).into())?;
    socket.listen(BACKLOG)
}

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        net::TcpStream,
        time::timeout,
    };

    use super::*;

    #[tokio::test]
    async fn a_listener_answers_over_tcp() {
        let health = Arc::new(Health::default());
        health.set_ready();
        let addr = listen("127.0.0.1:0".parse().unwrap(), Page::Health(health)).await.unwrap();
        let mut stream = TcpStream::connect(addr).await.unwrap();
        stream.write_all(b"GET /readyz HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        assert!(
            answer.starts_with("HTTP/1.1 200 OK\r\n") && answer.ends_with("{\"ready\":true}"),
            "{answer}"
        );
    }

    #[tokio::test]
    async fn every_address_means_both_families() {
        let any = "0.0.0.0:0".parse().unwrap();
        let bound = listen(any, Page::Health(Arc::default())).await.unwrap();
        TcpStream::connect((std::net::Ipv4Addr::LOCALHOST, bound.port())).await.unwrap();
        TcpStream::connect((Ipv6Addr::LOCALHOST, bound.port())).await.unwrap();
        let taken = listen(SocketAddr::new(any.ip(), bound.port()), Page::Health(Arc::default())).await;
        assert_eq!(taken.unwrap_err().kind(), io::ErrorKind::AddrInUse);
    }

    #[tokio::test]
    async fn a_busy_address_is_taken_once_it_is_free() {
        let holder = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = holder.local_addr().unwrap();
        assert!(keep_listening(addr, "health", Page::Health(Arc::default())).await.is_err());
        drop(holder);
        let connected = timeout(REBIND * 5, async {
            loop {
                match TcpStream::connect(addr).await {
                    Ok(stream) => return stream,
                    Err(_) => tokio::time::sleep(REBIND / 10).await,
                }
            }
        });
        let mut stream = connected.await.unwrap();
        stream.write_all(b"GET /livez HTTP/1.1\r\n\r\n").await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 200 OK"), "{answer}");
    }
}
