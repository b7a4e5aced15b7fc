//! `shunt monitor` reports real traffic: the client, the verdict, where and why.

use std::net::SocketAddr;

use anyhow::{Context, Result};
use serde_json::Value;
use tests::{
    manifest::Service,
    net::{
        Lane, Monitor, Plan,
        plan::{BOTH, Family, external, vip},
    },
    traffic::{Answer, Client, Outcome},
};

use crate::world::{NODE_PORT, PORT, TARGET, World, at, web};

/// A TCP reply and the event of its flow, found by the client's source port.
fn told(monitor: &Monitor, from: Client, to: SocketAddr, port: u16) -> Result<(Answer, Value)> {
    let answer = from.port(port).tcp(to).answered();
    let is_its =
        |event: &Value| event["client"].as_str().is_some_and(|client| client.ends_with(&format!(":{port}")));
    let _one = monitor.event(&[("vip", to.to_string().into()), ("kind", "flow".into())])?;
    let found = tests::net::cluster::eventually(std::time::Duration::from_secs(5), || {
        monitor.events().is_ok_and(|events| events.iter().any(is_its))
    });
    found.with_context(|| format!("no event of port {port} among {:#?}", monitor.lines()))?;
    let event = monitor.events()?.into_iter().find(is_its).context("it was there")?;
    Ok((answer, event))
}

/// The event contains the Service, the backend that replied, and whether a node's address replaces the client's.
#[track_caller]
fn agrees(world: &World, answer: &Answer, client: SocketAddr, event: &Value) {
    let near = answer.backend == world.near.name();
    let backend = if near { &world.near } else { &world.far };
    let family = if client.is_ipv4() { Family::V4 } else { Family::V6 };
    assert_eq!(event["client"], client.to_string(), "{event}");
    assert_eq!(event["backend"], at(backend.addr(), family, TARGET).to_string(), "{event}");
    assert_eq!((&event["service"], &event["protocol"]), (&"default/web".into(), &"TCP".into()), "{event}");
    assert_eq!((&event["local"], &event["reason"]), (&near.into(), &Value::Null), "{event}");
    assert_eq!(event["masqueraded"], Value::from(answer.peer.ip() != client.ip()), "{event}");
    for id in ["service_id", "backend_id", "ifindex"] {
        assert!(event[id].as_u64().is_some_and(|id| id != 0), "{event}");
    }
    assert!(
        event["time"].as_str().is_some_and(|time| time.starts_with("20") && time.ends_with('Z')),
        "{event}"
    );
}

#[test]
fn flows_of_pods_and_of_outside() -> Result<()> {
    let plan = Plan::default();
    // `cargo xtask test network --xdp`: packets that the XDP program passes to tc are reported there.
    let in_lane = plan.xdp.is_some();
    let world = World::start(plan, |world| world.web().yaml())?;
    let monitor = Monitor::start(world.cluster.node(0), &["--kind", "flow"])?;
    let mut port = 21_000;
    for family in BOTH {
        for _ in 0..2 {
            port += 1;
            let (answer, event) = told(&monitor, world.pod(), web(family), port)?;
            agrees(&world, &answer, at(world.client.addr(), family, port), &event);
            assert_eq!(
                (&event["hook"], &event["device"]),
                (&"ingress".into(), &world.client.device().into())
            );
            port += 1;
            let (answer, event) = told(&monitor, world.outside(), world.node_port(0, family), port)?;
            agrees(&world, &answer, at(world.cluster.outside_addr(), family, port), &event);
            assert!(event["hook"] == "ingress" || in_lane && event["hook"] == "xdp", "{event}");
            assert_eq!(event["device"], "eth0", "{event}");
        }
    }
    let ended = monitor.stop()?;
    assert!(ended.status.success() && ended.stderr.is_empty(), "{ended:?}");
    assert_eq!(ended.lines.len(), 8, "a flow is told once: {:#?}", ended.lines);
    Ok(())
}

