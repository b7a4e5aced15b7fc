//! Flags of `shunt run` that affect traffic.

use anyhow::Result;
use tests::{
    manifest::Service,
    net::{
        Plan,
        plan::{BOTH, Family},
    },
    traffic::{Client, Tally},
};

use crate::world::{NODE_PORT, PORT, TARGET, World, is_of_node, web, web_addr};

fn start(flags: &[&str]) -> Result<World> {
    let world = World::without_shunt(Plan::default())?;
    world.cluster.apply("services.yaml", &world.web().yaml())?;
    world.cluster.start(flags)?;
    Ok(world)
}

#[test]
fn masquerade_all_shows_every_backend_the_node() -> Result<()> {
    let world = start(&["--masquerade-all"])?;
    for family in BOTH {
        for (from, to) in [
            (world.pod(), web(family)),
            (world.outside(), web(family)),
            (world.outside(), world.node_port(0, family)),
        ] {
            for _ in 0..4 {
                let answer = from.tcp(to).answered();
                assert!(is_of_node(answer.peer, 0), "{answer}, asked {to}");
            }
        }
    }
    Ok(())
}

#[test]
fn the_random_scheduler_reaches_every_backend() -> Result<()> {
    let world = start(&["--scheduler", "random"])?;
    let tally = Tally::of(60, || world.pod().tcp(web(Family::V4)));
    // A fair coin gives one side only with a probability of one in 2^59.
    assert!(tally.count("near") > 0 && tally.count("far") > 0, "{tally}");
    Ok(())
}

/// Ranges without any of the node's addresses leave the NodePort's port unused.
#[test]
fn node_ports_on_chosen_addresses_only() -> Result<()> {
    let world = start(&["--nodeport-addresses", "172.16.0.0/12,fd00:172::/32"])?;
    for family in BOTH {
        world.outside().tcp(world.node_port(0, family)).refused();
        world.pod().tcp(web(family)).answered();
    }
    Ok(())
}

#[test]
fn node_ports_on_the_primary_address() -> Result<()> {
    let world = World::without_shunt(Plan::default().bridged())?;
    world.cluster.apply("services.yaml", &world.web().yaml())?;
    world.cluster.start(&["--nodeport-addresses", "primary"])?;
    for family in BOTH {
        world.outside().tcp(world.node_port(0, family)).answered();
        // The bridge's gateway address is the node's own too, but not its primary one.
        let gateway = std::net::SocketAddr::new(tests::net::plan::pod_addr(0, 1).of(family), NODE_PORT);
        world.pod().tcp(gateway).refused();
    }
    Ok(())
}

#[test]
fn an_external_ip_is_served_where_it_is_routed_to() -> Result<()> {
    let ips = ["203.0.113.10", "2001:db8::10"];
    let world = World::start(Plan::default(), |world| {
        let service = Service::new("web", web_addr()).tcp(PORT, TARGET).udp(PORT, TARGET);
        let service =
            ips.iter().fold(service, |service, ip| service.external_ip(ip.parse().expect("an address")));
        service.pods(&[&world.near, &world.far]).yaml()
    })?;
    let own = world.cluster.node(0).addr();
    world
        .cluster
        .outside()
        .netns()
        .ip(&format!("route add {}/32 via {}\nroute add {}/128 via {}\n", ips[0], own.v4, ips[1], own.v6))?;
    for ip in ips {
        let to = std::net::SocketAddr::new(ip.parse()?, PORT);
        for from in [world.outside(), world.pod(), world.host(0)] {
            Tally::of(6, || from.tcp(to)).even_over(&["near", "far"]);
            Tally::of(6, || from.udp(to)).even_over(&["near", "far"]);
        }
        // Ports it does not serve are unaffected: nothing answers for them.
        let other = std::net::SocketAddr::new(ip.parse()?, PORT + 1);
        let attempt = world.outside().tcp(other);
        assert!(!matches!(attempt.outcome, tests::traffic::Outcome::Answered(_)), "{attempt}");
    }
    Ok(())
}

/// Excluded devices are unaffected: their pods' packets pass unchanged.
#[test]
fn an_excluded_device_is_not_touched() -> Result<()> {
    let world = World::without_shunt(Plan::default())?;
    world.cluster.apply("services.yaml", &world.web().yaml())?;
    world.cluster.node(0).start_shunt(&["--exclude-device", world.client.device()])?;
    world.cluster.node(1).start_shunt(&[])?;
    world.pod().tcp(web(Family::V4)).timed_out();
    let spare = world.cluster.add_pod(0, "spare")?;
    tests::net::cluster::eventually(std::time::Duration::from_secs(2), || {
        let attempt =
            Client::at(spare.place()).patience(std::time::Duration::from_millis(200)).tcp(web(Family::V4));
        matches!(attempt.outcome, tests::traffic::Outcome::Answered(_))
    })?;
    Ok(())
}

#[test]
fn what_is_not_built_is_refused_by_name() -> Result<()> {
    let world = World::without_shunt(Plan::default().nodes(2))?;
    let node = world.cluster.node(0);
    let manifests = node.manifests().to_string_lossy().into_owned();
    let output = node.shunt_output(&[
        "run",
        "--manifests",
        &manifests,
        "--node-name",
        node.name(),
        "--routing",
        "bpf",
    ])?;
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{stderr}");
    assert!(stderr.contains("bpf"), "{stderr}");
    Ok(())
}

#[test]
fn a_trace_tells_of_decisions() -> Result<()> {
    let world = start(&["--trace"])?;
    let before = world.cluster.node(0).shunt_log().len();
    for _ in 0..40 {
        world.pod().tcp(web(Family::V4)).answered();
    }
    let told = || world.cluster.node(0).shunt_log()[before..].contains("10.68.0.10");
    tests::net::cluster::eventually(std::time::Duration::from_secs(2), told)?;
    Ok(())
}
