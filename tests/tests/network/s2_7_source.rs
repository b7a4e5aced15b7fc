//! SERVICE-SEMANTICS 2.7: the source address that the backend sees. Deviation 2 of that page: the source is translated
//! only if the reply would otherwise bypass the node that the flow came through, so rows 3 and 5 concern backends on
//! other nodes.

use anyhow::Result;
use tests::{
    manifest::{self, Endpoint, Service},
    net::{
        Plan,
        plan::{BOTH, Family, OUTSIDE, external, vip},
    },
    traffic::Answer,
};

use crate::{
    trio::{ALL, PROTOCOLS, Trio, evenly, on_every_wiring},
    world::{TARGET, at, is_of_node},
};

const NODE_PORT: u16 = 30080;

/// A NodePort, a load balancer address and an externalIP over all three backends.
fn everything(trio: &Trio) -> Service {
    without_endpoints().pods(&trio.servers.each_ref())
}

fn without_endpoints() -> Service {
    Service::new("web", vip(10))
        .node_port(80, TARGET, NODE_PORT)
        .load_balancer(external(50))
        .external_ips(external(40))
}

/// The frontends of `everything` for clients outside the cluster, through node 0.
fn external_ways(trio: &Trio, family: Family) -> [std::net::SocketAddr; 3] {
    [at(trio.node(0).addr(), family, NODE_PORT), at(external(50), family, 80), at(external(40), family, 80)]
}

/// Whether the backend is on node 0, through which all these flows pass.
fn is_here(answer: &Answer) -> bool {
    answer.backend == ALL[0]
}

#[test]
fn s2_7_row_1_masquerade_all_shows_the_node() -> Result<()> {
    on_every_wiring(|plan| {
        let trio = Trio::start(plan, &["--masquerade-all"], |trio| vec![everything(trio)])?;
        for family in BOTH {
            for (who, from) in trio.everyone(0) {
                for to in [[at(vip(10), family, 80)].as_slice(), &external_ways(&trio, family)].concat() {
                    for answer in evenly(&from, to, &ALL) {
                        assert!(is_of_node(answer.peer, 0), "{who} -> {to}: {answer}");
                    }
                }
            }
        }
        Ok(())
    })
}

#[test]
fn s2_7_row_2_pods_keep_their_address_to_a_cluster_ip() -> Result<()> {
    on_every_wiring(|plan| {
        let trio = Trio::start(plan, &[], |trio| vec![everything(trio)])?;
        for family in BOTH {
            for (node, pod) in trio.clients.iter().enumerate() {
                for answer in evenly(&trio.pod(node), at(vip(10), family, 80), &ALL) {
                    assert_eq!(answer.peer.ip(), pod.addr().of(family), "{}: {answer}", pod.name());
                }
            }
        }
        Ok(())
    })
}

#[test]
fn s2_7_row_3_others_are_the_node_to_a_backend_elsewhere() -> Result<()> {
    on_every_wiring(|plan| {
        let trio = Trio::start(plan, &[], |trio| vec![everything(trio)])?;
        for family in BOTH {
            let to = at(vip(10), family, 80);
            for answer in evenly(&trio.outside(), to, &ALL) {
                let kept = answer.peer.ip() == OUTSIDE.of(family);
                assert!(
                    if is_here(&answer) { kept } else { is_of_node(answer.peer, 0) },
                    "outside: {answer}"
                );
            }
            for answer in evenly(&trio.host(0), to, &ALL) {
                assert!(is_of_node(answer.peer, 0), "the node: {answer}");
            }
        }
        Ok(())
    })
}

/// The Node has no pod ranges and there is no --cluster-cidr: pods are detected by their devices.
#[test]
fn s2_7_row_4_without_a_detector_pods_keep_their_address() -> Result<()> {
    for plan in [Plan::default(), Plan::default().bridged()] {
        let trio = Trio::without_shunt(plan)?;
        let nodes: Vec<String> = trio.cluster.nodes().iter().map(manifest::node).collect();
        let is_range = |line: &&str| line.starts_with("  podCIDR");
        let bare: Vec<&str> = nodes.iter().flat_map(|node| node.lines().chain(["---"])).collect();
        assert_eq!(bare.iter().filter(|line| is_range(line)).count(), 6, "two lines a Node");
        let bare: Vec<_> = bare.into_iter().filter(|line| !is_range(line) && *line != "spec:").collect();
        trio.cluster.apply("nodes.yaml", &bare.join("\n"))?;
        trio.apply(&[everything(&trio)])?;
        trio.cluster.start(&[])?;
        for family in BOTH {
            for answer in evenly(&trio.pod(0), at(vip(10), family, 80), &ALL) {
                assert_eq!(answer.peer.ip(), trio.clients[0].addr().of(family), "{answer}");
            }
            evenly(&trio.outside(), at(vip(10), family, 80), &ALL);
        }
    }
    Ok(())
}