#[test]
fn node_ports_in_the_generic_xdp_lane() -> Result<()> {
    let plan = Plan::default().xdp(Lane::Generic);
    let world = World::start(plan, |world| world.web().yaml())?;
    let (node, outside) = (world.cluster.node(0), world.outside());
    // The first flows to an unresolved neighbour are handled at tc.
    BOTH.into_iter().for_each(|family| (0..4).for_each(|_| drop(outside.tcp(world.node_port(0, family)))));
    let monitor = Monitor::start(node, &["--hook", "xdp"])?;
    let mut port = 21_000;
    for family in BOTH {
        for _ in 0..2 {
            port += 1;
            let (answer, event) = told(&monitor, world.outside(), world.node_port(0, family), port)?;
            agrees(&world, &answer, at(world.cluster.outside_addr(), family, port), &event);
            assert_eq!((&event["hook"], &event["device"]), (&"xdp".into(), &"eth0".into()), "{event}");
        }
    }
    assert_eq!(monitor.stop()?.lines.len(), 4);
    Ok(())
}

/// Datagrams that arrive before any of them has recorded the flow are not flows of their own.
#[test]
fn a_burst_of_one_socket_is_told_once() -> Result<()> {
    let world = World::start(Plan::default(), |world| world.web().yaml())?;
    let monitor = Monitor::start(world.cluster.node(0), &["--kind", "flow"])?;
    let mut sockets = 0;
    for (from, to) in [
        (world.pod(), web(Family::V4)),
        (world.outside(), world.node_port(0, Family::V6)),
        (world.host(0), web(Family::V6)),
    ] {
        for _ in 0..20 {
            from.udp_connected(to)?.burst(8)?;
            sockets += 1;
        }
    }
    assert_eq!(monitor.stop()?.lines.len(), sockets);
    Ok(())
}

/// The node's own processes: by process id and name, before they have an address.
#[test]
fn processes_of_the_node() -> Result<()> {
    let world = World::start(Plan::default(), |world| {
        let empty = Service::new("none", vip(11)).tcp(PORT, TARGET).udp(PORT, TARGET);
        [world.web().yaml(), empty.yaml()].join("---\n")
    })?;
    let monitor = Monitor::start(world.cluster.node(0), &["--hook", "socket"])?;
    for family in BOTH {
        let answer = world.host(0).tcp(web(family)).answered();
        let near = answer.backend == world.near.name();
        let event = monitor.event(&[("vip", web(family).to_string().into())])?;
        assert_eq!((&event["kind"], &event["local"]), (&"flow".into(), &near.into()), "{event}");
        assert_eq!((&event["pid"], &event["device"]), (&std::process::id().into(), &Value::Null), "{event}");
        // The name of the calling thread: libtest names threads after tests.
        let name = event["process"].as_str().unwrap_or_default();
        assert!(!name.is_empty() && name.len() < 16, "{event}");
        assert!(event["client"].as_str().is_some_and(|client| client.starts_with("netns:")), "{event}");

        let none = at(vip(11), family, PORT);
        world.host(0).tcp(none).refused();
        let event = monitor.event(&[("vip", none.to_string().into())])?;
        assert_eq!((&event["kind"], &event["reason"]), (&"refused".into(), &"no_backend".into()), "{event}");
        assert_eq!((&event["service"], &event["backend"]), (&"default/none".into(), &Value::Null), "{event}");
        let other = at(vip(11), family, PORT + 1);
        world.host(0).tcp(other).refused();
        let event = monitor.event(&[("vip", other.to_string().into())])?;
        assert_eq!(
            (&event["reason"], &event["service"]),
            (&"no_service_port".into(), &"default/none".into())
        );
    }
    Ok(())
}

/// The Service is reported although the packet was discarded before its flow was recorded.
#[test]
fn what_is_refused_and_what_is_dropped() -> Result<()> {
    let far_port = 30_081;
    let world = World::start(Plan::default(), |world| {
        let empty = Service::new("none", vip(11)).node_port(PORT, TARGET, 30_082);
        let far = Service::new("far", vip(12)).node_port(PORT, TARGET, far_port).external_traffic_local();
        let ranged = Service::new("ranged", vip(13)).tcp(PORT, TARGET).load_balancer(external(13));
        let ranged = ranged.spec("loadBalancerSourceRanges: [192.0.2.0/24, \"2001:db8:ffff::/48\"]");
        let all = [empty, far.pods(&[&world.far]), ranged.pods(&[&world.near])];
        all.map(|service| service.yaml()).join("---\n")
    })?;
    let node = world.cluster.node(0);
    let monitor = Monitor::start(node, &["--kind", "refused,dropped"])?;
    let quick = |client: Client| client.patience(std::time::Duration::from_millis(300));
    let mut port = 21_000;
    for family in BOTH {
        let own = |port| at(node.addr(), family, port);
        for (to, kind, reason, service, from) in [
            (at(vip(11), family, PORT), "refused", "no_backend", "default/none", world.pod()),
            (own(30_082), "refused", "no_backend", "default/none", world.outside()),
            (at(vip(11), family, PORT + 1), "refused", "no_service_port", "default/none", world.pod()),
            (own(far_port), "dropped", "no_local_endpoints", "default/far", world.outside()),
            (at(external(13), family, PORT), "dropped", "src_range", "default/ranged", world.pod()),
        ] {
            port += 1;
            let attempt = quick(from).port(port).tcp(to);
            let silent = attempt.outcome == Outcome::TimedOut;
            assert_eq!(silent, kind == "dropped", "{attempt}");
            let event = monitor.event(&[("vip", to.to_string().into())])?;
            assert_eq!((&event["kind"], &event["reason"]), (&kind.into(), &reason.into()), "{event}");
            assert_eq!((&event["service"], &event["hook"]), (&service.into(), &"ingress".into()), "{event}");
            let client = event["client"].as_str().unwrap_or_default();
            assert!(client.ends_with(&format!(":{port}")), "{event}");
        }
    }
    Ok(())
}

