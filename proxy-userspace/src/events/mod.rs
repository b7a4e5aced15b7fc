//! Events on the Node and on Services, as kube-proxy sends them (events.k8s.io/v1): what whoever owns the object should
//! know, where `kubectl describe` shows it.
//!
//! Best effort. [`Recorder::record`] never waits: what finds no room in the queue is dropped and counted, and the log has
//! said it already. One task ([`writer`]) sends what is in the queue. With files as source there is nobody to tell.

mod object;
mod writer;

use std::{fmt, sync::Arc};

use tokio::sync::mpsc;

use self::writer::Writer;
use crate::{
    metrics::METRICS,
    model::ServiceKey,
    problem::{Problem, ProblemKind},
    source::kube::ApiServer,
};

/// Events that wait for the API server; what comes while so many wait is dropped.
const QUEUE: usize = 256;

/// Something worth telling.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Event {
    pub regarding: Regarding,
    pub is_warning: bool,
    /// Why, in one word: what people search for.
    pub reason: &'static str,
    /// What was tried.
    pub action: &'static str,
    pub note: String,
}

/// The object that an event is about.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Regarding {
    /// This node.
    Node,
    Service {
        key: ServiceKey,
        uid: Option<Arc<str>>,
    },
}

/// Takes events from anybody.
#[derive(Clone, Debug, Default)]
pub struct Recorder(Option<mpsc::Sender<Event>>);

impl Recorder {
    /// Sends what is recorded to this API server. Within a runtime only.
    pub fn start(api: ApiServer, node_name: &str) -> Self {
        let (sender, queue) = mpsc::channel(QUEUE);
        tokio::spawn(Writer::new(api, node_name).run(queue));
        Self(Some(sender))
    }

    pub fn record(&self, event: Event) {
        let Some(queue) = &self.0 else { return };
        if queue.try_send(event).is_err() {
            METRICS.own.events.with_label_values(&["dropped"]).inc();
        }
    }

    /// What keeps a Service from being served as it asks.
    pub fn problem(&self, problem: &Problem, uid: Option<Arc<str>>) {
        let (reason, action) = words(&problem.kind);
        self.record(Event {
            regarding: Regarding::Service { key: problem.service.clone(), uid },
            is_warning: true,
            reason,
            action,
            note: problem.kind.to_string(),
        });
    }

    /// Something about this node.
    pub fn node(&self, is_warning: bool, reason: &'static str, note: impl fmt::Display) {
        let (action, note) = ("StartKubeProxy", note.to_string());
        self.record(Event { regarding: Regarding::Node, is_warning, reason, action, note });
    }
}

/// Reason and action of a problem's event.
fn words(kind: &ProblemKind) -> (&'static str, &'static str) {
    match kind {
        ProblemKind::NoClusterIp => ("NoClusterIP", "ServeService"),
        ProblemKind::EndpointRefused { .. } => ("EndpointRefused", "ServeEndpoint"),
        ProblemKind::SourceRange { .. } => ("InvalidSourceRange", "ServeService"),
        ProblemKind::SctpPort { .. } | ProblemKind::SctpNodePort { .. } => {
            ("SCTPPortRefused", "ServeService")
        }
        ProblemKind::NoHealthCheckPort => ("NoHealthCheckNodePort", "Listen"),
        // kube-proxy's words.
        ProblemKind::HealthCheckPort { .. } | ProblemKind::HealthCheckPortTaken { .. } => {
            ("FailedToStartServiceHealthcheck", "Listen")
        }
        ProblemKind::ExternalIps => ("ExternalIPsNotServed", "ServeService"),
        ProblemKind::FrontendTaken { .. } => ("AddressTaken", "ServeService"),
        ProblemKind::Full { .. } => ("MapFull", "ServeService"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn nobody_waits_for_a_full_queue() {
        let (sender, mut queue) = mpsc::channel(2);
        let recorder = Recorder(Some(sender));
        for n in 0..5 {
            recorder.node(true, "Reason", n);
        }
        assert_eq!(queue.recv().await.unwrap().note, "0");
        assert_eq!(queue.recv().await.unwrap().note, "1");
        assert!(queue.try_recv().is_err());
        // Nobody to tell: nothing happens.
        Recorder::default().node(false, "Starting", "");
    }
}
