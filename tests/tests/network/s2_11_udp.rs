//! 2.11, datagrams: a UDP flow leaves its backend when that stops serving, for every kind of sender and socket.

use std::{io, net::SocketAddr, time::Duration};

use anyhow::Result;
use tests::{
    manifest::{Endpoint, Service},
    net::{
        Plan, Pod,
        cluster::eventually,
        plan::{BOTH, Family, vip},
    },
    traffic::{Outcome, UdpClient},
};

use crate::world::{NODE_PORT, TARGET, World, at, web, web_addr};

const SECOND: Duration = Duration::from_secs(1);

fn bare() -> Service {
    Service::new("web", web_addr()).node_port(80, TARGET, NODE_PORT)
}

/// A sender of datagrams that keeps its socket open.
struct Sender {
    what: String,
    socket: UdpClient,
}

/// A pod and an outside client, with sockets that stay open; the node itself, with a socket that names its peer each
/// time.
fn senders(world: &World, family: Family) -> Result<Vec<Sender>> {
    let patience = SECOND / 4;
    let (near, far) = (world.node_port(0, family), world.node_port(1, family));
    Ok(vec![
        Sender {
            what: format!("pod {family:?}"),
            socket: world.pod().patience(patience).udp_connected(web(family))?,
        },
        Sender {
            what: format!("outside {family:?} 0"),
            socket: world.outside().patience(patience).udp_connected(near)?,
        },
        Sender {
            what: format!("outside {family:?} 1"),
            socket: world.outside().patience(patience).udp_connected(far)?,
        },
        Sender {
            what: format!("node {family:?}"),
            socket: world.host(0).patience(patience).udp_unconnected(web(family))?,
        },
    ])
}

impl Sender {
    /// Sends requests without a pause, as a busy client does, until `wanted`; fails after a second.
    #[track_caller]
    fn becomes(&self, wanted: impl Fn(&io::Result<tests::traffic::Answer>) -> bool) {
        let mut last = None;
        let took = eventually(SECOND, || {
            let answer = self.socket.ask();
            let is_wanted = wanted(&answer);
            last = Some(answer);
            is_wanted
        });
        match took {
            Ok(took) => eprintln!("{}: after {took:?}", self.what),
            Err(error) => panic!("{}: {error}; last {last:?}", self.what),
        }
    }

    #[track_caller]
    fn is_answered_by(&self, backend: &str) {
        self.becomes(|answer| answer.as_ref().is_ok_and(|answer| answer.backend == backend));
    }

    #[track_caller]
    fn is_refused(&self) {
        self.becomes(|answer| {
            answer.as_ref().is_err_and(|error| error.raw_os_error() == Some(libc::ECONNREFUSED))
        });
    }
}

/// Both families' senders, all with the same backend.
fn start(first: impl Fn(&World) -> Service) -> Result<(World, Vec<Sender>)> {
    let world = World::start(Plan::default(), |world| first(world).yaml())?;
    let mut all = Vec::new();
    for family in BOTH {
        all.extend(senders(&world, family)?);
    }
    Ok((world, all))
}

fn apply(world: &World, service: &Service) -> Result<()> {
    world.cluster.apply("services.yaml", &service.yaml())
}

#[test]
fn s2_11_udp_moves_when_its_endpoint_ceases_to_serve() -> Result<()> {
    let (world, senders) = start(|world| bare().pods(&[&world.near]))?;
    senders.iter().for_each(|sender| sender.is_answered_by("near"));
    let (near, far) = (&world.near, &world.far);
    let cases: [(&str, Vec<Endpoint>); 3] = [
        ("far", vec![Endpoint::pod(near).unready(), Endpoint::pod(far)]),
        ("near", vec![Endpoint::pod(near), Endpoint::pod(far).gone()]),
        ("far", vec![Endpoint::pod(far)]),
    ];
    for (want, endpoints) in cases {
        apply(&world, &bare().endpoints(endpoints))?;
        senders.iter().for_each(|sender| sender.is_answered_by(want));
    }
    Ok(())
}

/// Terminating and still serving, or excluded by hints: the flow stays as long as the endpoint serves.
#[test]
fn s2_11_udp_stays_with_an_endpoint_that_serves() -> Result<()> {
    let (world, senders) = start(|world| bare().pods(&[&world.near]))?;
    senders.iter().for_each(|sender| sender.is_answered_by("near"));
    let terminating = [Endpoint::pod(&world.near).terminating(), Endpoint::pod(&world.far)];
    apply(&world, &bare().endpoints(terminating))?;
    eventually(SECOND, || world.pod().udp(web(BOTH[0])).answered().backend == "far")?;
    for _ in 0..20 {
        for sender in &senders {
            // The node's unconnected socket keeps its backend only while a Service uses it.
            if !sender.what.starts_with("node") {
                assert_eq!(sender.socket.ask()?.backend, "near", "{}", sender.what);
            }
        }
        std::thread::sleep(SECOND / 20);
    }
    Ok(())
}

#[test]
fn s2_11_udp_without_an_endpoint_is_refused_and_comes_back() -> Result<()> {
    let (world, senders) = start(|world| bare().pods(&[&world.far]))?;
    for _ in 0..2 {
        senders.iter().for_each(|sender| sender.is_answered_by("far"));
        apply(&world, &bare())?;
        senders.iter().for_each(Sender::is_refused);
        apply(&world, &bare().pods(&[&world.near]))?;
        senders.iter().for_each(|sender| sender.is_answered_by("near"));
        apply(&world, &bare().pods(&[&world.far]))?;
    }
    Ok(())
}

