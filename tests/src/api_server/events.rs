//! Events, the only objects that the agent writes: stored for tests to examine.

use std::io::{self, Write};

use serde_json::Value;

use super::{grants::Asked, refusal::refuse, request::Request, shared::Shared};

/// Answers a request that creates or changes an Event.
pub(super) fn answer(
    shared: &Shared,
    asked: &Asked,
    request: &Request,
    out: &mut impl Write,
) -> io::Result<bool> {
    let Ok(event) = serde_json::from_slice::<Value>(&request.body) else {
        return refuse(out, 400, "BadRequest", "the body is no JSON", None);
    };
    let code = if asked.verb == "create" { "201 Created" } else { "200 OK" };
    let text = event.to_string();
    {
        let mut state = shared.store.lock();
        state.note(format!("{} events", asked.verb));
        state.events.push(event);
    }
    write!(
        out,
        "HTTP/1.1 {code}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{text}",
        text.len()
    )?;
    out.flush()?;
    Ok(true)
}
