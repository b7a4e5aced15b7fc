//! Single requests to the API server: choice of address, timeouts, and the response as bytes.
//!
//! GET, and the methods that Events need. Every wait has a timeout: a server that accepts a connection and does not
//! respond counts as unreachable.

use std::{
    sync::{
        Arc, PoisonError, RwLock,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use http::{HeaderValue, Method, Request, Response, header};
use http_body_util::BodyExt as _;
use kube::client::Body;
use serde::Deserialize;
use tokio::time::timeout;

use super::{
    access::{AccessError, Server, servers},
    error::{RequestError, causes},
};
use crate::{
    config::{Cluster, Origin},
    metrics::METRICS,
};

/// From sending a request, including the connection, to the response header.
const ANSWER: Duration = Duration::from_secs(10);
/// For reading credentials, including a credential plugin.
const CREDENTIALS: Duration = Duration::from_secs(30);
/// Between two chunks of a list.
const PIECE: Duration = Duration::from_secs(10);
/// Maximum length of a line of a watch (the API server accepts objects of 3 MB at most).
const MAX_LINE: usize = 16 << 20;

/// All addresses of the API server, and the current one.
#[derive(Clone, Debug)]
pub struct ApiServer {
    cluster: Arc<Cluster>,
    servers: Arc<RwLock<Vec<Server>>>,
    current: Arc<AtomicUsize>,
}

/// An open watch, read line by line.
#[derive(Debug)]
pub struct Lines {
    body: Body,
    read: Vec<u8>,
    /// How far `read` was searched for a newline.
    searched: usize,
    server: ApiServer,
    index: usize,
}

/// metav1.Status, as far as it is used.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Status {
    pub code: u16,
    pub reason: String,
    pub message: String,
    details: Option<Details>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Details {
    retry_after_seconds: u64,
}

impl ApiServer {
    /// Reads the credentials; sends no request yet.
    pub fn new(cluster: Cluster) -> Result<Self, AccessError> {
        let servers = Arc::new(RwLock::new(servers(&cluster)?));
        Ok(Self { cluster: Arc::new(cluster), servers, current: Arc::default() })
    }

    /// The current address.
    pub fn address(&self) -> String {
        self.server(self.current.load(Ordering::Relaxed)).address
    }

    fn server(&self, index: usize) -> Server {
        // `access` ensures that there is at least one.
        self.servers.read().unwrap_or_else(PoisonError::into_inner)[index].clone()
    }

    /// Server `index` failed: the next request goes to the next one. Of several requests that failed at one server only
    /// the first switches.
    fn move_on(&self, index: usize) {
        let next = (index + 1) % self.servers.read().unwrap_or_else(PoisonError::into_inner).len();
        let moved = self.current.compare_exchange(index, next, Ordering::Relaxed, Ordering::Relaxed);
        if moved.is_ok() && next != index {
            tracing::info!("next API server: {}", self.server(next).address);
        }
    }

    /// Reads the credentials again: tokens and certificates are replaced on disk before they expire. This runs the
    /// credential plugin, which may be slow or hang, so not on the runtime's threads.
    pub async fn renew(&self) {
        let cluster = self.cluster.clone();
        let renewed = timeout(CREDENTIALS, tokio::task::spawn_blocking(move || servers(&cluster))).await;
        match renewed {
            // The number is unchanged: it depends on the command line alone.
            Ok(Ok(Ok(renewed))) => {
                *self.servers.write().unwrap_or_else(PoisonError::into_inner) = renewed;
            }
            Ok(Ok(Err(error))) => tracing::warn!("keeping the present credentials: {error}"),
            Ok(Err(error)) => tracing::warn!("keeping the present credentials: {error}"),
            Err(_) => tracing::warn!("keeping the present credentials: none within {CREDENTIALS:?}"),
        }
    }

    /// Advice for the operator about a failure, if there is any.
    pub fn hint(&self, error: &RequestError) -> Option<&'static str> {
        let is_by_service = self.cluster.origin == Origin::InCluster && self.cluster.servers.is_empty();
        let is_away = matches!(error, RequestError::Unreachable(_) | RequestError::Silent(_));
        error.hint().or_else(|| {
            (is_by_service && is_away).then_some(
                "KUBERNETES_SERVICE_HOST is a Service's address, and Services are what this agent is there to serve: \
                 give the API server's own address with --server",
            )
        })
    }

    /// The complete response body of a GET.
    pub async fn get(&self, target: &str) -> Result<Vec<u8>, RequestError> {
        let index = self.current.load(Ordering::Relaxed);
        let result = self.get_from(index, target).await;
        self.judge(index, result)
    }

    /// Sends an object, or a patch of one.
    pub async fn write(
        &self,
        method: Method,
        target: &str,
        content_type: &'static str,
        body: String,
    ) -> Result<(), RequestError> {
        let index = self.current.load(Ordering::Relaxed);
        let request = Request::builder()
            .method(method)
            .uri(target)
            .header(header::CONTENT_TYPE, content_type)
            .body(Body::from(body.into_bytes()));
        let result = self.send(index, request, true).await;
        self.judge(index, result).map(drop)
    }

    /// Opens a watch.
    pub async fn watch(&self, target: &str) -> Result<Lines, RequestError> {
        let index = self.current.load(Ordering::Relaxed);
        let result = self.open(index, target).await;
        let body = self.judge(index, result)?.into_body();
        Ok(Lines { body, read: Vec::new(), searched: 0, server: self.clone(), index })
    }

    fn judge<T>(&self, index: usize, result: Result<T, RequestError>) -> Result<T, RequestError> {
        if let Err(error) = &result
            && error.is_of_this_server()
        {
            self.move_on(index);
        }
        result
    }

    async fn get_from(&self, index: usize, target: &str) -> Result<Vec<u8>, RequestError> {
        let mut body = self.open(index, target).await?.into_body();
        let mut all = Vec::new();
        while let Some(piece) = piece(&mut body, PIECE).await? {
            all.extend_from_slice(&piece);
        }
        Ok(all)
    }

    /// Sends a GET and waits for a successful response.
    async fn open(&self, index: usize, target: &str) -> Result<Response<Body>, RequestError> {
        let is_watch = target.contains("watch=true");
        self.send(index, Request::get(target).body(Body::empty()), !is_watch).await
    }

    /// Sends a request and waits for a successful response. `is_timed`: the duration counts in the metrics.
    async fn send(
        &self,
        index: usize,
        request: http::Result<Request<Body>>,
        is_timed: bool,
    ) -> Result<Response<Body>, RequestError> {
        let mut request = request.map_err(|error| RequestError::Malformed(causes(&error)))?;
        let headers = request.headers_mut();
        headers.insert(header::ACCEPT, HeaderValue::from_static("application/json"));
        // Appears in the API server's audit log.
        headers.insert(
            header::USER_AGENT,
            HeaderValue::from_static(concat!("shunt/", env!("CARGO_PKG_VERSION"))),
        );
        let method = request.method().clone();
        let Server { client, address } = self.server(index);
        let host = address.split_once("://").map_or(&*address, |(_, host)| host);
        let begun = Instant::now();
        let sent = timeout(ANSWER, client.send(request)).await;
        let code = sent.as_ref().ok().and_then(|sent| Some(sent.as_ref().ok()?.status().as_u16()));
        METRICS.client.requested(method.as_str(), host, code);
        if is_timed {
            METRICS.client.took(method.as_str(), host, begun.elapsed());
        }
        let response = sent
            .map_err(|_| RequestError::Silent(ANSWER))?
            .map_err(|error| RequestError::Unreachable(causes(&error)))?;
        if response.status().is_success() {
            return Ok(response);
        }
        let code = response.status().as_u16();
        let told =
            response.headers().get(header::RETRY_AFTER).and_then(|value| value.to_str().ok()?.parse().ok());
        let mut body = response.into_body();
        let mut text = Vec::new();
        // The status counts even if the body does not arrive.
        while let Ok(Some(piece)) = piece(&mut body, PIECE).await {
            text.extend_from_slice(&piece);
        }
        let mut status: Status = serde_json::from_slice(&text).unwrap_or_default();
        status.code = code;
        let mut refusal = status.into_error();
        if let (RequestError::Refused { retry_after, .. }, Some(seconds)) = (&mut refusal, told) {
            *retry_after = Some(Duration::from_secs(seconds));
        }
        Err(refusal)
    }
}

impl Lines {
    /// The next line; `None` when the server has ended the watch, as it does every few minutes. An incomplete last line
    /// is an error.
    pub async fn next(&mut self, silence: Duration) -> Result<Option<Vec<u8>>, RequestError> {
        let result = self.read_line(silence).await;
        self.server.judge(self.index, result)
    }

    async fn read_line(&mut self, silence: Duration) -> Result<Option<Vec<u8>>, RequestError> {
        loop {
            if let Some(line) = self.ready() {
                return Ok(Some(line));
            }
            if self.read.len() > MAX_LINE {
                return Err(RequestError::Malformed(format!("a line of more than {MAX_LINE} bytes")));
            }
            match piece(&mut self.body, silence).await? {
                Some(piece) => self.read.extend_from_slice(&piece),
                None if self.read.is_empty() => return Ok(None),
                None => {
                    return Err(RequestError::Unreachable("the watch ended in the middle of a line".into()));
                }
            }
        }
    }

    /// A line that has already been received.
    pub fn ready(&mut self) -> Option<Vec<u8>> {
        let end = self.searched + self.read[self.searched..].iter().position(|byte| *byte == b'\n')?;
        self.searched = 0;
        let rest = self.read.split_off(end + 1);
        let mut line = std::mem::replace(&mut self.read, rest);
        line.pop();
        Some(line)
    }
}

/// The next chunk of a body.
async fn piece(body: &mut Body, patience: Duration) -> Result<Option<Vec<u8>>, RequestError> {
    loop {
        let frame = timeout(patience, body.frame()).await.map_err(|_| RequestError::Silent(patience))?;
        match frame {
            None => return Ok(None),
            Some(Err(error)) => {
                return Err(RequestError::Unreachable(format!(
                    "the response was cut off: {}",
                    causes(&error)
                )));
            }
            // Other frames are trailers.
            Some(Ok(frame)) => {
                if let Ok(data) = frame.into_data() {
                    return Ok(Some(data.into()));
                }
            }
        }
    }
}

impl Status {
    pub fn into_error(self) -> RequestError {
        let seconds = self.details.map_or(0, |details| details.retry_after_seconds);
        let known = http::StatusCode::from_u16(self.code).ok().and_then(|code| code.canonical_reason());
        let reason = if self.reason.is_empty() { known.unwrap_or("error").to_owned() } else { self.reason };
        let message = if self.message.is_empty() { "no message".to_owned() } else { self.message };
        let retry_after = (seconds > 0).then(|| Duration::from_secs(seconds));
        RequestError::Refused { code: self.code, reason, message, retry_after }
    }
}
