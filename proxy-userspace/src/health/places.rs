//! How many connections a listener serves at once, and which one ends when there are too many.
//!
//! A connection is never left waiting in the kernel's queue: a new one always gets a place. When there are many, the oldest one
//! that has lasted a second ends; a request is answered within milliseconds. In a flood whose connections are all younger, there
//! are more places, and then the oldest connection of the source that has the most ends. The node's own clients (the kubelet's
//! probe) have places that no other host can take.

use std::{
    collections::{BTreeMap, HashMap},
    net::{IpAddr, Ipv6Addr},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use tokio::task::AbortHandle;

/// Places of the node's own clients, and of all others.
const OWN: Limits = Limits { usual: 64, most: 256 };
const OTHERS: Limits = Limits { usual: 256, most: 1024 };
/// How long a connection keeps its place, but in a flood.
const GRACE: Duration = Duration::from_secs(1);

struct Limits {
    /// From here on connections older than [`GRACE`] give way.
    usual: usize,
    /// From here on younger ones do, too.
    most: usize,
}

/// The connections of one listener, or of several that share their places.
#[derive(Debug, Default)]
pub struct Places(Mutex<Open>);

/// A host, as far as limits go: IPv6 hosts have a /64 to choose addresses from. `None`: the node itself.
type Source = Option<IpAddr>;

#[derive(Debug, Default)]
struct Open {
    next_id: u64,
    /// By age, the oldest first.
    connections: BTreeMap<u64, Connection>,
}

#[derive(Debug)]
struct Connection {
    source: Source,
    since: Instant,
    /// Set once the task runs.
    task: Option<AbortHandle>,
}

impl Places {
    /// Runs `serve` in a task of its own, which ends when its place is given to a newer connection.
    pub fn spawn(
        self: &Arc<Self>,
        local: IpAddr,
        peer: IpAddr,
        serve: impl Future<Output = ()> + Send + 'static,
    ) {
        let (id, evicted) = self.lock().enter(source(local, peer), Instant::now());
        if let Some(evicted) = evicted {
            evicted.abort();
        }
        let leave = Leave { places: self.clone(), id };
        let task = tokio::spawn(async move {
            let _leave = leave;
            serve.await;
        });
        match self.lock().connections.get_mut(&id) {
            Some(connection) => connection.task = Some(task.abort_handle()),
            // It is over, or has lost its place already.
            None => task.abort(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Open> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Open {
    /// Takes a place; returns the connection that loses its own for it.
    fn enter(&mut self, source: Source, now: Instant) -> (u64, Option<AbortHandle>) {
        let evicted = self.surplus(source, now).and_then(|id| self.connections.remove(&id));
        let id = self.next_id;
        self.next_id += 1;
        self.connections.insert(id, Connection { source, since: now, task: None });
        (id, evicted.and_then(|connection| connection.task))
    }

    /// The connection that has to end before `source` can have another one.
    fn surplus(&self, source: Source, now: Instant) -> Option<u64> {
        let limits = if source.is_none() { OWN } else { OTHERS };
        let peers = || self.connections.iter().filter(|(_, peer)| peer.source.is_none() == source.is_none());
        let count = peers().count();
        if count < limits.usual {
            return None;
        }
        let (oldest, connection) = peers().next()?;
        if now.duration_since(connection.since) >= GRACE {
            return Some(*oldest);
        }
        if count < limits.most {
            return None;
        }
        let mut counts: HashMap<Source, usize> = HashMap::new();
        for (_, peer) in peers() {
            *counts.entry(peer.source).or_default() += 1;
        }
        let most = counts.values().max();
        peers().find(|(_, peer)| counts.get(&peer.source) == most).map(|(id, _)| *id)
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

    fn host(n: u32) -> Source {
        Some(IpAddr::from(n.to_be_bytes()))
    }

    #[test]
    fn a_connection_within_the_node_is_the_nodes_own() {
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
    fn silent_connections_give_way_to_requests() {
        let (mut open, start) = (Open::default(), Instant::now());
        for n in 0..OTHERS.usual as u32 {
            open.enter(host(n), start);
        }
        // Connections of one host that overlap: each takes the place of a silent one.
        let later = start + GRACE;
        for expected in 0..10 {
            assert_eq!(open.surplus(host(9999), later), Some(expected));
            open.enter(host(9999), later);
        }
        assert_eq!(open.connections.len(), OTHERS.usual);
    }

    #[test]
    fn a_burst_of_probes_ends_none() {
        let (mut open, now) = (Open::default(), Instant::now());
        for _ in 0..OTHERS.most {
            assert_eq!(open.surplus(host(1), now), None);
            open.enter(host(1), now);
        }
    }

    #[test]
    fn in_a_flood_the_busiest_host_gives_way() {
        let (mut open, now) = (Open::default(), Instant::now());
        open.enter(host(7), now);
        for _ in 1..OTHERS.most {
            open.enter(host(8), now);
        }
        assert_eq!(open.surplus(host(9), now), Some(1), "the oldest of host 8");
    }

    #[test]
    fn other_hosts_leave_the_nodes_places_free() {
        let (mut open, now) = (Open::default(), Instant::now());
        for n in 0..10_000 {
            open.enter(host(n), now);
        }
        let mut first = None;
        for _ in 0..OWN.most {
            assert_eq!(open.surplus(None, now), None);
            first.get_or_insert(open.enter(None, now).0);
        }
        assert_eq!(open.surplus(None, now), first);
        assert_eq!(open.connections.len(), OWN.most + OTHERS.most);
    }

    #[tokio::test]
    async fn a_connection_that_loses_its_place_ends() {
        let places = Arc::<Places>::default();
        let (ended, mut ends) = tokio::sync::mpsc::unbounded_channel();
        struct Told(usize, tokio::sync::mpsc::UnboundedSender<usize>);
        impl Drop for Told {
            fn drop(&mut self) {
                let _closed = self.1.send(self.0);
            }
        }
        for n in 0..=OTHERS.most {
            let told = Told(n, ended.clone());
            places.spawn(ip("10.0.0.1"), ip("192.0.2.1"), async move {
                let _told = told;
                std::future::pending::<()>().await;
            });
        }
        assert_eq!(ends.recv().await, Some(0));
        assert_eq!(places.lock().connections.len(), OTHERS.most);
    }
}
