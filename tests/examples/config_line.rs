//! Time taken by the config line at 10,000 Services with ten endpoints each, with maps in memory: the cold start, and
//! one endpoint that becomes ready or unready. `cargo run --release -p tests --example config_line`.

use std::{
    net::IpAddr,
    time::{Duration, Instant},
};

use shunt::{
    config::{CompileConfig, MapSizes},
    controller::Controller,
    maps::memory::MemoryStore,
    model::{
        EndpointSlice, ObjectKey, Protocol, Service, ServiceKey, ServicePort, ServiceType, SliceEndpoint,
        SlicePort, TargetPort, TrafficPolicy,
    },
    sources::Event,
};

const SERVICES: u32 = 10_000;
const ENDPOINTS: u32 = 10;
const CHANGES: u32 = 10_000;

fn main() {
    let mut controller = Controller::new("n1", CompileConfig::default(), MapSizes::default());
    let mut store = MemoryStore::default();
    let events: Vec<Event> =
        (0..SERVICES).flat_map(|n| [Event::Service(service(n)), Event::Slice(slice(n, 0))]).collect();
    let begun = Instant::now();
    events.into_iter().for_each(|event| controller.apply(event));
    controller.apply(Event::Synced);
    let report = controller.sync(&mut store).expect("maps in memory take everything");
    println!("cold start: {:?}, {} writes", begun.elapsed(), report.ops);
    store.take_log();
    let resident = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = resident.lines().find(|line| line.starts_with("VmRSS")).unwrap_or_default();
    println!("{line} (with the maps in memory)");

    let mut times: Vec<Duration> = Vec::new();
    let mut ops = 0;
    for i in 0..CHANGES {
        let event = Event::Slice(slice(i * 7919 % SERVICES, i / SERVICES + i % 2 + 1));
        let begun = Instant::now();
        controller.apply(event);
        let report = controller.sync(&mut store).expect("maps in memory take everything");
        times.push(begun.elapsed());
        ops += report.ops;
        store.take_log();
    }
    times.sort_unstable();
    let at = |percent: usize| times[(times.len() - 1) * percent / 100];
    println!(
        "one endpoint changed: p50 {:?}, p99 {:?}, {} writes on average",
        at(50),
        at(99),
        ops / times.len()
    );
}

fn service(n: u32) -> Service {
    let [_, _, high, low] = n.to_be_bytes();
    Service {
        key: ServiceKey::new("default", format!("service-{n}")),
        uid: None,
        created: None,
        kind: ServiceType::ClusterIp,
        cluster_ips: vec![IpAddr::from([10, 68, high, low])],
        headless: false,
        has_selector: true,
        other_proxy: false,
        ports: vec![ServicePort {
            name: "http".into(),
            protocol: Protocol::Tcp,
            port: 80,
            target_port: TargetPort::Number(8080),
            node_port: None,
        }],
        internal_policy: TrafficPolicy::Cluster,
        external_policy: TrafficPolicy::Cluster,
        affinity_seconds: None,
        external_ips: Vec::new(),
        load_balancer_ips: Vec::new(),
        source_ranges: Vec::new(),
        node_port_ranges: Default::default(),
        unreadable_ranges: Vec::new(),
        health_check_node_port: None,
    }
}

/// Ten endpoints, one of which is not ready; `turn` selects it (0: none).
fn slice(n: u32, turn: u32) -> EndpointSlice {
    let endpoint = |i: u32| {
        let [_, a, b, c] = (n * ENDPOINTS + i).to_be_bytes();
        SliceEndpoint {
            address: IpAddr::from([172, 16 + a, b, c]),
            ready: turn == 0 || i != turn % ENDPOINTS,
            serving: true,
            terminating: false,
            node: Some(format!("node-{}", i % 5).into()),
            hints: None,
        }
    };
    EndpointSlice {
        key: ObjectKey::new("default", format!("service-{n}-x")),
        service: Some(ServiceKey::new("default", format!("service-{n}"))),
        ports: vec![SlicePort { name: "http".into(), protocol: Protocol::Tcp, port: 8080 }],
        endpoints: (0..ENDPOINTS).map(endpoint).collect(),
        trigger: None,
    }
}
