//! Round robin is exact: over n new flows of one service port and set, backends' counts differ by at most one.

use anyhow::Result;
use tests::{
    manifest::Service,
    net::{Cluster, Plan, Pod, plan::BOTH, plan::Family},
    traffic::{Client, Tally},
};

use crate::world::{NODE_PORT, PORT, TARGET, web, web_addr};

const CONNECTIONS: usize = 300;
const SOCKETS: usize = 100;

/// A cluster with `count` backends, alternating between the nodes.
fn with_backends(count: usize) -> Result<(Cluster, Vec<Pod>)> {
    let cluster = Cluster::new(Plan::default())?;
    let backends = (0..count)
        .map(|nth| cluster.add_server(nth % 2, &format!("web-{nth}"), TARGET))
        .collect::<Result<Vec<_>>>()?;
    let service = Service::new("web", web_addr())
        .node_port(PORT, TARGET, NODE_PORT)
        .pods(&backends.iter().collect::<Vec<_>>());
    cluster.apply("services.yaml", &service.yaml())?;
    cluster.start(&[])?;
    Ok((cluster, backends))
}

fn names(backends: &[Pod]) -> Vec<&str> {
    backends.iter().map(Pod::name).collect()
}

#[test]
fn three_hundred_connections_to_a_cluster_ip() -> Result<()> {
    for count in [2, 3, 7] {
        let (cluster, backends) = with_backends(count)?;
        let client = Client::at(cluster.add_pod(0, "client")?.place());
        for family in BOTH {
            Tally::of(CONNECTIONS, || client.tcp(web(family))).even_over(&names(&backends));
        }
    }
    Ok(())
}

#[test]
fn three_hundred_connections_to_a_node_port() -> Result<()> {
    let (cluster, backends) = with_backends(3)?;
    let client = Client::at(cluster.outside());
    for family in BOTH {
        for node in cluster.nodes() {
            Tally::of(CONNECTIONS, || client.tcp(node.socket_addr(family, NODE_PORT)))
                .even_over(&names(&backends));
        }
    }
    Ok(())
}

#[test]
fn a_hundred_udp_sockets() -> Result<()> {
    let (cluster, backends) = with_backends(3)?;
    let pod = Client::at(cluster.add_pod(0, "client")?.place());
    let outside = Client::at(cluster.outside());
    // As below: a datagram of a pod that is not served yet is lost, while a SYN is sent again.
    pod.tcp(web(Family::V4)).answered();
    for family in BOTH {
        let node = cluster.node(0).socket_addr(family, NODE_PORT);
        for (client, to) in [(&pod, web(family)), (&outside, node)] {
            // Distinct ports: a port that the kernel assigns twice would continue its earlier flow.
            let mut ports = 40_000..;
            let fresh = || client.clone().port(ports.next().expect("ports enough")).udp(to);
            Tally::of(SOCKETS, fresh).even_over(&names(&backends));
        }
    }
    Ok(())
}

#[test]
fn connections_of_the_node_itself() -> Result<()> {
    let (cluster, backends) = with_backends(3)?;
    let host = Client::at(cluster.node(0).place());
    for family in BOTH {
        Tally::of(CONNECTIONS, || host.tcp(web(family))).even_over(&names(&backends));
        Tally::of(SOCKETS, || host.udp(web(family))).even_over(&names(&backends));
    }
    Ok(())
}

/// A UDP socket in use keeps its backend: only new flows are balanced.
#[test]
fn a_udp_socket_keeps_its_backend() -> Result<()> {
    let (cluster, _backends) = with_backends(3)?;
    let client = Client::at(cluster.add_pod(0, "client")?.place());
    // The pod is new: packets sent before its device is hooked are lost, and a datagram is not sent again.
    client.tcp(web(Family::V4)).answered();
    for family in BOTH {
        let socket = client.udp_connected(web(family))?;
        let first = socket.ask()?;
        for _ in 0..20 {
            assert_eq!(socket.ask()?, first);
        }
    }
    Ok(())
}

/// ClusterIP and NodePort of a Local Service have different sets: one counter for both would pin each of them to
/// every second backend.
#[test]
fn cluster_ip_and_node_port_of_a_local_service_do_not_pin_each_other() -> Result<()> {
    let cluster = Cluster::new(Plan::default())?;
    let local = [cluster.add_server(0, "local-a", TARGET)?, cluster.add_server(0, "local-b", TARGET)?];
    let remote = [cluster.add_server(1, "remote-a", TARGET)?, cluster.add_server(1, "remote-b", TARGET)?];
    let all: Vec<_> = local.iter().chain(&remote).collect();
    let service = Service::new("web", web_addr()).node_port(PORT, TARGET, NODE_PORT).external_traffic_local();
    cluster.apply("services.yaml", &service.pods(&all).yaml())?;
    cluster.start(&[])?;
    let client = Client::at(cluster.add_pod(0, "client")?.place());
    let outside = Client::at(cluster.outside());
    let node = cluster.node(0).socket_addr(Family::V4, NODE_PORT);
    let (mut by_cluster_ip, mut by_node_port) = (Tally::default(), Tally::default());
    for _ in 0..100 {
        by_cluster_ip.add(&client.tcp(web(Family::V4)).answered().backend);
        by_node_port.add(&outside.tcp(node).answered().backend);
    }
    by_cluster_ip.even_over(&all.iter().map(|pod| pod.name()).collect::<Vec<_>>());
    by_node_port.even_over(&names(&local));
    Ok(())
}
