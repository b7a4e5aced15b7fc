//! The listeners of healthCheckNodePorts (SERVICE-SEMANTICS 3.2): opened and closed as Services change; they answer any
//! path with kube-proxy's response, byte for byte.
//!
//! The controller provides addresses and answers ([`Listeners`]). One task opens and closes listeners; a listener reads
//! its answer for each request, so a changed count does not reopen it.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::SocketAddr,
    sync::Arc,
    time::Duration,
};

use jiff::Timestamp;
use nix::sys::socket::{setsockopt, sockopt};
use tokio::{
    net::{TcpListener, TcpSocket},
    sync::watch,
    task::JoinHandle,
    time::sleep,
};

use super::{
    http::{self, Response},
    places::Places,
    state::Health,
};
use crate::{
    events::Recorder,
    health_checks::{Listeners, LocalEndpoints},
    problem::{Problem, ProblemKind},
};

/// Connections that the kernel keeps until they are accepted.
const BACKLOG: u32 = 1024;

/// Between two attempts to bind a port that is in use.
const REBIND: Duration = Duration::from_secs(1);

/// Keeps the listeners in `wanted` open until its sender is dropped.
pub async fn follow(mut wanted: watch::Receiver<Listeners>, health: Arc<Health>, recorder: Recorder) {
    let (open, failed) = Default::default();
    let places = Arc::default();
    let mut checks = Checks { wanted: wanted.clone(), health, recorder, places, open, failed };
    loop {
        let now = wanted.borrow_and_update().clone();
        checks.reconcile(&now).await;
        tokio::select! {
            changed = wanted.changed() => if changed.is_err() { return },
            () = sleep(REBIND), if !checks.failed.is_empty() => {}
        }
    }
}

struct Checks {
    wanted: watch::Receiver<Listeners>,
    health: Arc<Health>,
    recorder: Recorder,
    /// Of all these listeners together: there may be a thousand of them.
    places: Arc<Places>,
    open: BTreeMap<SocketAddr, JoinHandle<()>>,
    /// Listeners whose failure was reported.
    failed: BTreeSet<SocketAddr>,
}

impl Checks {
    async fn reconcile(&mut self, wanted: &Listeners) {
        // Close first: another listener may need the port.
        let gone: Vec<_> = self.open.keys().copied().filter(|at| !wanted.contains_key(at)).collect();
        for at in gone {
            if let Some(task) = self.open.remove(&at) {
                task.abort();
                // The listener closes when its task has been dropped.
                let _cancelled = task.await;
                tracing::info!(%at, "healthCheckNodePort closed");
            }
        }
        self.failed.retain(|at| wanted.contains_key(at));
        for (at, answer) in wanted {
            if !self.open.contains_key(at) {
                self.open(*at, answer);
            }
        }
    }

    fn open(&mut self, at: SocketAddr, answer: &LocalEndpoints) {
        let service = &answer.service;
        match bind(at) {
            Ok(listener) => {
                tracing::info!(%service, %at, "healthCheckNodePort open");
                self.failed.remove(&at);
                let (wanted, health) = (self.wanted.clone(), self.health.clone());
                let answer = move |_path: &str| {
                    let healthy = health.is_healthy(Timestamp::now());
                    respond(wanted.borrow().get(&at), healthy)
                };
                self.open.insert(at, http::accept(listener, Arc::new(answer), self.places.clone()));
            }
            Err(error) => {
                if self.failed.insert(at) {
                    let (address, port) = (at.ip(), at.port());
                    let kind = ProblemKind::HealthCheckPort { port, address, reason: error.to_string() };
                    let problem = Problem::new(service, kind);
                    tracing::warn!("{problem}");
                    self.recorder.problem(&problem, answer.uid.clone());
                }
            }
        }
    }
}

