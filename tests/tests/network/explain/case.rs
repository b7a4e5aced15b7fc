//! A case: explained first, then tried, and both compared.

use std::{
    net::{IpAddr, SocketAddr},
    sync::atomic::{AtomicU16, Ordering},
    time::Duration,
};

use anyhow::Result;
use serde_json::Value;
use tests::{
    net::{
        Node,
        plan::{Family, OUTSIDE},
    },
    traffic::{Client, Outcome},
};

use crate::trio::Trio;

pub const ANYONE: &[&str] = &["a", "b", "c"];

/// No reply within this time counts as silence.
pub const SILENCE: Duration = Duration::from_millis(600);

/// The expected result of a case, known without shunt: both the explanation and the packet must match it.
pub enum Expected<'a> {
    /// A reply of one of these backends. It sees the client's own address or one of the node's; `None`: the client's
    /// own if the backend is on this node.
    Answered {
        by: &'a [&'a str],
        own_source: Option<bool>,
    },
    /// A reply of a server that received the packet untranslated.
    Untouched(&'a str),
    Refused(&'static str),
    Dropped(&'static str),
}

/// A source and a destination, and the socket for the test.
pub struct Case<'a> {
    name: &'a str,
    node: &'a Node,
    from: Client,
    source: IpAddr,
    to: SocketAddr,
    protocol: &'static str,
}

/// Unused source ports: a new flow each time.
pub fn next_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(21_000);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

impl Case<'_> {
    pub fn udp(self) -> Self {
        Self { protocol: "udp", ..self }
    }

    /// Explains, tries and compares; returns the explanation.
    pub fn is(self, expected: &Expected<'_>) -> Result<Value> {
        let port = next_port();
        let source = SocketAddr::new(self.source, port);
        let words = [source.to_string(), format!("{}/{}", self.to, self.protocol)];
        let told = self.node.shunt_json(&["explain", &words[0], &words[1]])?;
        let client = self.from.port(port).patience(SILENCE);
        let attempt = if self.protocol == "udp" { client.udp(self.to) } else { client.tcp(self.to) };
        let name = self.name;
        let shown = || format!("{name}: {attempt}\n{told:#}");
        let (verdict, reason) = match expected {
            Expected::Answered { by, own_source } => {
                let Outcome::Answered(answer) = &attempt.outcome else { panic!("{}", shown()) };
                assert!(by.contains(&&*answer.backend), "{}", shown());
                let own_source = own_source.unwrap_or(answer.backend == "a");
                assert_eq!(answer.peer.ip() == self.source, own_source, "{}", shown());
                agrees(&told, &answer.backend, answer.peer, &shown);
                ("translated", Value::Null)
            }
            Expected::Untouched(by) => {
                let Outcome::Answered(answer) = &attempt.outcome else { panic!("{}", shown()) };
                assert_eq!((&*answer.backend, answer.peer), (*by, source), "{}", shown());
                assert!(told["rewrites"].as_array().is_some_and(Vec::is_empty), "{}", shown());
                ("untouched", Value::Null)
            }
            Expected::Refused(reason) => {
                assert_eq!(attempt.outcome, Outcome::Refused, "{}", shown());
                ("refused", Value::from(*reason))
            }
            Expected::Dropped(reason) => {
                assert_eq!(attempt.outcome, Outcome::TimedOut, "{}", shown());
                ("dropped", Value::from(*reason))
            }
        };
        assert_eq!((&told["verdict"], &told["reason"]), (&Value::from(verdict), &reason), "{}", shown());
        println!("{name}: {}", attempt);
        Ok(told)
    }
}

/// The explained backend is the one that replied, and it saw the explained source.
#[track_caller]
pub fn agrees(told: &Value, backend: &str, peer: SocketAddr, shown: &dyn Fn() -> String) {
    let node = format!("node-{}", 1 + ["a", "b", "c"].iter().position(|name| *name == backend).unwrap_or(9));
    assert_eq!(told["backend"]["node"], node, "{}", shown());
    let text = told["outcome"]["source"].as_str().unwrap_or_default();
    let source: SocketAddr = text.parse().unwrap_or_else(|_| panic!("{}", shown()));
    assert_eq!(source.ip(), peer.ip(), "{}", shown());
    if told["outcome"]["any_source_port"] == false {
        assert_eq!(source.port(), peer.port(), "{}", shown());
    }
}

/// The cases of one cluster.
pub struct Cases<'a>(pub &'a Trio);

impl<'a> Cases<'a> {
    pub fn of(&self, name: &'a str, from: Client, source: IpAddr, to: SocketAddr) -> Case<'a> {
        Case { name, node: self.0.node(0), from, source, to, protocol: "tcp" }
    }

    pub fn pod(&self, name: &'a str, to: SocketAddr) -> Case<'a> {
        let source = self.0.clients[0].addr();
        self.of(name, self.0.pod(0), source.of(family_of(to)), to)
    }

    pub fn host(&self, name: &'a str, to: SocketAddr) -> Case<'a> {
        self.of(name, self.0.host(0), self.0.node(0).addr().of(family_of(to)), to)
    }

    pub fn outside(&self, name: &'a str, to: SocketAddr) -> Case<'a> {
        self.of(name, self.0.outside(), OUTSIDE.of(family_of(to)), to)
    }
}

pub fn family_of(at: SocketAddr) -> Family {
    if at.is_ipv4() { Family::V4 } else { Family::V6 }
}
