//! What is selected, and what leaves the selection.

use anyhow::{Result, ensure};
use tests::api_server::ApiServer;

use crate::follower::{Follower, SECOND, alone, cluster, has, key, service, slice};

#[test]
fn changes_are_followed_within_a_moment() -> Result<()> {
    let server = ApiServer::local()?;
    cluster(&server)?;
    let mut follower = Follower::new(&server, "changes")?;
    follower.synced()?;
    ensure!(has(&follower.snapshot, "kubernetes", 1), "the initial list is there when it is said to be");
    ensure!(
        follower.snapshot.knows_node() && follower.snapshot.node_addresses().count() == 1,
        "the own node alone"
    );
    server.store().apply(&service("web", 10, 5))?;
    let took = follower.until(SECOND, |now| has(now, "web", 5))?;
    server.store().apply(&slice("web", 6, ""))?;
    follower.until(SECOND, |now| has(now, "web", 6))?;
    server.store().delete("services", "default/web")?;
    server.store().delete("endpointslices", "default/web-1")?;
    follower.until(SECOND, |now| now.service(&key("web")).is_none())?;
    eprintln!("a new Service was there after {took:?}");
    follower.finish()
}

#[test]
fn labels_that_are_added_and_removed_take_away_and_bring_back() -> Result<()> {
    let server = ApiServer::local()?;
    cluster(&server)?;
    server.store().apply(&service("web", 10, 5))?;
    server.store().apply(&alone("other", 11, "service.kubernetes.io/service-proxy-name: x"))?;
    let mut follower = Follower::new(&server, "labels")?;
    follower.synced()?;
    ensure!(follower.snapshot.service(&key("other")).is_none());
    for _ in 0..2 {
        server.store().apply(&alone("web", 10, "service.kubernetes.io/service-proxy-name: x"))?;
        follower.until(SECOND, |now| now.service(&key("web")).is_none())?;
        server.store().apply(&alone("web", 10, ""))?;
        follower.until(SECOND, |now| has(now, "web", 5))?;
        server.store().apply(&slice("web", 5, ", service.kubernetes.io/headless: ''"))?;
        follower.until(SECOND, |now| now.endpoints(&key("web")).0.is_empty())?;
        server.store().apply(&slice("web", 5, ""))?;
        follower.until(SECOND, |now| has(now, "web", 5))?;
    }
    server.store().apply(&alone("other", 11, ""))?;
    follower.until(SECOND, |now| now.service(&key("other")).is_some())?;
    follower.finish()
}

#[test]
fn an_object_that_cannot_be_read_keeps_its_last_state() -> Result<()> {
    let server = ApiServer::local()?;
    cluster(&server)?;
    server.store().apply(&service("web", 10, 5))?;
    let mut follower = Follower::new(&server, "unreadable")?;
    follower.synced()?;
    server.store().apply(&alone("web", 10, "").replace("port: 80", "port: 80, protocol: QUIC"))?;
    server.store().apply(&service("next", 11, 6))?;
    follower.until(SECOND, |now| has(now, "next", 6))?;
    ensure!(has(&follower.snapshot, "web", 5));
    server.store().delete("services", "default/web")?;
    follower.until(SECOND, |now| now.service(&key("web")).is_none())?;
    follower.finish()
}
