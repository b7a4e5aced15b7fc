//! 2.11, connections: they continue after their endpoint is removed from the Service, the proxy never resets one, and a
//! client's port is free for its next connection at once.

use std::{
    net::{Shutdown, SocketAddr, TcpStream},
    os::fd::{AsFd as _, AsRawFd as _},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use nix::sys::socket::{MsgFlags, SockaddrStorage, sendto, setsockopt, sockopt};
use tests::{
    manifest::{Endpoint, Service},
    net::{
        Plan,
        cluster::eventually,
        plan::{BOTH, Family, vip},
    },
    traffic::{Client, Outcome, Stream},
};

use crate::{
    s2_11_flood::{raw_socket, segment},
    world::{NODE_PORT, TARGET, World, at, web, web_addr},
};

const SECOND: Duration = Duration::from_secs(1);

fn bare() -> Service {
    Service::new("web", web_addr()).node_port(80, TARGET, NODE_PORT)
}

fn apply(world: &World, service: &Service) -> Result<()> {
    world.cluster.apply("services.yaml", &service.yaml())
}

/// From a pod, from outside through both nodes (one of them translates the source), and from the node itself.
fn streams(world: &World) -> Vec<Stream> {
    let of = |family: Family| {
        [
            world.pod().stream(web(family)),
            world.outside().stream(world.node_port(0, family)),
            world.outside().stream(world.node_port(1, family)),
            world.host(1).stream(web(family)),
        ]
    };
    BOTH.into_iter().flat_map(of).collect()
}

#[test]
fn s2_11_tcp_outlives_its_endpoint() -> Result<()> {
    let world = World::start(Plan::default(), |world| bare().pods(&[&world.near]).yaml())?;
    let open = streams(&world);
    let before: Vec<_> = open.iter().map(|stream| stream.steady(2)).collect();
    let (near, far) = (|| Endpoint::pod(&world.near), || Endpoint::pod(&world.far));
    let states: [Vec<Endpoint>; 6] = [
        vec![near().unready(), far()],
        vec![near().terminating(), far()],
        vec![near().gone(), far()],
        vec![near().terminating()],
        vec![far()],
        vec![],
    ];
    for (nth, endpoints) in states.into_iter().enumerate() {
        let others_serve = endpoints.len() == 2;
        apply(&world, &bare().endpoints(endpoints))?;
        if others_serve {
            eventually(SECOND, || {
                let outcome = world.pod().tcp(web(Family::V4)).outcome;
                matches!(outcome, Outcome::Answered(answer) if answer.backend == "far")
            })?;
        } else {
            std::thread::sleep(SECOND / 4);
        }
        let after: Vec<_> = open.iter().map(|stream| stream.steady(3)).collect();
        assert_eq!(after, before, "state {nth}");
    }
    // The Service itself is removed; large uploads still arrive complete.
    world.cluster.remove("services.yaml")?;
    eventually(SECOND, || {
        !matches!(world.pod().patience(SECOND / 5).tcp(web(BOTH[0])).outcome, Outcome::Answered(_))
    })?;
    let after: Vec<_> = open.iter().map(|stream| stream.steady(5)).collect();
    assert_eq!(after, before);
    for stream in &open {
        stream.upload(&vec![7; 1 << 17])?;
    }
    Ok(())
}

/// Closes with a reset instead of a FIN.
fn reset(stream: Stream) -> Result<()> {
    let stream = stream.into_inner();
    setsockopt(&stream.as_fd(), sockopt::Linger, &libc::linger { l_onoff: 1, l_linger: 0 })?;
    drop(stream);
    Ok(())
}

/// The client closes first, and waits until the server has closed too.
fn finish(stream: Stream) -> Result<()> {
    let stream: TcpStream = stream.into_inner();
    stream.shutdown(Shutdown::Write)?;
    let mut rest = [0; 16];
    while std::io::Read::read(&mut &stream, &mut rest)? > 0 {}
    Ok(())
}

/// Ten connections from one port to `to`, closed in turn by the server, by the client, and by a reset.
#[track_caller]
fn ten_reuses(from: &Client, to: SocketAddr, port: u16) -> Result<()> {
    let client = from.clone().port(port).patience(SECOND);
    for nth in 0..10 {
        let began = Instant::now();
        let how = ["by the server", "by the client", "by a reset"][nth % 3];
        match nth % 3 {
            // `Connection: close`: the server closes first, or almost.
            0 => drop(client.tcp(to).answered()),
            1 => {
                let stream = client.stream(to);
                stream.steady(2);
                finish(stream)?;
            }
            _ => {
                let stream = client.stream(to);
                stream.steady(2);
                reset(stream)?;
            }
        }
        let took = began.elapsed();
        leave_time_wait(&client, port)?;
        assert!(took < SECOND / 2, "{to}: connection {nth} from port {port}, ended {how}, took {took:?}");
    }
    Ok(())
}

/// The client's own kernel refuses to connect from a port in TIME_WAIT: this removes that state, once both ends are
/// closed.
pub fn leave_time_wait(client: &Client, port: u16) -> Result<()> {
    let netns = client.place().netns();
    let of_port = format!("sport = :{port}");
    eventually(SECOND, || {
        let gone = netns.run(&["ss", "-K", "-H", "-t", "state", "time-wait", &of_port]);
        gone.is_ok()
            && netns.run(&["ss", "-H", "-t", "-a", &of_port]).is_ok_and(|left| left.trim().is_empty())
    })
    .map(drop)
}

#[test]
fn s2_11_ten_reuses_of_a_source_port_work_at_once() -> Result<()> {
    let local = |world: &World| {
        let local =
            Service::new("local", vip(12)).node_port(80, TARGET, NODE_PORT + 1).external_traffic_local();
        bare().pods(&[&world.near, &world.far]).yaml()
            + "---\n"
            + &local.pods(&[&world.near, &world.far]).yaml()
    };
    let world = World::start(Plan::default(), local)?;
    let only_far = Service::new("far", vip(13)).node_port(80, TARGET, NODE_PORT + 2).pods(&[&world.far]);
    world.cluster.apply("far.yaml", &only_far.yaml())?;
    let node = |family, more: u16| world.cluster.node(0).socket_addr(family, NODE_PORT + more);
    eventually(SECOND, || matches!(world.outside().tcp(node(Family::V4, 2)).outcome, Outcome::Answered(_)))?;
    let mut port = 24_000;
    for family in BOTH {
        let ways = [
            // ClusterIP: both backends in turn, then always the same one.
            (world.pod(), web(family)),
            (world.pod(), at(vip(13), family, 80)),
            // NodePort: both in turn, then always with a translated source.
            (world.outside(), node(family, 0)),
            (world.outside(), node(family, 2)),
            // Local: the client's own address.
            (world.outside(), node(family, 1)),
        ];
        for (client, to) in ways {
            port += 1;
            ten_reuses(&client, to, port)?;
        }
    }
    Ok(())
}

/// A connection without a reply times out; the next one from its port reaches a current backend at once.
#[test]
fn s2_11_a_source_port_is_free_after_a_time_out() -> Result<()> {
    let world = World::without_shunt(Plan::default())?;
    // An unused address in the pod range.
    let nobody = || Endpoint::at(tests::net::plan::pod_addr(0, 99));
    apply(&world, &bare().endpoints([nobody()]))?;
    world.cluster.start(&[])?;
    let mut port = 25_000;
    for family in BOTH {
        for (from, to) in [
            (world.pod(), web(family)),
            (world.outside(), world.node_port(0, family)),
            (world.outside(), world.node_port(1, family)),
        ] {
            port += 1;
            let client = from.port(port);
            for _ in 0..2 {
                let attempt = client.clone().patience(SECOND / 4).tcp(to);
                assert!(!matches!(attempt.outcome, Outcome::Answered(_)), "{attempt}");
            }
            apply(&world, &bare().pods(&[&world.far]))?;
            eventually(SECOND, || {
                let outcome = Client::at(world.other.place()).tcp(web(family)).outcome;
                matches!(outcome, Outcome::Answered(_))
                    && world.pod().tcp(web(family)).outcome != Outcome::TimedOut
            })?;
            let began = Instant::now();
            assert_eq!(client.tcp(to).answered().backend, "far");
            assert!(began.elapsed() < SECOND / 2, "{to} from {port}: {:?}", began.elapsed());
            apply(&world, &bare().endpoints([nobody()]))?;
            let is_silent = |client: Client| {
                !matches!(client.patience(SECOND / 5).tcp(web(family)).outcome, Outcome::Answered(_))
            };
            eventually(SECOND, || is_silent(world.pod()) && is_silent(Client::at(world.other.place())))?;
        }
    }
    Ok(())
}

/// A TCP counter of the namespace, from /proc/net/snmp.
fn tcp_counter(client: &Client, name: &str) -> Result<u64> {
    let text = client.place().netns().enter(|| std::fs::read_to_string("/proc/thread-self/net/snmp"))?;
    let mut lines = text.lines().filter(|line| line.starts_with("Tcp:"));
    let (names, values) = lines.next().zip(lines.next()).context("no TCP in /proc/net/snmp")?;
    let found = names.split(' ').zip(values.split(' ')).find(|(one, _)| *one == name);
    Ok(found.with_context(|| format!("no {name}"))?.1.parse()?)
}

/// A segment of the server far outside the window (invalid for conntrack) reaches the client translated like any other.
/// Untranslated, it would belong to no connection of the client, which would answer with a reset.
#[test]
fn s2_11_a_segment_out_of_the_window_is_translated_too() -> Result<()> {
    let world = World::start(Plan::default(), |world| bare().pods(&[&world.near]).yaml())?;
    for family in BOTH {
        let client = world.pod();
        let stream = client.stream(web(family));
        stream.steady(3);
        let to = SocketAddr::new(world.client.addr().of(family), stream.local_addr()?.port());
        let from = world.near.socket_addr(family, TARGET);
        let socket = raw_socket(world.near.place(), to)?;
        let (resets, segments) = (tcp_counter(&client, "OutRsts")?, tcp_counter(&client, "InSegs")?);
        for nth in 0..20u32 {
            // A bare ACK, with sequence numbers unrelated to the connection's.
            let packet =
                segment(from, to, [nth.wrapping_mul(0x0f12_3456), nth.wrapping_mul(0x2f65_4321)], 0x10);
            let to = SockaddrStorage::from(SocketAddr::new(to.ip(), 0));
            sendto(socket.as_raw_fd(), &packet, &to, MsgFlags::empty())?;
        }
        eventually(SECOND, || tcp_counter(&client, "InSegs").is_ok_and(|now| now >= segments + 20))?;
        stream.steady(10);
        assert_eq!(
            tcp_counter(&client, "OutRsts")?,
            resets,
            "{family:?}: the client reset what it did not know"
        );
    }
    Ok(())
}
