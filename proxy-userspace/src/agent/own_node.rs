//! Says when this node's Node object is missing, and when it is there again: without it the agent works, but for another
//! node than it runs on, and nothing else would tell. [`super::telling`] asks after each complete sync.
//!
//! Not here: what an unknown node means for load balancers ([`crate::snapshot::Snapshot::is_node_eligible`]).

/// What there is to say, once for each change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum News {
    /// There never was one.
    Unknown,
    Gone,
    There,
}

/// What was said last.
#[derive(Debug, Default)]
pub struct OwnNode {
    is_missing: bool,
    was_known: bool,
}

impl OwnNode {
    /// `is_missing` is not the opposite of `is_known`: files need not hold any Node.
    pub fn look(&mut self, is_known: bool, is_missing: bool) -> Option<News> {
        let was_missing = std::mem::replace(&mut self.is_missing, is_missing);
        self.was_known |= is_known;
        match (was_missing, is_missing) {
            (false, true) if self.was_known => Some(News::Gone),
            (false, true) => Some(News::Unknown),
            (true, false) if is_known => Some(News::There),
            _ => None,
        }
    }

    /// Whether somebody should do something about it.
    pub fn is_missing(&self) -> bool {
        self.is_missing
    }
}

impl News {
    /// Logs it.
    pub fn tell(self, name: &str) {
        match self {
            Self::Unknown => tracing::warn!(
                "no Node is named {name}: give --node-name or NODE_NAME; until then every endpoint counts as remote"
            ),
            Self::Gone => tracing::warn!(
                "the Node {name} is gone: its addresses, zone and pod ranges are unknown until there is one of that name again"
            ),
            Self::There => tracing::info!("the Node {name} is there"),
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
        source::Event,
    };

    /// What is said of a node that is known, and missing, in turn.
    fn said(looks: &[(bool, bool)]) -> Vec<Option<News>> {
        let mut node = OwnNode::default();
        looks.iter().map(|(is_known, is_missing)| node.look(*is_known, *is_missing)).collect()
    }

    const KNOWN: (bool, bool) = (true, false);
    const MISSING: (bool, bool) = (false, true);
    /// Files without any Node.
    const NOBODY: (bool, bool) = (false, false);

    #[test]
    fn each_change_is_said_once() {
        let looks = [MISSING, MISSING, KNOWN, KNOWN, MISSING, MISSING, KNOWN];
        let want =
            [Some(News::Unknown), None, Some(News::There), None, Some(News::Gone), None, Some(News::There)];
        assert_eq!(said(&looks), want);
    }

    #[test]
    fn a_node_that_is_there_from_the_beginning_is_no_news() {
        assert_eq!(said(&[KNOWN, KNOWN, MISSING]), [None, None, Some(News::Gone)]);
    }

    #[test]
    fn files_without_nodes_miss_none() {
        assert_eq!(said(&[NOBODY, NOBODY, MISSING, NOBODY]), [None, None, Some(News::Unknown), None]);
    }

    /// What is said after each of these events on the node `n1`; files need not hold Nodes (`without`).
    fn said_after(events: Vec<Event>, without: bool) -> Vec<Option<News>> {
        let mut controller = Controller::new("n1", CompileConfig::default(), MapSizes::default());
        let mut node = OwnNode::default();
        let look = |event| {
            controller.apply(event);
            node.look(controller.knows_node(), controller.misses_node(without))
        };
        events.into_iter().map(look).collect()
    }

    #[test]
    fn an_api_server_always_has_nodes_and_files_may_have_none() {
        let node = |name: &str| Event::Node(Node { name: name.into(), ..Node::default() });
        let events = || vec![Event::Synced, node("n2"), node("n1"), Event::NodeGone("n1".into())];
        let (unknown, there, gone) = (Some(News::Unknown), Some(News::There), Some(News::Gone));
        assert_eq!(said_after(events(), false), [unknown, None, there, gone]);
        assert_eq!(said_after(events(), true), [None, unknown, there, gone]);
        let alone = vec![node("n1"), Event::NodeGone("n1".into())];
        assert_eq!(said_after(alone, true), [None, None], "files that hold no Node any more");
    }

    #[test]
    fn it_counts_as_long_as_it_lasts() {
        let mut node = OwnNode::default();
        node.look(false, true);
        assert!(node.is_missing());
        node.look(true, false);
        assert!(!node.is_missing());
    }
}
