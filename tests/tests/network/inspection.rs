//! The inspection commands show the actual state, while shunt runs and while it is stopped.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde_json::Value;
use tests::net::{Plan, plan::BOTH};

use crate::world::{World, web};

fn array(value: Value) -> Result<Vec<Value>> {
    match value {
        Value::Array(items) => Ok(items),
        other => anyhow::bail!("not an array: {other}"),
    }
}

/// Required output of every command for a cluster with `web` and two open streams of a pod of node 0.
fn everything_is_shown(world: &World, open: [String; 2]) -> Result<()> {
    let node = world.cluster.node(0);
    let services = array(node.shunt_json(&["service", "list"])?)?;
    for family in BOTH {
        let address = web(family).ip().to_string();
        let service = services
            .iter()
            .find(|item| {
                item["address"] == *address && item["protocol"] == "TCP" && item["kind"] == "ClusterIP"
            })
            .with_context(|| format!("no {address} in {services:?}"))?;
        assert_eq!(
            (&service["namespace"], &service["name"], &service["port"]),
            (&"default".into(), &"web".into(), &80.into())
        );
        let backends = service["backends"].as_array().context("backends")?;
        assert_eq!(backends.len(), 2, "{service}");
        let near = backends.iter().find(|item| item["local"] == true).context("a local backend")?;
        assert_eq!(near["address"], world.near.addr().of(family).to_string());
        assert_eq!(
            (&near["port"], &near["node"], &near["ready"]),
            (&8080.into(), &"node-1".into(), &true.into())
        );
        let active: u64 = backends.iter().filter_map(|item| item["active"].as_u64()).sum();
        assert_eq!(active, 1, "{service}");
    }
    assert!(services.iter().any(|item| item["kind"] == "NodePort" && item["port"] == 30080), "{services:?}");

    let flows = array(node.shunt_json(&["conntrack", "list"])?)?;
    for client in &open {
        let flow = flows.iter().find(|item| item["client"] == **client && item["protocol"] == "TCP");
        let flow = flow.with_context(|| format!("no flow of {client} in {flows:?}"))?;
        assert_eq!(flow["state"], "ESTABLISHED", "{flow}");
    }
    let backends = array(node.shunt_json(&["backend", "list"])?)?;
    assert!(backends.iter().any(|item| item["address"] == world.far.addr().v4.to_string()), "{backends:?}");
    assert!(!array(node.shunt_json(&["counter", "list"])?)?.is_empty());
    assert!(!array(node.shunt_json(&["link", "list"])?)?.is_empty());
    assert!(!array(node.shunt_json(&["prog", "list"])?)?.is_empty());
    assert!(!array(node.shunt_json(&["map", "list"])?)?.is_empty());
    let dump = node.shunt_command(&["-j", "map", "dump", "FRONTENDS"])?;
    assert!(!array(serde_json::from_str(&dump).with_context(|| dump.clone())?)?.is_empty());
    let show = node.shunt_command(&["service", "show", "default/web"])?;
    assert!(show.contains("10.68.0.10") && show.contains("30080"), "{show}");
    let table = node.shunt_command(&["service", "list"])?;
    for word in ["10.68.0.10", "TCP", "node-1", "node-2"] {
        assert!(table.contains(word), "no {word} in:\n{table}");
    }
    Ok(())
}

#[test]
fn running_and_stopped() -> Result<()> {
    let world = World::start(Plan::default(), |world| world.web().yaml())?;
    let streams = BOTH.map(|family| world.pod().stream(web(family)));
    for stream in &streams {
        stream.steady(3);
    }
    let open = [streams[0].local_addr()?.to_string(), streams[1].local_addr()?.to_string()];
    everything_is_shown(&world, open.clone()).context("while shunt runs")?;
    let status = world.cluster.node(0).shunt_json(&["status"])?;
    let status = status.as_array().and_then(|items| items.first()).unwrap_or(&status);
    assert_eq!(status["ready"], true, "{status}");
    world.cluster.node(0).stop_shunt()?;
    everything_is_shown(&world, open).context("while shunt is stopped")?;
    for stream in &streams {
        stream.steady(3);
    }
    Ok(())
}

