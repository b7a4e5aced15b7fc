//! Live changes: a Service, its slices and the node change between all of their forms. After each change the maps mean
//! the same as after a fresh start. Uses the source of manifests, so that no change is rejected on the way.

use std::{
    collections::BTreeSet,
    net::IpAddr,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use serde_json::Value;
use shunt::{
    config::{CompileConfig, MapSizes},
    controller::{Controller, InUse, NodeAddress},
    maps::memory::MemoryStore,
    offline::TablesView,
    sources::{Event, directory::Directory},
};

use super::invariants::meaning;

/// The forms of one object; the first form is used by the tests of other objects.
type Forms = &'static [(&'static str, &'static str)];

/// `spec` and later fields of the Service `web`; empty text means no Service.
const SERVICES: Forms = &[
    ("ClusterIP", "spec: {clusterIP: 10.68.0.10, ports: [{port: 80}]}"),
    ("dual stack", r#"spec: {clusterIPs: [10.68.0.10, "fd00:10:68::a"], ports: [{port: 80}]}"#),
    ("another clusterIP", "spec: {clusterIP: 10.68.0.12, ports: [{port: 80}]}"),
    ("another port", "spec: {clusterIP: 10.68.0.10, ports: [{port: 81}]}"),
    ("UDP", "spec: {clusterIP: 10.68.0.10, ports: [{port: 80, protocol: UDP}]}"),
    (
        "TCP and UDP",
        "spec: {clusterIP: 10.68.0.10, ports: [{name: tcp, port: 80}, {name: udp, port: 80, protocol: UDP}]}",
    ),
    ("NodePort", "spec: {type: NodePort, clusterIP: 10.68.0.10, ports: [{port: 80, nodePort: 30080}]}"),
    (
        "NodePort of policy Local",
        "spec: {type: NodePort, clusterIP: 10.68.0.10, externalTrafficPolicy: Local, \
         ports: [{port: 80, nodePort: 30080}]}",
    ),
    (
        "LoadBalancer",
        "spec: {type: LoadBalancer, clusterIP: 10.68.0.10, ports: [{port: 80, nodePort: 30080}]}\n\
         status: {loadBalancer: {ingress: [{ip: 203.0.113.10}]}}",
    ),
    (
        "LoadBalancer that proxies",
        "spec: {type: LoadBalancer, clusterIP: 10.68.0.10, ports: [{port: 80, nodePort: 30080}]}\n\
         status: {loadBalancer: {ingress: [{ip: 203.0.113.10, ipMode: Proxy}]}}",
    ),
    (
        "LoadBalancer of policy Local",
        "spec: {type: LoadBalancer, clusterIP: 10.68.0.10, externalTrafficPolicy: Local, healthCheckNodePort: 32000, \
         loadBalancerSourceRanges: [198.51.100.0/24], ports: [{port: 80, nodePort: 30080}]}\n\
         status: {loadBalancer: {ingress: [{ip: 203.0.113.10}]}}",
    ),
    ("externalIPs", "spec: {clusterIP: 10.68.0.10, externalIPs: [203.0.113.10], ports: [{port: 80}]}"),
    (
        "internal policy Local",
        "spec: {clusterIP: 10.68.0.10, internalTrafficPolicy: Local, ports: [{port: 80}]}",
    ),
    ("sessionAffinity", "spec: {clusterIP: 10.68.0.10, sessionAffinity: ClientIP, ports: [{port: 80}]}"),
    ("ExternalName", "spec: {type: ExternalName, externalName: example.com}"),
    (
        "ExternalName with what another type left",
        "spec: {type: ExternalName, externalName: example.com, clusterIP: 10.68.0.10, \
         ports: [{port: 80, nodePort: 30080}]}",
    ),
    ("headless", "spec: {clusterIP: None, ports: [{port: 80}]}"),
    ("without clusterIP", "spec: {ports: [{port: 80}]}"),
    ("another proxy's", "LABELLED spec: {clusterIP: 10.68.0.10, ports: [{port: 80}]}"),
    ("gone", ""),
];

/// `addressType` and later fields of the slice `web-1`; empty text means no slice.
const SLICES: Forms = &[
    (
        "here",
        "addressType: IPv4\nports: [{port: 8080}]\nendpoints: [{addresses: [172.20.1.2], nodeName: n1}]",
    ),
    (
        "elsewhere",
        "addressType: IPv4\nports: [{port: 8080}]\nendpoints: [{addresses: [172.20.2.2], nodeName: n2}]",
    ),
    (
        "another port",
        "addressType: IPv4\nports: [{port: 9090}]\nendpoints: [{addresses: [172.20.1.2], nodeName: n1}]",
    ),
    (
        "named",
        "addressType: IPv4\nports: [{name: x, port: 8080}]\nendpoints: [{addresses: [172.20.1.2], nodeName: n1}]",
    ),
    (
        "terminating",
        "addressType: IPv4\nports: [{port: 8080}]\nendpoints: [{addresses: [172.20.1.2], nodeName: n1, \
         conditions: {ready: false, serving: true, terminating: true}}]",
    ),
    (
        "not ready",
        "addressType: IPv4\nports: [{port: 8080}]\nendpoints: [{addresses: [172.20.1.2], nodeName: n1, \
         conditions: {ready: false}}]",
    ),
    (
        "hints",
        "addressType: IPv4\nports: [{port: 8080}]\nendpoints: \
         [{addresses: [172.20.1.2], nodeName: n1, hints: {forZones: [{name: b}]}}, \
         {addresses: [172.20.2.2], nodeName: n2, hints: {forZones: [{name: a}]}}]",
    ),
    (
        "IPv6",
        "addressType: IPv6\nports: [{port: 8080}]\nendpoints: [{addresses: [\"fd00:20:1::2\"], nodeName: n1}]",
    ),
    ("names", "addressType: FQDN\nports: [{port: 8080}]\nendpoints: [{addresses: [example.com]}]"),
    (
        "a ClusterIP",
        "addressType: IPv4\nports: [{port: 8080}]\nendpoints: [{addresses: [10.68.0.10]}, {addresses: [10.68.0.12]}]",
    ),
    (
        "headless",
        "LABELLED addressType: IPv4\nports: [{port: 8080}]\nendpoints: [{addresses: [172.20.1.2], nodeName: n1}]",
    ),
    ("gone", ""),
];

/// Zone, pod ranges and addresses of the Node `n1`; empty text means no Node.
const NODES: Forms = &[
    (
        "a",
        "{name: n1, labels: {topology.kubernetes.io/zone: a}}\nspec: {podCIDRs: [172.20.1.0/24]}\n\
         status: {addresses: [{type: InternalIP, address: 192.168.8.201}, {type: InternalIP, address: \"fd00:8::201\"}]}",
    ),
    (
        "another zone",
        "{name: n1, labels: {topology.kubernetes.io/zone: b}}\nspec: {podCIDRs: [172.20.1.0/24]}\n\
         status: {addresses: [{type: InternalIP, address: 192.168.8.201}, {type: InternalIP, address: \"fd00:8::201\"}]}",
    ),
    (
        "another address",
        "{name: n1, labels: {topology.kubernetes.io/zone: a}}\nspec: {podCIDRs: [172.20.1.0/24, \"fd00:20:1::/64\"]}\n\
         status: {addresses: [{type: InternalIP, address: 192.168.8.211}]}",
    ),
    (
        "a load balancer's address",
        "{name: n1}\nstatus: {addresses: [{type: InternalIP, address: 192.168.8.201}, \
         {type: ExternalIP, address: 203.0.113.10}]}",
    ),
    ("gone", ""),
];

/// Contents of the manifests: an index into each list of forms.
#[derive(Clone, Copy, Default)]
struct State {
    service: usize,
    slice: usize,
    node: usize,
    /// A device address in addition to those of the Node object.
    device: Option<IpAddr>,
}

struct World {
    directory: Directory,
    controller: Controller,
    store: MemoryStore,
}

impl World {
    fn new(config: &CompileConfig) -> Self {
        let controller =
            Controller::new("n1", config.clone(), MapSizes::default()).with_grace(Duration::ZERO);
        let mut world = Self { directory: Directory::default(), controller, store: MemoryStore::default() };
        world.controller.apply(Event::Synced);
        world
    }

    /// Changes the manifests and the devices to this state; objects that it does not contain are removed.
    fn become_state(&mut self, state: State) -> Result<()> {
        let service = file("Service", "v1", "web", SERVICES[state.service].1, "service-proxy-name: other");
        let slice =
            file("EndpointSlice", "discovery.k8s.io/v1", "web-1", SLICES[state.slice].1, "headless: \"\"");
        let node = match NODES[state.node].1 {
            "" => String::new(),
            rest => format!("kind: Node\napiVersion: v1\nmetadata: {rest}\n"),
        };
        for (name, text) in [("node.yaml", node), ("service.yaml", service), ("slice.yaml", slice)] {
            let events = self.directory.update(Path::new(name), Ok(text));
            events.into_iter().for_each(|event| self.controller.apply(event));
        }
        ensure!(self.directory.refused().is_empty(), "refused: {}", self.directory.refused()[0]);
        let node = self.controller.node();
        let held = node.internal_ips.iter().chain(&node.other_ips).chain(&state.device).copied();
        let addresses: Vec<_> = held.map(|addr| NodeAddress { addr, device: "eth0".into() }).collect();
        self.controller.set_node_addresses(addresses, &[]);
        for _ in 0..2 {
            self.controller.sync(&mut self.store)?;
            self.controller.release(Instant::now(), &InUse::default());
        }
        self.controller.sync(&mut self.store)?;
        Ok(())
    }

    fn meaning(&self) -> Value {
        meaning(&TablesView::new(self.controller.tables(), self.controller.listeners()))
    }
}

/// One manifest; `LABELLED` at the start of the body adds `label` to the object.
fn file(kind: &str, version: &str, name: &str, body: &str, label: &str) -> String {
    let (body, own) = match body.strip_prefix("LABELLED ") {
        Some(body) => (body, format!(", service.kubernetes.io/{label}")),
        None => (body, String::new()),
    };
    if body.is_empty() {
        return String::new();
    }
    format!(
        "kind: {kind}\napiVersion: {version}\n\
         metadata: {{name: {name}, labels: {{kubernetes.io/service-name: web{own}}}}}\n{body}\n"
    )
}

/// Changes from every state to every other one without a restart; returns the number of distinct meanings.
fn check(states: &[(&str, State)], config: &CompileConfig) -> Result<usize> {
    let fresh = |state| {
        let mut world = World::new(config);
        world.become_state(state)?;
        Ok(world.meaning())
    };
    let want = states.iter().map(|(_, state)| fresh(*state)).collect::<Result<Vec<Value>>>()?;
    let mut world = World::new(config);
    for (from, first) in states {
        for ((to, second), want) in states.iter().zip(&want) {
            world.become_state(*first)?;
            world.become_state(*second)?;
            let got = world.meaning();
            ensure!(got == *want, "{from} -> {to}: the maps mean {got}, not {want}");
        }
    }
    Ok(want.iter().map(Value::to_string).collect::<BTreeSet<_>>().len())
}

fn states(forms: Forms, state: impl Fn(usize) -> State) -> Vec<(&'static str, State)> {
    forms.iter().enumerate().map(|(i, (name, _))| (*name, state(i))).collect()
}

#[test]
fn a_service_becomes_every_other_kind() -> Result<()> {
    let states = states(SERVICES, |service| State { service, ..State::default() });
    // The last six all mean no frontends, and a load balancer that proxies is equal to a NodePort.
    assert_eq!(check(&states, &CompileConfig::default())?, SERVICES.len() - 6);
    Ok(())
}

#[test]
fn slices_become_every_other_kind() -> Result<()> {
    for (kind, meanings) in [("ClusterIP", 6), ("NodePort of policy Local", 7), ("internal policy Local", 5)]
    {
        let service = SERVICES.iter().position(|(name, _)| *name == kind).unwrap_or_default();
        let states = states(SLICES, |slice| State { service, slice, ..State::default() });
        assert_eq!(check(&states, &CompileConfig::default())?, meanings, "{kind}");
    }
    Ok(())
}

#[test]
fn a_node_changes_zone_ranges_and_addresses() -> Result<()> {
    let hints = SLICES.iter().position(|(name, _)| *name == "hints").unwrap_or_default();
    let balanced = SERVICES.iter().position(|(name, _)| *name == "LoadBalancer").unwrap_or_default();
    let mut states = states(NODES, |node| State { service: balanced, slice: hints, node, device: None });
    // A device address that no object contains, and one that is the load balancer's.
    for (name, address) in
        [("a device's address", "10.9.0.1"), ("the balancer's on a device", "203.0.113.10")]
    {
        let state = State { service: balanced, slice: hints, node: 0, device: address.parse().ok() };
        states.push((name, state));
    }
    assert_eq!(check(&states, &CompileConfig::default())?, states.len());
    Ok(())
}
