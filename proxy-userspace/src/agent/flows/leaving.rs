//! The leavers thread: datagrams whose backend left their Service move at once.
//!
//! Flows are forgotten, unconnected sockets choose anew, connected ones of the node itself are closed (and of pods, with
//! `--socket-lb all`, where their namespaces can be entered).

use std::{
    collections::{HashMap, HashSet},
    io,
    sync::mpsc::{Receiver, RecvTimeoutError},
    time::{Duration, Instant},
};

use bytemuck::{bytes_of, pod_read_unaligned};
use proxy_common::{Frontend, FrontendKey, FrontendKind, Port, Proto, SockKey};

use super::{Maps, Order};
use crate::{
    config::SocketLb,
    datapath::{
        collector::leavers::{self, Pair},
        nf_conntrack::{self, Translated},
        sock_diag::{self, Connected, Elsewhere, SockDiag},
    },
    metrics::METRICS,
};

/// Between two looks at the least: Services that change often are dealt with together.
const LEAST: Duration = Duration::from_millis(20);
/// A look may take up to one part in so many of the time.
const SHARE: u32 = 3;
/// A flow may begin just while its frontend is written, with the set of before: one more look after this.
const AGAIN: Duration = Duration::from_millis(200);

/// What is to be done.
#[derive(Debug, Default)]
struct Todo {
    left: HashSet<Pair>,
    any: bool,
    served: bool,
}

impl Todo {
    fn take(&mut self, order: Order) {
        match order {
            Order::Left(pairs) => self.left.extend(pairs),
            Order::Any => self.any = true,
            Order::Served => self.served = true,
        }
    }

    fn is_empty(&self) -> bool {
        self.left.is_empty() && !self.any && !self.served
    }
}

/// Carries out orders until the other end is gone.
pub fn run(maps: &Maps, socket_lb: SocketLb, orders: &Receiver<Order>) {
    let mut sockets = Sockets::new(socket_lb);
    let mut todo = Todo::default();
    // What was done in the last look, and is done once more.
    let mut again: Option<(Instant, HashSet<Pair>)> = None;
    let mut not_before = Instant::now();
    loop {
        let due = match (&again, todo.is_empty()) {
            (_, false) => Some(not_before),
            (Some((at, _)), true) => Some(*at),
            (None, true) => None,
        };
        match receive(orders, due) {
            Received::Order(order) => {
                todo.take(order);
                continue;
            }
            Received::Ended => return,
            Received::Due => {}
        }
        let began = Instant::now();
        let now = std::mem::take(&mut todo);
        let mut left = now.left.clone();
        if let Some((_, pairs)) = again.take() {
            // One that has come back meanwhile is left alone.
            left.extend(maps.ask(pairs));
        }
        if let Err(error) = look(maps, &mut sockets, left, &now) {
            tracing::warn!(%error, "moving datagrams that must leave their backend failed");
            METRICS.own.failed("flows");
        }
        if !now.left.is_empty() {
            again = Some((Instant::now() + AGAIN, now.left));
        }
        not_before = Instant::now() + LEAST.max(began.elapsed() * SHARE);
    }
}

enum Received {
    Order(Order),
    Due,
    Ended,
}

fn receive(orders: &Receiver<Order>, due: Option<Instant>) -> Received {
    let Some(due) = due else { return orders.recv().map_or(Received::Ended, Received::Order) };
    match orders.recv_timeout(due.saturating_duration_since(Instant::now())) {
        Ok(order) => Received::Order(order),
        Err(RecvTimeoutError::Timeout) => Received::Due,
        Err(RecvTimeoutError::Disconnected) => Received::Ended,
    }
}

fn look(maps: &Maps, sockets: &mut Sockets, mut left: HashSet<Pair>, todo: &Todo) -> io::Result<()> {
    let began = Instant::now();
    if todo.any {
        let mut pairs = leavers::pairs_of_flows(&maps.conntrack)?;
        for map in [&maps.sock_backend, &maps.sock_revnat] {
            leavers::sockets(map, |_, peer| {
                pairs.insert((peer.service, peer.backend));
            })?;
        }
        left.extend(maps.ask(pairs));
    }
    let has_left = |pair: Pair| left.contains(&pair);
    let (mut flows, mut released, mut stranded) = ([0, 0], 0, HashSet::new());
    if !left.is_empty() {
        flows = leavers::forget(&maps.conntrack, has_left)?;
        released = leavers::release_sockets(&maps.sock_backend, has_left)?;
        stranded = leavers::stranded(&maps.sock_revnat, has_left)?;
    }
    METRICS.proxy.reconciled(began.elapsed(), flows.map(|count| count as u64));
    let flows = flows[0] + flows[1];
    let closed = sockets.close(maps, &stranded, todo.served || todo.any);
    if flows + released + closed > 0 {
        tracing::debug!(flows, released, closed, took = ?began.elapsed(), "datagrams leave their backend");
    }
    Ok(())
}

/// Connected sockets, as far as they can be closed.
struct Sockets {
    socket_lb: SocketLb,
    /// What the kernel lacks was said.
    was_said: bool,
    /// Namespaces that cannot be entered were named.
    was_named: bool,
}

