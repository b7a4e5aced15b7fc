//! healthCheckNodePort (SERVICE-SEMANTICS 3.2), requested from outside as a load balancer does.

use std::{
    io::{Read as _, Write as _},
    net::SocketAddr,
    time::Duration,
};

use anyhow::Result;
use tests::{
    manifest::{Endpoint, Service},
    net::{
        Plan, Pod,
        cluster::eventually,
        plan::{BOTH, Family, vip},
    },
    traffic::Client,
};

use crate::world::{TARGET, World, web_addr};

const SECOND: Duration = Duration::from_secs(1);
const CHECK: u16 = 32_100;

/// A load balancer with policy Local over both servers.
fn local(world: &World) -> Service {
    bare(CHECK).pods(&[&world.near, &world.far])
}

fn bare(port: u16) -> Service {
    Service::new("web", web_addr())
        .node_port(80, TARGET, 30_080)
        .load_balancer(vip(200))
        .external_traffic_local()
        .spec(&check(port))
}

fn check(port: u16) -> String {
    format!("healthCheckNodePort: {port}")
}

fn start() -> Result<World> {
    World::start(Plan::default(), |world| local(world).yaml())
}

/// The complete response to a GET of `path`; `None` if the connection is refused.
fn get(from: &Client, to: SocketAddr, path: &str) -> Option<String> {
    let stream = match from.connect(to) {
        Ok(stream) => stream,
        Err(error) if error.raw_os_error() == Some(libc::ECONNREFUSED) => return None,
        Err(error) => panic!("{to}: {error}"),
    };
    let mut stream = stream.into_inner();
    let mut answer = String::new();
    let mut ask = || {
        stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: lb\r\n\r\n").as_bytes())?;
        stream.read_to_string(&mut answer)
    };
    // Closed between the connection and the response: neither refused nor answered.
    Some(ask().map_or_else(|error| error.to_string(), |_| answer))
}

