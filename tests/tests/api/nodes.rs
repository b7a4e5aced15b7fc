//! The real `shunt run --kubeconfig` on two nodes.

use std::{
    collections::BTreeSet,
    net::SocketAddr,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use bytemuck::bytes_of;
use proxy_common::{Frontend, FrontendKey, Port, Proto, SCHEMA, map};
use serde_json::json;
use shunt::bpf::map::RawMap;
use tests::{
    api_server::{Api, of_environment_in},
    manifest::{self, Service},
    net::{
        Cluster, Node, Plan,
        cluster::eventually,
        plan::{BOTH, Family, external, vip},
    },
    traffic::{Client, Outcome},
};

const SECOND: Duration = Duration::from_secs(1);
const CHANGES: usize = 200;

/// How long the API server is down: `SHUNT_TEST_AWAY` seconds, or a few by default, to keep the suite fast.
fn away() -> Result<Duration> {
    let seconds = std::env::var("SHUNT_TEST_AWAY").unwrap_or_else(|_| "10".to_owned());
    Ok(SECOND * seconds.parse().context("SHUNT_TEST_AWAY is no number of seconds")?)
}

/// Two nodes, a pod on each, and an API server outside that both can reach.
fn start() -> Result<(Cluster, Box<dyn Api>)> {
    let cluster = Cluster::new(Plan::default())?;
    let server = of_environment_in(cluster.outside().shared_netns())?;
    for node in cluster.nodes() {
        server.apply(&manifest::node(node))?;
    }
    if !server.makes_kubernetes() {
        server.apply(&Service::new("kubernetes", vip(1)).tcp(443, 6443).yaml())?;
    }
    Ok((cluster, server))
}

fn run(cluster: &Cluster, server: &dyn Api) -> Result<()> {
    let kubeconfig = server.kubeconfig(&cluster.files().join("kubeconfig"))?;
    cluster.start(&["--kubeconfig", kubeconfig.to_str().context("a path in UTF-8")?])
}

fn reaches(from: &Client, last: u8, family: Family, backend: &str) -> bool {
    let to = SocketAddr::new(vip(last).of(family), 80);
    let outcome = from.clone().patience(SECOND / 5).tcp(to).outcome;
    matches!(outcome, Outcome::Answered(answer) if answer.backend == backend)
}

fn has_backend(value: &[u8]) -> bool {
    bytemuck::pod_read_unaligned::<Frontend>(value).cluster_count > 0
}

/// Measures the delay from the API server to the map that the programs read, on both nodes.
#[test]
fn a_change_reaches_the_maps_at_once() -> Result<()> {
    let (cluster, server) = start()?;
    let pods = [cluster.add_server(0, "near", 8080)?, cluster.add_server(1, "far", 8080)?];
    run(&cluster, &*server)?;
    let open = |node: &Node| RawMap::open(&node.bpffs().join(format!("v{SCHEMA}/maps/{}", map::FRONTENDS)));
    let maps = cluster.nodes().iter().map(open).collect::<std::io::Result<Vec<_>>>()?;
    let mut took = Vec::new();
    for change in 0..CHANGES {
        let last = 10 + change as u8;
        let text =
            Service::new(&format!("web-{change}"), vip(last)).tcp(80, 8080).pods(&[&pods[change % 2]]).yaml();
        let key = FrontendKey::new(vip(last).of(Family::V4).into(), Port::new(80), Proto::TCP);
        let begun = Instant::now();
        server.apply(&text)?;
        for map in &maps {
            // The frontend has a backend: the Service and its slice have arrived.
            while !map.lookup(bytes_of(&key))?.is_some_and(|value| has_backend(&value)) {
                ensure!(begun.elapsed() < SECOND * 5, "change {change} did not arrive");
                thread::sleep(Duration::from_micros(200));
            }
        }
        took.push(begun.elapsed());
        // Separate from the previous change: otherwise several would be delivered together.
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
    // The target is 100 ms; a machine that also runs a build gets more.
    ensure!(p99 < Duration::from_millis(500), "p99 {p99:?}");
    ensure!(server.complaints().is_empty(), "{:?}", server.complaints());
    Ok(())
}

/// Checks the backends that answer a pod and the outside client after each change.
#[test]
fn scale_types_labels_and_deletion_are_followed() -> Result<()> {
    let (cluster, server) = start()?;
    let pods = [cluster.add_server(0, "near", 8080)?, cluster.add_server(1, "far", 8080)?];
    let inside = Client::at(cluster.add_pod(0, "client")?.place());
    let outside = Client::at(cluster.outside());
    run(&cluster, &*server)?;
    let web = || Service::new("web", vip(10));
    let node_port = |family| cluster.node(1).socket_addr(family, 30080);
    let balanced = |family| SocketAddr::new(external(7).of(family), 80);
    let cluster_ip = |family| SocketAddr::new(vip(10).of(family), 80);
    let plain = || web().tcp(80, 8080);
    let follows = |what: &str, text: &str, wanted: &dyn Fn(Family) -> bool| -> Result<()> {
        server.apply(text)?;
        let took = eventually(SECOND * 5, || BOTH.iter().all(|family| wanted(*family)))
            .with_context(|| what.to_owned())?;
        eprintln!("{what}: {took:?}");
        Ok(())
    };
    for _ in 0..2 {
        follows("one pod", &plain().pods(&[&pods[0]]).yaml(), &|family| {
            answers(&inside, cluster_ip(family), &["near"])
        })?;
        follows("two pods", &plain().pods(&[&pods[0], &pods[1]]).yaml(), &|family| {
            answers(&inside, cluster_ip(family), &["near", "far"])
        })?;
        follows("no pod", &plain().yaml(), &|family| answers(&inside, cluster_ip(family), &[]))?;
        let exposed = || web().tcp_node_port(80, 8080, 30080).pods(&[&pods[1]]);
        follows("NodePort", &exposed().yaml(), &|family| answers(&outside, node_port(family), &["far"]))?;
        follows("LoadBalancer", &exposed().load_balancer(external(7)).yaml(), &|family| {
            answers(&outside, balanced(family), &["far"]) && answers(&outside, node_port(family), &["far"])
        })?;
        let given_up = plain().pods(&[&pods[1]]).yaml() + "---\n" + &no_balancer(&plain().document());
        follows("ClusterIP again", &given_up, &|family| {
            answers(&inside, cluster_ip(family), &["far"])
                && answers(&outside, node_port(family), &[])
                && !answers(&outside, balanced(family), &["far"])
        })?;
        let others = plain().pods(&[&pods[1]]).label("service.kubernetes.io/service-proxy-name: other");
        follows("another proxy's", &others.yaml(), &|family| {
            !answers(&inside, cluster_ip(family), &["far"])
        })?;
        follows("ours again", &plain().pods(&[&pods[1]]).yaml(), &|family| {
            answers(&inside, cluster_ip(family), &["far"])
        })?;
    }
    for (resource, name) in [("services", "web"), ("endpointslices", "web-v4"), ("endpointslices", "web-v6")]
    {
        server.delete(resource, &format!("default/{name}"))?;
    }
    let gone = || BOTH.iter().all(|family| !answers(&inside, cluster_ip(*family), &["far"]));
    eprintln!("deleted: {:?}", eventually(SECOND * 5, gone)?);
    ensure!(server.complaints().is_empty(), "{:?}", server.complaints());
    Ok(())
}

/// The same object with an empty status.
fn no_balancer(document: &str) -> String {
    format!("{document}status: {{loadBalancer: {{}}}}\n")
}

/// Whether exactly these backends answer at an address, in turn; an empty list means an immediate rejection.
fn answers(from: &Client, to: SocketAddr, backends: &[&str]) -> bool {
    let ask = || from.clone().patience(SECOND / 4).tcp(to).outcome;
    if backends.is_empty() {
        return matches!(ask(), Outcome::Refused);
    }
    let mut seen = BTreeSet::new();
    for _ in 0..backends.len() * 2 {
        match ask() {
            Outcome::Answered(answer) => seen.insert(answer.backend),
            _ => return false,
        };
    }
    seen.iter().map(String::as_str).eq(backends.iter().copied().collect::<BTreeSet<_>>())
}

const SERVICES: u32 = 5000;
const ENDPOINTS: u32 = 5;

/// As many objects as in large clusters: 5000 Services with ten endpoints each in two slices, with the metadata of real
/// objects.
#[test]
fn thousands_of_services_take_little_memory() -> Result<()> {
    let (cluster, server) = start()?;
    let mut objects = Vec::new();
    for n in 0..SERVICES {
        let (name, ip) = (format!("s{n}"), format!("10.68.{}.{}", 16 + (n >> 8), n & 255));
        let ballast = json!({"kubectl.kubernetes.io/last-applied-configuration": "x".repeat(800)});
        objects.push(json!({"apiVersion": "v1", "kind": "Service",
            "metadata": {"name": name, "namespace": "default", "annotations": ballast},
            "spec": {"clusterIP": ip, "clusterIPs": [ip], "ports": [{"name": "http", "port": 80, "targetPort": 8080}]}}));
        for part in 0..2 {
            let endpoints: Vec<_> = (0..ENDPOINTS)
                .map(|i| {
                    let number = (n * 2 + part) * ENDPOINTS + i;
                    json!({"addresses": [format!("172.{}.{}.{}", 21 + (number >> 16), number >> 8 & 255, number & 255)],
                        "conditions": {"ready": true, "serving": true, "terminating": false}, "nodeName": "node-2",
                        "targetRef": {"kind": "Pod", "name": format!("{name}-{i}"), "namespace": "default",
                            "uid": "9b2f7a0e-3f0c-4a55-8d0a-3f6d2f3c7b11"}})
                })
                .collect();
            objects.push(json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
                "metadata": {"name": format!("{name}-{part}"), "namespace": "default",
                    "labels": {"kubernetes.io/service-name": name}},
                "addressType": "IPv4", "ports": [{"name": "http", "port": 8080}], "endpoints": endpoints}));
        }
    }
    server.add_all(objects)?;
    let kubeconfig = server.kubeconfig(&cluster.files().join("kubeconfig"))?;
    let begun = Instant::now();
    let node = cluster.node(0);
    node.start_shunt(&["--kubeconfig", kubeconfig.to_str().context("a path in UTF-8")?])?;
    let took = begun.elapsed();
    let (now, most) = (node.shunt_memory("VmRSS")?, node.shunt_memory("VmHWM")?);
    let status = node.shunt_json(&["status"])?;
    eprintln!(
        "{SERVICES} Services, {} endpoints: ready after {took:?}; {} MiB resident, {} MiB at most",
        SERVICES * ENDPOINTS * 2,
        now >> 10,
        most >> 10
    );
    ensure!(status[0]["backends"].as_u64() >= Some((SERVICES * ENDPOINTS * 2).into()), "{status}");
    ensure!(most < 512 << 10, "{most} KiB");
    ensure!(server.complaints().is_empty(), "{:?}", server.complaints());
    Ok(())
}

