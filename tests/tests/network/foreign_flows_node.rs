//! The node's own flows with a frontend's port as source port: a NodePort, or the port of a load balancer address or
//! externalIP that is the node's own. Their replies reach their own sockets, and they survive the creation of the
//! Service.
//!
//! Each test runs under `shunt` and under the reference ([`tests::net::referee`]), which passes.

use std::{io, net::SocketAddr, time::Duration};

use anyhow::{Context as _, Result};
use tests::{
    net::{
        Plan, Proxy,
        plan::{BOTH, Family, node_addr},
    },
    traffic::{Answer, Client, Stream, UdpClient},
};

use crate::{
    foreign_world::{BALANCER_PORT, Foreign, Losses, NUMBERS, every_kind, on_both_wirings},
    world::at,
};

/// A reply that takes longer is lost.
const PATIENCE: Duration = Duration::from_millis(700);

/// All servers that a process of node 0 may use besides Services.
fn asked(foreign: &Foreign, family: Family) -> Vec<(&'static str, SocketAddr)> {
    [foreign.strangers(family), foreign.backends(family)].concat()
}

/// A reply from `name`, which saw the chosen port.
fn is_from(answer: &io::Result<Answer>, name: &str, port: u16) -> bool {
    answer.as_ref().is_ok_and(|answer| answer.backend == name && answer.peer.port() == port)
}

fn questions_are_answered(plan: Plan, proxy: Proxy) -> Result<()> {
    let foreign = Foreign::start(plan, proxy, every_kind)?;
    let mut losses = Losses::default();
    for family in BOTH {
        for number in NUMBERS {
            let client: Client = foreign.host(number).patience(PATIENCE);
            for (name, to) in asked(&foreign, family) {
                let said = |how: &str| format!("{how} node-1:{number} -> {name} {to}");
                let stream = client.connect(to).and_then(|stream| stream.ask());
                losses.note(&format!("{}: {stream:?}", said("tcp")), is_from(&stream, name, number));
                for (how, socket) in [
                    ("connected udp", client.udp_connected(to)?),
                    ("unconnected udp", client.udp_unconnected(to)?),
                ] {
                    let answer = socket.ask();
                    losses.note(&format!("{}: {answer:?}", said(how)), is_from(&answer, name, number));
                }
            }
        }
        if proxy == Proxy::Shunt {
            explained_as_a_reply(&foreign, family)?;
        }
        foreign.all_are_served(family, &mut losses);
    }
    losses.none(&foreign)
}

/// `explain` on node 1 of what its process replies to node 0's load balancer address: no backend is selected, as for a datagram
/// from any other port one would be.
fn explained_as_a_reply(foreign: &Foreign, family: Family) -> Result<()> {
    let strangers = foreign.strangers(family);
    let there = strangers.iter().find(|(_, to)| node_addr(1).contains(to.ip()));
    let (_, from) = there.context("no server on node 1")?;
    let to = format!("{}/udp", at(node_addr(0), family, BALANCER_PORT));
    let explain =
        |from: SocketAddr| foreign.world.cluster.node(1).shunt_json(&["explain", &from.to_string(), &to]);
    let (reply, request) = (explain(*from)?, explain(SocketAddr::new(from.ip(), 5454))?);
    assert!(reply["backend"].is_null(), "{reply:#}");
    assert!(request["backend"].is_object(), "{request:#}");
    Ok(())
}

/// The open sockets of a process of node 0 with one of [`NUMBERS`] as source port.
struct Open {
    what: String,
    stream: Stream,
    socket: UdpClient,
}

/// One connection and one socket per port number: a port belongs to one process.
fn open(foreign: &Foreign, family: Family, number: u16, name: &str, to: SocketAddr) -> Result<Open> {
    let client = foreign.host(number).patience(PATIENCE);
    let what = format!("node-1:{number} -> {name} {to}, {family:?}");
    Ok(Open { what, stream: client.stream(to), socket: client.udp_connected(to)? })
}