#[test]
fn s2_11_udp_ends_with_its_service_and_begins_with_it() -> Result<()> {
    let (world, senders) = start(|world| bare().pods(&[&world.far]))?;
    senders.iter().for_each(|sender| sender.is_answered_by("far"));
    world.cluster.remove("services.yaml")?;
    senders.iter().for_each(|sender| sender.becomes(Result::is_err));
    apply(&world, &bare().pods(&[&world.near]))?;
    senders.iter().for_each(|sender| sender.is_answered_by("near"));
    Ok(())
}

#[test]
fn s2_11_udp_follows_a_changed_target_port() -> Result<()> {
    let (world, senders) = start(|world| bare().pods(&[&world.near]))?;
    senders.iter().for_each(|sender| sender.is_answered_by("near"));
    world.near.stop_serving();
    world.near.serve_udp(TARGET + 1)?;
    let moved = Service::new("web", web_addr()).node_port(80, TARGET + 1, NODE_PORT).pods(&[&world.near]);
    apply(&world, &moved)?;
    senders.iter().for_each(|sender| sender.is_answered_by("near"));
    Ok(())
}

/// The first datagrams were sent before the Service existed, then before it had an endpoint; afterwards the socket
/// works at once.
#[test]
fn s2_11_udp_that_came_before_the_endpoint_is_served_after() -> Result<()> {
    let world = World::without_shunt(Plan::default())?;
    world.cluster.start(&[])?;
    let mut all = Vec::new();
    for family in BOTH {
        all.extend(senders(&world, family)?);
    }
    for sender in &all {
        assert!(sender.socket.ask().is_err(), "{}", sender.what);
    }
    apply(&world, &bare())?;
    all.iter().for_each(Sender::is_refused);
    apply(&world, &bare().pods(&[&world.far]))?;
    all.iter().for_each(|sender| sender.is_answered_by("far"));
    Ok(())
}

/// A backend of two Services is removed from one of them: only that Service's datagrams move.
#[test]
fn s2_11_udp_leaves_its_own_service_only() -> Result<()> {
    let pair = |first: &Pod, second: &Pod| {
        let other = Service::new("other", vip(11)).udp(80, TARGET).pods(&[second]);
        bare().pods(&[first]).yaml() + "---\n" + &other.yaml()
    };
    let world = World::start(Plan::default(), |world| pair(&world.near, &world.near))?;
    for family in BOTH {
        let other = at(vip(11), family, 80);
        let sockets = |to: SocketAddr| -> Result<[Sender; 2]> {
            let (pod, host) = (world.pod().patience(SECOND / 4), world.host(0).patience(SECOND / 4));
            Ok([
                Sender { what: format!("pod -> {to}"), socket: pod.udp_connected(to)? },
                Sender { what: format!("node -> {to}"), socket: host.udp_unconnected(to)? },
            ])
        };
        let (moving, staying) = (sockets(web(family))?, sockets(other)?);
        moving.iter().chain(&staying).for_each(|sender| sender.is_answered_by("near"));
        world.cluster.apply("services.yaml", &pair(&world.far, &world.near))?;
        moving.iter().for_each(|sender| sender.is_answered_by("far"));
        for sender in &staying {
            assert_eq!(sender.socket.ask()?.backend, "near", "{}", sender.what);
        }
        world.cluster.apply("services.yaml", &pair(&world.near, &world.near))?;
        moving.iter().for_each(|sender| sender.is_answered_by("near"));
    }
    Ok(())
}

/// Changes made while no agent was running are applied when it returns.
#[test]
fn s2_11_udp_moves_after_a_restart() -> Result<()> {
    let (world, senders) = start(|world| bare().pods(&[&world.near]))?;
    senders.iter().for_each(|sender| sender.is_answered_by("near"));
    for node in world.cluster.nodes() {
        node.stop_shunt()?;
    }
    apply(&world, &bare().pods(&[&world.far]))?;
    senders.iter().for_each(|sender| sender.is_answered_by("near"));
    world.cluster.start(&[])?;
    senders.iter().for_each(|sender| sender.is_answered_by("far"));
    Ok(())
}

/// Timeouts are flags: an idle flow is removed after its timeout, an active one stays.
#[test]
fn s2_11_time_outs_are_flags() -> Result<()> {
    let world = World::without_shunt(Plan::default())?;
    apply(&world, &bare().pods(&[&world.near]))?;
    world.cluster.start(&["--conntrack-udp-timeout", "2s", "--conntrack-udp-timeout-stream", "2s"])?;
    let (silent, busy) = (world.pod().port(40_001), world.pod().port(40_002));
    let (silent, busy) = (silent.udp_connected(web(Family::V4))?, busy.udp_connected(web(Family::V4))?);
    silent.ask()?;
    let flows = || {
        let text = world.cluster.node(0).shunt_command(&["conntrack", "list"]).unwrap_or_default();
        (text.contains(":40001"), text.contains(":40002"))
    };
    busy.ask()?;
    assert_eq!(flows(), (true, true));
    eventually(SECOND * 10, || busy.ask().is_ok() && flows() == (false, true))?;
    assert!(matches!(world.pod().udp(web(Family::V6)).outcome, Outcome::Answered(_)));
    Ok(())
}