#[test]
fn an_api_server_that_is_away_harms_nobody() -> Result<()> {
    let (cluster, server) = start()?;
    let pods = [cluster.add_server(0, "near", 8080)?, cluster.add_server(1, "far", 8080)?];
    let client = Client::at(cluster.add_pod(0, "client")?.place());
    let web = |pod| Service::new("web", vip(10)).tcp(80, 8080).pods(&[pod]).yaml();
    server.apply(&web(&pods[0]))?;
    server.apply(&Service::new("gone", vip(11)).tcp(80, 8080).pods(&[&pods[0]]).yaml())?;
    run(&cluster, &*server)?;
    let stream = client.stream(SocketAddr::new(vip(10).of(Family::V4), 80));
    server.stop()?;
    let begun = Instant::now();
    while begun.elapsed() < away()? {
        for family in BOTH {
            ensure!(reaches(&client, 10, family, "near"), "new connections while the API server is away");
        }
        for node in cluster.nodes() {
            ensure!(node.health("/healthz")? == 200 && node.health("/readyz")? == 200);
        }
        thread::sleep(SECOND / 4);
    }
    stream.steady(5);
    server.apply(&web(&pods[1]))?;
    server.delete("services", "default/gone")?;
    server.delete("endpointslices", "default/gone-v4")?;
    server.delete("endpointslices", "default/gone-v6")?;
    server.start()?;
    let moved = eventually(SECOND * 5, || {
        reaches(&client, 10, Family::V4, "far") && !reaches(&client, 11, Family::V4, "near")
    })?;
    eprintln!("away for {:?}; changes made meanwhile were there {moved:?} after its return", away()?);
    stream.steady(5);
    // A restart while the API server is down changes nothing either: the existing programs and maps continue.
    server.stop()?;
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
    ensure!(server.complaints().is_empty(), "{:?}", server.complaints());
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
