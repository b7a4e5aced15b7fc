//! The node's health over HTTP (`/healthz`, `/livez`, `/readyz`), the datapath's counters as metrics, and the
//! healthCheckNodePorts of Services ([`checks`]).
//!
//! The agent tells [`Health`] what it did; the listeners only read it, and run beside the task that owns the maps.

pub mod checks;
mod http;

use std::{
    fmt::Write as _,
    io,
    net::SocketAddr,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use proxy_common::{Counter, map};
use tokio::net::TcpListener;

use self::http::Response;
use crate::bpf::map::RawMap;

/// An update that waits longer than this to be written makes the node unhealthy (twice kube-proxy's sync
/// period).
const STALE: Duration = Duration::from_secs(60);

/// What the agent says of itself. Times are Unix seconds.
#[derive(Debug, Default)]
pub struct Health {
    ready: AtomicBool,
    last_sync: AtomicU64,
    /// Since when an update waits to be written; 0 is none.
    waiting_since: AtomicU64,
}

/// Seconds since 1970.
pub fn unix_now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |passed| passed.as_secs())
}

impl Health {
    /// The maps hold what the sources say, and the programs are attached.
    pub fn set_ready(&self) {
        self.ready.store(true, Ordering::Release);
    }

    /// All that was known at `now` is in the maps.
    pub fn synced(&self, now: u64) {
        self.last_sync.store(now, Ordering::Release);
        self.waiting_since.store(0, Ordering::Release);
    }

    /// Something is to be written; only the first since the last sync counts.
    pub fn queued(&self, now: u64) {
        let _already = self.waiting_since.compare_exchange(0, now, Ordering::AcqRel, Ordering::Acquire);
    }

    fn is_healthy(&self, now: u64) -> bool {
        match self.waiting_since.load(Ordering::Acquire) {
            0 => true,
            since => now.saturating_sub(since) < STALE.as_secs(),
        }
    }

    /// Status and body for a path.
    fn answer(&self, path: &str, now: u64) -> (u16, String) {
        match path {
            "/healthz" | "/livez" => {
                let healthy = self.is_healthy(now);
                // As kube-proxy: a healthy node was last updated now.
                let updated = if healthy { now } else { self.last_sync.load(Ordering::Acquire) };
                let body = format!(
                    "{{\"lastUpdated\":\"{}\",\"currentTime\":\"{}\",\"healthy\":{healthy}}}\n",
                    rfc3339(updated),
                    rfc3339(now)
                );
                (if healthy { 200 } else { 503 }, body)
            }
            "/readyz" => {
                let ready = self.ready.load(Ordering::Acquire);
                (if ready { 200 } else { 503 }, format!("{{\"ready\":{ready}}}\n"))
            }
            _ => (404, "{\"error\":\"not found\"}\n".to_owned()),
        }
    }
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
                let (status, body) = health.answer(path, unix_now());
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
async fn listen(addr: SocketAddr, page: Page) -> io::Result<SocketAddr> {
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

/// A time as RFC 3339 in UTC.
fn rfc3339(unix: u64) -> String {
    let (days, seconds) = (unix / 86_400, unix % 86_400);
    // Days to a civil date, in eras of 400 years that begin on 1 March, so that leap days come last.
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    let (hour, minute, second) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
}

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        net::TcpStream,
        time::timeout,
    };

    use super::*;

    #[test]
    fn dates() {
        for (unix, text) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (1_709_210_096, "2024-02-29T12:34:56Z"),
            (4_102_444_799, "2099-12-31T23:59:59Z"),
        ] {
            assert_eq!(rfc3339(unix), text);
        }
    }

    #[test]
    fn ready_after_the_first_sync_and_unhealthy_when_writes_wait() {
        let health = Health::default();
        assert_eq!(health.answer("/readyz", 100).0, 503);
        assert_eq!(health.answer("/healthz", 100).0, 200, "healthy while starting");
        health.queued(100);
        health.queued(150);
        assert_eq!(health.answer("/livez", 159).0, 200);
        let (status, body) = health.answer("/healthz", 160);
        assert_eq!(status, 503);
        assert!(
            body.contains("\"healthy\":false") && body.contains("\"currentTime\":\"1970-01-01T00:02:40Z\"")
        );
        health.synced(161);
        health.set_ready();
        assert_eq!((health.answer("/healthz", 500).0, health.answer("/readyz", 500).0), (200, 200));
        assert_eq!(health.answer("/", 500).0, 404);
    }

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
            answer.starts_with("HTTP/1.1 200 OK\r\n") && answer.ends_with("{\"ready\":true}\n"),
            "{answer}"
        );
    }

    #[tokio::test]
    async fn a_busy_address_is_taken_once_it_is_free() {
        let holder = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = holder.local_addr().unwrap();
        keep_listening(addr, "health", Page::Health(Arc::new(Health::default()))).await;
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
        stream.write_all(b"GET /healthz HTTP/1.1\r\n\r\n").await.unwrap();
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
