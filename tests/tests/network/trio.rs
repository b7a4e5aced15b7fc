//! The three-node cluster of the tests that are named after the specification's rows: a backend on each node, a client
//! pod on the first two, one outside client. Many Services in one cluster, each with its own ClusterIP.

use std::{collections::BTreeSet, net::SocketAddr, thread, time::Duration};

use anyhow::{Context, Result};
use tests::{
    manifest::Service,
    net::{
        Cluster, Node, Plan, Pod,
        cluster::eventually,
        plan::{BOTH, Dual},
    },
    traffic::{Answer, Attempt, Client, Outcome, Tally},
};

use crate::world::{PORT, TARGET, at};

/// Time limit for an endpoint change to become visible; the test specification elsewhere allows 30 s.
pub const SOON: Duration = Duration::from_secs(1);

/// No reply within this time counts as silence: a rejection or a reply comes within milliseconds, and a lost SYN's
/// retry after a second gets the same verdict.
const SILENCE: Duration = Duration::from_millis(600);

/// Names of the three backends, by node.
pub const ALL: [&str; 3] = ["a", "b", "c"];

/// Three nodes, three servers, two clients.
pub struct Trio {
    pub servers: [Pod; 3],
    pub clients: [Pod; 2],
    pub cluster: Cluster,
}

impl Trio {
    /// Builds the cluster, applies the Services that `services` returns and starts shunt with `flags` on all nodes.
    pub fn start(plan: Plan, flags: &[&str], services: impl FnOnce(&Self) -> Vec<Service>) -> Result<Self> {
        let trio = Self::without_shunt(plan)?;
        trio.apply(&services(&trio))?;
        trio.cluster.start(flags)?;
        Ok(trio)
    }

    pub fn without_shunt(plan: Plan) -> Result<Self> {
        let cluster = Cluster::new(plan.nodes(3))?;
        let server = |node: usize| cluster.add_server(node, ALL[node], TARGET);
        Ok(Self {
            servers: [server(0)?, server(1)?, server(2)?],
            clients: [cluster.add_pod(0, "client-0")?, cluster.add_pod(1, "client-1")?],
            cluster,
        })
    }

    /// Applies exactly these Services on every node.
    pub fn apply(&self, services: &[Service]) -> Result<()> {
        let documents: Vec<_> = services.iter().map(Service::yaml).collect();
        self.cluster.apply("services.yaml", &documents.join("---\n"))
    }

    /// 80 -> 8080, TCP and UDP, over all three backends.
    pub fn service(&self, name: &str, vip: Dual) -> Service {
        self.empty(name, vip).pods(&self.servers.each_ref())
    }

    /// The same without endpoints.
    pub fn empty(&self, name: &str, vip: Dual) -> Service {
        Service::new(name, vip).tcp(PORT, TARGET).udp(PORT, TARGET)
    }

    /// The client pod of node `index`.
    pub fn pod(&self, index: usize) -> Client {
        Client::at(self.clients[index].place())
    }

    /// A process of node `index` itself.
    pub fn host(&self, index: usize) -> Client {
        Client::at(self.node(index).place())
    }

    pub fn outside(&self) -> Client {
        Client::at(self.cluster.outside())
    }

