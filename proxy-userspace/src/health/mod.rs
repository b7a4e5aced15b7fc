//! The node's health over HTTP (`/healthz`, `/livez`, `/readyz`), the datapath's counters as metrics, and the
//! healthCheckNodePorts of Services ([`checks`]).
//!
//! The agent tells [`Health`] what it did; the listeners only read it, and run beside the task that owns the maps.

pub mod checks;
mod http;
mod state;

use std::{
    fmt::Write as _,
    io,
    net::SocketAddr,
    path::PathBuf,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use jiff::Timestamp;
use proxy_common::{Counter, map};
use tokio::net::TcpListener;

use self::http::Response;
pub use self::state::Health;
use crate::bpf::map::RawMap;

/// Seconds since 1970.
pub fn unix_now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |passed| passed.as_secs())
}

/// What a listener serves.
#[derive(Clone, Debug)]
pub enum Page {
    Health(Arc<Health>),
    /// `/metrics` from the pinned COUNTERS at this path.
    Metrics(PathBuf),
}

impl Page {
    fn answer(&self, path: &str) -> Response {
        const JSON: &str = "application/json";
        const TEXT: &str = "text/plain; version=0.0.4";
        let (status, content_type, body) = match self {
            Self::Health(health) => {
                let (status, body) = match path {
                    "/healthz" => health.answer(true, Timestamp::now()),
                    "/livez" => health.answer(false, Timestamp::now()),
                    "/readyz" => health.readiness(),
                    _ => (404, "{\"error\":\"not found\"}".to_owned()),
                };
                (status, JSON, body)
            }
            Self::Metrics(counters) if path == "/metrics" => match read_counters(counters) {
                Ok(values) => (200, TEXT, metrics(&values)),
                Err(error) => (500, TEXT, format!("# {}: {error}\n", map::COUNTERS)),
            },
            Self::Metrics(_) => (404, TEXT, "not found\n".to_owned()),
        };
        Response { status, content_type, header: None, body }
    }
}

/// Between two tries at an address that somebody else has.
const REBIND: Duration = Duration::from_secs(2);

/// Answers at `addr` until the runtime ends. An address that cannot be had is no reason to leave the node
/// without Services: it is said once and tried again.
pub async fn keep_listening(addr: SocketAddr, what: &'static str, page: Page) {
    match listen(addr, page.clone()).await {
        Ok(bound) => tracing::info!(addr = %bound, "listening for {what}"),
        Err(error) => {
            tracing::warn!(%addr, %error, "cannot listen for {what}: going on without, trying again");
            tokio::spawn(async move {
                loop {
                    tokio::time::sleep(REBIND).await;
                    if let Ok(bound) = listen(addr, page.clone()).await {
                        tracing::info!(addr = %bound, "listening for {what}");
                        return;
                    }
                }
            });
        }
    }
}

/// Binds `addr` and answers there until the runtime ends.
pub async fn listen(addr: SocketAddr, page: Page) -> io::Result<SocketAddr> {
    let listener = TcpListener::bind(addr).await?;
    let bound = listener.local_addr()?;
    // Lives as long as the runtime.
    drop(http::accept(listener, Arc::new(move |path: &str| page.answer(path))));
    Ok(bound)
}

/// Each counter's sum over all CPUs.
fn read_counters(path: &std::path::Path) -> io::Result<Vec<(&'static str, u64)>> {
    let map = RawMap::open(path)?;
    Counter::ALL
        .iter()
        .map(|counter| {
            let per_cpu = map.lookup(&(*counter as u32).to_ne_bytes())?.unwrap_or_default();
            let values = per_cpu.chunks_exact(8).filter_map(|v| v.try_into().ok()).map(u64::from_ne_bytes);
            Ok((counter.name(), values.fold(0, u64::wrapping_add)))
        })
        .collect()
}

/// Counters in the text exposition format.
fn metrics(values: &[(&str, u64)]) -> String {
    let mut text = "# HELP shunt_datapath_events_total What the datapath did, and why it dropped.\n\
                    # TYPE shunt_datapath_events_total counter\n"
        .to_owned();
    for (name, value) in values {
        let _infallible = writeln!(text, "shunt_datapath_events_total{{event=\"{name}\"}} {value}");
    }
    text
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
    async fn a_busy_address_is_taken_once_it_is_free() {
        let holder = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = holder.local_addr().unwrap();
        keep_listening(addr, "health", Page::Health(Arc::default())).await;
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

    #[test]
    fn metrics_are_exposed_by_name() {
        let text = metrics(&[("flow_new", 3)]);
        assert!(text.ends_with("shunt_datapath_events_total{event=\"flow_new\"} 3\n"), "{text}");
    }
}
