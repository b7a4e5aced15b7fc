//! Rejections: the Status object in a Kubernetes API server's error response.

use std::io::{self, Write};

use serde_json::json;

pub(super) fn refuse(
    out: &mut impl Write,
    code: u16,
    reason: &str,
    message: &str,
    retry_after: Option<u64>,
) -> io::Result<bool> {
    let status = json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": reason,
        "message": message, "code": code});
    let text = status.to_string();
    let header = retry_after.map(|seconds| format!("Retry-After: {seconds}\r\n")).unwrap_or_default();
    write!(
        out,
        "HTTP/1.1 {code} {reason}\r\nContent-Type: application/json\r\n{header}Content-Length: {}\r\n\r\n{text}",
        text.len()
    )?;
    out.flush()?;
    Ok(true)
}
