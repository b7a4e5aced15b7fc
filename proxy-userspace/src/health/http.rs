//! As much of HTTP/1.1 as a health probe needs: one GET or HEAD per connection, one response.

use std::{sync::Arc, time::Duration};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    task::JoinHandle,
    time::timeout,
};

use super::places::Places;

/// Limits of a request's length and time.
const MAX_REQUEST: usize = 8192;
const MAX_WAIT: Duration = Duration::from_secs(5);

/// A response.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Response {
    pub status: u16,
    pub content_type: &'static str,
    /// One additional header.
    pub header: Option<(&'static str, String)>,
    pub body: String,
}

/// Returns the response to a path (without the query).
pub type Answer = Arc<dyn Fn(&str) -> Response + Send + Sync>;

/// Serves `listener`, which the task owns: aborting the task closes it.
pub fn accept(listener: TcpListener, answer: Answer, places: Arc<Places>) -> JoinHandle<()> {
    tokio::spawn(async move {
        loop {
            match listener.accept().await {
                Ok((stream, peer)) => {
                    let Ok(local) = stream.local_addr() else { continue };
                    places.spawn(local.ip(), peer.ip(), serve(stream, answer.clone()));
                }
                Err(error) => {
                    // Out of descriptors: wait until some are closed.
                    tracing::debug!(%error, "accept failed");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    })
}

async fn serve(mut stream: TcpStream, answer: Answer) {
    let Ok(Some(request)) = timeout(MAX_WAIT, read_request(&mut stream)).await else { return };
    let response = match path_of(&request) {
        Some(path) => answer(path),
        None => Response {
            status: 405,
            content_type: "text/plain",
            header: None,
            body: "only GET and HEAD\n".to_owned(),
        },
    };
    let bytes = encode(&response, request.starts_with("HEAD "));
    // The client may have disconnected; nothing depends on it.
    let _sent = timeout(MAX_WAIT, stream.write_all(bytes.as_bytes())).await;
    let _closed = stream.shutdown().await;
}

fn encode(response: &Response, head_only: bool) -> String {
    let Response { status, content_type, header, body } = response;
    let reason = match status {
        200 => "OK",
        404 => "Not Found",
        405 => "Method Not Allowed",
        500 => "Internal Server Error",
        _ => "Service Unavailable",
    };
    let more = header.as_ref().map(|(name, value)| format!("{name}: {value}\r\n")).unwrap_or_default();
    format!(
        "HTTP/1.1 {status} {reason}\r\nContent-Type: {content_type}\r\nX-Content-Type-Options: nosniff\r\n{more}\
         Content-Length: {}\r\nConnection: close\r\n\r\n{}",
        body.len(),
        if head_only { "" } else { body }
    )
}

/// The head of a request; `None` if it is too long or incomplete.
async fn read_request(stream: &mut TcpStream) -> Option<String> {
    let mut data = Vec::new();
    let mut chunk = [0u8; 1024];
    while !data.windows(4).any(|end| end == b"\r\n\r\n") {
        let len = stream.read(&mut chunk).await.ok()?;
        if len == 0 || data.len() + len > MAX_REQUEST {
            return None;
        }
        data.extend_from_slice(&chunk[..len]);
    }
    String::from_utf8(data).ok()
}

/// The path of a GET or HEAD request, without its query.
fn path_of(request: &str) -> Option<&str> {
    let target = request.strip_prefix("GET ").or_else(|| request.strip_prefix("HEAD "))?;
    target.split(' ').next()?.split('?').next()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_of_requests() {
        assert_eq!(path_of("GET /healthz?verbose HTTP/1.1\r\n\r\n"), Some("/healthz"));
        assert_eq!(path_of("HEAD / HTTP/1.1\r\n\r\n"), Some("/"));
        assert_eq!(path_of("POST /healthz HTTP/1.1\r\n\r\n"), None);
    }

    #[test]
    fn answers_byte_for_byte() {
        let response = Response {
            status: 503,
            content_type: "application/json",
            header: Some(("X-Load-Balancing-Endpoint-Weight", "0".to_owned())),
            body: "{}".to_owned(),
        };
        let head = "HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\n\
                    X-Content-Type-Options: nosniff\r\nX-Load-Balancing-Endpoint-Weight: 0\r\n\
                    Content-Length: 2\r\nConnection: close\r\n\r\n";
        assert_eq!(encode(&response, false), format!("{head}{{}}"));
        assert_eq!(encode(&response, true), head);
    }
}