    /// A pod of this node, a process of this node, a client outside.
    pub fn everyone(&self, index: usize) -> [(&'static str, Client); 3] {
        [("a pod", self.pod(index)), ("the node", self.host(index)), ("outside", self.outside())]
    }

    pub fn node(&self, index: usize) -> &Node {
        self.cluster.node(index)
    }

    /// Routes the outside client's packets for `addr` to node `index` (node 0 by default).
    pub fn route_outside(&self, addr: Dual, index: usize) -> Result<()> {
        let via = self.node(index).addr();
        let lines = format!(
            "route replace {}/32 via {}\nroute replace {}/128 via {}\n",
            addr.v4, via.v4, addr.v6, via.v6
        );
        self.cluster.outside().netns().ip(&lines)
    }
}

/// Runs a test with routed pods, with bridged pods, and with routed pods over vxlan; prints the network configuration
/// of a failure.
pub fn on_every_wiring(test: impl Fn(Plan) -> Result<()>) -> Result<()> {
    for (name, plan) in [
        ("routed", Plan::default()),
        ("bridged", Plan::default().bridged()),
        ("vxlan", Plan::default().vxlan()),
    ] {
        // A panic's message follows this line in the test's output.
        println!("---- with {name} pods");
        test(plan).with_context(|| format!("with {name} pods"))?;
    }
    Ok(())
}

/// Both families of `addr` with `port`.
pub fn both(addr: Dual, port: u16) -> [SocketAddr; 2] {
    BOTH.map(|family| at(addr, family, port))
}

/// TCP and UDP, in this order.
pub const PROTOCOLS: [fn(&Client, SocketAddr) -> Attempt; 2] = [Client::tcp, Client::udp];

/// `2 n` new flows over TCP and UDP, `n` being the number of backends: each backend replies once over each protocol.
#[track_caller]
pub fn evenly(from: &Client, to: SocketAddr, backends: &[&str]) -> Vec<Answer> {
    let mut answers = Vec::new();
    for protocol in PROTOCOLS {
        let attempts: Vec<Attempt> = backends.iter().map(|_| protocol(from, to)).collect();
        let of_one: Vec<Answer> = attempts.iter().map(|attempt| attempt.answered()).collect();
        let replied: BTreeSet<&str> = of_one.iter().map(|answer| &*answer.backend).collect();
        if replied != backends.iter().copied().collect() {
            let all: Vec<_> = attempts.iter().map(|attempt| attempt.to_string()).collect();
            panic!("not even over {backends:?}: {all:#?}");
        }
        answers.extend(of_one);
    }
    answers
}

/// TCP and UDP are rejected at once.
#[track_caller]
pub fn refused(who: &str, from: &Client, to: SocketAddr) {
    for protocol in PROTOCOLS {
        let attempt = protocol(from, to);
        let refused = attempt.outcome == Outcome::Refused && attempt.took < Duration::from_millis(200);
        assert!(refused, "{who}: {attempt}: expected a refusal at once");
    }
}

/// TCP and UDP of all of them get no reply; they run in parallel, so that this takes one timeout.
#[track_caller]
pub fn silent(attempts: &[(Client, SocketAddr)]) {
    let ended: Vec<Attempt> = thread::scope(|scope| {
        let started: Vec<_> = attempts
            .iter()
            .flat_map(|(client, to)| {
                PROTOCOLS.map(|protocol| (client.clone().patience(SILENCE), *to, protocol))
            })
            .map(|(client, to, protocol)| scope.spawn(move || protocol(&client, to)))
            .collect();
        started.into_iter().map(|thread| thread.join().expect("an attempt does not panic")).collect()
    });
    let spoken: Vec<_> = ended
        .iter()
        .filter(|attempt| attempt.outcome != Outcome::TimedOut)
        .map(ToString::to_string)
        .collect();
    assert!(spoken.is_empty(), "expected silence: {spoken:#?}");
}

/// Waits until exactly these backends answer new connections, in turn; an empty list waits for a rejection. Fails after
/// [`SOON`].
#[track_caller]
pub fn soon(from: &Client, to: SocketAddr, backends: &[&str]) {
    let from = from.clone().patience(SILENCE);
    let settled = eventually(SOON, || {
        if backends.is_empty() {
            return from.tcp(to).outcome == Outcome::Refused;
        }
        // Two rounds: a single one may be the start of a round over more backends.
        let mut tally = Tally::default();
        for _ in 0..2 * backends.len() {
            match from.tcp(to).outcome {
                Outcome::Answered(answer) => tally.add(&answer.backend),
                _ => return false,
            }
        }
        backends.iter().all(|name| tally.count(name) == 2)
    });
    assert!(settled.is_ok(), "{to}: not answered by {backends:?} after {SOON:?}: {}", from.tcp(to));
}

/// Waits until nothing answers there any more: the result for a client depends on what is behind the address. Fails
/// after [`SOON`].
#[track_caller]
pub fn soon_unserved(from: &Client, to: SocketAddr) {
    let from = from.clone().patience(Duration::from_millis(150));
    let unserved =
        || PROTOCOLS.iter().all(|protocol| !matches!(protocol(&from, to).outcome, Outcome::Answered(_)));
    assert!(eventually(SOON, unserved).is_ok(), "{to}: still answered: {}", from.tcp(to));
}
