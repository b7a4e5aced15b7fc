//! Responses: lists in pages, watches as lines, rejections; with faults as planned.

use std::{
    io::{self, Write},
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use super::{
    events,
    grants::Asked,
    refusal::refuse,
    request::Request,
    selector::Selector,
    shared::Shared,
    store::{Fault, State},
};

/// Interval between two bookmarks; a minute on real servers.
const BOOKMARK: Duration = Duration::from_secs(1);
/// How often a watch checks that the server is still up.
const LOOK: Duration = Duration::from_millis(200);
/// How long a hanging request hangs.
const HANG: Duration = Duration::from_secs(120);

/// Collections, with the names and kind of each.
const COLLECTIONS: [(&str, &str, &str, &str); 5] = [
    ("/api/v1/services", "services", "v1", "ServiceList"),
    ("/api/v1/nodes", "nodes", "v1", "NodeList"),
    (
        "/apis/discovery.k8s.io/v1/endpointslices",
        "endpointslices",
        "discovery.k8s.io/v1",
        "EndpointSliceList",
    ),
    ("/apis/networking.k8s.io/v1/servicecidrs", "servicecidrs", "networking.k8s.io/v1", "ServiceCIDRList"),
    (
        "/apis/networking.k8s.io/v1beta1/servicecidrs",
        "servicecidrs",
        "networking.k8s.io/v1beta1",
        "ServiceCIDRList",
    ),
];

/// Answers one request; false if the connection is to be closed.
pub fn answer(shared: &Shared, request: &Request, out: &mut impl Write) -> io::Result<bool> {
    if !request.is_known {
        return refuse(out, 401, "Unauthorized", "no credentials that are known here", None);
    }
    if let Some(objection) = shared.grants.objection(request) {
        shared.store.lock().violated(format!("{} {}: {objection}", request.method, request.path));
        return refuse(out, 403, "Forbidden", &objection, None);
    }
    if let Some(asked) = Asked::of(request).filter(|asked| asked.resource == "events") {
        return events::answer(shared, &asked, request, out);
    }
    let collection = COLLECTIONS.iter().find(|(path, ..)| *path == request.path);
    let Some((_, resource, version, kind)) = collection else {
        return refuse(out, 404, "NotFound", "nothing of that name is stored here", None);
    };
    let resource = *resource;
    let mut state = shared.store.lock();
    let is_watch = request.value("watch") == "true";
    let is_streamed = request.value("sendInitialEvents") == "true";
    let is_page = !request.value("continue").is_empty();
    let name = match (is_watch, is_streamed, is_page) {
        (true, true, _) => "stream",
        (true, false, _) => "watch",
        (false, _, true) => "page",
        // A list with a limit of one is how a client reads the version.
        (false, ..) if request.value("limit") == "1" => "version",
        (false, ..) => "list",
    };
    state.note(format!("{name} {resource}"));
    match state.take_fault(resource, |fault| matches!(fault, Fault::TooMany(_) | Fault::Reset | Fault::Hang))
    {
        Some(Fault::TooMany(seconds)) => {
            drop(state);
            return refuse(out, 429, "TooManyRequests", "later", Some(seconds));
        }
        Some(Fault::Reset) => return Ok(false),
        Some(_) => {
            drop(state);
            return hang(shared);
        }
        None => {}
    }
    let selector = Selector {
        labels: request.value("labelSelector").to_owned(),
        fields: request.value("fieldSelector").to_owned(),
    };
    if state.is_old && resource == "services" && !selector.fields.is_empty() {
        drop(state);
        let message = "\"spec.clusterIP\" is not a known field selector";
        return refuse(out, 400, "BadRequest", message, None);
    }
    if !is_watch {
        let list = list(&mut state, resource, &selector, request, [version, kind]);
        drop(state);
        return send_list(out, list);
    }
    if is_streamed && state.take_fault(resource, |fault| fault == Fault::NoStreaming).is_some() {
        drop(state);
        return refuse(
            out,
            422,
            "Invalid",
            "sendInitialEvents: Forbidden: the WatchList feature gate is off",
            None,
        );
    }
    let asked: u64 = request.value("resourceVersion").parse().unwrap_or(0);
    let is_gone = state.take_fault(resource, |fault| fault == Fault::WatchGone).is_some();
    if is_gone || !is_streamed && asked < state.compacted {
        drop(state);
        return refuse(out, 410, "Expired", "too old resource version", None);
    }
    drop(state);
    watch(shared, resource, &selector, (!is_streamed).then_some(asked), request, out)?;
    Ok(false)
}

/// The form of a list's response.
enum List {
    Whole(String),
    /// Valid HTTP, truncated JSON.
    Cut(String),
    /// Truncated HTTP.
    Short(String),
    Refused(u16),
}

fn list(
    state: &mut State,
    resource: &str,
    selector: &Selector,
    request: &Request,
    [version, kind]: [&str; 2],
) -> List {
    let token = request.value("continue");
    let fault = state.take_fault(resource, |fault| match fault {
        Fault::PageGone => !token.is_empty(),
        fault => matches!(fault, Fault::ListStatus(_) | Fault::CutList | Fault::ShortList | Fault::EmptyList),
    });
    match fault {
        Some(Fault::ListStatus(code)) => return List::Refused(code),
        Some(Fault::PageGone) => return List::Refused(410),
        _ => {}
    }
    let at: usize = token.parse().unwrap_or(0);
    let limit: usize = request.value("limit").parse().unwrap_or(usize::MAX);
    let mut objects = state.list(resource, selector);
    if fault == Some(Fault::EmptyList) {
        objects.clear();
    }
    let mut meta = json!({"resourceVersion": state.version.to_string()});
    let end = at.saturating_add(limit);
    if end < objects.len() {
        meta["continue"] = end.to_string().into();
    }
    let items: Vec<&Value> = objects.into_iter().skip(at).take(limit).collect();
    let text = json!({"apiVersion": version, "kind": kind, "metadata": meta, "items": items}).to_string();
    match fault {
        Some(Fault::CutList) => List::Cut(text),
        Some(Fault::ShortList) => List::Short(text),
        _ => List::Whole(text),
    }
}

fn send_list(out: &mut impl Write, list: List) -> io::Result<bool> {
    let half = |text: &str| text[..text.len() / 2].to_owned();
    let (length, text, stays) = match list {
        List::Refused(code) => return refuse(out, code, "Refused", "a planned fault", None),
        List::Whole(text) => (text.len(), text, true),
        List::Cut(text) => (half(&text).len(), half(&text), true),
        List::Short(text) => (text.len(), half(&text), false),
    };
    write!(
        out,
        "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n{text}"
    )?;
    out.flush()?;
    Ok(stays)
}

fn hang(shared: &Shared) -> io::Result<bool> {
    let begun = Instant::now();
    while shared.is_up() && begun.elapsed() < HANG {
        std::thread::sleep(LOOK);
    }
    Ok(false)
}

/// Sends changes as they happen; without `from`, all existing objects first.
fn watch(
    shared: &Shared,
    resource: &str,
    selector: &Selector,
    from: Option<u64>,
    request: &Request,
    out: &mut impl Write,
) -> io::Result<()> {
    write!(out, "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n")?;
    out.flush()?;
    let seconds: u64 = request.value("timeoutSeconds").parse().unwrap_or(300);
    let end = Instant::now() + Duration::from_secs(seconds);
    let mut at = match from {
        Some(version) => version,
        None => initial(shared, resource, selector, out)?,
    };
    let mut bookmark = Instant::now() + BOOKMARK;
    while shared.is_up() && Instant::now() < end {
        let mut state = shared.store.lock();
        let fault = state.take_fault(resource, |fault| matches!(fault, Fault::StreamGone | Fault::CutLine));
        let news: Vec<_> = state.log.iter().filter(|change| change.version > at).cloned().collect();
        let mut lines: Vec<Value> =
            news.iter().filter_map(|change| change.line(resource, selector)).collect();
        at = news.last().map_or(at, |change| change.version);
        // As on a real server: never a version older than the requested one.
        if Instant::now() >= bookmark && state.version >= at {
            lines.push(json!({"type": "BOOKMARK", "object": {"metadata": {"resourceVersion": state.version.to_string()}}}));
            bookmark = Instant::now() + BOOKMARK;
        }
        if lines.is_empty() && fault.is_none() {
            drop(shared.store.wait(state, LOOK));
            continue;
        }
        drop(state);
        match fault {
            Some(Fault::StreamGone) => {
                let status =
                    json!({"kind": "Status", "code": 410, "reason": "Expired", "message": "too old"});
                chunk(out, &format!("{}\n", json!({"type": "ERROR", "object": status})))?;
                break;
            }
            Some(_) => {
                chunk(out, "{\"type\":\"ADDED\",\"object\":{\"metadata\":{\"name\":\"half")?;
                break;
            }
            None => {}
        }
        let text: String = lines.iter().map(|line| format!("{line}\n")).collect();
        chunk(out, &text)?;
    }
    out.write_all(b"0\r\n\r\n")?;
    out.flush()
}

/// Sends all existing objects and the bookmark that ends them; returns their version.
fn initial(shared: &Shared, resource: &str, selector: &Selector, out: &mut impl Write) -> io::Result<u64> {
    let (text, version) = {
        let state = shared.store.lock();
        let objects = state.list(resource, selector);
        let mut text: String = objects
            .iter()
            .map(|object| format!("{}\n", json!({"type": "ADDED", "object": object})))
            .collect();
        let meta = json!({"resourceVersion": state.version.to_string(),
            "annotations": {"k8s.io/initial-events-end": "true"}});
        text += &format!("{}\n", json!({"type": "BOOKMARK", "object": {"metadata": meta}}));
        (text, state.version)
    };
    chunk(out, &text)?;
    Ok(version)
}

fn chunk(out: &mut impl Write, text: &str) -> io::Result<()> {
    write!(out, "{:x}\r\n{text}\r\n", text.len())?;
    out.flush()
}
