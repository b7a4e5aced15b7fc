//! Events on the Node and on Services, as kube-proxy sends them (events.k8s.io/v1), for the owner of the object:
//! `kubectl describe` shows them.
//!
//! Best effort. [`Recorder::record`] never blocks: when the queue is full, the Event is dropped and counted; the same
//! message is in the log. One task ([`writer`]) sends the queue. With manifest files as source, Events are discarded.

mod event;
mod object;
mod writer;

use std::{fmt, sync::Arc};

use tokio::sync::mpsc;

pub use self::event::{Event, Regarding};
use self::writer::Writer;
use crate::{
    kube_client::ApiServer,
    metrics::METRICS,
    problem::{Problem, ProblemKind},
};

/// Capacity of the queue; further Events are dropped.
const QUEUE: usize = 256;

/// Queues Events for the API server; the default one discards them.
#[derive(Clone, Debug, Default)]
pub struct Recorder(Option<mpsc::Sender<Event>>);

impl Recorder {
    /// Starts the task that sends to this API server. Must be called within a runtime.
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

    /// A problem of a Service.
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

    /// An Event on this node.
    pub fn node(&self, is_warning: bool, reason: &'static str, note: impl fmt::Display) {
        let (action, note) = ("StartKubeProxy", note.to_string());
        self.record(Event { regarding: Regarding::Node, is_warning, reason, action, note });
    }
}

/// Reason and action of a problem's Event.
fn words(kind: &ProblemKind) -> (&'static str, &'static str) {
    match kind {
        ProblemKind::NoClusterIp => ("NoClusterIP", "ServeService"),
        ProblemKind::EndpointRefused { .. } => ("EndpointRefused", "ServeEndpoint"),
        ProblemKind::SourceRange { .. } | ProblemKind::NodePortSourceRange { .. } => {
            ("InvalidSourceRange", "ServeService")
        }
        ProblemKind::SctpPort { .. } | ProblemKind::SctpNodePort { .. } => {
            ("SCTPPortRefused", "ServeService")
        }
        ProblemKind::NoHealthCheckPort => ("NoHealthCheckNodePort", "Listen"),
        // kube-proxy's reason.
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
    async fn a_full_queue_drops_events() {
        let (sender, mut queue) = mpsc::channel(2);
        let recorder = Recorder(Some(sender));
        for n in 0..5 {
            recorder.node(true, "Reason", n);
        }
        assert_eq!(queue.recv().await.unwrap().note, "0");
        assert_eq!(queue.recv().await.unwrap().note, "1");
        assert!(queue.try_recv().is_err());
        // Without an API server, nothing happens.
        Recorder::default().node(false, "Starting", "");
    }
}
