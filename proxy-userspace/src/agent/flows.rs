//! Flows and sockets after they began, on two threads of their own: the *collector* removes what has expired, the
//! *leavers* thread moves datagrams whose backend left their Service.
//!
//! Both read large maps, which takes from milliseconds to a second; the agent's task must not wait for that, and a UDP
//! flow that must move must not wait for the collector. They hold handles of their own on CONNTRACK and the SOCK_*
//! maps and do nothing to them but look and delete; everything else they know they ask the agent's task, which alone
//! knows what the ids mean ([`Report`]).

mod collecting;
mod leaving;

use std::{
    collections::HashSet,
    io,
    os::fd::OwnedFd,
    sync::mpsc as sync_mpsc,
    thread,
    time::{Duration, Instant},
};

use proxy_common::map;
use tokio::sync::mpsc;

use crate::{
    bpf::map::RawMap,
    config::{SocketLb, Timeouts},
    controller::InUse,
    datapath::{collector::leavers::Pair, load::Loaded},
};

/// How long a thread waits for the agent's task, which may be writing all maps anew.
const PATIENCE: Duration = Duration::from_secs(30);

/// What the threads tell or ask the agent's task.
#[derive(Debug)]
pub enum Report {
    /// Which of these pairs have come apart? They are taken from the maps.
    Ask { pairs: HashSet<Pair>, answer: sync_mpsc::SyncSender<HashSet<Pair>> },
    /// The ids that flows name, as read since `began`.
    Looked { began: Instant, in_use: InUse },
}

/// What the leavers thread is told.
#[derive(Debug)]
enum Order {
    /// These came apart.
    Left(Vec<Pair>),
    /// Any may have: the agent was away.
    Any,
    /// UDP frontends can be served that could not be before.
    Served,
}

/// Both threads, as the agent sees them. They end when this is dropped.
#[derive(Debug)]
pub struct Flows {
    orders: sync_mpsc::Sender<Order>,
    _alive: sync_mpsc::Sender<()>,
    reports: mpsc::UnboundedReceiver<Report>,
}

/// What a thread needs: handles of its own.
#[derive(Debug)]
struct Maps {
    conntrack: RawMap,
    sock_backend: RawMap,
    sock_revnat: RawMap,
    frontends: RawMap,
    /// The program that tells the clock of the maps.
    clock: OwnedFd,
    reports: mpsc::UnboundedSender<Report>,
}

impl Maps {
    fn of(loaded: &Loaded, reports: &mpsc::UnboundedSender<Report>) -> io::Result<Self> {
        let open = |name| loaded.store.map(name).map_err(io::Error::other)?.try_clone();
        Ok(Self {
            conntrack: open(map::CONNTRACK)?,
            sock_backend: open(map::SOCK_BACKEND)?,
            sock_revnat: open(map::SOCK_REVNAT)?,
            frontends: open(map::FRONTENDS)?,
            clock: loaded.program("clock").map_err(io::Error::other)?.try_clone_to_owned()?,
            reports: reports.clone(),
        })
    }

    /// Which of `pairs` have come apart. Nothing, when the agent does not answer: it is going down.
    fn ask(&self, pairs: HashSet<Pair>) -> HashSet<Pair> {
        if pairs.is_empty() {
            return pairs;
        }
        let (answer, answers) = sync_mpsc::sync_channel(1);
        let asked = self.reports.send(Report::Ask { pairs, answer });
        asked.ok().and_then(|()| answers.recv_timeout(PATIENCE).ok()).unwrap_or_default()
    }
}

impl Flows {
    /// Starts both threads. The first thing the leavers thread does is to look at everything.
    pub fn start(loaded: &Loaded, timeouts: Timeouts, hz: u32, sockets: SocketLb) -> io::Result<Self> {
        let (reporter, reports) = mpsc::unbounded_channel();
        let (orders, ordered) = sync_mpsc::channel();
        let (alive, is_alive) = sync_mpsc::channel();
        let maps = Maps::of(loaded, &reporter)?;
        let spawn = |name: &str| thread::Builder::new().name(name.into());
        spawn("collector").spawn(move || collecting::run(&maps, timeouts, hz, &is_alive))?;
        let maps = Maps::of(loaded, &reporter)?;
        spawn("leavers").spawn(move || leaving::run(&maps, sockets, &ordered))?;
        let flows = Self { orders, _alive: alive, reports };
        flows.order(Order::Any);
        Ok(flows)
    }

    /// What a thread tells or asks; `None` when they have ended, which they do not by themselves.
    pub async fn report(&mut self) -> Option<Report> {
        self.reports.recv().await
    }

    /// Datagrams of these pairs are to move.
    pub fn left(&self, pairs: Vec<Pair>) {
        if !pairs.is_empty() {
            self.order(Order::Left(pairs));
        }
    }

    /// UDP frontends can be served that could not be before.
    pub fn served(&self) {
        self.order(Order::Served);
    }

    fn order(&self, order: Order) {
        // A thread that has ended is noticed by `report`.
        let _ended = self.orders.send(order);
    }
}