#[test]
fn s2_7_row_5_external_policy_cluster() -> Result<()> {
    on_every_wiring(|plan| {
        let trio = Trio::start(plan, &[], |trio| vec![everything(trio)])?;
        for family in BOTH {
            for to in external_ways(&trio, family) {
                for answer in evenly(&trio.outside(), to, &ALL) {
                    let kept = answer.peer.ip() == OUTSIDE.of(family);
                    let right = if is_here(&answer) { kept } else { is_of_node(answer.peer, 0) };
                    assert!(right, "outside -> {to}: {answer}");
                }
                // The reply to a pod of this node comes back through this node.
                for answer in evenly(&trio.pod(0), to, &ALL) {
                    assert_eq!(
                        answer.peer.ip(),
                        trio.clients[0].addr().of(family),
                        "a pod -> {to}: {answer}"
                    );
                }
                for answer in evenly(&trio.host(0), to, &ALL) {
                    assert!(is_of_node(answer.peer, 0), "the node -> {to}: {answer}");
                }
            }
            // A pod of another node that uses this node: the reply would go back directly.
            let to = at(trio.node(0).addr(), family, NODE_PORT);
            for answer in evenly(&trio.pod(1), to, &ALL) {
                let right = is_here(&answer) || is_of_node(answer.peer, 0);
                assert!(right, "a pod of node 1 -> {to}: {answer}");
            }
        }
        Ok(())
    })
}

#[test]
fn s2_7_row_6_a_local_pods_short_circuit_keeps_its_address() -> Result<()> {
    on_every_wiring(|plan| {
        let trio = Trio::start(plan, &[], |trio| vec![everything(trio).external_traffic_local()])?;
        for family in BOTH {
            for to in external_ways(&trio, family) {
                for answer in evenly(&trio.pod(0), to, &ALL) {
                    assert_eq!(answer.peer.ip(), trio.clients[0].addr().of(family), "{to}: {answer}");
                }
            }
        }
        Ok(())
    })
}

#[test]
fn s2_7_row_7_the_nodes_short_circuit_shows_the_node() -> Result<()> {
    on_every_wiring(|plan| {
        let trio = Trio::start(plan, &[], |trio| vec![everything(trio).external_traffic_local()])?;
        for family in BOTH {
            for to in external_ways(&trio, family) {
                for answer in evenly(&trio.host(0), to, &ALL) {
                    assert!(is_of_node(answer.peer, 0), "{to}: {answer}");
                }
            }
        }
        Ok(())
    })
}

/// With --masquerade-all too: keeping the client's address is the purpose of policy Local.
#[test]
fn s2_7_row_8_external_policy_local_keeps_the_client() -> Result<()> {
    on_every_wiring(|plan| {
        for flags in [[].as_slice(), &["--masquerade-all"]] {
            let trio =
                Trio::start(plan.clone(), flags, |trio| vec![everything(trio).external_traffic_local()])?;
            for family in BOTH {
                for to in external_ways(&trio, family) {
                    for answer in evenly(&trio.outside(), to, &["a"]) {
                        assert_eq!(answer.peer.ip(), OUTSIDE.of(family), "{flags:?} {to}: {answer}");
                    }
                }
            }
        }
        Ok(())
    })
}

/// A packet whose source and destination are the same pod would be dropped by its own stack: it sees the node's
/// address.
#[test]
fn s2_7_row_9_a_pod_reaches_itself() -> Result<()> {
    on_every_wiring(|plan| {
        let trio = Trio::start(plan, &[], |trio| {
            let own = Service::new("local", vip(11))
                .node_port(80, TARGET, NODE_PORT + 1)
                .load_balancer(external(51))
                .external_traffic_local();
            vec![without_endpoints().pods(&[&trio.servers[0]]), own.pods(&[&trio.servers[0]])]
        })?;
        let itself = tests::traffic::Client::at(trio.servers[0].place());
        for family in BOTH {
            let more = [
                at(vip(10), family, 80),
                at(vip(11), family, 80),
                at(trio.node(0).addr(), family, NODE_PORT + 1),
                at(external(51), family, 80),
            ];
            for to in external_ways(&trio, family).into_iter().chain(more) {
                for protocol in PROTOCOLS {
                    let answer = protocol(&itself, to).answered();
                    assert!(answer.backend == "a" && is_of_node(answer.peer, 0), "{to}: {answer}");
                }
                itself.stream(to).steady(10);
            }
        }
        Ok(())
    })
}

/// The same for a pod in its node's network namespace that is its own endpoint.
#[test]
fn s2_7_row_9_a_host_network_pod_reaches_itself() -> Result<()> {
    let trio = Trio::start(Plan::default(), &[], |trio| {
        vec![without_endpoints().endpoints([Endpoint::node(trio.node(0))])]
    })?;
    for family in BOTH {
        trio.node(0).serve_tcp(family, TARGET, "node-1")?;
        trio.node(0).serve_udp(family, TARGET, "node-1")?;
        for to in external_ways(&trio, family).into_iter().chain([at(vip(10), family, 80)]) {
            for answer in evenly(&trio.host(0), to, &["node-1"]) {
                assert!(is_of_node(answer.peer, 0), "{to}: {answer}");
            }
            evenly(&trio.pod(0), to, &["node-1"]);
            evenly(&trio.host(1), to, &["node-1"]);
        }
    }
    Ok(())
}
