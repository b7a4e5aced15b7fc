//! Foreign traffic: unrelated traffic on a cluster's nodes while a test runs. The nodes' own sockets, pods that a CNI
//! masquerades, and direct flows to backends deliberately use the port numbers of Services and of Services' clients.
//! Every reply must reach the flow it belongs to.
//!
//! [`VARIABLE`] makes every cluster of the network suite run it; [`Cluster::start_foreign_traffic`] starts it in one
//! cluster. It does not use a test's own Services, names or lowest addresses: the foreign server has a namespace of its
//! own on the underlay, and on each node foreign traffic uses the pod with the highest address.
//!
//! [`Cluster::start_foreign_traffic`]: super::Cluster::start_foreign_traffic

use std::{
    env, fmt, io,
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

use anyhow::Result;
use nix::sys::socket::{setsockopt, sockopt};

use super::{
    Netns, Node, Place, Pod,
    plan::{BOTH, Dual, Family, PODS_V4, PODS_V6},
};
use crate::traffic::{Answer, Client, Server, Stream, UdpClient};

/// `1` runs it in every test of the network suite that starts a cluster.
pub const VARIABLE: &str = "SHUNT_TEST_FOREIGN";

/// The foreign server's address on the underlay.
pub const STRANGER: Dual = Dual {
    v4: std::net::Ipv4Addr::new(192, 168, 8, 98),
    v6: std::net::Ipv6Addr::new(0xfd00, 8, 0, 0, 0, 0, 0, 0x98),
};

/// The pod for foreign traffic on each node: the highest address, which no test's pod gets.
pub(super) const POD: u8 = 254;

/// Ports of the foreign server: one for all clients, and one for masqueraded pods that use frontends' ports as source
/// ports.
const ANYBODY: u16 = 53;
const BY_NUMBER: u16 = 54;

/// NodePorts of the suites, and ports of their backends and Services.
const FIRST_NODE_PORT: u16 = 30_080;
const LAST_NODE_PORT: u16 = 30_090;
const OTHERS: [u16; 4] = [80, 443, 8080, 20_443];

/// Source ports of direct flows; the suites' NodePort clients use them too.
pub const SHARED: std::ops::Range<u16> = 20_000..20_060;

/// Interval between two requests of one client.
const PACE: Duration = Duration::from_millis(20);
/// A reply that takes longer is lost; a SYN is sent again after 1 and 3 seconds.
const PATIENCE: Duration = Duration::from_secs(5);
/// Number of failures reported in full.
const TOLD: usize = 30;

/// Whether every cluster runs foreign traffic.
pub fn is_asked_for() -> bool {
    env::var(VARIABLE).is_ok_and(|value| value == "1")
}

/// Running foreign traffic, until [`Self::finish`].
#[derive(Debug)]
pub struct ForeignTraffic {
    askers: Vec<thread::JoinHandle<()>>,
    shared: Arc<Shared>,
    servers: Vec<Server>,
    pods: Vec<Pod>,
    _stranger: Arc<Netns>,
}

#[derive(Debug, Default)]
struct Shared {
    is_over: AtomicBool,
    asked: AtomicUsize,
    lost: Mutex<Vec<String>>,
}

/// The result.
#[derive(Debug)]
pub struct Summary {
    pub asked: usize,
    /// Requests without their own reply, and replies that reached the wrong socket.
    pub lost: Vec<String>,
    pub strays: Vec<String>,
}

impl Summary {
    pub fn is_right(&self) -> bool {
        self.asked > 0 && self.lost.is_empty() && self.strays.is_empty()
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { asked, lost, strays } = self;
        write!(f, "foreign traffic: {} of {asked} lost, {} delivered elsewhere", lost.len(), strays.len())?;
        lost.iter().take(TOLD).chain(strays.iter().take(TOLD)).try_for_each(|line| write!(f, "\n  {line}"))
    }
}

impl ForeignTraffic {
    /// Starts it on these nodes, using their `pods`, with direct flows to `backends` (addresses of the harness's
    /// servers that run until the end). `stranger` is already connected to the underlay.
    pub(super) fn start(
        stranger: Arc<Netns>,
        nodes: &[Node],
        pods: Vec<Pod>,
        backends: &[Pod],
        backend_port: u16,
    ) -> Result<Self> {
        let place = Place::inside(stranger.clone());
        let mut servers = Vec::new();
        for port in [ANYBODY, BY_NUMBER] {
            let any = SocketAddr::new(Family::V6.unspecified(), port);
            servers.push(Server::tcp(&place, any, "stranger")?);
            servers.push(Server::udp(&place, any, "stranger")?);
        }
        let shared = Arc::<Shared>::default();
        let mut askers = Vec::new();
        for (node, pod) in nodes.iter().zip(&pods) {
            masquerade(node.netns(), pod.addr())?;
            let asker = |place: &Place, name: &str| Asker {
                client: Client::at(place).patience(PATIENCE),
                what: format!("{name} of {}", node.name()),
                shared: shared.clone(),
            };
            let of_node = asker(node.place(), "a socket");
            askers.push(thread::spawn(move || of_node.by_numbers()));
            let of_pod = asker(pod.place(), "a pod masqueraded anywhere");
            askers.push(thread::spawn(move || of_pod.by_any_port()));
            let of_pod = asker(pod.place(), "a pod masqueraded to a NodePort");
            askers.push(thread::spawn(move || of_pod.steadily()));
            if !backends.is_empty() {
                let of_node = asker(node.place(), "a direct flow");
                let ways = backends.iter().flat_map(|backend| {
                    BOTH.map(|family| (backend.name().to_owned(), backend.socket_addr(family, backend_port)))
                });
                let ways: Vec<_> = ways.collect();
                askers.push(thread::spawn(move || of_node.directly(&ways)));
            }
        }
        Ok(Self { askers, shared, servers, pods, _stranger: stranger })
    }

    /// Stops it and returns the result.
    pub fn finish(mut self) -> Summary {
        self.end();
        let lost = std::mem::take(&mut *self.shared.lost.lock().expect("no holder panics"));
        let of_pods = self.pods.iter().flat_map(Pod::strays);
        let strays = self.servers.iter().flat_map(Server::strays).chain(of_pods).collect();
        Summary { asked: self.shared.asked.load(Ordering::Relaxed), lost, strays }
    }

    fn end(&mut self) {
        self.shared.is_over.store(true, Ordering::Relaxed);
        for asker in self.askers.drain(..) {
            if asker.join().is_err() {
                self.shared.lost.lock().expect("no holder panics").push("an asker panicked".to_owned());
            }
        }
    }
}

impl Drop for ForeignTraffic {
    fn drop(&mut self) {
        self.end();
    }
}

/// Masquerades the pod's traffic as a CNI with `--random-fully` does, ahead of the cluster's own rules. Source ports
/// are in the NodePort range only for requests to the foreign server's second port.
fn masquerade(netns: &Netns, pod: Dual) -> Result<()> {
    let rule = |ip: &str, addr: String, pods: &str| {
        format!(
            "meta l4proto {{ tcp, udp }} {ip} saddr {addr} th dport {BY_NUMBER} \
             masquerade to :{FIRST_NODE_PORT}-{LAST_NODE_PORT}
             {ip} saddr {addr} {ip} daddr != {pods} masquerade random,fully-random\n"
        )
    };
    netns.nft(&format!(
        "table inet foreign-traffic {{
            chain postrouting {{
                type nat hook postrouting priority srcnat - 5; policy accept;
                {}
                {}
            }}
        }}",
        rule("ip", pod.v4.to_string(), PODS_V4),
        rule("ip6", pod.v6.to_string(), PODS_V6)
    ))
}

