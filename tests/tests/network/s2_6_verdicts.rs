//! SERVICE-SEMANTICS 2.6: the verdict of each kind of frontend.

use anyhow::Result;
use tests::{
    manifest::Service,
    net::plan::{BOTH, OUTSIDE, external, vip},
};

use crate::{
    trio::{ALL, Trio, both, evenly, on_every_wiring, refused, silent, soon},
    world::{TARGET, at, is_of_node},
};

const NODE_PORT: u16 = 30080;
const EXTERNAL_IP: u8 = 40;
const INGRESS_IP: u8 = 50;

/// ClusterIP, NodePort, load balancer address and externalIP, without endpoints.
fn everything(trio: &Trio) -> Service {
    Service::new("web", vip(10))
        .node_port(80, TARGET, NODE_PORT)
        .load_balancer(external(INGRESS_IP))
        .external_ips(external(EXTERNAL_IP))
        .pods(&trio.servers.each_ref()[..0])
}

#[test]
fn s2_6_cluster_ip_without_endpoints_is_refused() -> Result<()> {
    on_every_wiring(|plan| {
        let trio = Trio::start(plan, &[], |trio| vec![trio.empty("web", vip(10))])?;
        for to in both(vip(10), 80) {
            for (who, from) in trio.everyone(0) {
                refused(who, &from, to);
            }
        }
        Ok(())
    })
}

#[test]
fn s2_6_cluster_ip_of_internal_policy_local_without_a_local_endpoint_is_dropped() -> Result<()> {
    let trio = Trio::start(tests::net::Plan::default(), &[], |trio| {
        let far = trio.empty("far", vip(10)).internal_traffic_local().pods(&[&trio.servers[1]]);
        // Rejected, not dropped: there is no endpoint anywhere.
        let none = trio.empty("none", vip(11)).internal_traffic_local();
        vec![far, none]
    })?;
    let silence: Vec<_> = BOTH
        .iter()
        .flat_map(|family| trio.everyone(0).map(|(_, from)| (from, at(vip(10), *family, 80))))
        .collect();
    silent(&silence[..]);
    for to in both(vip(10), 80) {
        evenly(&trio.pod(1), to, &["b"]);
        evenly(&trio.host(1), to, &["b"]);
    }
    for to in both(vip(11), 80) {
        for (who, from) in trio.everyone(0) {
            refused(who, &from, to);
        }
    }
    Ok(())
}

#[test]
fn s2_6_cluster_ip_goes_to_the_internal_set() -> Result<()> {
    on_every_wiring(|plan| {
        let trio = Trio::start(plan, &[], |trio| {
            vec![trio.service("all", vip(10)), trio.service("here", vip(11)).internal_traffic_local()]
        })?;
        for family in BOTH {
            for (node, own) in [(0, "a"), (1, "b")] {
                for from in [trio.pod(node), trio.host(node)] {
                    evenly(&from, at(vip(10), family, 80), &ALL);
                    evenly(&from, at(vip(11), family, 80), &[own]);
                }
            }
        }
        Ok(())
    })
}

#[test]
fn s2_6_external_addresses_without_endpoints_are_refused() -> Result<()> {
    on_every_wiring(|plan| {
        let trio = Trio::start(plan, &[], |trio| vec![everything(trio)])?;
        let addresses = [
            both(trio.node(0).addr(), NODE_PORT),
            both(external(INGRESS_IP), 80),
            both(external(EXTERNAL_IP), 80),
        ];
        for to in addresses.into_iter().flatten() {
            for (who, from) in trio.everyone(0) {
                refused(who, &from, to);
            }
        }
        // The first endpoint anywhere ends the rejections, for all frontends.
        trio.apply(&[everything(&trio).pods(&[&trio.servers[2]])])?;
        for to in addresses.into_iter().flatten() {
            soon(&trio.outside(), to, &["c"]);
        }
        Ok(())
    })
}

#[test]
fn s2_6_external_policy_cluster_goes_to_the_cluster_set() -> Result<()> {
    on_every_wiring(|plan| {
        let trio = Trio::start(plan, &[], |trio| vec![everything(trio).pods(&trio.servers.each_ref())])?;
        for family in BOTH {
            let addresses = [
                at(trio.node(0).addr(), family, NODE_PORT),
                at(trio.node(2).addr(), family, NODE_PORT),
                at(external(INGRESS_IP), family, 80),
                at(external(EXTERNAL_IP), family, 80),
            ];
            for to in addresses {
                for from in [trio.pod(0), trio.pod(1), trio.host(0), trio.host(1), trio.outside()] {
                    evenly(&from, to, &ALL);
                }
            }
        }
        Ok(())
    })
}

