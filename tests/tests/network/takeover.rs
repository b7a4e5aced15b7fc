//! shunt starts on a node that kube-proxy has served: existing connections continue, with kube-proxy's rules and after
//! their removal.

use std::{
    fmt::Write as _,
    io::{Read as _, Write as _},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use anyhow::Result;
use tests::{
    manifest::Service,
    net::{
        Plan,
        cluster::eventually,
        cni,
        plan::{BOTH, Family},
    },
    traffic::{Stream, UdpClient},
};

use crate::{
    s2_11_tcp::leave_time_wait,
    world::{NODE_PORT, PORT, TARGET, World, web, web_addr},
};

/// Rules for the Service `web` as in kube-proxy's nftables mode: all of its traffic to the backend `far`.
fn kube_proxy(world: &World, node: usize) -> String {
    let (mut to_far, mut node_ports) = (String::new(), String::new());
    for family in BOTH {
        let ip = if family == Family::V4 { "ip" } else { "ip6" };
        let (vip, node) = (web_addr().of(family), world.cluster.node(node).addr().of(family));
        let far = match world.far.addr().of(family) {
            std::net::IpAddr::V4(v4) => format!("{v4}:{TARGET}"),
            std::net::IpAddr::V6(v6) => format!("[{v6}]:{TARGET}"),
        };
        for proto in ["tcp", "udp"] {
            writeln!(to_far, "{ip} daddr {vip} {proto} dport {PORT} dnat {ip} to {far}").expect("a String");
            let port = format!("{ip} daddr {node} {proto} dport {NODE_PORT}");
            writeln!(node_ports, "{port} meta mark set mark | 0x4000 dnat {ip} to {far}").expect("a String");
        }
    }
    format!(
        "table inet kube-proxy {{
            chain services {{ {to_far} {node_ports} }}
            chain prerouting {{ type nat hook prerouting priority dstnat; policy accept; jump services; }}
            chain output {{ type nat hook output priority -100; policy accept; jump services; }}
            chain postrouting {{
                type nat hook postrouting priority srcnat; policy accept;
                meta mark & 0x4000 == 0x4000 masquerade
            }}
        }}"
    )
}

/// kube-proxy's rules, and a pod network's: with a node's last NAT chain the kernel would drop all translation.
fn before_shunt(world: &World) -> Result<()> {
    for node in world.cluster.nodes() {
        node.netns().nft(&kube_proxy(world, node.index()))?;
        cni::masquerade(node.netns())?;
    }
    Ok(())
}

