//! Selection of objects, and objects that leave the selection.

use anyhow::{Result, ensure};
use shunt::model::ServiceType;
use tests::api_server::{ApiServer, Fault, of_environment};

use crate::follower::{Follower, Options, SECOND, alone, cluster, has, key, service, slice};

#[test]
fn changes_are_followed_within_a_moment() -> Result<()> {
    let server = of_environment()?;
    cluster(&*server)?;
    let mut follower = Follower::new(&*server, "changes")?;
    follower.synced()?;
    ensure!(has(&follower.snapshot, "kubernetes", 1), "the initial list is there when it is said to be");
    ensure!(
        follower.snapshot.knows_node() && follower.snapshot.node_addresses().count() == 1,
        "the own node alone"
    );
    server.apply(&service("web", 10, 5))?;
    let took = follower.until(SECOND * 2, |now| has(now, "web", 5))?;
    server.apply(&slice("web", 6, ""))?;
    follower.until(SECOND * 2, |now| has(now, "web", 6))?;
    server.delete("services", "default/web")?;
    server.delete("endpointslices", "default/web-1")?;
    follower.until(SECOND * 2, |now| now.service(&key("web")).is_none())?;
    eprintln!("a new Service was there after {took:?}");
    follower.finish()
}

#[test]
fn labels_that_are_added_and_removed_take_away_and_bring_back() -> Result<()> {
    let server = of_environment()?;
    cluster(&*server)?;
    server.apply(&service("web", 10, 5))?;
    server.apply(&alone("other", 11, "service.kubernetes.io/service-proxy-name: x"))?;
    let mut follower = Follower::new(&*server, "labels")?;
    follower.synced()?;
    ensure!(follower.snapshot.service(&key("other")).is_none());
    for _ in 0..2 {
        server.apply(&alone("web", 10, "service.kubernetes.io/service-proxy-name: x"))?;
        follower.until(SECOND * 2, |now| now.service(&key("web")).is_none())?;
        server.apply(&alone("web", 10, ""))?;
        follower.until(SECOND * 2, |now| has(now, "web", 5))?;
        server.apply(&slice("web", 5, ", service.kubernetes.io/headless: ''"))?;
        follower.until(SECOND * 2, |now| now.endpoints(&key("web")).0.is_empty())?;
        server.apply(&slice("web", 5, ""))?;
        follower.until(SECOND * 2, |now| has(now, "web", 5))?;
    }
    server.apply(&alone("other", 11, ""))?;
    follower.until(SECOND * 2, |now| now.service(&key("other")).is_some())?;
    follower.finish()
}

#[test]
fn a_service_changes_its_type() -> Result<()> {
    let server = of_environment()?;
    cluster(&*server)?;
    let mut follower = Follower::new(&*server, "types")?;
    follower.synced()?;
    let addresses = "clusterIP: 10.68.0.10, clusterIPs: [10.68.0.10]";
    let service = |spec: &str, status: &str| {
        format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: web, namespace: default}}\nspec: {{{spec}}}\n{status}"
        )
    };
    let web = |kind: &str, port: &str, status: &str| {
        service(&format!("type: {kind}, {addresses}, ports: [{{port: 80{port}}}]"), status)
    };
    let given = "status: {loadBalancer: {ingress: [{ip: 203.0.113.7}]}}\n";
    let taken = "status: {loadBalancer: {}}\n";
    let outside = std::net::IpAddr::from([203, 0, 113, 7]);
    for _ in 0..2 {
        for (text, kind, node_port, balanced) in [
            (web("ClusterIP", "", taken), ServiceType::ClusterIp, None, false),
            (web("NodePort", ", nodePort: 30080", taken), ServiceType::NodePort, Some(30080), false),
            (web("LoadBalancer", ", nodePort: 30080", given), ServiceType::LoadBalancer, Some(30080), true),
            (web("LoadBalancer", ", nodePort: 30081", given), ServiceType::LoadBalancer, Some(30081), true),
            (web("LoadBalancer", ", nodePort: 30081", taken), ServiceType::LoadBalancer, Some(30081), false),
            (
                service("type: ExternalName, externalName: example.org", taken),
                ServiceType::ExternalName,
                None,
                false,
            ),
        ] {
            server.apply(&text)?;
            follower.until(SECOND * 2, |now| {
                now.service(&key("web")).is_some_and(|web| {
                    web.kind == kind
                        && web.ports.first().and_then(|port| port.node_port) == node_port
                        && web.load_balancer_ips.contains(&outside) == balanced
                        && web.cluster_ips.is_empty() == (kind == ServiceType::ExternalName)
                })
            })?;
        }
    }
    server.delete("services", "default/web")?;
    follower.until(SECOND * 2, |now| now.service(&key("web")).is_none())?;
    follower.finish()
}

#[test]
fn ranges_of_services_come_and_change() -> Result<()> {
    let server = of_environment()?;
    cluster(&*server)?;
    let range = |cidr: &str| {
        format!(
            "apiVersion: networking.k8s.io/v1\nkind: ServiceCIDR\nmetadata: {{name: more}}\nspec: {{cidrs: [{cidr}]}}\n"
        )
    };
    let is_served = server.serves_ranges()?;
    let mut follower = Follower::new(&*server, "ranges")?;
    follower.synced()?;
    let wanted = "10.90.0.0/16".parse()?;
    eprintln!("ServiceCIDRs served: {is_served}");
    if is_served {
        server.apply(&range("10.90.0.0/16"))?;
        follower.until(SECOND * 2, |now| now.service_cidrs().contains(&wanted))?;
    } else {
        ensure!(follower.snapshot.service_cidrs().is_empty(), "of a server that knows none");
    }
    follower.finish()
}

/// Served in every version, only in the older one, in none, and without permission.
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

/// Before 1.31, Services cannot be selected by their clusterIP, so headless Services are in the list too.
#[test]
fn an_old_server_is_asked_by_labels_alone() -> Result<()> {
    for watch_list in [false, true] {
        let server = ApiServer::local()?;
        cluster(&server)?;
        server.store().be_old();
        server.store().apply(&alone("quiet", 12, "").replace("10.68.0.12", "None"))?;
        let options = Options { watch_list, ..Options::default() };
        let mut follower = Follower::with(&server, &format!("old-{watch_list}"), options)?;
        follower.synced()?;
        let quiet = follower.snapshot.service(&key("quiet"));
        ensure!(quiet.is_some_and(|quiet| quiet.headless && quiet.cluster_ips.is_empty()), "{quiet:?}");
        server.store().apply(&service("web", 10, 5))?;
        follower.until(SECOND * 2, |now| has(now, "web", 5))?;
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
