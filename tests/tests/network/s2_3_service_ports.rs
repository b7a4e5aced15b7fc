//! SERVICE-SEMANTICS 2.3: the parts of a service port.

use std::net::SocketAddr;

use anyhow::Result;
use tests::{
    manifest::Service,
    net::{
        Plan,
        plan::{BOTH, OUTSIDE, external, vip},
    },
    traffic::{Outcome, Server},
};

use crate::{
    trio::{ALL, Trio, both, evenly, on_every_wiring, soon, soon_unserved},
    world::{TARGET, at},
};

const NODE_PORT: u16 = 30080;

/// ClusterIP, NodePort of every node, load balancer address and externalIP, from pods, nodes and outside.
#[test]
fn s2_3_every_frontend_is_reached_from_everywhere() -> Result<()> {
    on_every_wiring(|plan| {
        let trio = Trio::start(plan, &[], |trio| {
            vec![
                Service::new("web", vip(10))
                    .node_port(80, TARGET, NODE_PORT)
                    .load_balancer(external(50))
                    .external_ips(external(40))
                    .pods(&trio.servers.each_ref()),
            ]
        })?;
        for family in BOTH {
            let mut ways: Vec<SocketAddr> =
                [vip(10), external(50), external(40)].map(|addr| at(addr, family, 80)).to_vec();
            ways.extend(trio.cluster.nodes().iter().map(|node| node.socket_addr(family, NODE_PORT)));
            for to in ways {
                for (_, from) in trio.everyone(0).into_iter().chain(trio.everyone(1)) {
                    evenly(&from, to, &ALL);
                }
                // Its own backends are clients like any other.
                evenly(&tests::traffic::Client::at(trio.servers[2].place()), to, &ALL);
            }
        }
        Ok(())
    })
}

/// One port number, two protocols: two ports, here with different targets and different backends.
#[test]
fn s2_3_tcp_and_udp_on_one_number_are_two_ports() -> Result<()> {
    let trio = Trio::start(Plan::default(), &[], |trio| {
        let twins = Service::new("twins", vip(10)).tcp(80, TARGET).udp(80, TARGET + 1);
        let tcp = Service::new("tcp", vip(11)).tcp_node_port(80, TARGET, NODE_PORT).pods(&[&trio.servers[0]]);
        let udp = Service::new("udp", vip(12)).udp_node_port(80, TARGET, NODE_PORT).pods(&[&trio.servers[1]]);
        vec![twins.pods(&[&trio.servers[2]]), tcp, udp]
    })?;
    trio.servers[2].serve_udp(TARGET + 1)?;
    for family in BOTH {
        for (_, from) in trio.everyone(0) {
            evenly(&from, at(vip(10), family, 80), &["c"]);
            let node = at(trio.node(0).addr(), family, NODE_PORT);
            assert_eq!(from.tcp(node).answered().backend, "a");
            assert_eq!(from.udp(node).answered().backend, "b");
        }
    }
    Ok(())
}

#[test]
fn s2_3_two_ports_of_one_service_have_targets_of_their_own() -> Result<()> {
    let trio = Trio::start(Plan::default(), &[], |trio| {
        let service = Service::new("web", vip(10)).node_port(80, TARGET, NODE_PORT).node_port(
            81,
            TARGET + 2,
            NODE_PORT + 1,
        );
        vec![service.pods(&trio.servers.each_ref())]
    })?;
    // Only one of the backends listens on the second port's target.
    trio.servers[1].serve_tcp(TARGET + 2)?;
    for family in BOTH {
        for from in [trio.pod(0), trio.outside()] {
            evenly(&from, at(vip(10), family, 80), &ALL);
            evenly(&from, at(trio.node(1).addr(), family, NODE_PORT), &ALL);
            for to in [at(vip(10), family, 81), at(trio.node(1).addr(), family, NODE_PORT + 1)] {
                let outcomes: Vec<_> = (0..3).map(|_| from.tcp(to).outcome).collect();
                let answered =
                    outcomes.iter().filter(|end| matches!(end, Outcome::Answered(a) if a.backend == "b"));
                let refused = outcomes.iter().filter(|end| **end == Outcome::Refused);
                assert_eq!((answered.count(), refused.count()), (1, 2), "{to}: {outcomes:?}");
            }
        }
    }
    Ok(())
}