/// One thread: a client that sends requests until the end.
struct Asker {
    client: Client,
    what: String,
    shared: Arc<Shared>,
}

impl Asker {
    /// Uses each of the source ports in turn, with new sockets or with those that are open.
    fn by_numbers(self) {
        let numbers: Vec<u16> = (FIRST_NODE_PORT..=LAST_NODE_PORT).chain(OTHERS).collect();
        let ways: Vec<(u16, Family)> =
            numbers.iter().flat_map(|number| BOTH.map(|family| (*number, family))).collect();
        let mut open: Vec<Option<Open>> = ways.iter().map(|_| None).collect();
        for nth in 0.. {
            let ((number, family), slot) = (ways[nth % ways.len()], nth % ways.len());
            // A third of the sockets are replaced in each round.
            if nth / ways.len() % 3 == slot % 3 {
                open[slot] = None;
            }
            self.ask(&mut open[slot], number, ANYBODY, family);
            if self.is_over() {
                return;
            }
        }
    }

    /// Uses a different kernel-assigned port each time.
    fn by_any_port(self) {
        for nth in 0.. {
            self.ask(&mut None, 0, ANYBODY, BOTH[nth % 2]);
            if self.is_over() {
                return;
            }
        }
    }

    /// Uses a few long-lived flows, as there are few NodePorts.
    fn steadily(self) {
        let mut open: [Option<Open>; 8] = Default::default();
        for nth in 0.. {
            let slot = nth % open.len();
            self.ask(&mut open[slot], 0, BY_NUMBER, BOTH[slot % 2]);
            if self.is_over() {
                return;
            }
        }
    }