#[test]
fn cleanup_leaves_nothing() -> Result<()> {
    let world = World::start(Plan::default(), |world| world.web().yaml())?;
    world.pod().tcp(web(BOTH[0])).answered();
    let node = world.cluster.node(0);
    node.stop_shunt()?;
    node.shunt_command(&["cleanup"])?;
    let left: Vec<_> = std::fs::read_dir(node.bpffs())?.flatten().map(|entry| entry.path()).collect();
    assert!(left.is_empty(), "{left:?}");
    assert!(!matches!(world.pod().tcp(web(BOTH[0])).outcome, tests::traffic::Outcome::Answered(_)));
    Ok(())
}

/// Flows that are flushed start again or end; none hangs.
#[test]
fn flushing_forgets_flows_and_hangs_none() -> Result<()> {
    let world = World::start(Plan::default(), |world| world.web().yaml())?;
    let node = world.cluster.node(0);
    let stream = world.pod().patience(Duration::from_secs(3)).stream(web(BOTH[0]));
    let socket = world.pod().udp_connected(web(BOTH[0]))?;
    stream.steady(2);
    socket.ask()?;
    let of_web = || array(node.shunt_json(&["conntrack", "list", "--service", "default/web"])?);
    assert!(of_web()?.len() >= 2, "{:?}", of_web()?);
    node.shunt_command(&["conntrack", "flush", "--service", "default/other"])?;
    assert!(of_web()?.len() >= 2, "another Service's flush took {:?}", of_web()?);
    node.shunt_command(&["conntrack", "flush", "--service", "default/web"])?;
    assert!(of_web()?.is_empty(), "{:?}", of_web()?);
    socket.ask()?;
    let start = Instant::now();
    // Whether its backend is found again or the connection is reset: there is a response.
    if let Err(error) = stream.ask() {
        assert!(start.elapsed() < Duration::from_secs(1), "{error} only after {:?}", start.elapsed());
    }
    world.pod().tcp(web(BOTH[0])).answered();
    Ok(())
}

/// The offline view of the same manifests has the same addresses.
#[test]
fn compile_agrees_with_what_runs() -> Result<()> {
    let world = World::start(Plan::default(), |world| world.web().yaml())?;
    let node = world.cluster.node(0);
    let manifests = node.manifests().to_string_lossy().into_owned();
    let text = node.shunt_command(&["compile", "-f", &manifests, "--node-name", node.name()])?;
    for word in ["10.68.0.10", "fd00:10:68::a", "30080", "172.20.0.2", "172.20.1.2"] {
        assert!(text.contains(word), "no {word} in:\n{text}");
    }
    Ok(())
}

/// `-o yaml` gives the same data as `-o json`, for all list and show commands.
#[test]
fn yaml_says_what_json_says() -> Result<()> {
    let world = World::start(Plan::default(), |world| world.web().spec("sessionAffinity: ClientIP").yaml())?;
    BOTH.iter().for_each(|family| drop(world.pod().tcp(web(*family)).answered()));
    let node = world.cluster.node(0);
    // Nothing changes any more, except for clocks.
    node.stop_shunt()?;
    let manifests = node.manifests().to_string_lossy().into_owned();
    let compile = ["compile", "-f", &manifests, "--node-name", node.name()];
    let commands: [&[&str]; 16] = [
        &["service", "list"],
        &["service", "show", "default/web"],
        &["backend", "list"],
        &["conntrack", "list"],
        &["conntrack", "list", "--halves"],
        &["conntrack", "list", "--service", "default/web"],
        &["affinity", "list"],
        &["counter", "list"],
        &["prog", "list"],
        &["link", "list"],
        &["map", "list"],
        &["map", "dump", "FRONTENDS"],
        &["map", "lookup", "SLOTS", "key", "0", "0", "0", "0"],
        &["status"],
        &["version"],
        &compile,
    ];
    for command in commands {
        let json = node.shunt_json(command)?;
        let text = node.shunt_command(&[command, &["-o", "yaml"]].concat())?;
        let yaml: Value = serde_saphyr::from_str(&text).with_context(|| format!("{command:?}: {text}"))?;
        assert_eq!(still(yaml), still(json.clone()), "{command:?}");
        let is_empty = json.as_array().is_some_and(Vec::is_empty);
        assert!(!is_empty, "{command:?} has nothing to compare");
    }
    Ok(())
}

/// Removes the fields that a clock changes from one call to the next.
fn still(value: Value) -> Value {
    match value {
        Value::Array(items) => items.into_iter().map(still).collect(),
        Value::Object(fields) => {
            let still_fields = fields.into_iter().filter(|(name, _)| !name.contains("seconds"));
            still_fields.map(|(name, value)| (name, still(value))).collect()
        }
        other => other,
    }
}
