//! /healthz and /livez (SERVICE-SEMANTICS 3.1): kube-proxy's responses, and the nodes that load balancers must not use.

use std::time::Duration;

use anyhow::{Context as _, Result};
use serde_json::Value;
use tests::{
    manifest,
    net::{Node, Plan, cluster::eventually},
};

use crate::world::World;

const SECOND: Duration = Duration::from_secs(1);
const HEALTH: u16 = 10_256;

/// Status, head and body of a path of the health server.
fn ask(node: &Node, path: &str) -> Result<(u16, String, Value)> {
    let answer = node.get(HEALTH, path)?;
    let (head, body) = answer.split_once("\r\n\r\n").context("an answer without a body")?;
    let status = head.split_whitespace().nth(1).context("no status")?.parse()?;
    Ok((status, head.to_owned(), serde_json::from_str(body)?))
}

/// The Node objects of all nodes, without those for which `edit` returns nothing.
fn nodes(world: &World, edit: impl Fn(usize, String) -> String) -> Result<()> {
    let nodes = world.cluster.nodes().iter();
    let texts = nodes.map(|node| edit(node.index(), manifest::node(node)));
    let texts: Vec<_> = texts.filter(|text| !text.is_empty()).collect();
    world.cluster.apply("nodes.yaml", &texts.join("---\n"))
}

#[track_caller]
fn becomes(world: &World, node: usize, eligible: bool) {
    let node = world.cluster.node(node);
    let mut last = None;
    let found = eventually(SECOND, || {
        last = ask(node, "/healthz").ok();
        last.as_ref().is_some_and(|(_, _, body)| body["nodeEligible"] == eligible)
    });
    assert!(found.is_ok(), "want {eligible}, have {last:?}");
    let (status, _, body) = last.expect("an answer");
    assert_eq!((status, &body["healthy"]), (if eligible { 200 } else { 503 }, &Value::Bool(true)), "{body}");
    // Used for restarting unhealthy pods: draining a node is no reason for a restart.
    assert_eq!(ask(node, "/livez").unwrap().0, 200);
    assert_eq!(ask(node, "/readyz").unwrap().0, 200);
}

#[test]
fn s3_1_the_answer_is_kube_proxys() -> Result<()> {
    let world = World::start(Plan::default(), |world| world.web().yaml())?;
    for (path, fields) in [
        ("/healthz", vec!["lastUpdated", "currentTime", "nodeEligible", "healthy", "status"]),
        ("/livez", vec!["lastUpdated", "currentTime", "healthy", "status"]),
    ] {
        let (status, head, body) = ask(world.cluster.node(0), path)?;
        assert_eq!(status, 200, "{body}");
        let head = head.to_lowercase();
        assert!(head.contains("content-type: application/json\r\n"), "{head}");
        assert!(head.contains("x-content-type-options: nosniff\r\n"), "{head}");
        let mut have: Vec<_> = body.as_object().context("an object")?.keys().map(String::as_str).collect();
        let mut want = fields.clone();
        have.sort_unstable();
        want.sort_unstable();
        assert_eq!(have, want);
        // In this order, without anything around it.
        let raw = world.cluster.node(0).get(HEALTH, path)?;
        let raw = raw.split_once("\r\n\r\n").context("a body")?.1;
        assert!(raw.starts_with("{\"lastUpdated\":\"20") && raw.ends_with("}}}"), "{raw}");
        let places: Vec<_> = fields.iter().map(|field| raw.find(&format!("\"{field}\":"))).collect();
        assert!(places.is_sorted(), "{raw}");
        assert_eq!(body["lastUpdated"], body["currentTime"], "what is healthy was updated now");
        for family in ["IPv4", "IPv6"] {
            let status = &body["status"][family];
            assert!(status["healthy"] == true && status["lastUpdated"].is_string(), "{body}");
        }
    }
    Ok(())
}

#[test]
fn s3_1_a_node_that_is_to_go_is_not_eligible_and_lives() -> Result<()> {
    let world = World::start(Plan::default(), |world| world.web().yaml())?;
    // Files without any Node have no effect on this one.
    becomes(&world, 0, true);
    nodes(&world, |_, text| text)?;
    becomes(&world, 0, true);
    let taint = "  taints: [{key: ToBeDeletedByClusterAutoscaler, effect: NoSchedule}]\n";
    let first = |change: &dyn Fn(String) -> String| {
        nodes(&world, |index, text| if index == 0 { change(text) } else { text })
    };
    first(&|text| text.replace("spec:\n", &format!("spec:\n{taint}")))?;
    becomes(&world, 0, false);
    becomes(&world, 1, true);
    first(&|text| text)?;
    becomes(&world, 0, true);
    let deleted = "metadata:\n  deletionTimestamp: \"2026-01-01T00:00:00Z\"\n";
    first(&|text| text.replace("metadata:\n", deleted))?;
    becomes(&world, 0, false);
    first(&|text| text)?;
    becomes(&world, 0, true);
    // Absent while others are present: it has left the cluster.
    first(&|_| String::new())?;
    becomes(&world, 0, false);
    Ok(())
}