    /// Connects to backends directly, from ports that NodePort clients use too.
    fn directly(self, ways: &[(String, SocketAddr)]) {
        for nth in 0.. {
            let (name, to) = &ways[nth % ways.len()];
            let port = SHARED.start + (nth / ways.len()) as u16 % SHARED.len() as u16;
            let client = self.client.clone().port(port);
            let answers = Open::new(&client, *to).and_then(|open| open.ask());
            self.judge(&format!(":{port} -> {to}"), name, answers);
            if self.is_over() {
                return;
            }
        }
    }

    /// Sends the foreign server one request over TCP and one over UDP, over the open sockets or over new ones with this
    /// source port (0: any).
    fn ask(&self, open: &mut Option<Open>, own: u16, port: u16, family: Family) {
        let to = SocketAddr::new(STRANGER.of(family), port);
        let asked = open.take().map_or_else(|| Open::new(&self.client.clone().port(own), to), Ok);
        let answers = asked.and_then(|asked| {
            let answers = asked.ask()?;
            *open = Some(asked);
            Ok(answers)
        });
        self.judge(&format!(":{own} -> {to}"), "stranger", answers);
    }

    fn judge(&self, what: &str, name: &str, answers: io::Result<[Answer; 2]>) {
        self.shared.asked.fetch_add(2, Ordering::Relaxed);
        let wrong = match answers {
            Ok(answers) if answers.iter().all(|answer| answer.backend == name) => return,
            Ok(answers) => format!("{answers:?}"),
            Err(error) => error.to_string(),
        };
        self.shared.lost.lock().expect("no holder panics").push(format!("{} {what}: {wrong}", self.what));
    }

    fn is_over(&self) -> bool {
        thread::sleep(PACE);
        self.shared.is_over.load(Ordering::Relaxed)
    }
}

/// A connection and a connected UDP socket, with the same port if one was chosen.
struct Open {
    stream: Stream,
    socket: UdpClient,
}

impl Open {
    fn new(client: &Client, to: SocketAddr) -> io::Result<Self> {
        // A process that this one is forking holds the port's last socket until it calls exec.
        let mut tries = 0;
        let stream = loop {
            match client.connect(to) {
                Err(error) if error.kind() == io::ErrorKind::AddrNotAvailable && tries < 50 => {
                    tries += 1;
                    thread::sleep(PACE);
                }
                result => break result?,
            }
        };
        // Closed by a reset: TIME_WAIT would block the port for the next connection.
        setsockopt(&stream, sockopt::Linger, &libc::linger { l_onoff: 1, l_linger: 0 })?;
        Ok(Self { stream, socket: client.udp_connected(to)? })
    }

    fn ask(&self) -> io::Result<[Answer; 2]> {
        let told = |how: &str| {
            let how = how.to_owned();
            move |error: io::Error| io::Error::new(error.kind(), format!("{how}: {error}"))
        };
        Ok([self.stream.ask().map_err(told("tcp"))?, self.socket.ask().map_err(told("udp"))?])
    }
}
