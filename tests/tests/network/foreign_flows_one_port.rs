//! One source port of a node towards one backend is used by two flows: one of a process of the node or of a pod
//! masqueraded by the CNI, and one that shunt translates for an outside NodePort client. In either order both work, and
//! neither receives the other's replies.

use std::{io, net::SocketAddr, time::Duration};

use anyhow::Result;
use nix::sys::socket::{setsockopt, sockopt};
use tests::{
    manifest::{Endpoint, Service},
    net::{
        Plan, Proxy,
        plan::{BOTH, Family, PODS_V4, PODS_V6, node_addr, vip},
    },
    traffic::{Answer, Client, Stream, UdpClient},
};

use crate::{
    foreign_world::{Foreign, Losses, on_both_wirings},
    world::{PORT, TARGET, World, at},
};

const PATIENCE: Duration = Duration::from_millis(700);

/// NodePorts of a Service whose backend is a pod of the other node, and of one whose backend is the other node itself.
const TO_POD: u16 = 30_081;
const TO_NODE: u16 = 30_082;

fn services(world: &World) -> Vec<Service> {
    let node = world.cluster.node(1);
    vec![
        Service::new("far", vip(43)).node_port(PORT, TARGET, TO_POD).pods(&[&world.far]),
        Service::new("host", vip(44)).node_port(PORT, TARGET, TO_NODE).endpoints([Endpoint::node(node)]),
    ]
}

fn start(plan: Plan, proxy: Proxy) -> Result<Foreign> {
    let foreign = Foreign::start(plan, proxy, services)?;
    for family in BOTH {
        let node = foreign.world.cluster.node(1);
        node.serve_tcp(family, TARGET, "host")?;
        node.serve_udp(family, TARGET, "host")?;
    }
    // A pod's source keeps the pod's own port for all destinations, so that this is a port of the node too.
    foreign.world.cluster.node(0).netns().nft(&format!(
        "table inet cni-masquerade {{
            chain postrouting {{
                type nat hook postrouting priority srcnat; policy accept;
                ip saddr {PODS_V4} ip daddr != {PODS_V4} masquerade
                ip6 saddr {PODS_V6} ip6 daddr != {PODS_V6} masquerade
            }}
        }}"
    ))?;
    Ok(foreign)
}

/// The other user of the port besides the outside client: a name for messages, the client, and both paths to one
/// backend.
struct Pair {
    what: String,
    /// By the backend's own address.
    direct: (Client, SocketAddr),
    /// By the NodePort.
    outside: (Client, SocketAddr),
    backend: &'static str,
}

/// All pairs, each with a port of its own, starting at `first`.
fn pairs(foreign: &Foreign, family: Family, first: u16) -> Vec<Pair> {
    let world = &foreign.world;
    let far = (world.far.socket_addr(family, TARGET), TO_POD, "far");
    let host = (at(node_addr(1), family, TARGET), TO_NODE, "host");
    let processes = [far, host].map(|way| ("a process of the node", world.host(0), way));
    let pod = ("a masqueraded pod", world.pod(), host);
    let pair = |(nth, (who, client, (direct, node_port, backend))): (usize, (&str, Client, _))| {
        let port = first + nth as u16;
        Pair {
            what: format!("{who} and outside by port {port} -> {direct}"),
            direct: (client.port(port).patience(PATIENCE), direct),
            outside: (world.outside().port(port).patience(PATIENCE), at(node_addr(0), family, node_port)),
            backend,
        }
    };
    processes.into_iter().chain([pod]).enumerate().map(pair).collect()
}

/// Checks the replies of two clients that are active at once: each is from the backend, and the backend saw two
/// clients.
fn judge(losses: &mut Losses, what: &str, backend: &str, answers: [io::Result<Answer>; 2]) {
    let is_right = match &answers {
        [Ok(one), Ok(other)] => one.backend == backend && other.backend == backend && one.peer != other.peer,
        _ => false,
    };
    losses.note(&format!("{what}: {answers:?}"), is_right);
}

const ORDERS: [(&str, bool); 2] = [("outside comes second", false), ("outside comes first", true)];

