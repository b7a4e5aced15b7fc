//! Rejected and dropped packets are counted by Service, reason and device, with the same figures wherever they are
//! shown.

use std::{collections::BTreeMap, time::Duration};

use anyhow::{Context as _, Result};
use serde_json::Value;
use tests::{
    manifest::Service,
    net::{
        Node, Plan,
        cluster::eventually,
        plan::{BOTH, Family, vip},
    },
    traffic::Client,
};

use crate::{
    shown::{figures, in_metrics, label, page, series, top, totals},
    world::{NODE_PORT, PORT, TARGET, World, at, web_addr},
};

const SECOND: Duration = Duration::from_secs(1);

/// `empty` has no endpoint, and `away` has policy Local and its endpoint on the other node.
fn nobody(world: &World) -> String {
    let empty = Service::new("empty", vip(11)).tcp(PORT, TARGET).udp(PORT, TARGET);
    let away = Service::new("away", web_addr()).node_port(PORT, TARGET, NODE_PORT).external_traffic_local();
    [empty.yaml(), away.pods(&[&world.far]).yaml()].join("---\n")
}

/// Rows of `shunt counter list` by device; the total has none.
fn by_device(node: &Node, counter: &str) -> Result<BTreeMap<String, u64>> {
    let list = node.shunt_json(&["counter", "list"])?;
    let rows = list.as_array().context("rows")?.iter().filter(|row| row["name"] == counter);
    let text = |row: &Value| row["device"].as_str().unwrap_or_default().to_owned();
    Ok(rows.map(|row| (text(row), row["value"].as_u64().unwrap_or_default())).collect())
}

/// The values of a reason in `/metrics`, by device.
fn of_devices(node: &Node, metric: &str, reason: &str) -> Result<BTreeMap<String, u64>> {
    let page = page(node)?;
    let found = series(&page, &format!("shunt_datapath_{metric}_total"), &[label("reason", reason)]);
    let device = |series: &str| {
        series.split("device=\"").nth(1).and_then(|rest| rest.split('"').next()).unwrap_or("?").to_owned()
    };
    Ok(found.into_iter().map(|(series, value)| (device(series), value)).collect())
}

fn map<const N: usize>(entries: [(&str, u64); N]) -> BTreeMap<String, u64> {
    entries.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
}

#[test]
fn refusals_and_drops_have_a_service_a_reason_and_a_device() -> Result<()> {
    let world = World::start(Plan::default(), nobody)?;
    let node = world.cluster.node(0);
    let pod = world.client.device();
    for family in BOTH {
        world.pod().tcp(at(vip(11), family, PORT)).refused();
        world.pod().udp(at(vip(11), family, PORT)).refused();
        world.host(0).tcp(at(vip(11), family, PORT)).refused();
        world.outside().udp(world.node_port(0, family)).timed_out();
    }
    for family in ["IPv4", "IPv6"] {
        let tcp = figures([0, 0, 0, 0, 0, 2, 0]);
        assert_eq!(totals(node, "empty", "TCP", family)?, tcp);
        assert_eq!(in_metrics(node, "empty", "TCP", family)?, tcp);
        assert_eq!(totals(node, "empty", "UDP", family)?, figures([0, 0, 0, 0, 0, 1, 0]));
        assert_eq!(in_metrics(node, "away", "UDP", family)?, figures([0, 0, 0, 0, 0, 0, 1]));
    }
    let refused = by_device(node, "no_backend")?;
    assert_eq!(refused, map([("", 6), (pod, 4), ("(sockets)", 2)]));
    assert_eq!(node.counter("no_backend")?, 6, "the total comes first");
    assert_eq!(by_device(node, "no_local_endpoints")?, map([("", 2), ("eth0", 2)]));
    assert_eq!(of_devices(node, "refusals", "no_backend")?, map([("", 2), (pod, 4)]));
    assert_eq!(of_devices(node, "drops", "no_local_endpoints")?, map([("", 0), ("eth0", 2)]));
    let shown = top(node, &["--sort", "dropped"])?;
    let drops = shown["drops"].as_array().context("drops")?;
    let found = |reason: &str, device: &str| {
        drops
            .iter()
            .find(|row| row["reason"] == reason && row["device"] == device)
            .map(|row| row["total"].clone())
    };
    assert_eq!(found("no_local_endpoints", "eth0"), Some(2.into()), "{shown}");
    assert_eq!(found("no_backend", "(sockets)"), Some(2.into()), "{shown}");
    assert_eq!(
        (&shown["node"]["refused"]["total"], &shown["node"]["dropped"]["total"]),
        (&6.into(), &2.into())
    );
    // In the table: totals only, and devices if there is room.
    let table = node.shunt_command(&["counter", "list"])?;
    assert!(!table.contains("eth0") && !table.contains("DEVICE"), "{table}");
    let wide = node.shunt_command(&["counter", "list", "-o", "wide"])?;
    assert!(wide.contains("DEVICE") && wide.contains("eth0") && wide.contains("(sockets)"), "{wide}");
    Ok(())
}

/// When a pod is removed, its device's entries are removed too; the total and other devices' entries stay.
#[test]
fn a_device_that_is_gone_leaves_its_drops_to_the_total() -> Result<()> {
    let world = World::without_shunt(Plan::default())?;
    world.cluster.apply("services.yaml", &nobody(&world))?;
    world.cluster.start(&["--iptables-sync-period", "1s"])?;
    let node = world.cluster.node(0);
    let guest = world.cluster.add_pod(0, "guest")?;
    let to = at(vip(11), Family::V4, PORT);
    eventually(SECOND * 5, || {
        node.shunt_json(&["link", "list"]).is_ok_and(|links| links.to_string().contains(guest.device()))
    })?;
    Client::at(guest.place()).udp(to).refused();
    world.pod().udp(to).refused();
    assert_eq!(
        by_device(node, "no_backend")?,
        map([("", 2), (guest.device(), 1), (world.client.device(), 1)])
    );
    let device = guest.device().to_owned();
    world.cluster.remove_pod(&guest)?;
    let folded = map([("", 2), (world.client.device(), 1), ("(gone)", 1)]);
    eventually(SECOND * 10, || by_device(node, "no_backend").is_ok_and(|found| found == folded))?;
    let shown = of_devices(node, "refusals", "no_backend")?;
    assert_eq!(shown, map([("", 0), (world.client.device(), 1)]), "{device} is gone");
    let events = series(&page(node)?, "shunt_datapath_events_total", &[label("event", "no_backend")])[0].1;
    assert_eq!(events, 2);
    Ok(())
}
