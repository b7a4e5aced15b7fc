//! What is selected, and what leaves the selection.

use anyhow::{Result, ensure};
use tests::api_server::{ApiServer, Fault};

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

/// Served by every version, by the older one alone, by none, and shown to nobody.
#[test]
fn service_cidrs_are_followed_where_they_are_served() -> Result<()> {
    for (name, refusals, served) in [
        ("v1", &[][..], true),
        ("v1beta1", &[404], true),
        ("none", &[404, 404], false),
        ("forbidden", &[403], false),
    ] {
        let server = ApiServer::local()?;
        cluster(&server)?;
        let range = |cidr: &str| {
            format!(
                "apiVersion: networking.k8s.io/v1\nkind: ServiceCIDR\nmetadata: {{name: kubernetes}}\nspec: {{cidrs: [{cidr}]}}\n"
            )
        };
        server.store().apply(&range("10.68.0.0/16"))?;
        for code in refusals {
            server.store().fault("servicecidrs", Fault::ListStatus(*code));
        }
        let mut follower = Follower::new(&server, &format!("cidrs-{name}"))?;
        follower.synced()?;
        ensure!(follower.snapshot.service_cidrs().len() == usize::from(served), "{name}");
        if served {
            server.store().apply(&range("10.69.0.0/16"))?;
            let wanted = "10.69.0.0/16".parse()?;
            follower.until(SECOND, |now| now.service_cidrs().contains(&wanted))?;
            server.store().delete("servicecidrs", "kubernetes")?;
            follower.until(SECOND, |now| now.service_cidrs().is_empty())?;
        }
        follower.finish()?;
    }
    Ok(())
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
