//! 2.11, sockets: the kernel never looks again at what connect() translated. A connected UDP socket whose backend was
//! removed is closed, so that its owner gets an error and connects again; no other socket is closed.

use std::{io, thread, time::Duration};

use anyhow::Result;
use tests::{
    manifest::{Endpoint, Service},
    net::{
        Plan,
        cluster::eventually,
        plan::{BOTH, Family, vip},
    },
    traffic::{Client, Outcome, UdpClient},
};

use crate::world::{NODE_PORT, TARGET, World, at, web, web_addr};

const SECOND: Duration = Duration::from_secs(1);

fn bare() -> Service {
    Service::new("web", web_addr()).node_port(80, TARGET, NODE_PORT)
}

fn apply(world: &World, service: &Service) -> Result<()> {
    world.cluster.apply("services.yaml", &service.yaml())
}

/// Sockets of `from`, connected to the Service in every way.
fn connected(world: &World, from: &Client) -> Result<Vec<(String, UdpClient)>> {
    let mut sockets = Vec::new();
    for family in BOTH {
        for to in [web(family), world.node_port(0, family)] {
            sockets.push((format!("{to}"), from.udp_connected(to)?));
        }
    }
    let mapped = from.clone().v4_mapped();
    sockets.push(("a v4-mapped address".into(), mapped.udp_connected(web(Family::V4))?));
    Ok(sockets)
}

fn errno(result: &io::Result<impl Sized>) -> Option<i32> {
    result.as_ref().err().and_then(io::Error::raw_os_error)
}

/// Within a second each socket's owner gets an error, and cannot continue to use the socket.
#[track_caller]
fn are_closed(sockets: &[(String, UdpClient)]) {
    for (what, socket) in sockets {
        let closed = eventually(SECOND, || {
            let told = socket.take_error().expect("SO_ERROR");
            told.is_some_and(|error| error.raw_os_error() == Some(libc::ECONNABORTED))
        });
        match closed {
            Ok(took) => eprintln!("{what}: closed after {took:?}"),
            Err(error) => panic!("{what}: {error}: last {:?}", socket.ask()),
        }
        assert_eq!(errno(&socket.ask()), Some(libc::EDESTADDRREQ), "{what}");
    }
}

fn start(flags: &[&str]) -> Result<World> {
    let world = World::without_shunt(Plan::default())?;
    apply(&world, &bare().pods(&[&world.near]))?;
    world.cluster.start(flags)?;
    Ok(world)
}

#[test]
fn s2_11_connected_sockets_of_the_node_are_closed_when_their_backend_leaves() -> Result<()> {
    let world = start(&[])?;
    let host = world.host(0).patience(SECOND / 4);
    let (near, far) = (&world.near, &world.far);
    let cases: [(&str, &str, Service); 5] = [
        ("near", "far", bare().endpoints([Endpoint::pod(near).unready(), Endpoint::pod(far)])),
        ("far", "near", bare().endpoints([Endpoint::pod(near), Endpoint::pod(far).gone()])),
        ("near", "far", bare().pods(&[far])),
        ("far", "", bare()),
        ("near", "near", Service::new("web", web_addr()).node_port(80, TARGET + 1, NODE_PORT).pods(&[near])),
    ];
    near.serve_udp(TARGET + 1)?;
    for (before, after, change) in cases {
        let sockets = connected(&world, &host)?;
        for (what, socket) in &sockets {
            assert_eq!(socket.ask()?.backend, before, "{what}");
        }
        apply(&world, &change)?;
        are_closed(&sockets);
        for (what, socket) in connected(&world, &host)? {
            let answer = socket.ask();
            match after {
                "" => assert_eq!(errno(&answer), Some(libc::ECONNREFUSED), "{what}: {answer:?}"),
                backend => assert_eq!(answer?.backend, backend, "{what}"),
            }
        }
        if after.is_empty() {
            apply(&world, &bare().pods(&[near]))?;
            eventually(SECOND, || {
                host.udp_connected(web(Family::V4)).is_ok_and(|socket| socket.ask().is_ok())
            })?;
        }
    }
    let sockets = connected(&world, &host)?;
    sockets.iter().try_for_each(|(_, socket)| socket.ask().map(drop))?;
    world.cluster.remove("services.yaml")?;
    are_closed(&sockets);
    Ok(())
}

