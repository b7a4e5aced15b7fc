//! Logs when this node's Node object is missing, and when it is back: without it every endpoint counts as remote, and
//! nothing else would show the mistake. [`super::status`] updates it after each complete sync.
//!
//! Not here: what a missing Node means for load balancers ([`crate::snapshot::Snapshot::is_node_eligible`]).

/// What changed, to be logged once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// There never was one.
    Unknown,
    Gone,
    Found,
}

/// The state that was logged last.
#[derive(Debug, Default)]
pub struct NodeObject {
    is_missing: bool,
    was_known: bool,
}

impl NodeObject {
    /// `is_missing` is not the opposite of `is_known`: files need not hold any Node.
    pub fn update(&mut self, is_known: bool, is_missing: bool) -> Option<Change> {
        let was_missing = std::mem::replace(&mut self.is_missing, is_missing);
        self.was_known |= is_known;
        match (was_missing, is_missing) {
            (false, true) if self.was_known => Some(Change::Gone),
            (false, true) => Some(Change::Unknown),
            (true, false) if is_known => Some(Change::Found),
            _ => None,
        }
    }

    /// Counts as a problem.
    pub fn is_missing(&self) -> bool {
        self.is_missing
    }
}

impl Change {
    pub fn log(self, name: &str) {
        match self {
            Self::Unknown => tracing::warn!(
                "no Node is named {name}: set --node-name or NODE_NAME; until then every endpoint counts as remote"
            ),
            Self::Gone => tracing::warn!(
                "the Node {name} was deleted: its addresses, zone and pod ranges are unknown until it is created again"
            ),
            Self::Found => tracing::info!("the Node {name} exists"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        config::{CompileConfig, MapSizes},
        controller::Controller,
        model::Node,
        sources::Event,
    };

    /// The changes reported for a sequence of (is_known, is_missing).
    fn changes(states: &[(bool, bool)]) -> Vec<Option<Change>> {
        let mut node = NodeObject::default();
        states.iter().map(|(is_known, is_missing)| node.update(*is_known, *is_missing)).collect()
    }

    const KNOWN: (bool, bool) = (true, false);
    const MISSING: (bool, bool) = (false, true);
    /// Files without any Node.
    const NO_NODES: (bool, bool) = (false, false);

    #[test]
    fn each_change_is_reported_once() {
        let states = [MISSING, MISSING, KNOWN, KNOWN, MISSING, MISSING, KNOWN];
        let want = [
            Some(Change::Unknown),
            None,
            Some(Change::Found),
            None,
            Some(Change::Gone),
            None,
            Some(Change::Found),
        ];
        assert_eq!(changes(&states), want);
    }

    #[test]
    fn a_node_that_exists_from_the_start_is_not_reported() {
        assert_eq!(changes(&[KNOWN, KNOWN, MISSING]), [None, None, Some(Change::Gone)]);
    }

    #[test]
    fn files_without_nodes_miss_none() {
        assert_eq!(
            changes(&[NO_NODES, NO_NODES, MISSING, NO_NODES]),
            [None, None, Some(Change::Unknown), None]
        );
    }

    /// The changes reported after each of these events on the node `n1`; files need not hold Nodes (`optional`).
    fn changes_after(events: Vec<Event>, optional: bool) -> Vec<Option<Change>> {
        let mut controller = Controller::new("n1", CompileConfig::default(), MapSizes::default());
        let mut node = NodeObject::default();
        let update = |event| {
            controller.apply(event);
            node.update(controller.knows_node(), controller.misses_node(optional))
        };
        events.into_iter().map(update).collect()
    }

    #[test]
    fn an_api_server_always_has_nodes_and_files_may_have_none() {
        let node = |name: &str| Event::Node(Node { name: name.into(), ..Node::default() });
        let events = || vec![Event::Synced, node("n2"), node("n1"), Event::NodeGone("n1".into())];
        let (unknown, there, gone) = (Some(Change::Unknown), Some(Change::Found), Some(Change::Gone));
        assert_eq!(changes_after(events(), false), [unknown, None, there, gone]);
        assert_eq!(changes_after(events(), true), [None, unknown, there, gone]);
        let alone = vec![node("n1"), Event::NodeGone("n1".into())];
        assert_eq!(changes_after(alone, true), [None, None], "files that no longer hold a Node");
    }

    #[test]
    fn it_is_missing_until_it_is_found() {
        let mut node = NodeObject::default();
        node.update(false, true);
        assert!(node.is_missing());
        node.update(true, false);
        assert!(!node.is_missing());
    }
}