impl Sockets {
    fn new(socket_lb: SocketLb) -> Self {
        Self { socket_lb, was_said: false, was_named: false }
    }

    /// Closes the connected sockets among `stranded`; with `unserved` also the node's own that were connected to a
    /// ClusterIP before it had an endpoint: the socket hooks let them, and nothing translates them any more.
    fn close(&mut self, maps: &Maps, stranded: &HashSet<SockKey>, unserved: bool) -> usize {
        if self.socket_lb == SocketLb::Off || stranded.is_empty() && !unserved {
            return 0;
        }
        let mut left: HashMap<u64, Vec<SockKey>> = HashMap::new();
        for key in stranded {
            left.entry(key.cookie).or_default().push(*key);
        }
        let closed = self.close_here(maps, &mut left, unserved).unwrap_or_else(|error| {
            if !std::mem::replace(&mut self.was_said, true) {
                tracing::warn!(
                    %error,
                    "connected UDP sockets whose backend went away cannot be closed (CONFIG_INET_DIAG_DESTROY, \
                     CONFIG_INET_UDP_DIAG): they stay with it until their owners connect anew"
                );
            }
            0
        });
        if self.socket_lb == SocketLb::All && !left.is_empty() {
            return closed + self.close_elsewhere(&mut left);
        }
        closed
    }

    fn close_here(
        &self,
        maps: &Maps,
        left: &mut HashMap<u64, Vec<SockKey>>,
        unserved: bool,
    ) -> io::Result<usize> {
        let mut diag = SockDiag::open()?;
        let mut closed = close_stranded(&mut diag, left)?;
        if unserved {
            let mut served = Vec::new();
            for socket in diag.connected_udp()? {
                if is_served_now(maps, &socket)? {
                    served.push(socket);
                }
            }
            if !served.is_empty() {
                // Those of the proxy that was here before us lead somewhere.
                let others = nf_conntrack::translated()?;
                served.retain(|socket| !others.iter().any(|flow| is_of(flow, socket)));
            }
            for socket in &served {
                closed += usize::from(diag.destroy(socket)?);
            }
        }
        Ok(closed)
    }

    fn close_elsewhere(&mut self, left: &mut HashMap<u64, Vec<SockKey>>) -> usize {
        let mut closed = 0;
        let result = sock_diag::elsewhere(|mut diag| {
            closed += close_stranded(&mut diag, left)?;
            Ok(!left.is_empty())
        });
        let trouble = match result {
            // None at all: this process sees its own container's processes only.
            Ok(Elsewhere { entered: 0, closed: 0 }) if !left.is_empty() => {
                Some("no other network namespace is to be seen".to_owned())
            }
            Ok(Elsewhere { closed: 0, .. }) => None,
            Ok(Elsewhere { closed, .. }) => Some(format!("{closed} network namespaces cannot be entered")),
            Err(error) => Some(error.to_string()),
        };
        if let Some(trouble) = trouble
            && !std::mem::replace(&mut self.was_named, true)
        {
            tracing::warn!(
                "pods' connected UDP sockets stay with a backend that went away until their owners connect anew: \
                 {trouble} (this needs the host's /proc and CAP_SYS_ADMIN)"
            );
        }
        closed
    }
}

/// Closes those of `left` that are in this namespace, and takes them from it.
fn close_stranded(diag: &mut SockDiag, left: &mut HashMap<u64, Vec<SockKey>>) -> io::Result<usize> {
    let mut closed = 0;
    if left.is_empty() {
        return Ok(0);
    }
    for socket in diag.connected_udp()? {
        let sends_there = |key: &SockKey| (key.addr, key.port) == (socket.peer, socket.port);
        let is_stranded = left.get(&socket.cookie).is_some_and(|keys| keys.iter().any(sends_there));
        if is_stranded {
            closed += usize::from(diag.destroy(&socket)?);
            left.remove(&socket.cookie);
        }
    }
    Ok(closed)
}

/// Whether netfilter translates what the socket sends.
fn is_of(flow: &Translated, socket: &Connected) -> bool {
    let (peer, port) = (socket.peer, socket.port);
    flow.proto == Proto::UDP && flow.frontend == (peer, port) && flow.client.1 == socket.local_port()
}

/// Whether the socket is connected to a ClusterIP that has a backend for it.
fn is_served_now(maps: &Maps, socket: &Connected) -> io::Result<bool> {
    let key = FrontendKey::new(socket.peer, socket.port, Proto::UDP);
    if socket.port == Port::ZERO {
        return Ok(false);
    }
    let Some(value) = maps.frontends.lookup(bytes_of(&key))? else { return Ok(false) };
    let frontend: Frontend = pod_read_unaligned(&value);
    let count = if frontend.has(Frontend::LOCAL) { frontend.local_count } else { frontend.cluster_count };
    // A load balancer's address may be reached without us.
    Ok(frontend.kind == FrontendKind::ClusterIp as u32 && frontend.has(Frontend::HAS_ENDPOINTS) && count > 0)
}
