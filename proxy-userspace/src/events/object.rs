//! An Event as an events.k8s.io/v1 object, and its API path.

use jiff::Timestamp;
use serde_json::{Value, json};

use super::event::{Event, Regarding};

/// The API server's limit.
const MAX_NOTE: usize = 1024;
const CONTROLLER: &str = "shunt";

/// Path and body of a new Event; [`name`] generates `name`.
pub fn new(event: &Event, node: &str, name: &str, now: Timestamp) -> (String, Value) {
    let mut instance = format!("{CONTROLLER}-{node}");
    instance.truncate(128);
    let regarding = match &event.regarding {
        // As in kube-proxy, the name stands for the uid: `kubectl describe node` selects by it.
        Regarding::Node => json!({"apiVersion": "v1", "kind": "Node", "name": node, "uid": node}),
        Regarding::Service { key, uid } => {
            let mut regarding = json!({"apiVersion": "v1", "kind": "Service", "namespace": &*key.namespace, "name": &*key.name});
            if let Some(uid) = uid {
                regarding["uid"] = (&**uid).into();
            }
            regarding
        }
    };
    let body = json!({
        "apiVersion": "events.k8s.io/v1",
        "kind": "Event",
        "metadata": {"name": name, "namespace": namespace(event)},
        "eventTime": micro(now),
        "reportingController": CONTROLLER,
        "reportingInstance": instance,
        "type": if event.is_warning { "Warning" } else { "Normal" },
        "reason": event.reason,
        "action": event.action,
        "note": shortened(&event.note),
        "regarding": regarding,
    });
    (collection(event), body)
}

/// Path and patch of a repeated Event.
pub fn repeated(event: &Event, name: &str, count: u32, now: Timestamp) -> (String, Value) {
    let patch = json!({"series": {"count": count, "lastObservedTime": micro(now)}});
    (format!("{}/{name}", collection(event)), patch)
}

/// A unique name, generated as in client-go.
pub fn name(event: &Event, node: &str, now: Timestamp) -> String {
    let of = match &event.regarding {
        Regarding::Node => node,
        Regarding::Service { key, .. } => &key.name,
    };
    format!("{of}.{:x}", now.as_nanosecond())
}

/// Events on cluster-scoped objects are in `default`.
fn namespace(event: &Event) -> &str {
    match &event.regarding {
        Regarding::Node => "default",
        Regarding::Service { key, .. } => &key.namespace,
    }
}

fn collection(event: &Event) -> String {
    format!("/apis/events.k8s.io/v1/namespaces/{}/events", namespace(event))
}

/// metav1.MicroTime.
fn micro(time: Timestamp) -> String {
    format!("{time:.6}")
}

fn shortened(note: &str) -> &str {
    let mut end = note.len().min(MAX_NOTE);
    while !note.is_char_boundary(end) {
        end -= 1;
    }
    &note[..end]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::ServiceKey;

    fn event(regarding: Regarding) -> Event {
        Event { regarding, is_warning: true, reason: "R", action: "A", note: "n".into() }
    }

    #[test]
    fn of_a_service_and_of_the_node() {
        let now = Timestamp::new(1_000_000_000, 123_456_789).unwrap();
        let key = ServiceKey::new("ns", "web");
        let service = event(Regarding::Service { key, uid: Some("u-1".into()) });
        let given = name(&service, "n1", now);
        assert_eq!(given, "web.de0b6b3aebfcd15");
        let (path, body) = new(&service, "n1", &given, now);
        assert_eq!(path, "/apis/events.k8s.io/v1/namespaces/ns/events");
        assert_eq!(body["eventTime"], "2001-09-09T01:46:40.123456Z");
        assert_eq!(
            body["regarding"],
            json!({"apiVersion": "v1", "kind": "Service", "namespace": "ns", "name": "web", "uid": "u-1"})
        );
        assert_eq!((&body["type"], &body["reportingInstance"]), (&"Warning".into(), &"shunt-n1".into()));
        let (path, patch) = repeated(&service, &given, 3, now);
        assert_eq!(path, format!("/apis/events.k8s.io/v1/namespaces/ns/events/{given}"));
        assert_eq!(patch["series"]["count"], 3);

        let (path, body) = new(&event(Regarding::Node), "n1", "n1.1", now);
        assert_eq!(path, "/apis/events.k8s.io/v1/namespaces/default/events");
        assert_eq!((&body["regarding"]["kind"], &body["regarding"]["uid"]), (&"Node".into(), &"n1".into()));
    }

    #[test]
    fn long_notes_end_between_characters() {
        let note = format!("a{}", "é".repeat(600));
        assert_eq!(shortened(&note).len(), 1023);
        assert_eq!(shortened("short"), "short");
    }
}
