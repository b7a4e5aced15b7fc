//! The udp-flush thread: UDP flows and sockets whose backend left their Service move at once.
//!
//! Flows are deleted, unconnected sockets choose a backend again, connected sockets are closed ([`super::sockets`]).

use std::{
    collections::HashSet,
    io,
    sync::mpsc::{Receiver, RecvTimeoutError},
    time::{Duration, Instant},
};

use super::{
    request::{Maps, Order},
    sockets::Sockets,
};
use crate::{
    config::SocketLb,
    datapath::conntrack_gc::udp_flush::{self, Pair},
    metrics::METRICS,
};

/// Minimum between two passes: frequent changes are handled together.
const MIN_PAUSE: Duration = Duration::from_millis(20);
/// A pass may take up to this fraction of the time (one part in...).
const SHARE: u32 = 3;
/// A flow may begin with the old set while its frontend is being written: one more pass after this.
const SECOND_PASS: Duration = Duration::from_millis(200);

/// Orders collected for the next pass.
#[derive(Debug, Default)]
struct Work {
    removed: HashSet<Pair>,
    all: bool,
    served: bool,
}

impl Work {
    fn take(&mut self, order: Order) {
        match order {
            Order::Flush(pairs) => self.removed.extend(pairs),
            Order::FlushAll => self.all = true,
            Order::Served => self.served = true,
        }
    }

    fn is_empty(&self) -> bool {
        self.removed.is_empty() && !self.all && !self.served
    }
}

/// Carries out orders until the other end of the channel is dropped.
pub fn run(maps: &Maps, socket_lb: SocketLb, orders: &Receiver<Order>) {
    let mut sockets = Sockets::new(socket_lb);
    let mut work = Work::default();
    // Pairs of the last pass, which get a second one.
    let mut second_pass: Option<(Instant, HashSet<Pair>)> = None;
    let mut not_before = Instant::now();
    loop {
        let due = match (&second_pass, work.is_empty()) {
            (_, false) => Some(not_before),
            (Some((at, _)), true) => Some(*at),
            (None, true) => None,
        };
        match receive(orders, due) {
            Received::Order(order) => {
                work.take(order);
                continue;
            }
            Received::Ended => return,
            Received::Due => {}
        }
        let began = Instant::now();
        let now = std::mem::take(&mut work);
        let mut removed = now.removed.clone();
        if let Some((_, pairs)) = second_pass.take() {
            // An endpoint may have come back in the meantime.
            removed.extend(maps.removed_of(pairs));
        }
        if let Err(error) = pass(maps, &mut sockets, removed, &now) {
            tracing::warn!(%error, "moving UDP flows off removed endpoints failed");
            METRICS.own.failed("flows");
        }
        if !now.removed.is_empty() {
            second_pass = Some((Instant::now() + SECOND_PASS, now.removed));
        }
        not_before = Instant::now() + MIN_PAUSE.max(began.elapsed() * SHARE);
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

fn pass(maps: &Maps, sockets: &mut Sockets, mut removed: HashSet<Pair>, work: &Work) -> io::Result<()> {
    let began = Instant::now();
    if work.all {
        let mut pairs = udp_flush::pairs_of_flows(&maps.conntrack)?;
        for map in [&maps.sock_backend, &maps.sock_revnat] {
            udp_flush::sockets(map, |_, peer| {
                pairs.insert((peer.service, peer.backend));
            })?;
        }
        removed.extend(maps.removed_of(pairs));
    }
    let is_removed = |pair: Pair| removed.contains(&pair);
    let (mut flows, mut released, mut stale) = ([0, 0], 0, HashSet::new());
    if !removed.is_empty() {
        flows = udp_flush::flush(&maps.conntrack, is_removed)?;
        released = udp_flush::release_sockets(&maps.sock_backend, is_removed)?;
        stale = udp_flush::stale_sockets(&maps.sock_revnat, is_removed)?;
    }
    METRICS.proxy.reconciled(began.elapsed(), flows.map(|count| count as u64));
    let flows = flows[0] + flows[1];
    let closed = sockets.close(maps, &stale, work.served || work.all);
    if flows + released + closed > 0 {
        tracing::debug!(flows, released, closed, took = ?began.elapsed(), "UDP flows moved off removed endpoints");
    }
    Ok(())
}
