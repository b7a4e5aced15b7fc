//! Complete lists: in pages, through a watch, empty, and large.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use serde_json::json;
use shunt::sources::kube::Timing;
use tests::api_server::{Api, ApiServer, Fault, of_environment};

use crate::follower::{Follower, Options, SECOND, cluster, has, key, service};

const MANY: u32 = 5000;

/// Like real objects: managedFields and annotations are most of their size.
fn many(server: &dyn Api) -> Result<()> {
    let ballast = "x".repeat(800);
    let mut objects = Vec::new();
    for n in 0..MANY {
        let (name, ip) = (format!("s{n}"), format!("10.68.{}.{}", 16 + (n >> 8), n & 255));
        objects.push(json!({"apiVersion": "v1", "kind": "Service",
            "metadata": {"name": name, "namespace": "default",
                "annotations": {"kubectl.kubernetes.io/last-applied-configuration": ballast}},
            "spec": {"clusterIP": ip, "clusterIPs": [ip], "selector": {"app": name},
                "ports": [{"name": "http", "port": 80, "targetPort": 8080, "protocol": "TCP"}]}}));
        objects.push(json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
            "metadata": {"name": format!("{name}-1"), "namespace": "default",
                "labels": {"kubernetes.io/service-name": name}},
            "addressType": "IPv4", "ports": [{"name": "http", "port": 8080}],
            "endpoints": [{"addresses": [format!("172.20.{}.{}", n >> 8, n & 255)], "nodeName": "node-2",
                "conditions": {"ready": true}, "targetRef": {"kind": "Pod", "name": name}}]}));
    }
    server.add_all(objects)
}

fn resident_kib() -> Result<u64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap_or_default();
    Ok(line.trim().trim_end_matches(" kB").parse()?)
}

#[test]
fn thousands_of_objects_come_in_pages() -> Result<()> {
    let server = of_environment()?;
    cluster(&*server)?;
    many(&*server)?;
    let before = resident_kib()?;
    let begun = Instant::now();
    let mut follower = Follower::new(&*server, "many")?;
    follower.synced()?;
    let took = begun.elapsed();
    let grown = resident_kib()?.saturating_sub(before);
    eprintln!("{MANY} Services and {MANY} slices: {took:?}, server included; {grown} KiB more in memory");
    ensure!(follower.snapshot.service_count() == MANY as usize + 1);
    ensure!(took < SECOND * 20, "{took:?}");
    ensure!(grown < 200 * 1024, "{grown} KiB");
    let pages = server.requests().iter().filter(|request| *request == "page services").count();
    ensure!(pages == MANY as usize / 500 || server.makes_kubernetes(), "{pages} further pages");
    follower.finish()
}

#[test]
fn a_page_whose_version_is_gone_starts_the_list_anew() -> Result<()> {
    let server = ApiServer::local()?;
    cluster(&server)?;
    for n in 0..600 {
        let ip = format!("10.70.{}.{}", n >> 8, n & 255);
        server.store().apply_object(json!({"kind": "Service", "metadata": {"name": format!("s{n}")},
            "spec": {"clusterIP": ip, "ports": [{"port": 80}]}}))?;
    }
    server.store().fault("services", Fault::PageGone);
    let mut follower = Follower::new(&server, "page")?;
    follower.synced()?;
    ensure!(follower.snapshot.service_count() == 601 && follower.gone == 0);
    follower.finish()
}

#[test]
fn an_empty_list_does_not_wipe_what_is_there() -> Result<()> {
    let server = ApiServer::local()?;
    let timing = Timing { believe_empty: SECOND * 3, ask_again: SECOND / 4, ..Timing::default() };
    let options = Options { populated: true, timing: Some(timing), ..Options::default() };
    let mut follower = Follower::with(&server, "empty", options)?;
    // The lists are empty, but the maps of an earlier run are full: the agent does not accept this at once.
    follower.listen(SECOND)?;
    ensure!(!follower.snapshot.is_synced());
    cluster(&server)?;
    server.store().apply(&service("web", 10, 5))?;
    follower.synced()?;
    // The same with objects known to this run: a relist that returns no objects.
    server.store().fault("services", Fault::EmptyList);
    server.store().fault("services", Fault::StreamGone);
    follower.listen(SECOND)?;
    ensure!(has(&follower.snapshot, "web", 5) && follower.gone == 0);
    // It accepts an empty list that persists long enough.
    for name in ["kubernetes", "web"] {
        server.store().delete("services", &format!("default/{name}"))?;
    }
    follower.until(SECOND * 5, |now| now.service_count() == 0)?;
    follower.finish()
}

#[test]
fn an_empty_cluster_is_believed_when_there_is_nothing_to_lose() -> Result<()> {
    let server = ApiServer::local()?;
    let mut follower = Follower::new(&server, "fresh")?;
    ensure!(follower.synced()? < SECOND * 3);
    follower.finish()
}

/// From a server with streaming lists, or without them; real servers without them respond in several ways.
fn streamed(server: &dyn Api, name: &str) -> Result<()> {
    cluster(server)?;
    server.apply(&service("web", 10, 5))?;
    let options = Options { watch_list: true, ..Options::default() };
    let mut follower = Follower::with(server, name, options)?;
    let took = follower.synced()?;
    eprintln!("{name}: all there after {took:?}");
    ensure!(has(&follower.snapshot, "web", 5));
    server.apply(&service("next", 11, 6))?;
    follower.until(SECOND * 2, |now| has(now, "next", 6))?;
    // The next stream makes up for a stream that ended early, including removals.
    server.stop()?;
    server.delete("services", "default/next")?;
    server.forget();
    server.start()?;
    follower.until(SECOND * 5, |now| now.service(&key("next")).is_none())?;
    follower.finish()
}

#[test]
fn streaming_lists_are_taken() -> Result<()> {
    streamed(&*of_environment()?, "stream")
}

#[test]
fn a_server_that_refuses_to_stream_is_listed() -> Result<()> {
    for refuses in [false, true] {
        let server = ApiServer::local()?;
        if refuses {
            for resource in ["services", "endpointslices", "nodes", "servicecidrs"] {
                server.store().fault(resource, Fault::NoStreaming);
            }
        }
        streamed(&server, &format!("stream-{refuses}"))?;
        let listed = server.store().requests().iter().any(|request| request == "list services");
        ensure!(listed == refuses, "{:?}", server.store().requests());
    }
    Ok(())
}

/// No object may be treated as deleted before all lists have arrived.
#[test]
fn nothing_is_complete_before_all_lists_are() -> Result<()> {
    let server = ApiServer::local()?;
    cluster(&server)?;
    server.store().fault("endpointslices", Fault::TooMany(2));
    let mut follower = Follower::new(&server, "all")?;
    follower.listen(Duration::from_millis(1500))?;
    ensure!(follower.snapshot.service(&key("kubernetes")).is_some() && !follower.snapshot.is_synced());
    let took = follower.synced()?;
    ensure!(took > SECOND / 4, "Retry-After was not kept: {took:?}");
    follower.finish()
}
