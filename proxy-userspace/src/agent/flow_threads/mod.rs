//! Two threads for existing flows and sockets: `conntrack-gc` deletes expired flows, `udp-flush` moves UDP flows off removed
//! endpoints.
//!
//! Both read large maps, which takes from milliseconds to a second: the agent's task must not wait for that, and a UDP flow
//! that must move must not wait for garbage collection. They have map handles of their own and only look up and delete
//! entries. What the ids mean only the agent's task knows; they ask it ([`Report`]).

mod conntrack_gc;
mod request;
mod sockets;
mod udp_flush;

use std::{io, sync::mpsc as sync_mpsc, thread};

use tokio::sync::mpsc;

pub use self::request::Report;
use self::request::{Maps, Order};
use crate::{
    config::{SocketLb, Timeouts},
    datapath::{conntrack_gc::udp_flush::Pair, load::Loaded},
};

/// What the threads are started with.
#[derive(Clone, Copy, Debug)]
pub struct FlowSettings {
    pub timeouts: Timeouts,
    pub hz: u32,
    pub socket_lb: SocketLb,
}

/// Both threads, as the agent sees them. They end when this is dropped.
#[derive(Debug)]
pub struct FlowThreads {
    orders: sync_mpsc::Sender<Order>,
    _alive: sync_mpsc::Sender<()>,
    reports: mpsc::UnboundedReceiver<Report>,
}

impl FlowThreads {
    /// Starts both threads. The udp-flush thread begins with a check of everything.
    pub fn start(loaded: &Loaded, settings: FlowSettings) -> io::Result<Self> {
        let FlowSettings { timeouts, hz, socket_lb } = settings;
        let (reporter, reports) = mpsc::unbounded_channel();
        let (orders, ordered) = sync_mpsc::channel();
        let (alive, is_alive) = sync_mpsc::channel();
        let maps = Maps::open(loaded, &reporter)?;
        let spawn = |name: &str| thread::Builder::new().name(name.into());
        spawn("conntrack-gc").spawn(move || conntrack_gc::run(&maps, timeouts, hz, &is_alive))?;
        let maps = Maps::open(loaded, &reporter)?;
        spawn("udp-flush").spawn(move || udp_flush::run(&maps, socket_lb, &ordered))?;
        let threads = Self { orders, _alive: alive, reports };
        threads.order(Order::FlushAll);
        Ok(threads)
    }

    /// The next report; `None` when the threads have ended, which they do only on failure.
    pub async fn report(&mut self) -> Option<Report> {
        self.reports.recv().await
    }

    /// UDP flows of these pairs must move.
    pub fn endpoints_removed(&self, pairs: &[Pair]) {
        if !pairs.is_empty() {
            self.order(Order::Flush(pairs.to_vec()));
        }
    }

    /// UDP frontends have a backend that had none before.
    pub fn udp_served(&self) {
        self.order(Order::Served);
    }

    fn order(&self, order: Order) {
        // `report` notices a thread that has ended.
        let _ended = self.orders.send(order);
    }
}
