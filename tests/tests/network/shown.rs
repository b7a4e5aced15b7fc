//! The figures in a node's commands and metrics, parsed.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result};
use serde_json::Value;
use tests::net::Node;

const METRICS: u16 = 10_249;

/// Figures of one service port, by their JSON names.
pub type Figures = BTreeMap<String, u64>;

/// The single object of a node's `shunt top --once -o json`.
pub fn top(node: &Node, more: &[&str]) -> Result<Value> {
    let shown = node.shunt_json(&[&["top", "--once", "--interval", "100ms"], more].concat())?;
    shown.get(0).cloned().context("top shows nothing")
}

/// The totals of one service port in `shunt top`.
pub fn totals(node: &Node, service: &str, protocol: &str, family: &str) -> Result<Figures> {
    let shown = top(node, &[])?;
    let rows = shown["services"].as_array().context("services")?;
    let row = rows
        .iter()
        .find(|row| row["name"] == service && row["protocol"] == protocol && row["family"] == family)
        .with_context(|| format!("no {service} {protocol} {family} in {shown}"))?;
    assert_eq!(row["namespace"], "default");
    let totals = row["total"].as_object().context("totals")?;
    Ok(totals.iter().filter_map(|(name, value)| Some((name.clone(), value.as_u64()?))).collect())
}

/// The lines of `/metrics`.
pub fn page(node: &Node) -> Result<Vec<String>> {
    let answer = node.get(METRICS, "/metrics")?;
    let (_, body) = answer.split_once("\r\n\r\n").context("an answer without a body")?;
    Ok(body.lines().map(str::to_owned).collect())
}

/// Series of a metric with all of these labels, and their values.
pub fn series<'a>(page: &'a [String], name: &str, labels: &[String]) -> Vec<(&'a str, u64)> {
    let of_name = |line: &&'a String| line.strip_prefix(name).is_some_and(|rest| rest.starts_with('{'));
    let lines = page.iter().filter(of_name).filter(|line| labels.iter().all(|label| line.contains(label)));
    lines
        .filter_map(|line| line.rsplit_once(' ').and_then(|(name, value)| Some((name, value.parse().ok()?))))
        .collect()
}

pub fn label(name: &str, value: &str) -> String {
    format!("{name}=\"{value}\"")
}

/// The same from `/metrics`.
pub fn in_metrics(node: &Node, service: &str, protocol: &str, family: &str) -> Result<Figures> {
    let page = page(node)?;
    let mut found = Figures::new();
    for (figure, metric, direction) in [
        ("flows", "flows", None),
        ("packets_in", "packets", Some("in")),
        ("packets_out", "packets", Some("out")),
        ("bytes_in", "bytes", Some("in")),
        ("bytes_out", "bytes", Some("out")),
        ("refused", "refused", None),
        ("dropped", "dropped", None),
    ] {
        let mut labels = vec![label("namespace", "default"), label("service", service)];
        labels.extend([label("protocol", protocol), label("ip_family", family)]);
        labels.extend(direction.map(|direction| label("direction", direction)));
        match series(&page, &format!("shunt_service_{metric}_total"), &labels)[..] {
            [(_, value)] => drop(found.insert(figure.to_owned(), value)),
            ref other => anyhow::bail!("{metric} {labels:?}: {other:?}"),
        }
    }
    Ok(found)
}

/// The same from `shunt service list`.
pub fn in_list(node: &Node, address: &str, protocol: &str) -> Result<Figures> {
    let list = node.shunt_json(&["service", "list"])?;
    let rows = list.as_array().context("rows")?;
    let row = rows.iter().find(|row| row["address"] == address && row["protocol"] == protocol);
    let statistics = row.and_then(|row| row["statistics"].as_object()).context("statistics")?;
    let figures = statistics.iter().filter(|(name, _)| !name.ends_with("_flows"));
    Ok(figures.filter_map(|(name, value)| Some((name.clone(), value.as_u64()?))).collect())
}

/// `[flows, packets in, packets out, bytes in, bytes out, refused, dropped]` by name.
pub fn figures(values: [u64; 7]) -> Figures {
    let names = ["flows", "packets_in", "packets_out", "bytes_in", "bytes_out", "refused", "dropped"];
    names.map(str::to_owned).into_iter().zip(values).collect()
}