#[test]
fn s2_11_other_sockets_stay_open() -> Result<()> {
    let world = World::without_shunt(Plan::default())?;
    let other = Service::new("other", vip(11)).udp(80, TARGET).pods(&[&world.near]).yaml() + "---\n";
    world.cluster.apply("services.yaml", &(other.clone() + &bare().pods(&[&world.near]).yaml()))?;
    world.cluster.start(&[])?;
    let host = world.host(0);
    for family in BOTH {
        let kept = [
            host.udp_connected(world.near.socket_addr(family, TARGET))?,
            host.udp_connected(at(vip(11), family, 80))?,
            host.udp_unconnected(at(vip(11), family, 80))?,
        ];
        let stream = host.stream(web(family));
        let leaves = host.udp_connected(web(family))?;
        for socket in kept.iter().chain([&leaves]) {
            assert_eq!(socket.ask()?.backend, "near");
        }
        assert_eq!(stream.steady(2).backend, "near");
        world.cluster.apply("services.yaml", &(other.clone() + &bare().pods(&[&world.far]).yaml()))?;
        are_closed(&[("the one".into(), leaves)]);
        for _ in 0..10 {
            for socket in &kept {
                assert_eq!(socket.ask()?.backend, "near");
            }
            assert_eq!(stream.steady(1).backend, "near");
            thread::sleep(SECOND / 20);
        }
        world.cluster.apply("services.yaml", &(other.clone() + &bare().pods(&[&world.near]).yaml()))?;
        // A socket connected just before the change is closed too.
        eventually(
            SECOND,
            || matches!(host.udp(web(family)).outcome, Outcome::Answered(answer) if answer.backend == "near"),
        )?;
    }
    Ok(())
}

/// Connected while there was no endpoint, or no Service: such a socket is not translated any more.
#[test]
fn s2_11_sockets_connected_before_the_endpoint_are_closed_when_it_comes() -> Result<()> {
    let world = World::without_shunt(Plan::default())?;
    world.cluster.start(&[])?;
    let host = world.host(0).patience(SECOND / 4);
    let sockets = || -> Result<Vec<_>> {
        BOTH.iter().map(|family| Ok((format!("{family:?}"), host.udp_connected(web(*family))?))).collect()
    };
    let before_service = sockets()?;
    apply(&world, &bare())?;
    eventually(SECOND, || {
        errno(&host.udp_connected(web(BOTH[0])).and_then(|s| s.ask())) == Some(libc::ECONNREFUSED)
    })?;
    let before_endpoint = sockets()?;
    apply(&world, &bare().pods(&[&world.far]))?;
    are_closed(&before_service);
    are_closed(&before_endpoint);
    for (what, socket) in sockets()? {
        assert_eq!(socket.ask()?.backend, "far", "{what}");
    }
    Ok(())
}

/// Changes made while no agent was running.
#[test]
fn s2_11_a_restart_closes_what_leads_nowhere_and_nothing_else() -> Result<()> {
    let world = start(&[])?;
    let host = world.host(0);
    let sockets = connected(&world, &host)?;
    for (what, socket) in &sockets {
        assert_eq!(socket.ask()?.backend, "near", "{what}");
    }
    world.cluster.node(0).stop_shunt()?;
    world.cluster.node(0).start_shunt(&[])?;
    thread::sleep(SECOND);
    for (what, socket) in &sockets {
        assert_eq!(socket.ask()?.backend, "near", "{what}");
    }
    world.cluster.node(0).stop_shunt()?;
    apply(&world, &bare().pods(&[&world.far]))?;
    for (what, socket) in &sockets {
        assert_eq!(socket.ask()?.backend, "near", "{what}");
    }
    world.cluster.node(0).start_shunt(&[])?;
    are_closed(&sockets);
    Ok(())
}

#[test]
fn s2_11_connected_sockets_of_pods_are_closed_too_where_they_are_translated() -> Result<()> {
    let world = start(&["--socket-lb", "all"])?;
    let pod = Client::at(&world.cluster.node(0).process_of(&world.client)?).patience(SECOND / 4);
    let sockets = connected(&world, &pod)?;
    for (what, socket) in &sockets {
        assert_eq!(socket.ask()?.backend, "near", "{what}");
    }
    apply(&world, &bare().pods(&[&world.far]))?;
    are_closed(&sockets);
    for family in BOTH {
        assert_eq!(pod.udp(web(family)).answered().backend, "far");
    }
    Ok(())
}
