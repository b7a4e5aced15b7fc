//! The listeners of health, healthCheckNodePorts and metrics, while a client outside holds as many connections as it can.

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tests::{
    manifest::Service,
    net::{
        Plan,
        plan::{BOTH, Family, vip},
    },
    traffic::Client,
};

use crate::world::{TARGET, World};

const HEALTH: u16 = 10_256;
const METRICS: u16 = 10_249;
const CHECK: u16 = 32_101;

/// Connections that send nothing, and connections that send half a request.
const IDLE: usize = 10_000;
const HALF_SENT: usize = 1_000;

const PROBES: usize = 100;
/// The probe's time-out in the manifests is 5 s.
const AT_ONCE: Duration = Duration::from_secs(1);

/// Asks for `path`, and returns the status.
fn probe(from: &Client, to: SocketAddr, path: &str) -> Result<u16> {
    let mut stream = from.clone().patience(AT_ONCE).connect(to)?.into_inner();
    stream.set_read_timeout(Some(AT_ONCE))?;
    stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n").as_bytes())?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer.split_whitespace().nth(1).context("an empty answer")?.parse()?)
}

/// Opens the connections and leaves them open.
fn hold(from: &Client, to: SocketAddr) -> Result<Vec<TcpStream>> {
    let mut held = Vec::with_capacity(IDLE + HALF_SENT);
    for nth in 0..IDLE + HALF_SENT {
        let mut stream = from.connect(to).with_context(|| format!("connection {nth}"))?.into_inner();
        if nth >= IDLE {
            // The listener may have closed it.
            let _closed = stream.write_all(b"GET /livez HTTP/1.1\r\nHost:");
        }
        held.push(stream);
    }
    Ok(held)
}

#[test]
fn connections_that_ask_nothing_delay_no_probe() -> Result<()> {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
    let world = World::without_shunt(Plan::default())?;
    let service = Service::new("web", vip(10))
        .node_port(80, TARGET, 30_080)
        .load_balancer(vip(200))
        .external_traffic_local()
        .spec(&format!("healthCheckNodePort: {CHECK}"))
        .pods(&[&world.near]);
    world.cluster.apply("services.yaml", &service.yaml())?;
    let node = world.cluster.node(0);
    node.start_shunt(&[
        "--healthz-bind-address",
        &format!("0.0.0.0:{HEALTH}"),
        "--metrics-bind-address",
        &format!("0.0.0.0:{METRICS}"),
    ])?;
    let (host, outside, pod) = (world.host(0), world.outside(), world.pod());
    for (port, path) in [(HEALTH, "/livez"), (CHECK, "/"), (METRICS, "/metrics")] {
        for family in BOTH {
            let to = node.socket_addr(family, port);
            let start = Instant::now();
            let held = hold(&outside, to)?;
            let opened = start.elapsed();
            let loopback = match family {
                Family::V4 => SocketAddr::from(([127, 0, 0, 1], port)),
                Family::V6 => SocketAddr::from(([0, 0, 0, 0, 0, 0, 0, 1], port)),
            };
            // healthCheckNodePorts listen at the node's addresses.
            let nearby = if port == CHECK { to } else { loopback };
            for nth in 0..PROBES {
                // The kubelet connects to the node's address or to a loopback one; a pod and the busy host itself get answers too.
                let (who, from, to) = match nth % 4 {
                    0 => ("the node", &host, to),
                    1 => ("loopback", &host, nearby),
                    2 => ("a pod", &pod, to),
                    _ => ("outside", &outside, to),
                };
                let status = probe(from, to, path).with_context(|| format!("{who} -> {to}, probe {nth}"))?;
                ensure!(status == 200, "{who} -> {to}: {status}");
            }
            println!("{to}: {} held ({opened:?} to open), {PROBES} of {PROBES} probes answered", held.len());
        }
    }
    node.still_runs()
}
