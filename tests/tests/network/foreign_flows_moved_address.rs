//! A pod's address is reassigned to a pod of another Service while an unanswered flow still refers to it. A client that
//! connects to the first Service again, from the same port, reaches a pod of the first Service.
//!
//! nf_conntrack fails here as described in FLOWS.md, so there is no comparison with the reference.

use std::{io, net::SocketAddr, time::Duration};

use anyhow::{Result, ensure};
use tests::{
    manifest::Service,
    net::{
        Plan, Pod, Proxy,
        plan::{BOTH, Family, node_addr, vip},
    },
    traffic::{Answer, Client, UdpClient},
};

use crate::{
    foreign_world::{Foreign, Losses, on_both_wirings},
    world::{PORT, TARGET, at},
};

const FIRST: u8 = 45;
const SECOND: u8 = 46;
const FIRST_NODE_PORT: u16 = 30_085;

/// Long enough for a reply, and short enough that a SYN is not sent twice.
const PATIENCE: Duration = Duration::from_millis(700);

fn first(pods: &[&Pod]) -> Service {
    Service::new("first", vip(FIRST)).node_port(PORT, TARGET, FIRST_NODE_PORT).pods(pods)
}

fn second(pods: &[&Pod]) -> Service {
    Service::new("second", vip(SECOND)).tcp(PORT, TARGET).udp(PORT, TARGET).pods(pods)
}

/// A pod that drops all input: it exists, but packets to it get no reply.
fn deaf(foreign: &Foreign, node: usize) -> Result<Pod> {
    let pod = foreign.world.cluster.add_pod(node, "deaf")?;
    pod.place().netns().nft(
        "table inet deaf {
            chain input {
                type filter hook input priority 0; policy drop;
                meta l4proto icmpv6 accept
            }
        }",
    )?;
    Ok(pod)
}

/// All clients of the first Service, and the Service addresses they use.
fn clients(foreign: &Foreign, family: Family) -> [(&'static str, Client, SocketAddr); 4] {
    let world = &foreign.world;
    let node_port = |node: usize| at(node_addr(node), family, FIRST_NODE_PORT);
    [
        ("a pod", world.pod(), at(vip(FIRST), family, PORT)),
        ("a process of the node", world.host(0), at(vip(FIRST), family, PORT)),
        ("outside by node-1", world.outside(), node_port(0)),
        ("outside by node-2", world.outside(), node_port(1)),
    ]
}

/// A client's unanswered request: the client, its port, and the UDP socket that sent it.
struct Unanswered {
    what: String,
    client: Client,
    to: SocketAddr,
    socket: UdpClient,
}

/// All clients send a request to the pod that drops it.
fn unanswered(foreign: &Foreign) -> Result<Vec<Unanswered>> {
    let mut all = Vec::new();
    for family in BOTH {
        for (who, client, to) in clients(foreign, family) {
            let port = 23_000 + all.len() as u16;
            let client = client.port(port).patience(Duration::from_millis(150));
            let what = format!("{who} :{port} -> {to}");
            ensure!(client.connect(to).is_err(), "{what} was answered by a pod that hears nobody");
            let socket = client.udp_connected(to)?;
            ensure!(socket.ask().is_err(), "{what} was answered by a pod that hears nobody");
            all.push(Unanswered { what, client: client.patience(PATIENCE), to, socket });
        }
    }
    Ok(all)
}

/// Sends requests again from the same ports.
fn ask_again(losses: &mut Losses, flows: &[Unanswered], name: &str) {
    let is_from = |answer: &io::Result<Answer>| answer.as_ref().is_ok_and(|answer| answer.backend == name);
    for Unanswered { what, client, to, socket } in flows {
        let answer = client.connect(*to).and_then(|stream| stream.ask());
        losses.note(&format!("tcp {what}: {answer:?}"), is_from(&answer));
        // A process's connected socket is closed when its backend is removed: it needs a new one with the same port.
        let again = what.contains("process").then(|| client.udp_connected(*to));
        let answer = again.unwrap_or_else(|| socket.try_clone()).and_then(|socket| socket.ask());
        losses.note(&format!("udp {what}: {answer:?}"), is_from(&answer));
    }
}

fn moves(plan: Plan, backend: usize) -> Result<()> {
    let foreign = Foreign::start(plan, Proxy::Shunt, |_| Vec::new())?;
    let cluster = &foreign.world.cluster;
    let deaf = deaf(&foreign, backend)?;
    foreign.apply(&[first(&[&deaf]), second(&[&foreign.world.near])])?;
    let flows = unanswered(&foreign)?;
    // The pod is removed, and another one, of the second Service, gets its address.
    cluster.remove_pod(&deaf)?;
    let moved = cluster.add_server(backend, "moved", TARGET)?;
    assert_eq!(moved.addr(), deaf.addr());
    // As a CNI's gratuitous ARP does: the bridge's neighbours would keep the old pod's link-layer address for seconds.
    cluster.node(backend).netns().run(&["ip", "neigh", "flush", "all"])?;
    foreign.apply(&[first(&[&foreign.world.far]), second(&[&moved])])?;
    let mut losses = Losses::default();
    ask_again(&mut losses, &flows, "far");
    for family in BOTH {
        assert_eq!(foreign.world.pod().tcp(at(vip(SECOND), family, PORT)).answered().backend, "moved");
    }
    losses.none(&foreign)
}

/// The first Service gets another pod and keeps the one of the flows: they stay with it.
fn stays(plan: Plan, backend: usize) -> Result<()> {
    let foreign = Foreign::start(plan, Proxy::Shunt, |_| Vec::new())?;
    let cluster = &foreign.world.cluster;
    let deaf = deaf(&foreign, backend)?;
    foreign.apply(&[first(&[&deaf]), second(&[&foreign.world.near])])?;
    let flows = unanswered(&foreign)?;
    foreign.apply(&[first(&[&deaf, &foreign.world.far]), second(&[&deaf, &foreign.world.near])])?;
    deaf.place().netns().nft("delete table inet deaf")?;
    deaf.serve_tcp(TARGET)?;
    deaf.serve_udp(TARGET)?;
    cluster.allow(deaf.addr(), TARGET)?;
    let mut losses = Losses::default();
    // A process's socket gets a new backend with every connect().
    let flows: Vec<_> = flows.into_iter().filter(|flow| !flow.what.contains("process")).collect();
    ask_again(&mut losses, &flows, "deaf");
    losses.none(&foreign)
}

#[test]
fn an_address_moved_to_another_service_on_this_node_is_left() -> Result<()> {
    on_both_wirings(|plan| moves(plan, 0))
}

#[test]
fn an_address_moved_to_another_service_on_the_other_node_is_left() -> Result<()> {
    on_both_wirings(|plan| moves(plan, 1))
}

#[test]
fn a_tuple_used_again_goes_to_its_backend_while_that_serves() -> Result<()> {
    on_both_wirings(|plan| stays(plan.clone(), 0).and_then(|()| stays(plan, 1)))
}
