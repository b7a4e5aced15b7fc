//! The cluster without shunt: the harness's network carries traffic by itself, in all variants. If one of these tests
//! fails, other failures of this suite mean nothing.

use std::time::Duration;

use anyhow::Result;
use tests::{
    net::{
        Cluster, Plan,
        plan::{BOTH, OUTSIDE, node_addr},
    },
    traffic::{Client, ping},
};

/// Pods reach pods and nodes, the outside client reaches nodes; each client is seen with its own address.
fn everyone_reaches_everyone(plan: Plan) -> Result<()> {
    let rules = plan.cni_rules;
    let cluster = Cluster::new(plan)?;
    let servers = [cluster.add_server(0, "near", 8080)?, cluster.add_server(1, "far", 8080)?];
    let client = cluster.add_pod(0, "client")?;
    for node in cluster.nodes() {
        for family in BOTH {
            node.serve_tcp(family, 7000, node.name())?;
        }
    }
    for family in BOTH {
        let from = Client::at(client.place());
        for server in &servers {
            let to = server.socket_addr(family, 8080);
            for attempt in [from.tcp(to), from.udp(to)] {
                let answer = attempt.answered();
                assert_eq!(
                    (answer.backend.as_str(), answer.peer.ip()),
                    (server.name(), client.addr().of(family))
                );
            }
            assert!(rules || ping(client.place(), to.ip(), Duration::from_secs(1))?, "ping {to}");
            let closed = from.tcp(server.socket_addr(family, 8081));
            if rules { closed.timed_out() } else { closed.refused() }
        }
        for node in cluster.nodes() {
            let outside = Client::at(cluster.outside()).tcp(node.socket_addr(family, 7000)).answered();
            assert_eq!(outside.backend, node.name());
            assert_eq!(outside.peer.ip(), OUTSIDE.of(family));
            // A node's own process, in the node's cgroup.
            let own =
                Client::at(node.place()).tcp(servers[node.index()].socket_addr(family, 8080)).answered();
            assert_eq!(own.backend, servers[node.index()].name());
        }
        let between =
            Client::at(cluster.node(0).place()).tcp(cluster.node(1).socket_addr(family, 7000)).answered();
        assert_eq!(between.peer.ip(), node_addr(0).of(family));
    }
    let stream = Client::at(client.place()).stream(servers[1].socket_addr(BOTH[0], 8080));
    stream.steady(20);
    stream.upload(&vec![7; 1 << 20])?;
    if rules {
        assert_eq!(cluster.invalid()?, 0, "packets that conntrack calls invalid, without shunt");
    }
    Ok(())
}

#[test]
fn routed_pods() -> Result<()> {
    everyone_reaches_everyone(Plan::default())
}

#[test]
fn bridged_pods() -> Result<()> {
    everyone_reaches_everyone(Plan::default().bridged())
}

#[test]
fn routed_pods_over_vxlan() -> Result<()> {
    everyone_reaches_everyone(Plan::default().vxlan())
}

#[test]
fn bridged_pods_over_vxlan() -> Result<()> {
    everyone_reaches_everyone(Plan::default().bridged().vxlan())
}

#[test]
fn routed_pods_over_a_tunnel_without_link_layer() -> Result<()> {
    everyone_reaches_everyone(Plan::default().tun())
}

#[test]
fn routed_pods_under_cni_rules() -> Result<()> {
    everyone_reaches_everyone(Plan::default().with_cni_rules())
}

#[test]
fn bridged_pods_over_vxlan_under_cni_rules() -> Result<()> {
    everyone_reaches_everyone(Plan::default().bridged().vxlan().with_cni_rules())
}
