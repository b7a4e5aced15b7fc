//! /metrics and related paths (SERVICE-SEMANTICS 3.3) of the real binary.

use std::time::Duration;

use anyhow::{Context as _, Result};
use tests::{
    manifest::Service,
    net::{Node, Plan, cluster::eventually, plan::Family},
};

use crate::world::{PORT, TARGET, World, web, web_addr};

const SECOND: Duration = Duration::from_secs(1);
const METRICS: u16 = 10_249;

fn page(node: &Node, path: &str) -> Result<(String, String)> {
    let answer = node.get(METRICS, path)?;
    let (head, body) = answer.split_once("\r\n\r\n").context("an answer without a body")?;
    Ok((head.to_owned(), body.to_owned()))
}

/// The value of one series; `None` if it does not exist.
fn value(node: &Node, series: &str) -> Result<Option<f64>> {
    let (_, body) = page(node, "/metrics")?;
    let line = body.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
    line.map(|value| value.parse().context("a number")).transpose()
}

#[track_caller]
fn becomes(node: &Node, series: &str, holds: impl Fn(f64) -> bool) {
    let mut last = None;
    let found = eventually(SECOND * 10, || {
        last = value(node, series).ok().flatten();
        last.is_some_and(&holds)
    });
    assert!(found.is_ok(), "{series}: {last:?}");
}

#[test]
fn s3_3_what_happens_is_counted() -> Result<()> {
    let world = World::start(Plan::default(), |world| world.web().yaml())?;
    let node = world.cluster.node(0);
    becomes(node, "shunt_ready", |value| value == 1.0);
    becomes(node, "shunt_services", |value| value == 1.0);
    becomes(node, "shunt_map_entries{map=\"FRONTENDS\"}", |value| value > 0.0);
    becomes(node, "shunt_map_max_entries{map=\"CONNTRACK\"}", |value| value == 262_144.0);
    becomes(node, "kubeproxy_sync_proxy_rules_duration_seconds_count{ip_family=\"IPv4\"}", |value| {
        value >= 1.0
    });
    becomes(node, "kubeproxy_sync_proxy_rules_service_changes_total", |value| value >= 1.0);
    becomes(node, "kubeproxy_sync_proxy_rules_service_changes_pending", |value| value == 0.0);
    becomes(node, "process_resident_memory_bytes", |value| value > 1e6);
    // A flow, which the collector finds within seconds.
    let before = value(node, "shunt_datapath_events_total{event=\"flow_new\"}")?.context("a counter")?;
    world.pod().tcp(web(Family::V4)).answered();
    becomes(node, "shunt_datapath_events_total{event=\"flow_new\"}", |value| value > before);
    becomes(node, "shunt_map_entries{map=\"CONNTRACK\"}", |value| value >= 2.0);
    // Probes are counted by response.
    let before = value(node, "kubeproxy_proxy_healthz_total{code=\"200\"}")?.context("a counter")?;
    node.health("/healthz")?;
    becomes(node, "kubeproxy_proxy_healthz_total{code=\"200\"}", |value| value > before);
    Ok(())
}

#[test]
fn s3_3_network_programming_is_measured_from_the_trigger() -> Result<()> {
    const COUNT: &str = "kubeproxy_network_programming_duration_seconds_count{ip_family=\"IPv4\"}";
    let world = World::start(Plan::default(), |world| world.web().yaml())?;
    let node = world.cluster.node(0);
    becomes(node, COUNT, |value| value == 0.0);
    let triggered = |time: &str, pods: &[&tests::net::Pod]| {
        let annotation = format!(
            "metadata:\n  annotations: {{endpoints.kubernetes.io/last-change-trigger-time: \"{time}\"}}\n"
        );
        let text = Service::new("web", web_addr()).tcp(PORT, TARGET).pods(pods).yaml();
        let documents = text.split("---\n").map(|document| {
            if document.contains("kind: EndpointSlice") {
                document.replacen("metadata:\n", &annotation, 1)
            } else {
                document.to_owned()
            }
        });
        documents.collect::<Vec<_>>().join("---\n")
    };
    // From before this process started: it did not see the change.
    let old = triggered("2026-01-01T00:00:00.5Z", &[&world.near]);
    assert!(old.contains("last-change-trigger-time"), "{old}");
    world.cluster.apply("services.yaml", &old)?;
    becomes(node, "kubeproxy_sync_proxy_rules_endpoint_changes_total", |value| value >= 4.0);
    assert_eq!(value(node, COUNT)?, Some(0.0));
    let now = std::process::Command::new("date").args(["-u", "+%Y-%m-%dT%H:%M:%S.%NZ"]).output()?;
    let now = String::from_utf8(now.stdout)?;
    world.cluster.apply("services.yaml", &triggered(now.trim(), &[&world.far]))?;
    becomes(node, COUNT, |value| value == 1.0);
    becomes(node, &COUNT.replace("IPv4", "IPv6"), |value| value == 1.0);
    Ok(())
}

#[test]
fn s3_3_policy_local_without_endpoints_is_counted() -> Result<()> {
    let world = World::start(Plan::default(), |world| {
        Service::new("web", web_addr()).tcp(PORT, TARGET).internal_traffic_local().pods(&[&world.far]).yaml()
    })?;
    let series = |policy: &str| {
        format!(
            "kubeproxy_sync_proxy_rules_no_local_endpoints_total{{ip_family=\"IPv4\",traffic_policy=\"{policy}\"}}"
        )
    };
    becomes(world.cluster.node(0), &series("internal"), |value| value == 1.0);
    becomes(world.cluster.node(0), &series("external"), |value| value == 0.0);
    becomes(world.cluster.node(1), &series("internal"), |value| value == 0.0);
    world.pod().tcp(web(Family::V4)).timed_out();
    let series = format!(
        "shunt_datapath_drops_total{{device=\"{}\",reason=\"no_local_endpoints\"}}",
        world.client.device()
    );
    becomes(world.cluster.node(0), &series, |value| value > 0.0);
    Ok(())
}

#[test]
fn s3_3_the_paths_beside_metrics() -> Result<()> {
    let world = World::start(Plan::default(), |world| world.web().yaml())?;
    let node = world.cluster.node(0);
    let (head, body) = page(node, "/proxyMode")?;
    assert!(
        head.starts_with("HTTP/1.1 200 ") && head.contains("text/plain") && body == "ebpf",
        "{head}\n{body}"
    );
    let (head, body) = page(node, "/healthz")?;
    assert!(head.starts_with("HTTP/1.1 200 ") && body == "ok", "{head}\n{body}");
    let (head, _) = page(node, "/metrics")?;
    assert!(head.contains("Content-Type: text/plain; version=0.0.4"), "{head}");
    Ok(())
}