/// A listener of one family: `::` excludes IPv4, which has its own listener and count.
fn bind(at: SocketAddr) -> io::Result<TcpListener> {
    let socket = if at.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    socket.set_reuseaddr(true)?;
    if at.is_ipv6() {
        setsockopt(&socket, sockopt::Ipv6V6Only, &true)?;
    }
    socket.bind(at)?;
    socket.listen(BACKLOG)
}

/// The answer of one Service. The weight header lets a load balancer distribute by the number of endpoints.
fn respond(answer: Option<&LocalEndpoints>, healthy: bool) -> Response {
    let (namespace, name, count) = answer
        .map_or(("", "", 0), |answer| (&*answer.service.namespace, &*answer.service.name, answer.count));
    // kube-proxy's format: tabs, no trailing newline. Object names need no escaping.
    let body = format!(
        "{{\n\t\"service\": {{\n\t\t\"namespace\": \"{namespace}\",\n\t\t\"name\": \"{name}\"\n\t}},\n\
         \t\"localEndpoints\": {count},\n\t\"serviceProxyHealthy\": {healthy}\n}}"
    );
    Response {
        status: if count != 0 && healthy { 200 } else { 503 },
        content_type: "application/json",
        header: Some(("X-Load-Balancing-Endpoint-Weight", count.to_string())),
        body,
    }
}

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        net::TcpStream,
    };

    use super::*;
    use crate::model::ServiceKey;

    fn answer(count: usize) -> LocalEndpoints {
        LocalEndpoints { service: ServiceKey::new("ns", "svc"), uid: None, count }
    }

    #[test]
    fn the_body_is_kube_proxys() {
        let response = respond(Some(&answer(1)), true);
        assert_eq!(
            response.body,
            "{\n\t\"service\": {\n\t\t\"namespace\": \"ns\",\n\t\t\"name\": \"svc\"\n\t},\n\
             \t\"localEndpoints\": 1,\n\t\"serviceProxyHealthy\": true\n}"
        );
        assert_eq!(response.status, 200);
        assert_eq!(response.header, Some(("X-Load-Balancing-Endpoint-Weight", "1".into())));
        assert_eq!(respond(Some(&answer(0)), true).status, 503);
        let unhealthy = respond(Some(&answer(2)), false);
        assert!(unhealthy.status == 503 && unhealthy.body.contains("\"serviceProxyHealthy\": false"));
        assert!(unhealthy.body.contains("\"localEndpoints\": 2"));
    }

    async fn get(at: SocketAddr) -> io::Result<String> {
        let mut stream = TcpStream::connect(at).await?;
        stream.write_all(b"GET /any/path?x HTTP/1.1\r\nHost: x\r\n\r\n").await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        Ok(answer)
    }

    async fn eventually(at: SocketAddr, holds: impl Fn(&io::Result<String>) -> bool) {
        for _ in 0..200 {
            if holds(&get(at).await) {
                return;
            }
            sleep(Duration::from_millis(20)).await;
        }
        panic!("{at}: last {:?}", get(at).await);
    }

    #[tokio::test]
    async fn listeners_follow_what_is_wanted() {
        let holder = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let at = holder.local_addr().unwrap();
        let (sender, receiver) = watch::channel(Listeners::from([(at, answer(0))]));
        let task = tokio::spawn(follow(receiver, Arc::default(), Recorder::default()));
        // In use by another socket for now.
        sleep(Duration::from_millis(100)).await;
        drop(holder);
        let starts = |text: &'static str| {
            move |got: &io::Result<String>| got.as_ref().is_ok_and(|got| got.starts_with(text))
        };
        eventually(at, starts("HTTP/1.1 503")).await;
        sender.send_replace(Listeners::from([(at, answer(3))]));
        eventually(at, starts("HTTP/1.1 200")).await;
        sender.send_replace(Listeners::new());
        let refused = |got: &io::Result<String>| {
            got.as_ref().is_err_and(|e| e.kind() == io::ErrorKind::ConnectionRefused)
        };
        eventually(at, refused).await;
        drop(sender);
        task.await.unwrap();
    }
}
