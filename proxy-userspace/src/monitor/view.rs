//! The output of one event: an object with stable field names, and the same as one line.

use std::{
    fmt,
    io::{self, Write},
};

use jiff::Timestamp;
use proxy_common::{Addr, Counter, EventKind, FlowEvent, Hook, Port, Proto, socket::netns_of};
use serde::Serialize;

use super::names::ServiceName;
use crate::inspect::text::{addr_port, proto_name};

/// What does not apply is `null`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct EventView {
    /// UTC, RFC 3339.
    pub time: String,
    /// `flow`, `refused` or `dropped`.
    pub kind: &'static str,
    /// `ingress`, `egress`, `xdp` or `socket`.
    pub hook: &'static str,
    pub device: Option<String>,
    pub protocol: String,
    /// Address and port, or `netns:COOKIE` for a flow of a socket, which has no address yet.
    pub client: String,
    /// The destination, whether or not it belongs to a Service.
    pub vip: String,
    /// `NAMESPACE/NAME`.
    pub service: Option<String>,
    pub port_name: Option<String>,
    pub backend: Option<String>,
    /// The backend is on this node.
    pub local: Option<bool>,
    /// The source is masqueraded with an address of this node.
    pub masqueraded: Option<bool>,
    /// The source port that the backend sees, if the client's own was in use. Unknown for a masqueraded flow.
    pub client_port: Option<u16>,
    /// The counter of the refusal or drop.
    pub reason: Option<&'static str>,
    /// The process that owns the socket.
    pub pid: Option<u32>,
    pub process: Option<String>,
    pub service_id: Option<u32>,
    pub backend_id: Option<u32>,
    pub ifindex: Option<u32>,
}

impl EventView {
    /// `clock_offset`: from the clock of the event to the wall clock, in nanoseconds.
    pub fn new(
        event: &FlowEvent,
        clock_offset: i128,
        service: Option<&ServiceName>,
        device: Option<&str>,
    ) -> Self {
        let is_flow = event.kind == EventKind::Flow as u8;
        let is_socket = event.hook == Hook::Socket as u8;
        let service_id = service.map_or(event.service, |service| service.id);
        Self {
            time: time(event.time, clock_offset),
            kind: EventKind::from_number(event.kind).map_or("unknown", EventKind::name),
            hook: Hook::from_number(event.hook).map_or("unknown", Hook::name),
            device: device.map(str::to_owned),
            protocol: proto_name(event.proto),
            client: match netns_of(&event.src) {
                Some(cookie) => format!("netns:{cookie}"),
                None => end(event.src, event.sport, event.proto),
            },
            vip: end(event.dst, event.dport, event.proto),
            service: service.map(|service| service.name.clone()),
            port_name: service.map(|it| it.port_name.clone()).filter(|name| !name.is_empty()),
            backend: is_flow.then(|| addr_port(event.to, event.to_port)),
            local: is_flow.then(|| event.has(FlowEvent::LOCAL)),
            // The source of a socket is chosen later, by its route.
            masqueraded: (is_flow && !is_socket).then(|| event.has(FlowEvent::MASQUERADED)),
            client_port: (is_flow && !event.has(FlowEvent::MASQUERADED) && event.client_port != event.sport)
                .then(|| event.client_port.host()),
            reason: (!is_flow).then(|| reason(event.reason)),
            pid: is_socket.then_some(event.pid),
            process: is_socket.then(|| event.comm().to_owned()).filter(|name| !name.is_empty()),
            service_id: Some(service_id).filter(|id| *id != 0),
            backend_id: Some(event.backend).filter(|id| *id != 0),
            ifindex: Some(event.ifindex).filter(|ifindex| *ifindex != 0),
        }
    }

    /// `NAMESPACE/NAME:PORT`.
    fn service_port(&self) -> Option<String> {
        let (service, port) = (self.service.as_ref()?, self.port_name.as_deref());
        Some(port.map_or_else(|| service.clone(), |port| format!("{service}:{port}")))
    }
}

fn time(monotonic: u64, clock_offset: i128) -> String {
    match Timestamp::from_nanosecond(i128::from(monotonic) + clock_offset) {
        Ok(at) => format!("{at:.6}"),
        Err(_) => monotonic.to_string(),
    }
}

fn reason(number: u32) -> &'static str {
    Counter::from_number(number).map_or("unknown", Counter::name)
}

/// `ADDRESS:PORT`; without a port for a ping.
fn end(addr: Addr, port: Port, proto: u8) -> String {
    match proto {
        Proto::ICMP | Proto::ICMPV6 => addr.to_string(),
        _ => addr_port(addr, port),
    }
}

/// Replaces control characters: a process can choose its name, and terminals interpret escape sequences.
struct Escaped<'a>(&'a str);

impl fmt::Display for Escaped<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.chars().try_for_each(|c| fmt::Write::write_char(f, if c.is_control() { '?' } else { c }))
    }
}