fn open_flows_outlive_the_services_coming(plan: Plan, proxy: Proxy) -> Result<()> {
    let foreign = Foreign::start(plan, proxy, |_| Vec::new())?;
    let mut flows = Vec::new();
    for family in BOTH {
        for number in NUMBERS {
            for (name, to) in asked(&foreign, family) {
                flows.push(open(&foreign, family, number, name, to)?);
            }
        }
    }
    for flow in &flows {
        // Everything works while there are no Services.
        flow.stream.steady(2);
        flow.socket.ask()?;
    }
    let mut losses = Losses::default();
    let services = every_kind(&foreign.world);
    for (when, services) in [("came", &services[..]), ("went", &[]), ("came again", &services)] {
        foreign.apply(services)?;
        for flow in &flows {
            let what = format!("{} after the Services {when}", flow.what);
            losses.note_result(&format!("tcp {what}"), flow.stream.ask());
            losses.note_result(&format!("udp {what}"), flow.socket.ask());
        }
        for family in BOTH.into_iter().filter(|_| !services.is_empty()) {
            foreign.all_are_served(family, &mut losses);
        }
    }
    losses.none(&foreign)
}

/// A request of an unconnected socket is on its way when the Service is created, before the reply. On a node whose
/// rules use conntrack, as kube-proxy's always do: otherwise nothing on the node has recorded the request
/// (docs/design/conntrack.md).
fn an_answer_on_its_way_arrives(proxy: Proxy) -> Result<()> {
    let foreign = Foreign::start(Plan::default().with_cni_rules(), proxy, |_| Vec::new())?;
    let mut losses = Losses::default();
    let outside = foreign.world.cluster.outside();
    let services = every_kind(&foreign.world);
    for family in BOTH {
        for number in NUMBERS {
            foreign.apply(&[])?;
            // A slow server.
            let slow = at(foreign.world.cluster.outside_addr(), family, 5353);
            let server = Client::at(outside).port(slow.port()).udp_unconnected(slow)?.into_inner();
            let node = foreign.host(number).udp_unconnected(slow)?.into_inner();
            node.send_to(b"question", slow)?;
            let mut buffer = [0; 64];
            let (length, from) = server.recv_from(&mut buffer)?;
            foreign.apply(&services)?;
            server.send_to(&buffer[..length], from)?;
            node.set_read_timeout(Some(PATIENCE))?;
            let answer = node.recv_from(&mut buffer);
            let what = format!("node-1:{number} <- {slow}, which saw {from}");
            losses.note_result(&what, answer);
            assert_eq!(from, at(node_addr(0), family, number));
        }
    }
    losses.none(&foreign)
}

#[test]
fn a_question_of_the_node_from_a_frontends_number_is_answered() -> Result<()> {
    on_both_wirings(|plan| questions_are_answered(plan, Proxy::Shunt))
}

#[test]
fn a_question_of_the_node_from_a_frontends_number_is_answered_by_the_referee() -> Result<()> {
    on_both_wirings(|plan| questions_are_answered(plan, Proxy::Referee))
}

#[test]
fn an_open_flow_of_the_node_outlives_a_services_coming() -> Result<()> {
    on_both_wirings(|plan| open_flows_outlive_the_services_coming(plan, Proxy::Shunt))
}

#[test]
fn an_open_flow_of_the_node_outlives_a_services_coming_with_the_referee() -> Result<()> {
    on_both_wirings(|plan| open_flows_outlive_the_services_coming(plan, Proxy::Referee))
}

#[test]
fn an_answer_to_the_node_arrives_though_a_service_came_meanwhile() -> Result<()> {
    an_answer_on_its_way_arrives(Proxy::Shunt)
}

#[test]
fn an_answer_to_the_node_arrives_though_a_service_came_meanwhile_with_the_referee() -> Result<()> {
    an_answer_on_its_way_arrives(Proxy::Referee)
}
