//! Pods whose outside traffic the CNI masquerades to a frontend's port: the reply reaches that pod, and no pod of the
//! Service receives it. The port is fixed where the number matters, and chosen by `random,fully-random` from the full
//! range where the number of flows matters.
//!
//! `SHUNT_TEST_FULL=1` sends 20,000 requests of pods and 5,000 of node processes alongside 20,000 connections to
//! Services.

use std::{
    collections::BTreeSet,
    net::SocketAddr,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use anyhow::Result;
use tests::{
    manifest::Service,
    net::{
        Netns, Plan, Proxy, cni,
        plan::{BOTH, PODS_V4, PODS_V6, node_addr, vip},
    },
    packet::model::Random,
    traffic::{Client, Stream, UdpClient},
};

use crate::{
    foreign_world::{ASKED, Foreign, Losses, NUMBERS, every_kind, is_full, on_both_wirings},
    world::{PORT, TARGET, World, at},
};

/// A reply that takes longer is lost.
const PATIENCE: Duration = Duration::from_millis(700);

/// Masquerades pods' outside traffic as a CNI does, with this source port.
fn masquerade_to(netns: &Netns, port: u16) -> Result<()> {
    netns.nft(&format!(
        "table inet forced
        delete table inet forced
        table inet forced {{
            chain postrouting {{
                type nat hook postrouting priority srcnat; policy accept;
                meta l4proto {{ tcp, udp }} ip saddr {PODS_V4} ip daddr != {PODS_V4} masquerade to :{port}
                meta l4proto {{ tcp, udp }} ip6 saddr {PODS_V6} ip6 daddr != {PODS_V6} masquerade to :{port}
            }}
        }}"
    ))
}

fn a_pods_question_is_answered(plan: Plan, proxy: Proxy) -> Result<()> {
    let foreign = Foreign::start(plan, proxy, every_kind)?;
    let node = foreign.world.cluster.node(0);
    let pod = foreign.world.pod().patience(PATIENCE);
    let mut losses = Losses::default();
    for number in NUMBERS {
        masquerade_to(node.netns(), number)?;
        for family in BOTH {
            for (name, to) in foreign.strangers(family) {
                let seen = at(node_addr(0), family, number);
                let what = format!("a pod, as {seen} -> {name} {to}");
                let stream = pod.connect(to).and_then(|stream| stream.ask());
                let is_right =
                    stream.as_ref().is_ok_and(|answer| answer.backend == name && answer.peer == seen);
                losses.note(&format!("tcp {what}: {stream:?}"), is_right);
                let answer = pod.udp_connected(to)?.ask();
                let is_right =
                    answer.as_ref().is_ok_and(|answer| answer.backend == name && answer.peer == seen);
                losses.note(&format!("udp {what}: {answer:?}"), is_right);
            }
        }
    }
    BOTH.iter().for_each(|family| foreign.all_are_served(*family, &mut losses));
    losses.none(&foreign)
}

/// A pod's flow that was open when a frontend got the port it was masqueraded to.
struct Open {
    what: String,
    stream: Stream,
    socket: UdpClient,
}

fn a_pods_open_flow_outlives_a_services_coming(plan: Plan, proxy: Proxy) -> Result<()> {
    let foreign = Foreign::start(plan, proxy, |_| Vec::new())?;
    let node = foreign.world.cluster.node(0);
    let pod = foreign.world.pod().patience(PATIENCE);
    let mut flows = Vec::new();
    for number in NUMBERS {
        masquerade_to(node.netns(), number)?;
        for family in BOTH {
            for (name, to) in foreign.strangers(family) {
                let what = format!("a pod, as node-1:{number} -> {name} {to}");
                let flow = Open { what, stream: pod.stream(to), socket: pod.udp_connected(to)? };
                assert_eq!(flow.stream.steady(2).peer, at(node_addr(0), family, number));
                assert_eq!(flow.socket.ask()?.peer, at(node_addr(0), family, number));
                flows.push(flow);
            }
        }
    }
    let mut losses = Losses::default();
    for services in [&every_kind(&foreign.world)[..], &[]] {
        foreign.apply(services)?;
        for flow in &flows {
            let what = format!("{} with {} Services", flow.what, services.len());
            losses.note_result(&format!("tcp {what}"), flow.stream.ask());
            losses.note_result(&format!("udp {what}"), flow.socket.ask());
        }
    }
    losses.none(&foreign)
}

/// Number of requests, and how many are sent at once.
struct Count {
    services: u16,
    of_pods: usize,
    of_node: usize,
    connections: usize,
}

const BATCH: usize = 100;
const FIRST_NODE_PORT: u16 = 30_000;

impl Count {
    /// In CI, enough requests that a few of the pods' use NodePorts (1 in 130 does), and a process uses each NodePort
    /// once.
    fn chosen() -> Self {
        if is_full() {
            Self { services: 500, of_pods: 20_000, of_node: 5000, connections: 20_000 }
        } else {
            Self { services: 500, of_pods: 1500, of_node: 800, connections: 1000 }
        }
    }
}

/// This many Services with a NodePort each, over both backends.
fn many(world: &World, count: u16) -> Vec<Service> {
    let service = |nth: u16| {
        let [high, low] = nth.to_be_bytes();
        let mut addr = vip(0);
        addr.v4 = [10, 68, 1 + high, low].into();
        addr.v6 = [0xfd00, 0x10, 0x68, 0, 0, 0, 0, 0x1000 + nth].into();
        Service::new(&format!("many-{nth}"), addr)
            .node_port(PORT, TARGET, FIRST_NODE_PORT + nth)
            .pods(&[&world.near, &world.far])
    };
    (0..count).map(service).collect()
}

/// Source ports for a process of node 0: all NodePorts, and then ports from the whole range, each port once.
fn ports(count: usize, services: u16) -> Vec<u16> {
    let mut random = Random::new(7);
    let mut taken: BTreeSet<u16> = (0..services).map(|nth| FIRST_NODE_PORT + nth).collect();
    let mut ports: Vec<u16> = taken.iter().copied().take(count).collect();
    while ports.len() < count {
        // The agent's own listeners use 10249 and 10256.
        let port = 1024 + random.below(64_512) as u16;
        if !(10_000..10_300).contains(&port) && taken.insert(port) {
            ports.push(port);
        }
    }
    ports
}

/// Sends requests in batches, each from a socket of its own.
fn ask(losses: &mut Losses, what: &str, sockets: Vec<(UdpClient, SocketAddr)>) {
    let (clients, whom): (Vec<_>, Vec<_>) = sockets.into_iter().unzip();
    for ((answer, client), to) in UdpClient::ask_all(&clients, PATIENCE).iter().zip(&clients).zip(whom) {
        let own = client.local_addr();
        losses.note(&format!("{what} {own:?} -> {to}: {answer:?}"), answer.is_ok());
    }
}

/// Opens connections to Services until told to stop, and until there were enough.
fn connections(foreign: &Foreign, count: usize, is_over: &AtomicBool) -> Losses {
    let mut losses = Losses::default();
    let outside = foreign.world.outside();
    let services = Count::chosen().services;
    for nth in 0.. {
        if nth >= count && is_over.load(Ordering::Relaxed) {
            break;
        }
        let family = BOTH[nth % 2];
        let to = at(node_addr(0), family, FIRST_NODE_PORT + (nth % usize::from(services)) as u16);
        note_connection(&mut losses, &outside, to);
    }
    losses
}

/// Connects, sends a request, and closes first: a server in TIME_WAIT would block the next client with that port.
fn note_connection(losses: &mut Losses, client: &Client, to: SocketAddr) {
    let answer = client.connect(to).and_then(|stream| stream.ask());
    losses.note(&format!("tcp {} -> {to}: {answer:?}", client.place().name()), answer.is_ok());
}

fn many_questions(proxy: Proxy) -> Result<()> {
    let count = Count::chosen();
    let foreign = Foreign::start(Plan::default(), proxy, |world| many(world, count.services))?;
    let node = foreign.world.cluster.node(0);
    cni::masquerade_randomly(node.netns())?;
    let (mut of_pods, mut of_node) = (Losses::default(), Losses::default());
    let is_over = AtomicBool::new(false);
    let of_services = thread::scope(|scope| -> Result<Losses> {
        let connections = scope.spawn(|| connections(&foreign, count.connections, &is_over));
        let pod = foreign.world.pod();
        let to = |nth: usize| at(foreign.world.cluster.outside_addr(), BOTH[nth % 2], ASKED);
        let asked = (|| -> Result<()> {
            for first in (0..count.of_pods).step_by(BATCH) {
                let nths = first..(first + BATCH).min(count.of_pods);
                let sockets = nths.map(|nth| Ok((pod.udp_connected(to(nth))?, to(nth))));
                ask(&mut of_pods, "a pod", sockets.collect::<Result<_>>()?);
            }
            for batch in ports(count.of_node, count.services).chunks(BATCH) {
                let socket = |(nth, port): (usize, &u16)| -> Result<_> {
                    Ok((foreign.host(*port).udp_connected(to(nth))?, to(nth)))
                };
                ask(&mut of_node, "node-1", batch.iter().enumerate().map(socket).collect::<Result<_>>()?);
            }
            Ok(())
        })();
        is_over.store(true, Ordering::Relaxed);
        asked.map(|()| connections.join().expect("the connecting thread does not panic"))
    })?;
    println!("{proxy:?}: of pods {of_pods}; of the node {of_node}; of Services {of_services}");
    of_pods.and(of_node).and(of_services).none(&foreign)
}

/// Connections of masqueraded pods, several at once from each: the TCP part of the test above.
fn many_connections(proxy: Proxy) -> Result<()> {
    let count = Count::chosen();
    let foreign = Foreign::start(Plan::default(), proxy, |world| many(world, count.services))?;
    cni::masquerade_randomly(foreign.world.cluster.node(0).netns())?;
    let all = if is_full() { 5000 } else { 1500 };
    let losses = thread::scope(|scope| {
        let asks = |half: usize| {
            let pod: Client = foreign.world.pod().patience(PATIENCE);
            let mut losses = Losses::default();
            for nth in (half..all).step_by(2) {
                let to = at(foreign.world.cluster.outside_addr(), BOTH[nth / 2 % 2], ASKED);
                note_connection(&mut losses, &pod, to);
            }
            losses
        };
        let halves = [0, 1].map(|half| scope.spawn(move || asks(half)));
        halves.map(|half| half.join().expect("a connecting thread does not panic"))
    });
    let [first, second] = losses;
    first.and(second).none(&foreign)
}

#[test]
fn a_question_of_a_pod_masqueraded_to_a_frontends_number_is_answered() -> Result<()> {
    on_both_wirings(|plan| a_pods_question_is_answered(plan, Proxy::Shunt))
}

#[test]
fn a_question_of_a_pod_masqueraded_to_a_frontends_number_is_answered_by_the_referee() -> Result<()> {
    on_both_wirings(|plan| a_pods_question_is_answered(plan, Proxy::Referee))
}

#[test]
fn an_open_flow_of_a_masqueraded_pod_outlives_a_services_coming() -> Result<()> {
    on_both_wirings(|plan| a_pods_open_flow_outlives_a_services_coming(plan, Proxy::Shunt))
}

#[test]
fn an_open_flow_of_a_masqueraded_pod_outlives_a_services_coming_with_the_referee() -> Result<()> {
    on_both_wirings(|plan| a_pods_open_flow_outlives_a_services_coming(plan, Proxy::Referee))
}

#[test]
fn of_many_questions_beside_500_node_ports_none_is_lost() -> Result<()> {
    many_questions(Proxy::Shunt)
}

#[test]
fn of_many_questions_beside_500_node_ports_none_is_lost_with_the_referee() -> Result<()> {
    many_questions(Proxy::Referee)
}

#[test]
fn of_many_connections_beside_500_node_ports_none_is_lost() -> Result<()> {
    many_connections(Proxy::Shunt)
}

#[test]
fn of_many_connections_beside_500_node_ports_none_is_lost_with_the_referee() -> Result<()> {
    many_connections(Proxy::Referee)
}