/// The backend is on node 1; node 0 has none.
#[test]
fn s2_6_external_policy_local_and_its_short_circuits() -> Result<()> {
    on_every_wiring(|plan| {
        let masquerades = plan.masquerades();
        let trio = Trio::start(plan, &[], |trio| {
            vec![everything(trio).external_traffic_local().pods(&[&trio.servers[1]])]
        })?;
        trio.route_outside(external(EXTERNAL_IP), 1)?;
        let mut silence = Vec::new();
        for family in BOTH {
            let ingress = at(external(INGRESS_IP), family, 80);
            let external_ip = at(external(EXTERNAL_IP), family, 80);
            let without = at(trio.node(0).addr(), family, NODE_PORT);
            let with = at(trio.node(1).addr(), family, NODE_PORT);
            for to in [ingress, external_ip, without] {
                // (1) A pod of the node: cluster-wide set, own source address.
                for answer in evenly(&trio.pod(0), to, &["b"]) {
                    assert_eq!(answer.peer.ip(), trio.clients[0].addr().of(family), "{to}: {answer}");
                }
                // (2) The node itself: cluster-wide set, an address of the node as source.
                for answer in evenly(&trio.host(0), to, &["b"]) {
                    assert!(is_of_node(answer.peer, 0), "{to}: {answer}");
                }
            }
            // (3) All other clients, with a local endpoint: that endpoint, and the client's address is kept.
            for to in [external_ip, with] {
                for answer in evenly(&trio.outside(), to, &["b"]) {
                    assert_eq!(answer.peer.ip(), OUTSIDE.of(family), "{to}: {answer}");
                }
            }
            // Pods and processes of other nodes are not local to node 1.
            for answer in evenly(&trio.pod(0), with, &["b"]) {
                let kept = answer.peer.ip() == trio.clients[0].addr().of(family);
                assert!(kept || masquerades && is_of_node(answer.peer, 0), "{with}: {answer}");
            }
            evenly(&trio.host(0), with, &["b"]);
            // (3) Without a local endpoint: silence, at each of the three kinds of frontend.
            silence.extend([ingress, without].map(|to| (trio.outside(), to)));
            // The policy does not apply to the ClusterIP.
            evenly(&trio.outside(), at(vip(10), family, 80), &["b"]);
        }
        trio.route_outside(external(EXTERNAL_IP), 0)?;
        silence.extend(both(external(EXTERNAL_IP), 80).map(|to| (trio.outside(), to)));
        silent(&silence);
        Ok(())
    })
}

/// An externalIP that is the node's own address takes precedence over a NodePort with the same number.
#[test]
fn s2_6_an_exact_address_goes_before_a_node_port() -> Result<()> {
    let trio = Trio::start(tests::net::Plan::default(), &[], |trio| {
        let nodes =
            Service::new("by-node-port", vip(10)).node_port(80, TARGET, NODE_PORT).pods(&[&trio.servers[0]]);
        let exact = Service::new("by-address", vip(11))
            .tcp(NODE_PORT, TARGET)
            .udp(NODE_PORT, TARGET)
            .external_ips(trio.node(1).addr())
            .pods(&[&trio.servers[2]]);
        vec![nodes, exact]
    })?;
    for family in BOTH {
        for from in [trio.pod(1), trio.host(1), trio.outside()] {
            evenly(&from, at(trio.node(1).addr(), family, NODE_PORT), &["c"]);
            evenly(&from, at(trio.node(0).addr(), family, NODE_PORT), &["a"]);
        }
    }
    Ok(())
}

/// Other ports of addresses that are not ClusterIPs are not checked: shunt does not answer for them.
#[test]
fn s2_6_other_ports_of_external_addresses_are_left_alone() -> Result<()> {
    let trio = Trio::start(tests::net::Plan::default(), &[], |trio| {
        vec![everything(trio).pods(&trio.servers.each_ref())]
    })?;
    for family in BOTH {
        // An outside machine has that address too, and serves another port there.
        let addr = external(INGRESS_IP).of(family);
        let bits = if addr.is_ipv4() { 32 } else { 128 };
        // Not tentative even for the short time that the kernel takes on a loopback device.
        let nodad = if addr.is_ipv4() { "" } else { " nodad" };
        trio.cluster.outside().netns().ip(&format!("addr add {addr}/{bits} dev lo{nodad}\n"))?;
        let via = OUTSIDE.of(family);
        trio.node(0).netns().ip(&format!("route add {addr}/{bits} via {via}\n"))?;
        let (pod, node) = (trio.clients[0].addr().of(family), trio.node(0).addr().of(family));
        trio.cluster.outside().netns().ip(&format!("route add {pod}/{bits} via {node}\n"))?;
        let served = std::net::SocketAddr::new(addr, 8888);
        let _server = tests::traffic::Server::tcp(trio.cluster.outside(), served, "the-real-one")?;
        for from in [trio.pod(0), trio.host(0)] {
            assert_eq!(from.tcp(served).answered().backend, "the-real-one");
            evenly(&from, at(external(INGRESS_IP), family, 80), &ALL);
        }
        // The node's own ports too.
        trio.node(0).serve_tcp(family, 9999, "plain")?;
        let plain = at(trio.node(0).addr(), family, 9999);
        for (_, from) in trio.everyone(0) {
            assert_eq!(from.tcp(plain).answered().backend, "plain");
        }
    }
    Ok(())
}
