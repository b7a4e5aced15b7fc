//! The alerts and the dashboard of `manifests/monitoring`. After changing the rules, run `promtool check rules
//! rules.yaml` and `promtool test rules rules.test.yaml` if Prometheus is installed.

use std::collections::BTreeSet;

use anyhow::{Context as _, Result};
use serde_json::Value;
use tests::net::repository::repository;

use crate::kustomize;

fn read(name: &str) -> Result<Value> {
    let documents = kustomize::documents(&repository().join("manifests/monitoring").join(name))?;
    documents.into_iter().next().context("a document")
}

#[test]
fn the_operators_rules_are_the_plain_ones() -> Result<()> {
    let (plain, operator) = (read("rules.yaml")?, read("prometheusrule.yaml")?);
    assert_eq!(operator["kind"], "PrometheusRule");
    assert_eq!(operator["spec"], plain);
    for rule in plain["groups"][0]["rules"].as_array().context("rules")? {
        assert!(["critical", "warning", "info"].iter().any(|it| rule["labels"]["severity"] == *it), "{rule}");
        assert!(
            rule["annotations"]["summary"].is_string() && rule["annotations"]["description"].is_string(),
            "{rule}"
        );
    }
    Ok(())
}

/// Both ways to find shunt's pods give them the same addresses and names, and the job that the rules select.
#[test]
fn the_operators_pod_monitor_is_the_plain_scrape_config() -> Result<()> {
    let (plain, operator) = (read("scrape.yaml")?, read("podmonitor.yaml")?);
    let plain = &plain["scrape_configs"][0];
    let (spec, job) = (&operator["spec"], &plain["job_name"]);
    let relabelings = serde_json::to_string(&spec["podMetricsEndpoints"][0]["relabelings"])?;
    let relabelings =
        relabelings.replace("sourceLabels", "source_labels").replace("targetLabel", "target_label");
    assert_eq!(serde_json::from_str::<Value>(&relabelings)?, plain["relabel_configs"]);
    assert_eq!(plain["metrics_path"], spec["podMetricsEndpoints"][0]["path"]);

    let base = kustomize::build(&repository().join("manifests/base"))?;
    let daemon_set = &base[kustomize::position(&base, "DaemonSet", "shunt")?];
    let labels = &daemon_set["spec"]["template"]["metadata"]["labels"];
    assert_eq!(&spec["selector"]["matchLabels"], labels);
    assert_eq!(&labels[spec["jobLabel"].as_str().context("jobLabel")?], job);
    let discovery = &plain["kubernetes_sd_configs"][0];
    assert_eq!(discovery["namespaces"]["names"][0], daemon_set["metadata"]["namespace"]);
    assert_eq!(discovery["selectors"][0]["label"], "app.kubernetes.io/name=shunt");
    for rule in read("rules.yaml")?["groups"][0]["rules"].as_array().context("rules")? {
        let words = rule["expr"].as_str().context("an expression")?;
        assert!(words.matches("job=").count() == words.matches("job=\"shunt\"").count(), "{words}");
    }
    assert_eq!(job, "shunt");
    Ok(())
}

#[test]
fn the_dashboards_panels_do_not_overlap() -> Result<()> {
    let dashboard = read("dashboard.json")?;
    let (mut places, mut ids) = (BTreeSet::new(), BTreeSet::new());
    for panel in dashboard["panels"].as_array().context("panels")? {
        assert!(ids.insert(panel["id"].to_string()), "an id twice: {panel}");
        let number = |name: &str| panel["gridPos"][name].as_u64().context("a number");
        let (x, y, w, h) = (number("x")?, number("y")?, number("w")?, number("h")?);
        assert!(x + w <= 24, "{panel}");
        for cell in (x..x + w).flat_map(|x| (y..y + h).map(move |y| (x, y))) {
            assert!(places.insert(cell), "{} lies on another panel", panel["title"]);
        }
    }
    Ok(())
}
