//! The agent's reports to the cluster and its operators: Events, and the node's eligibility while the API server is
//! available and while it is not.

use std::{thread, time::Duration};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use tests::{
    api_server::{Api as _, ApiServer, Certificates},
    manifest::{self, Service},
    net::{Cluster, Plan, cluster::eventually, plan::vip},
};

const SECOND: Duration = Duration::from_secs(1);

fn start() -> Result<(Cluster, ApiServer)> {
    let cluster = Cluster::new(Plan::default().nodes(1))?;
    let server = ApiServer::start_at(
        Some(cluster.outside().shared_netns()),
        "192.168.8.100:6443".parse()?,
        Some(Certificates::new()?),
    )?;
    server.store().apply(&manifest::node(cluster.node(0)))?;
    server.store().apply(&Service::new("kubernetes", vip(1)).tcp(443, 6443).yaml())?;
    Ok((cluster, server))
}

fn run(cluster: &Cluster, server: &ApiServer) -> Result<()> {
    let kubeconfig = server.kubeconfig(&cluster.files().join("kubeconfig"))?;
    cluster.start(&["--kubeconfig", kubeconfig.to_str().context("a path in UTF-8")?])
}

/// The Events with this reason, in order of arrival.
fn events(server: &ApiServer, reason: &str) -> Vec<Value> {
    server.store().events().into_iter().filter(|event| event["reason"] == reason).collect()
}

/// A Service with an endpoint address that no traffic may be sent to.
fn refused(uid: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: bad, namespace: default, uid: {uid}}}\n\
         spec: {{clusterIP: 10.68.0.30, clusterIPs: [10.68.0.30], ports: [{{port: 80}}]}}\n---\n\
         apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\n\
         metadata: {{name: bad-1, namespace: default, labels: {{kubernetes.io/service-name: bad}}}}\n\
         addressType: IPv4\nports: [{{name: '', port: 8080}}]\n\
         endpoints: [{{addresses: [127.0.0.1]}}]\n"
    )
}

#[test]
fn events_are_on_the_node_and_on_the_service() -> Result<()> {
    let (cluster, server) = start()?;
    run(&cluster, &server)?;
    eventually(SECOND * 10, || !events(&server, "Starting").is_empty())?;
    let starting = &events(&server, "Starting")[0];
    ensure!(
        starting["type"] == "Normal"
            && starting["action"] == "StartKubeProxy"
            && starting["regarding"]["kind"] == "Node"
            && starting["regarding"]["name"] == "node-1",
        "{starting}"
    );
    server.store().apply(&refused("uid-of-bad"))?;
    eventually(SECOND * 10, || !events(&server, "EndpointRefused").is_empty())?;
    let event = &events(&server, "EndpointRefused")[0];
    ensure!(
        event["type"] == "Warning"
            && event["regarding"]["kind"] == "Service"
            && event["regarding"]["name"] == "bad"
            && event["regarding"]["uid"] == "uid-of-bad"
            && event["metadata"]["namespace"] == "default"
            && event["note"].as_str().is_some_and(|note| note.contains("127.0.0.1")),
        "{event}"
    );
    // A state persists, but is reported once.
    thread::sleep(SECOND * 2);
    ensure!(events(&server, "EndpointRefused").len() == 1);
    ensure!(server.violations().is_empty(), "{:?}", server.violations());
    Ok(())
}

#[test]
fn a_marked_node_is_not_eligible_and_an_absent_server_changes_nothing() -> Result<()> {
    let (cluster, server) = start()?;
    run(&cluster, &server)?;
    let node = cluster.node(0);
    ensure!(node.health("/healthz")? == 200);
    let plain = manifest::node(node);
    let taint = "spec:\n  taints: [{key: ToBeDeletedByClusterAutoscaler, effect: NoSchedule}]\n";
    server.store().apply(&plain.replace("spec:\n", taint))?;
    eventually(SECOND * 5, || node.health("/healthz").is_ok_and(|status| status == 503))?;
    ensure!(node.health("/livez")? == 200);
    server.store().apply(&plain)?;
    eventually(SECOND * 5, || node.health("/healthz").is_ok_and(|status| status == 200))?;
    server.stop();
    for _ in 0..12 {
        ensure!(node.health("/healthz")? == 200 && node.health("/livez")? == 200);
        thread::sleep(SECOND / 4);
    }
    let metrics = node.get(10_249, "/metrics")?;
    for want in [
        "shunt_watch_up{resource=\"services\"} 0",
        "rest_client_requests_total{code=\"200\",host=\"192.168.8.100:6443\",method=\"GET\"} ",
        "rest_client_requests_total{code=\"<error>\",host=\"192.168.8.100:6443\",method=\"GET\"} ",
        "rest_client_request_duration_seconds_count{host=\"192.168.8.100:6443\",verb=\"GET\"} ",
        "shunt_events_total{result=\"sent\"} 1",
    ] {
        ensure!(metrics.contains(want), "{want} is not in\n{metrics}");
    }
    server.start()?;
    eventually(SECOND * 10, || {
        node.get(10_249, "/metrics")
            .is_ok_and(|page| page.contains("shunt_watch_up{resource=\"services\"} 1"))
    })?;
    ensure!(server.violations().is_empty(), "{:?}", server.violations());
    Ok(())
}