fn want(name: &str, count: usize) -> String {
    let status = if count > 0 { "200 OK" } else { "503 Service Unavailable" };
    let body = format!(
        "{{\n\t\"service\": {{\n\t\t\"namespace\": \"default\",\n\t\t\"name\": \"{name}\"\n\t}},\n\
         \t\"localEndpoints\": {count},\n\t\"serviceProxyHealthy\": true\n}}"
    );
    format!(
        "HTTP/1.1 {status}\r\nContent-Type: application/json\r\nX-Content-Type-Options: nosniff\r\n\
         X-Load-Balancing-Endpoint-Weight: {count}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    )
}

fn at(world: &World, node: usize, family: Family) -> SocketAddr {
    world.cluster.node(node).socket_addr(family, CHECK)
}

/// Both nodes, both families: `name`'s check returns `counts` (`None`: connection refused) within a second.
#[track_caller]
fn becomes(world: &World, port: u16, name: &str, counts: [Option<usize>; 2]) {
    for (node, count) in counts.into_iter().enumerate() {
        for family in BOTH {
            let to = world.cluster.node(node).socket_addr(family, port);
            let want = count.map(|count| want(name, count));
            let mut last = None;
            let found = eventually(SECOND, || {
                last = get(&world.outside(), to, "/");
                last == want
            });
            assert!(found.is_ok(), "{to}: want {want:?}, have {last:?}");
        }
    }
}

#[test]
fn s3_2_the_answer_is_kube_proxys_byte_for_byte_on_any_path() -> Result<()> {
    let world = start()?;
    becomes(&world, CHECK, "web", [Some(1), Some(1)]);
    for family in BOTH {
        for path in ["/", "/healthz", "/any/path?and=query"] {
            assert_eq!(get(&world.outside(), at(&world, 0, family), path), Some(want("web", 1)), "{path}");
        }
        // The node itself and its pods may send requests too.
        assert_eq!(get(&world.host(0), at(&world, 0, family), "/"), Some(want("web", 1)));
        assert_eq!(get(&world.pod(), at(&world, 1, family), "/"), Some(want("web", 1)));
    }
    // Both listen next to the node's own health server, which is not the Service's.
    assert_eq!(world.cluster.node(0).health("/healthz")?, 200);
    Ok(())
}

#[test]
fn s3_2_local_ready_addresses_count_and_terminating_ones_never() -> Result<()> {
    let world = start()?;
    becomes(&world, CHECK, "web", [Some(1), Some(1)]);
    let second = world.cluster.add_server(0, "second", TARGET)?;
    // Four ports of two pods: two addresses.
    let two = bare(CHECK).tcp(81, TARGET).udp(81, TARGET).pods(&[&world.near, &second, &world.far]);
    world.cluster.apply("services.yaml", &two.yaml())?;
    becomes(&world, CHECK, "web", [Some(2), Some(1)]);
    for state in [Endpoint::terminating, Endpoint::unready, Endpoint::gone, Endpoint::published_terminating] {
        let in_state = |pods: &[&Pod]| pods.iter().map(|pod| state(Endpoint::pod(pod))).collect::<Vec<_>>();
        let one = bare(CHECK).pods(&[&second, &world.far]).endpoints(in_state(&[&world.near]));
        world.cluster.apply("services.yaml", &one.yaml())?;
        becomes(&world, CHECK, "web", [Some(1), Some(1)]);
        let none = bare(CHECK).pods(&[&world.far]).endpoints(in_state(&[&world.near, &second]));
        world.cluster.apply("services.yaml", &none.yaml())?;
        becomes(&world, CHECK, "web", [Some(0), Some(1)]);
    }
    world.cluster.apply("services.yaml", &bare(CHECK).yaml())?;
    becomes(&world, CHECK, "web", [Some(0), Some(0)]);
    Ok(())
}

#[test]
fn s3_2_listeners_open_and_close_as_services_change() -> Result<()> {
    let world = start()?;
    becomes(&world, CHECK, "web", [Some(1), Some(1)]);
    let apply = |service: Service| world.cluster.apply("services.yaml", &service.yaml());
    // Another port.
    apply(bare(CHECK + 1).pods(&[&world.near, &world.far]))?;
    becomes(&world, CHECK + 1, "web", [Some(1), Some(1)]);
    becomes(&world, CHECK, "web", [None, None]);
    // Another policy, and back.
    let cluster =
        Service::new("web", web_addr()).node_port(80, TARGET, 30_080).pods(&[&world.near, &world.far]);
    apply(cluster.clone().load_balancer(vip(200)).spec(&check(CHECK)))?;
    becomes(&world, CHECK + 1, "web", [None, None]);
    apply(local(&world))?;
    becomes(&world, CHECK, "web", [Some(1), Some(1)]);
    // Another type, and back.
    apply(cluster.external_traffic_local().spec(&check(CHECK)))?;
    becomes(&world, CHECK, "web", [None, None]);
    apply(local(&world))?;
    becomes(&world, CHECK, "web", [Some(1), Some(1)]);
    world.cluster.remove("services.yaml")?;
    becomes(&world, CHECK, "web", [None, None]);
    Ok(())
}

#[test]
fn s3_2_of_two_services_with_one_port_one_answers_and_the_other_takes_over() -> Result<()> {
    let world = start()?;
    let other = Service::new("other", vip(11))
        .node_port(80, TARGET, 30_081)
        .load_balancer(vip(201))
        .external_traffic_local()
        .spec(&check(CHECK))
        .pods(&[&world.near]);
    world.cluster.apply("other.yaml", &other.yaml())?;
    becomes(&world, CHECK, "other", [Some(1), Some(0)]);
    let said =
        |node: usize| world.cluster.node(node).shunt_log().contains("healthCheckNodePort 32100 is answered");
    eventually(SECOND, || said(0) && said(1))?;
    world.cluster.remove("other.yaml")?;
    becomes(&world, CHECK, "web", [Some(1), Some(1)]);
    Ok(())
}

/// A port in use by another process: reported, retried, and opened once it is free.
#[test]
fn s3_2_a_busy_port_is_said_and_taken_when_it_is_free() -> Result<()> {
    let world = World::without_shunt(Plan::default())?;
    let node = world.cluster.node(0);
    let busy = tests::traffic::Server::tcp(node.place(), node.socket_addr(Family::V4, CHECK), "busy")?;
    world.cluster.apply("services.yaml", &local(&world).yaml())?;
    world.cluster.start(&[])?;
    eventually(SECOND, || {
        node.shunt_log().contains("healthCheckNodePort 32100 cannot be opened at 0.0.0.0")
    })?;
    // IPv6 is not affected.
    assert_eq!(get(&world.outside(), at(&world, 0, Family::V6), "/"), Some(want("web", 1)));
    drop(busy);
    let free = || get(&world.outside(), at(&world, 0, Family::V4), "/") == Some(want("web", 1));
    eventually(SECOND * 3, free)?;
    Ok(())
}

#[test]
fn s3_2_it_listens_at_the_node_port_addresses_only() -> Result<()> {
    let world = World::without_shunt(Plan::default().bridged())?;
    world.cluster.apply("services.yaml", &local(&world).yaml())?;
    world.cluster.start(&["--nodeport-addresses", "primary"])?;
    becomes(&world, CHECK, "web", [Some(1), Some(1)]);
    for family in BOTH {
        // The bridge's address is the node's too, but not its primary one.
        let bridge = SocketAddr::new(tests::net::plan::pod_addr(0, 1).of(family), CHECK);
        assert_eq!(get(&world.pod(), bridge, "/"), None, "{bridge}");
        assert_eq!(get(&world.pod(), at(&world, 0, family), "/"), Some(want("web", 1)));
    }
    Ok(())
}

#[test]
fn s3_2_a_restart_closes_and_opens() -> Result<()> {
    let world = start()?;
    becomes(&world, CHECK, "web", [Some(1), Some(1)]);
    world.cluster.node(0).stop_shunt()?;
    becomes(&world, CHECK, "web", [None, Some(1)]);
    world.cluster.node(0).start_shunt(&[])?;
    becomes(&world, CHECK, "web", [Some(1), Some(1)]);
    Ok(())
}