fn connections(plan: Plan, proxy: Proxy) -> Result<()> {
    let foreign = start(plan, proxy)?;
    let mut losses = Losses::default();
    let mut first = 20_000;
    for family in BOTH {
        for (order, is_outside_first) in ORDERS {
            for pair in pairs(&foreign, family, first) {
                let mut ways = [&pair.direct, &pair.outside];
                if is_outside_first {
                    ways.reverse();
                }
                let mut streams: Vec<io::Result<Stream>> = Vec::new();
                for (client, to) in ways {
                    // The first is active when the second starts.
                    streams.push(client.connect(*to).and_then(|stream| stream.ask().map(|_| stream)));
                }
                for round in 0..3 {
                    let ask = |stream: &io::Result<Stream>| match stream {
                        Ok(stream) => stream.ask(),
                        Err(error) => Err(io::Error::new(error.kind(), format!("not connected: {error}"))),
                    };
                    let what = format!("tcp {}, {order}, round {round}", pair.what);
                    let answers = [ask(&streams[0]), ask(&streams[1])];
                    judge(&mut losses, &what, pair.backend, answers);
                }
            }
            first += 10;
        }
    }
    losses.none(&foreign)
}

fn datagrams(plan: Plan, proxy: Proxy) -> Result<()> {
    let foreign = start(plan, proxy)?;
    let mut losses = Losses::default();
    let mut first = 21_000;
    for family in BOTH {
        for (order, is_outside_first) in ORDERS {
            for pair in pairs(&foreign, family, first) {
                let mut ways = [&pair.direct, &pair.outside];
                if is_outside_first {
                    ways.reverse();
                }
                let sockets: Vec<UdpClient> =
                    ways.iter().map(|(client, to)| client.udp_connected(*to)).collect::<io::Result<_>>()?;
                // The first is active when the second starts.
                losses.note_result(&format!("udp {}, {order}, alone", pair.what), sockets[0].ask());
                for round in 0..3 {
                    let what = format!("udp {}, {order}, round {round}", pair.what);
                    // The second client's request goes first, so that a result does not depend on the most recent
                    // request.
                    let answers = [sockets[1].ask(), sockets[0].ask()];
                    judge(&mut losses, &what, pair.backend, answers);
                }
            }
            first += 10;
        }
    }
    losses.none(&foreign)
}

/// Connects, sends a request and closes with a reset, so that neither end holds the port in TIME_WAIT.
fn once(client: &Client, to: SocketAddr) -> io::Result<Answer> {
    let stream = client.connect(to)?;
    let answer = stream.ask()?;
    setsockopt(&stream, sockopt::Linger, &libc::linger { l_onoff: 1, l_linger: 0 })?;
    Ok(answer)
}

/// Each may use the port once the other has closed: a record does not outlive the use of its flow.
fn by_turns(proxy: Proxy) -> Result<()> {
    let foreign = start(Plan::default(), proxy)?;
    let mut losses = Losses::default();
    for family in BOTH {
        for pair in pairs(&foreign, family, 22_000) {
            for turn in 0..4 {
                let (client, to) = if turn % 2 == 0 { &pair.direct } else { &pair.outside };
                for (how, answer) in
                    [("tcp", once(client, *to)), ("udp", client.udp_connected(*to).and_then(|it| it.ask()))]
                {
                    let is_right = answer.as_ref().is_ok_and(|answer| answer.backend == pair.backend);
                    losses.note(&format!("{how} {}, turn {turn}: {answer:?}", pair.what), is_right);
                }
            }
        }
    }
    losses.none(&foreign)
}

#[test]
fn two_connections_by_one_port_to_one_backend() -> Result<()> {
    on_both_wirings(|plan| connections(plan, Proxy::Shunt))
}

#[test]
fn two_connections_by_one_port_to_one_backend_with_the_referee() -> Result<()> {
    on_both_wirings(|plan| connections(plan, Proxy::Referee))
}

#[test]
fn two_exchanges_of_datagrams_by_one_port_with_one_backend() -> Result<()> {
    on_both_wirings(|plan| datagrams(plan, Proxy::Shunt))
}

#[test]
fn two_exchanges_of_datagrams_by_one_port_with_one_backend_with_the_referee() -> Result<()> {
    on_both_wirings(|plan| datagrams(plan, Proxy::Referee))
}

#[test]
fn one_port_to_one_backend_by_turns() -> Result<()> {
    by_turns(Proxy::Shunt)
}

#[test]
fn one_port_to_one_backend_by_turns_with_the_referee() -> Result<()> {
    by_turns(Proxy::Referee)
}