/// One line: time, kind, place, tuple and details; `wide` adds the date and the ids.
pub fn print_event_into(out: &mut impl Write, view: &EventView, wide: bool, colour: bool) -> io::Result<()> {
    let of_day = view.time.split_once('T').map_or(view.time.as_str(), |(_, time)| time);
    let code = match view.kind {
        "flow" => "32",
        "refused" => "33",
        _ => "31",
    };
    let (on, off) = if colour { (format!("\x1b[{code}m"), "\x1b[0m") } else { (String::new(), "") };
    let place =
        view.device.as_ref().map_or_else(|| view.hook.to_owned(), |device| format!("{} {device}", view.hook));
    let time = if wide { &view.time } else { of_day };
    write!(out, "{time}  {on}{:<7}{off}  {place:<20} {:<4} ", view.kind, view.protocol)?;
    if let Some(pid) = view.pid {
        write!(out, "{}[{pid}] ", Escaped(view.process.as_deref().unwrap_or("?")))?;
    }
    write!(out, "{} -> {}", view.client, view.vip)?;
    if let Some(service) = view.service_port() {
        write!(out, " {service}")?;
    }
    if let Some(backend) = &view.backend {
        write!(out, " -> {backend}")?;
    }
    for note in notes(view, wide) {
        write!(out, "  {note}")?;
    }
    writeln!(out)
}

fn notes(view: &EventView, wide: bool) -> Vec<String> {
    let flag = |is: Option<bool>, word: &str| is.filter(|is| *is).map(|_| word.to_owned());
    let id = |id: Option<u32>, word: &str| id.filter(|_| wide).map(|id| format!("{word}={id}"));
    [
        view.reason.map(str::to_owned),
        flag(view.local, "local"),
        flag(view.masqueraded, "masqueraded"),
        view.client_port.map(|port| format!("client port {port}")),
        id(view.service_id, "service"),
        id(view.backend_id, "backend"),
        id(view.ifindex, "ifindex"),
    ]
    .into_iter()
    .flatten()
    .collect()
}

#[cfg(test)]
mod tests {
    use proxy_common::socket::netns_addr;

    use super::*;
    use crate::monitor::test_events;

    /// Boot time: 2026-01-02 03:04:05. The event is 1.5 seconds later.
    const STARTED: i128 = 1_767_323_045_000_000_000;

    fn web() -> ServiceName {
        ServiceName { id: 3, name: "default/web".to_owned(), port_name: "http".to_owned() }
    }

    fn line(view: &EventView, wide: bool, colour: bool) -> String {
        let mut out = Vec::new();
        print_event_into(&mut out, view, wide, colour).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn a_flow_in_one_line() {
        let view = EventView::new(&test_events::flow(), STARTED, Some(&web()), Some("veth1"));
        assert_eq!(
            line(&view, false, false),
            "03:04:06.500000Z  flow     ingress veth1        TCP  10.0.0.1:4000 -> 10.68.0.10:80 default/web:http -> \
             172.20.1.2:8080  masqueraded\n"
        );
        let other_port =
            EventView::new(&FlowEvent { flags: 0, ..test_events::flow() }, STARTED, Some(&web()), None);
        assert!(line(&other_port, false, false).ends_with("  client port 5000\n"));
        let wide = line(&view, true, true);
        assert!(wide.starts_with("2026-01-02T03:04:06.500000Z  \x1b[32mflow   \x1b[0m  "), "{wide:?}");
        assert!(wide.ends_with("  service=3  backend=7  ifindex=4\n"), "{wide}");
    }

    #[test]
    fn a_refused_connect_of_a_process() {
        let mut event = test_events::refused();
        let named = b"cu\x1brl";
        event.comm[..named.len()].copy_from_slice(named);
        let view = EventView::new(&FlowEvent { src: netns_addr(31), ..event }, STARTED, None, None);
        assert_eq!(
            line(&view, false, false),
            "03:04:06.500000Z  refused  socket               TCP  cu?rl[4242] netns:31 -> 10.68.0.10:80  no_backend\n"
        );
        assert_eq!(
            serde_json::to_value(&view).unwrap(),
            serde_json::json!({
                "time": "2026-01-02T03:04:06.500000Z", "kind": "refused", "hook": "socket", "device": null,
                "protocol": "TCP", "client": "netns:31", "vip": "10.68.0.10:80", "service": null, "port_name": null,
                "backend": null, "local": null, "masqueraded": null, "client_port": null, "reason": "no_backend",
                "pid": 4242, "process": "cu\u{1b}rl", "service_id": null, "backend_id": null, "ifindex": null,
            })
        );
    }

    #[test]
    fn a_ping_has_no_ports_and_unknown_numbers_do_not_panic() {
        let ping = FlowEvent { proto: Proto::ICMP, kind: 9, hook: 9, reason: 99, ..test_events::refused() };
        let view = EventView::new(&ping, i128::MAX / 2, None, None);
        assert_eq!((&*view.client, &*view.vip), ("10.0.0.1", "10.68.0.10"));
        assert_eq!((view.kind, view.hook, view.reason), ("unknown", "unknown", Some("unknown")));
    }
}
