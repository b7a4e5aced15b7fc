//! How many connections a listener serves at once, and which one ends when there are too many.
//!
//! A connection is never left waiting in the kernel's queue: a new one always gets a place, and ends the oldest connection of
//! the source that has the most. A client with many idle connections only ends its own; a request that is answered within
//! milliseconds is over long before its place is given away. The node's own clients (the kubelet's probe) have places that no
//! other host can take.

use std::{
    collections::{BTreeMap, HashMap},
    net::{IpAddr, Ipv6Addr},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::task::AbortHandle;

/// Connections at once: of the node's own clients, and of all others.
const OWN: usize = 64;
const OTHERS: usize = 256;
/// Connections at once from one other host.
const PER_SOURCE: usize = 32;

/// The connections of one listener, or of several that share their places.
#[derive(Debug, Default)]
pub struct Places(Mutex<Open>);

/// A host, as far as limits go: IPv6 hosts have a /64 to choose addresses from. `None`: the node itself.
type Source = Option<IpAddr>;

#[derive(Debug, Default)]
struct Open {
    next_id: u64,
    /// By age, the oldest first.
    connections: BTreeMap<u64, (Source, Option<AbortHandle>)>,
}

impl Places {
    /// Runs `serve` in a task of its own, which ends when its place is given to a newer connection.
    pub fn spawn(
        self: &Arc<Self>,
        local: IpAddr,
        peer: IpAddr,
        serve: impl Future<Output = ()> + Send + 'static,
    ) {
        let (id, evicted) = self.lock().enter(source(local, peer));
        if let Some(evicted) = evicted {
            evicted.abort();
        }
        let leave = Leave { places: self.clone(), id };
        let task = tokio::spawn(async move {
            let _leave = leave;
            serve.await;
        });
        // It may be over by now.
        if let Some((_, handle)) = self.lock().connections.get_mut(&id) {
            *handle = Some(task.abort_handle());
        }
    }

    fn lock(&self) -> MutexGuard<'_, Open> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Open {
    /// Takes a place; returns the connection that loses its own for it.
    fn enter(&mut self, source: Source) -> (u64, Option<AbortHandle>) {
        let evicted =
            self.surplus(source).and_then(|id| self.connections.remove(&id)).and_then(|(_, task)| task);
        let id = self.next_id;
        self.next_id += 1;
        self.connections.insert(id, (source, None));
        (id, evicted)
    }

    /// The connection that has to end before `source` can have another one.
    fn surplus(&self, source: Source) -> Option<u64> {
        let oldest_of =
            |of: Source| self.connections.iter().find(|(_, (from, _))| *from == of).map(|(id, _)| *id);
        let mut counts: HashMap<Source, usize> = HashMap::new();
        for (from, _) in self.connections.values() {
            *counts.entry(*from).or_default() += 1;
        }
        let of_source = counts.get(&source).copied().unwrap_or_default();
        let own = counts.remove(&None).unwrap_or_default();
        let others: usize = counts.values().sum();
        if source.is_none() {
            return if own < OWN { None } else { oldest_of(None) };
        }
        if of_source >= PER_SOURCE {
            return oldest_of(source);
        }
        if others < OTHERS {
            return None;
        }
        let most = counts.values().max().copied();
        let ids = self
            .connections
            .iter()
            .filter(|(_, (from, _))| from.is_some() && counts.get(from).copied() == most);
        ids.map(|(id, _)| *id).next()
    }
}

/// Leaves its place when the connection's task is dropped.
struct Leave {
    places: Arc<Places>,
    id: u64,
}

impl Drop for Leave {
    fn drop(&mut self) {
        self.places.lock().connections.remove(&self.id);
    }
}

/// Whose connection it is. A connection within the node has the same address at both ends, or a loopback one; the kernel drops
/// packets from elsewhere that claim such a source.
fn source(local: IpAddr, peer: IpAddr) -> Source {
    let (local, peer) = (local.to_canonical(), peer.to_canonical());
    if peer.is_loopback() || peer == local {
        return None;
    }
    Some(match peer {
        IpAddr::V4(_) => peer,
        IpAddr::V6(v6) => Ipv6Addr::from_bits(v6.to_bits() >> 64 << 64).into(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn who_is_the_node_itself() {
        for (local, peer) in [
            ("10.0.0.1", "127.0.0.1"),
            ("10.0.0.1", "10.0.0.1"),
            ("::ffff:10.0.0.1", "10.0.0.1"),
            ("::1", "::1"),
        ] {
            assert_eq!(source(ip(local), ip(peer)), None, "{local} {peer}");
        }
        assert_eq!(source(ip("10.0.0.1"), ip("::ffff:10.0.0.2")), Some(ip("10.0.0.2")));
        assert_eq!(source(ip("fd00::1"), ip("fd00:0:0:1::9")), Some(ip("fd00:0:0:1::")));
    }

    #[test]
    fn one_host_ends_its_own_connections_only() {
        let mut open = Open::default();
        let (a, b) = (Some(ip("192.0.2.1")), Some(ip("192.0.2.2")));
        let (of_b, _) = open.enter(b);
        for _ in 0..PER_SOURCE {
            open.enter(a);
        }
        let (first_of_a, rest) = (1, PER_SOURCE as u64 + 1);
        assert_eq!(open.surplus(a), Some(first_of_a));
        assert_eq!(open.surplus(b), None);
        open.enter(a);
        assert!(open.connections.contains_key(&of_b) && open.connections.contains_key(&rest));
        assert_eq!(open.connections.len(), PER_SOURCE + 1);
    }

    #[test]
    fn many_hosts_end_the_oldest_of_the_busiest() {
        let mut open = Open::default();
        let host = |n: u32| Some(IpAddr::from(n.to_be_bytes()));
        for n in 0..OTHERS as u32 - 1 {
            open.enter(host(n));
        }
        // Host 7 has two, the older of which goes first; then all have one.
        open.enter(host(7));
        assert_eq!(open.surplus(host(9999)), Some(7));
        open.enter(host(9999));
        assert_eq!(open.surplus(host(9998)), Some(0));
        assert_eq!(open.connections.len(), OTHERS);
    }

    #[test]
    fn nobody_else_takes_the_nodes_places() {
        let mut open = Open::default();
        for n in 0..10_000u32 {
            open.enter(Some(IpAddr::from(n.to_be_bytes())));
        }
        let mut first = None;
        for _ in 0..OWN {
            assert_eq!(open.surplus(None), None);
            first.get_or_insert(open.enter(None).0);
        }
        assert_eq!(open.surplus(None), first);
        assert_eq!(open.connections.len(), OWN + OTHERS);
    }

    #[tokio::test]
    async fn a_connection_that_loses_its_place_ends() {
        let places = Arc::<Places>::default();
        let (ended, mut ends) = tokio::sync::mpsc::unbounded_channel();
        struct Told(u32, tokio::sync::mpsc::UnboundedSender<u32>);
        impl Drop for Told {
            fn drop(&mut self) {
                let _closed = self.1.send(self.0);
            }
        }
        for n in 0..=PER_SOURCE as u32 {
            let told = Told(n, ended.clone());
            places.spawn(ip("10.0.0.1"), ip("192.0.2.1"), async move {
                let _told = told;
                std::future::pending::<()>().await;
            });
        }
        assert_eq!(ends.recv().await, Some(0));
        assert_eq!(places.lock().connections.len(), PER_SOURCE);
    }
}
