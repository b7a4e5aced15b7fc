//! The real `shunt run --kubeconfig` on two nodes.

use std::{
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use bytemuck::bytes_of;
use proxy_common::{Frontend, FrontendKey, Port, Proto, SCHEMA, map};
use shunt::bpf::map::RawMap;
use tests::{
    api_server::{ApiServer, Certificates},
    manifest::{self, Service},
    net::{
        Cluster, Node, Plan,
        cluster::eventually,
        plan::{BOTH, Family, vip},
    },
    traffic::{Client, Outcome},
};

const SECOND: Duration = Duration::from_secs(1);
const CHANGES: usize = 200;

/// Two nodes, a pod on each, and an API server outside that both reach.
fn start() -> Result<(Cluster, ApiServer)> {
    let cluster = Cluster::new(Plan::default())?;
    let server = ApiServer::start_at(
        Some(cluster.outside().shared_netns()),
        "192.168.8.100:6443".parse()?,
        Some(Certificates::new()?),
    )?;
    for node in cluster.nodes() {
        server.store().apply(&manifest::node(node))?;
    }
    let kubernetes = Service::new("kubernetes", vip(1)).tcp(443, 6443).yaml();
    server.store().apply(&kubernetes)?;
    Ok((cluster, server))
}

fn run(cluster: &Cluster, server: &ApiServer) -> Result<()> {
    let kubeconfig = server.kubeconfig(&cluster.files().join("kubeconfig"))?;
    cluster.start(&["--kubeconfig", kubeconfig.to_str().context("a path in UTF-8")?])
}

fn reaches(from: &Client, last: u8, family: Family, backend: &str) -> bool {
    let to = std::net::SocketAddr::new(vip(last).of(family), 80);
    let outcome = from.clone().patience(SECOND / 5).tcp(to).outcome;
    matches!(outcome, Outcome::Answered(answer) if answer.backend == backend)
}

fn has_backend(value: &[u8]) -> bool {
    bytemuck::pod_read_unaligned::<Frontend>(value).cluster_count > 0
}

/// From the API server to the map that the programs read, on both nodes.
#[test]
fn a_change_reaches_the_maps_at_once() -> Result<()> {
    let (cluster, server) = start()?;
    let pods = [cluster.add_server(0, "near", 8080)?, cluster.add_server(1, "far", 8080)?];
    run(&cluster, &server)?;
    let open = |node: &Node| RawMap::open(&node.bpffs().join(format!("v{SCHEMA}/maps/{}", map::FRONTENDS)));
    let maps = cluster.nodes().iter().map(open).collect::<std::io::Result<Vec<_>>>()?;
    let mut took = Vec::new();
    for change in 0..CHANGES {
        let last = 10 + change as u8;
        let text =
            Service::new(&format!("web-{change}"), vip(last)).tcp(80, 8080).pods(&[&pods[change % 2]]).yaml();
        let key = FrontendKey::new(vip(last).of(Family::V4).into(), Port::new(80), Proto::TCP);
        let begun = Instant::now();
        server.store().apply(&text)?;
        for map in &maps {
            // With a backend: the Service and its slice are there.
            while !map.lookup(bytes_of(&key))?.is_some_and(|value| has_backend(&value)) {
                ensure!(begun.elapsed() < SECOND * 5, "change {change} did not arrive");
                thread::sleep(Duration::from_micros(200));
            }
        }
        took.push(begun.elapsed());
        // Apart from the change before: otherwise several would travel together.
        thread::sleep(Duration::from_millis(30));
    }
    let client = Client::at(cluster.node(0).place());
    ensure!(reaches(&client, 10, Family::V4, "near") && reaches(&client, 11, Family::V4, "far"));
    took.sort();
    let (median, p99) = (took[CHANGES / 2], took[CHANGES * 99 / 100]);
    eprintln!(
        "from the API server to both nodes' maps, {CHANGES} changes: median {median:?}, p99 {p99:?}, most {:?}",
        took[CHANGES - 1]
    );
    // Meant to be 100 ms; a machine that also builds something else is given more.
    ensure!(p99 < Duration::from_millis(500), "p99 {p99:?}");
    ensure!(server.violations().is_empty(), "{:?}", server.violations());
    Ok(())
}

#[test]
fn an_api_server_that_is_away_harms_nobody() -> Result<()> {
    let (cluster, server) = start()?;
    let pods = [cluster.add_server(0, "near", 8080)?, cluster.add_server(1, "far", 8080)?];
    let client = Client::at(cluster.add_pod(0, "client")?.place());
    let web = |pod| Service::new("web", vip(10)).tcp(80, 8080).pods(&[pod]).yaml();
    server.store().apply(&web(&pods[0]))?;
    server.store().apply(&Service::new("gone", vip(11)).tcp(80, 8080).pods(&[&pods[0]]).yaml())?;
    run(&cluster, &server)?;
    let stream = client.stream(std::net::SocketAddr::new(vip(10).of(Family::V4), 80));
    server.stop();
    let begun = Instant::now();
    while begun.elapsed() < SECOND * 10 {
        for family in BOTH {
            ensure!(reaches(&client, 10, family, "near"), "new connections while the API server is away");
        }
        for node in cluster.nodes() {
            ensure!(node.health("/healthz")? == 200 && node.health("/readyz")? == 200);
        }
        thread::sleep(SECOND / 4);
    }
    stream.steady(5);
    server.store().apply(&web(&pods[1]))?;
    server.store().delete("services", "default/gone")?;
    server.store().delete("endpointslices", "default/gone-v4")?;
    server.store().delete("endpointslices", "default/gone-v6")?;
    server.start()?;
    let moved = eventually(SECOND * 5, || {
        reaches(&client, 10, Family::V4, "far") && !reaches(&client, 11, Family::V4, "near")
    })?;
    eprintln!("changes made meanwhile were there {moved:?} after its return");
    stream.steady(5);
    // A restart while it is away changes nothing either: the programs and maps of before go on.
    server.stop();
    let node = cluster.node(0);
    node.stop_shunt()?;
    let kubeconfig = cluster.files().join("kubeconfig");
    node.launch_shunt(&["--kubeconfig", kubeconfig.to_str().context("a path in UTF-8")?])?;
    thread::sleep(SECOND * 3);
    node.still_runs()?;
    ensure!(node.health("/readyz")? == 503, "not ready before the lists are there");
    ensure!(reaches(&client, 10, Family::V4, "far"), "served by the maps of before");
    server.start()?;
    node.wait_ready()?;
    ensure!(reaches(&client, 10, Family::V4, "far"));
    ensure!(server.violations().is_empty(), "{:?}", server.violations());
    Ok(())
}

#[test]
fn a_kubeconfig_that_cannot_be_used_ends_the_agent_with_a_reason() -> Result<()> {
    let cluster = Cluster::new(Plan::default().nodes(1))?;
    let node = cluster.node(0);
    let path = cluster.files().join("kubeconfig");
    let path = path.to_str().context("a path in UTF-8")?;
    let missing = node.shunt_output(&["run", "--kubeconfig", path])?;
    let text = String::from_utf8_lossy(&missing.stderr).into_owned();
    ensure!(
        missing.status.code() == Some(2) && text.contains(path) && text.contains("No such file"),
        "{text}"
    );
    std::fs::write(path, "clusters: [\n")?;
    let broken = node.shunt_output(&["run", "--kubeconfig", path])?;
    let text = String::from_utf8_lossy(&broken.stderr).into_owned();
    ensure!(
        broken.status.code() == Some(1) && text.contains(path) && text.contains("kubectl config view"),
        "{text}"
    );
    Ok(())
}