/// Each filter passes the matching events, of the same traffic.
#[test]
fn filters() -> Result<()> {
    let world = World::start(Plan::default(), |world| {
        let other = Service::new("other", vip(11)).tcp(PORT, TARGET).udp(PORT, TARGET).pods(&[&world.near]);
        let empty = Service::new("none", vip(12)).tcp(PORT, TARGET);
        [world.web(), other, empty].map(|service| service.yaml()).join("---\n")
    })?;
    let node = world.cluster.node(0);
    let client = world.client.addr().v4.to_string();
    let near = world.near.addr().v4.to_string();
    let device = world.client.device().to_owned();
    let cases: [(&[&str], usize); 9] = [
        (&["--service", "default/other"], 2),
        (&["--service", "default/nobody"], 0),
        (&["--address", &client], 4),
        (&["--address", &near, "--service", "default/other"], 2),
        (&["--port", &NODE_PORT.to_string()], 1),
        (&["--protocol", "udp"], 1),
        (&["--device", &device], 4),
        (&["--hook", "socket"], 1),
        (&["--reason", "no_backend"], 1),
    ];
    for (flags, expected) in cases {
        let monitor = Monitor::start(node, flags)?;
        let other = at(vip(11), Family::V4, PORT);
        world.pod().tcp(other).answered();
        world.pod().udp(other).answered();
        world.pod().tcp(web(Family::V4)).answered();
        world.pod().tcp(at(vip(12), Family::V4, PORT)).refused();
        world.host(0).tcp(web(Family::V4)).answered();
        world.outside().tcp(world.node_port(0, Family::V4)).answered();
        let ended = monitor.stop()?;
        assert_eq!(ended.lines.len(), expected, "{flags:?}: {:#?}", ended.lines);
        assert_eq!(
            ended.stderr.contains("no Service"),
            flags.contains(&"default/nobody"),
            "{}",
            ended.stderr
        );
    }
    Ok(())
}

/// One line per event, in each documented format.
#[test]
fn every_format() -> Result<()> {
    let world = World::start(Plan::default(), |world| world.web().yaml())?;
    let node = world.cluster.node(0);
    let of = |flags: &[&str]| -> Result<String> {
        let monitor = Monitor::start_as(node, &[flags, &["--count", "1"]].concat())?;
        world.pod().tcp(web(Family::V4)).answered();
        let ended = monitor.wait()?;
        assert!(ended.status.success(), "{ended:?}");
        Ok(ended.lines.join("\n"))
    };
    let line = of(&[])?;
    for word in ["flow", "ingress", world.client.device(), "TCP", "-> 10.68.0.10:80 default/web"] {
        assert!(line.contains(word), "no {word} in {line}");
    }
    assert!(!line.contains('\n') && !line.contains('\x1b') && !line.contains("backend="), "{line}");
    let wide = of(&["-o", "wide"])?;
    assert!(wide.contains("backend=") && wide.starts_with("20"), "{wide}");
    assert_eq!(of(&["-o", "json"])?.lines().count(), 1);
    let pretty = of(&["-p"])?;
    assert!(pretty.lines().count() > 10, "{pretty}");
    serde_json::from_str::<Value>(&pretty)?;
    let yaml = of(&["-o", "yaml"])?;
    assert!(yaml.starts_with("---\n") && yaml.contains("service: default/web"), "{yaml}");
    Ok(())
}
