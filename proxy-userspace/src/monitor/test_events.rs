//! Events for the unit tests of this module.

use std::net::Ipv4Addr;

use bytemuck::Zeroable as _;
use proxy_common::{Addr, Counter, EventKind, FlowEvent, Hook, Port, Proto};

fn addr(a: u8, b: u8, c: u8, d: u8) -> Addr {
    Ipv4Addr::new(a, b, c, d).into()
}

pub fn flow() -> FlowEvent {
    FlowEvent {
        time: 1_500_000_000,
        src: addr(10, 0, 0, 1),
        dst: addr(10, 68, 0, 10),
        to: addr(172, 20, 1, 2),
        sport: Port::new(4000),
        dport: Port::new(80),
        to_port: Port::new(8080),
        client_port: Port::new(5000),
        proto: Proto::TCP,
        kind: EventKind::Flow as u8,
        hook: Hook::Ingress as u8,
        flags: FlowEvent::MASQUERADED,
        service: 3,
        backend: 7,
        ifindex: 4,
        ..FlowEvent::zeroed()
    }
}

/// An event of a socket.
pub fn refused() -> FlowEvent {
    FlowEvent {
        to: Addr::UNSPECIFIED_V6,
        to_port: Port::ZERO,
        client_port: Port::ZERO,
        kind: EventKind::Refused as u8,
        hook: Hook::Socket as u8,
        reason: Counter::NoBackend as u32,
        flags: 0,
        service: 0,
        backend: 0,
        ifindex: 0,
        pid: 4242,
        ..flow()
    }
}