/// A LoadBalancer Service without NodePorts (allocateLoadBalancerNodePorts: false).
#[test]
fn s2_3_node_port_0_is_none() -> Result<()> {
    let trio = Trio::start(Plan::default(), &[], |trio| {
        vec![trio.service("web", vip(10)).load_balancer(external(50))]
    })?;
    for family in BOTH {
        evenly(&trio.outside(), at(external(50), family, 80), &ALL);
        trio.outside().tcp(at(trio.node(0).addr(), family, NODE_PORT)).refused();
        trio.outside().tcp(at(trio.node(0).addr(), family, 80)).refused();
    }
    Ok(())
}

/// `ipMode: Proxy`: traffic must go to the load balancer itself, here the machine outside, which answers itself.
#[test]
fn s2_3_load_balancer_addresses_of_mode_proxy_are_not_captured() -> Result<()> {
    let trio = Trio::start(Plan::default(), &[], |trio| {
        vec![
            trio.service("proxy", vip(10)).load_balancer_mode(external(50), "Proxy"),
            trio.service("vip", vip(11)).load_balancer_mode(external(51), "VIP"),
        ]
    })?;
    let outside = trio.cluster.outside();
    for family in BOTH {
        let real = at(external(50), family, 80);
        let bits = if real.is_ipv4() { 32 } else { 128 };
        let back = trio.clients[0].addr().of(family);
        // Not tentative even for the short time that the kernel takes on a loopback device.
        let nodad = if real.is_ipv4() { "" } else { " nodad" };
        outside.netns().ip(&format!(
            "addr add {}/{bits} dev lo{nodad}\nroute add {back}/{bits} via {}\n",
            real.ip(),
            trio.node(0).addr().of(family)
        ))?;
        trio.node(0).netns().ip(&format!("route add {}/{bits} via {}\n", real.ip(), OUTSIDE.of(family)))?;
        let _servers = [Server::tcp(outside, real, "balancer")?, Server::udp(outside, real, "balancer")?];
        for from in [trio.pod(0), trio.host(0)] {
            evenly(&from, real, &["balancer"]);
            evenly(&from, at(external(51), family, 80), &ALL);
        }
        evenly(&trio.outside(), at(external(51), family, 80), &ALL);
    }
    Ok(())
}

/// The cloud assigns an address, changes it, and removes it.
#[test]
fn s2_3_load_balancer_addresses_come_and_go() -> Result<()> {
    let trio = Trio::start(Plan::default(), &[], |trio| vec![trio.service("web", vip(10))])?;
    let addresses = |lasts: &[u8]| {
        lasts
            .iter()
            .fold(trio.service("web", vip(10)), |service, last| service.load_balancer(external(*last)))
    };
    for lasts in [[50].as_slice(), &[50, 51], &[51], &[]] {
        trio.apply(&[addresses(lasts)])?;
        for family in BOTH {
            for last in [50, 51] {
                let to = at(external(last), family, 80);
                for from in [trio.outside(), trio.host(0)] {
                    if lasts.contains(&last) {
                        soon(&from, to, &ALL);
                    } else {
                        soon_unserved(&from, to);
                    }
                }
            }
            evenly(&trio.pod(0), at(vip(10), family, 80), &ALL);
        }
    }
    Ok(())
}

/// A port's number, its target and its NodePort change while it is served.
#[test]
fn s2_3_a_changed_port_takes_effect() -> Result<()> {
    let trio = Trio::start(Plan::default(), &[], |trio| vec![trio.service("web", vip(10))])?;
    for server in &trio.servers {
        server.serve_tcp(TARGET + 3)?;
        server.serve_udp(TARGET + 3)?;
    }
    let with = |port, target, node_port| {
        Service::new("web", vip(10)).node_port(port, target, node_port).pods(&trio.servers.each_ref())
    };
    let mut before: Option<(u16, u16)> = None;
    for (port, target, node_port) in [(80, TARGET, 30001), (81, TARGET, 30001), (81, TARGET + 3, 30002)] {
        trio.apply(&[with(port, target, node_port)])?;
        let node = trio.node(1).addr();
        for to in both(vip(10), port).into_iter().chain(both(node, node_port)) {
            soon(&trio.outside(), to, &ALL);
            soon(&trio.host(0), to, &ALL);
        }
        if let Some((old, old_node)) = before {
            let mut gone = Vec::new();
            gone.extend(both(vip(10), old).into_iter().filter(|_| old != port));
            gone.extend(both(node, old_node).into_iter().filter(|_| old_node != node_port));
            gone.into_iter().for_each(|to| soon_unserved(&trio.outside(), to));
        }
        before = Some((port, node_port));
    }
    Ok(())
}