#[test]
fn open_connections_of_kube_proxy_go_on() -> Result<()> {
    let world = World::without_shunt(Plan::default())?;
    world.cluster.apply("services.yaml", &world.web().yaml())?;
    before_shunt(&world)?;
    let mut streams = Vec::new();
    let mut sockets = Vec::new();
    for family in BOTH {
        for (client, to) in [
            (world.pod(), web(family)),
            (world.outside(), world.node_port(0, family)),
            (world.host(0), web(family)),
        ] {
            streams.push(client.stream(to));
            sockets.push(client.udp_connected(to)?);
        }
    }
    let before: Vec<_> = streams.iter().map(|stream| stream.steady(3)).collect();
    assert!(before.iter().all(|answer| answer.backend == "far"), "{before:?}");
    let datagrams = sockets.iter().map(UdpClient::ask).collect::<Result<Vec<_>, _>>()?;

    // Traffic while shunt starts, and connections opened meanwhile.
    let busy: Vec<_> = BOTH
        .into_iter()
        .flat_map(|family| {
            [world.pod().stream(web(family)), world.outside().stream(world.node_port(0, family))]
        })
        .collect();
    let is_over = AtomicBool::new(false);
    thread::scope(|scope| -> Result<()> {
        for stream in busy {
            let is_over = &is_over;
            scope.spawn(move || {
                let first = stream.steady(1);
                while !is_over.load(Ordering::Relaxed) {
                    assert_eq!(stream.steady(2), first);
                }
            });
        }
        let newcomers = scope.spawn(|| {
            while !is_over.load(Ordering::Relaxed) {
                let stream = world.pod().stream(web(Family::V4));
                let first = stream.steady(1);
                thread::sleep(Duration::from_millis(5));
                assert_eq!(stream.steady(1), first);
            }
        });
        let started = world.cluster.start(&[]);
        thread::sleep(Duration::from_millis(300));
        is_over.store(true, Ordering::Relaxed);
        newcomers.join().expect("a connection that began while shunt came goes on");
        started
    })?;
    let again: Vec<_> = streams.iter().map(|stream| stream.steady(3)).collect();
    assert_eq!(again, before);

    // Without kube-proxy's rules too.
    for node in world.cluster.nodes() {
        node.netns().nft("delete table inet kube-proxy")?;
    }
    let again: Vec<_> = streams.iter().map(|stream| stream.steady(3)).collect();
    assert_eq!(again, before);
    let later = sockets.iter().map(UdpClient::ask).collect::<Result<Vec<_>, _>>()?;
    assert_eq!(later, datagrams);
    for counter in ["no_flow", "no_backend"] {
        assert_eq!(world.cluster.node(0).counter(counter)?, 0, "{counter}");
    }
    let flows = world.cluster.node(0).shunt_json(&["conntrack", "list", "--service", "default/web"])?;
    let adopted = flows.as_array().into_iter().flatten().filter(|flow| flow["kind"] == "adopted");
    let far = |flow: &serde_json::Value| flow["backend"].as_str().is_some_and(|it| it.ends_with(":8080"));
    assert!(adopted.clone().count() >= 8 && adopted.clone().all(far), "{flows:#}");

    // New connections are shunt's, in turn.
    for client in [world.pod(), world.outside()] {
        for family in BOTH {
            let to = if client.place().netns().name() == "outside" {
                world.node_port(0, family)
            } else {
                web(family)
            };
            let mut seen: Vec<_> = (0..4).map(|_| client.tcp(to).answered().backend).collect();
            seen.sort();
            assert_eq!(seen, ["far", "far", "near", "near"]);
        }
    }
    Ok(())
}

/// A source port of a connection that kube-proxy translated is free again once that connection is closed; and a
/// datagram socket moves when its backend is removed.
#[test]
fn what_kube_proxy_began_ends_as_any_other() -> Result<()> {
    let world = World::without_shunt(Plan::default())?;
    world.cluster.apply("services.yaml", &world.web().yaml())?;
    before_shunt(&world)?;
    let client_port = |family| if family == Family::V4 { 26_001 } else { 26_002 };
    let client = |family| world.pod().port(client_port(family));
    let mut begun = Vec::new();
    for family in BOTH {
        let (stream, socket) = (client(family).stream(web(family)), world.pod().udp_connected(web(family))?);
        assert_eq!((stream.steady(1).backend, socket.ask()?.backend), ("far".to_owned(), "far".to_owned()));
        begun.push((family, stream, socket));
    }
    world.cluster.start(&[])?;
    for node in world.cluster.nodes() {
        node.netns().nft("delete table inet kube-proxy")?;
    }
    let only_near = Service::new("web", web_addr()).node_port(PORT, TARGET, NODE_PORT).pods(&[&world.near]);
    world.cluster.apply("services.yaml", &only_near.yaml())?;
    for (family, stream, socket) in begun {
        // A connection drains; datagrams move.
        assert_eq!(stream.steady(3).backend, "far");
        eventually(Duration::from_secs(2), || socket.ask().is_ok_and(|answer| answer.backend == "near"))?;
        end(stream)?;
        for _ in 0..4 {
            leave_time_wait(&client(family), client_port(family))?;
            assert_eq!(client(family).tcp(web(family)).answered().backend, "near");
        }
    }
    Ok(())
}

/// The server closes first, so that the client's port is free at once.
fn end(stream: Stream) -> Result<()> {
    let mut stream = stream.into_inner();
    stream.write_all(b"GET / HTTP/1.1\r\nHost: shunt\r\nConnection: close\r\n\r\n")?;
    stream.read_to_string(&mut String::new())?;
    Ok(())
}
