//! The agent follows the directory of manifests: edits move new connections, open ones stay; a broken document has no
//! effect on others.

use std::{fs, time::Duration};

use anyhow::Result;
use tests::{
    manifest::Service,
    net::{
        Plan,
        cluster::eventually,
        plan::{BOTH, vip},
    },
    traffic::Outcome,
};

use crate::world::{TARGET, World, at, web, web_addr};

const SECOND: Duration = Duration::from_secs(1);

fn only(world: &World, far: bool) -> String {
    let pod = if far { &world.far } else { &world.near };
    Service::new("web", web_addr()).node_port(80, TARGET, 30080).pods(&[pod]).yaml()
}

#[test]
fn an_edit_moves_new_connections_and_leaves_open_ones() -> Result<()> {
    let world = World::start(Plan::default(), |world| only(world, false))?;
    for family in BOTH {
        let streams = [
            world.pod().stream(web(family)),
            world.outside().stream(world.node_port(1, family)),
            world.host(1).stream(web(family)),
        ];
        let before = streams.each_ref().map(|stream| stream.steady(3));
        assert!(before.iter().all(|answer| answer.backend == "near"), "{before:?}");
        world.cluster.apply("services.yaml", &only(&world, true))?;
        for from in [world.pod(), world.outside(), world.host(0)] {
            let to = web(family);
            let moved = eventually(
                SECOND,
                || matches!(from.tcp(to).outcome, Outcome::Answered(answer) if answer.backend == "far"),
            )?;
            eprintln!("{family:?}: a new connection moved {moved:?} after the edit");
        }
        for _ in 0..10 {
            assert_eq!(world.pod().tcp(web(family)).answered().backend, "far");
        }
        assert_eq!(streams.each_ref().map(|stream| stream.steady(20)), before);
        world.cluster.apply("services.yaml", &only(&world, false))?;
        // Both nodes: the next family's streams start on either.
        for from in [world.pod(), world.outside(), world.host(1)] {
            eventually(SECOND, || from.tcp(web(family)).answered().backend == "near")?;
        }
        assert_eq!(streams.each_ref().map(|stream| stream.steady(5)), before);
    }
    Ok(())
}

#[test]
fn a_file_written_in_place_is_followed_too() -> Result<()> {
    let world = World::start(Plan::default(), |world| only(world, false))?;
    for node in world.cluster.nodes() {
        fs::write(node.manifests().join("services.yaml"), only(&world, true))?;
    }
    eventually(
        SECOND,
        || matches!(world.pod().tcp(web(BOTH[0])).outcome, Outcome::Answered(answer) if answer.backend == "far"),
    )?;
    Ok(())
}

/// A UDP flow whose backend was removed from its Service is deleted: the next datagram goes to a current backend.
#[test]
fn an_open_udp_socket_moves_when_its_backend_leaves() -> Result<()> {
    let world = World::start(Plan::default(), |world| only(world, false))?;
    for (family, far) in [(BOTH[0], true), (BOTH[1], false)] {
        let sockets = [world.pod().udp_connected(web(family))?, world.pod().udp_connected(web(family))?];
        let before = sockets[0].ask()?.backend;
        assert_eq!(before, if far { "near" } else { "far" });
        world.cluster.apply("services.yaml", &only(&world, far))?;
        let want = if far { "far" } else { "near" };
        eventually(SECOND * 2, || sockets[0].ask().is_ok_and(|answer| answer.backend == want))?;
    }
    Ok(())
}

#[test]
fn a_service_that_is_removed_is_gone() -> Result<()> {
    let world = World::start(Plan::default(), |world| only(world, false))?;
    let stream = world.pod().stream(web(BOTH[0]));
    stream.steady(2);
    world.cluster.remove("services.yaml")?;
    eventually(SECOND, || {
        !matches!(world.pod().patience(SECOND / 5).tcp(web(BOTH[0])).outcome, Outcome::Answered(_))
    })?;
    stream.steady(10);
    Ok(())
}

#[test]
fn a_broken_document_is_named_and_all_others_work() -> Result<()> {
    let world = World::without_shunt(Plan::default())?;
    world.cluster.apply("services.yaml", &world.web().yaml())?;
    let second = Service::new("second", vip(12)).tcp(80, TARGET).pods(&[&world.near]).yaml();
    let broken = "apiVersion: v1\nkind: Service\nmetadata: {name: broken}\nspec:\n  clusterIP: 10.68.0.13\n  \
                  ports:\n  - {port: eighty}\n";
    // The broken one is in the middle of its file.
    world.cluster.apply("mixed.yaml", &format!("{second}---\n{broken}---\n{}", more(&world)))?;
    world.cluster.apply("garbage.yaml", "{ this is: [no yaml\n")?;
    world.cluster.start(&[])?;
    for last in [10, 12, 14] {
        world.pod().tcp(at(vip(last), BOTH[0], 80)).answered();
    }
    let log = world.cluster.node(0).shunt_log();
    let line = log.lines().find(|line| line.contains("mixed.yaml")).unwrap_or_default();
    assert!(line.contains("port"), "no line names mixed.yaml and the field:\n{log}");
    assert!(log.contains("garbage.yaml"), "no line names garbage.yaml:\n{log}");
    // Breaking a file while shunt runs removes nothing either.
    world.cluster.apply("garbage.yaml", "kind: [still, no, yaml\n")?;
    for last in [10, 12, 14] {
        world.pod().tcp(at(vip(last), BOTH[0], 80)).answered();
    }
    Ok(())
}

fn more(world: &World) -> String {
    Service::new("third", vip(14)).tcp(80, TARGET).pods(&[&world.far]).yaml()
}
