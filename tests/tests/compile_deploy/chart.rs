//! The Helm chart installs the same objects as kustomize.
//!
//! Its templates use only a handful of constructs, which this file renders; any other is an error. Helm itself renders
//! them the same: this was checked by hand with helm 4, and should be checked again after a change.

use std::{
    fs,
    hash::{DefaultHasher, Hash as _, Hasher as _},
    iter::Peekable,
};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::{Map, Value, json};
use tests::net::repository::repository;

use crate::{kustomize, overlay, with};

const SERVER: &str = "https://192.168.8.201:6443";
const CHECKSUM: &str = "checksum/api-servers";

/// A parsed template.
#[derive(Debug, PartialEq)]
enum Token {
    Text(String),
    /// The text between the braces.
    Action(String),
}

/// Text and actions; `{{-` and `-}}` remove the adjacent white space.
fn tokens(template: &str) -> Result<Vec<Token>> {
    let (mut tokens, mut rest, mut trims) = (Vec::new(), template, false);
    loop {
        let (text, after) = match rest.split_once("{{") {
            Some((text, after)) => (text, Some(after)),
            None => (rest, None),
        };
        let text = if trims { text.trim_start() } else { text };
        let Some(after) = after else {
            tokens.push(Token::Text(text.to_owned()));
            return Ok(tokens);
        };
        let (action, after) = after.split_once("}}").context("an action that does not end")?;
        let text = if action.starts_with('-') { text.trim_end() } else { text };
        tokens.push(Token::Text(text.to_owned()));
        trims = action.ends_with('-');
        tokens.push(Token::Action(action.trim_matches('-').trim().to_owned()));
        rest = after;
    }
}

/// Renders up to the caller's `else` or `end`; returns which of them it was.
fn render(
    tokens: &mut Peekable<impl Iterator<Item = Token>>,
    values: &Value,
    shown: bool,
    out: &mut String,
) -> Result<Option<String>> {
    while let Some(token) = tokens.next() {
        let action = match token {
            Token::Text(text) => {
                out.push_str(if shown { &text } else { "" });
                continue;
            }
            Token::Action(action) => action,
        };
        if action == "else" || action == "end" {
            return Ok(Some(action));
        }
        if let Some(condition) = action.strip_prefix("if ") {
            let holds = holds(condition, values)?;
            let mut end = render(tokens, values, shown && holds, out)?;
            if end.as_deref() == Some("else") {
                end = render(tokens, values, shown && !holds, out)?;
            }
            ensure!(end.as_deref() == Some("end"), "`if {condition}` does not end");
        } else if shown {
            out.push_str(&value(&action, values)?);
        }
    }
    Ok(None)
}

fn holds(condition: &str, values: &Value) -> Result<bool> {
    if let Some(rest) = condition.strip_prefix("semverCompare ") {
        let (wanted, path) = rest.split_once(' ').with_context(|| format!("{condition}: no version"))?;
        let wanted = wanted.strip_prefix("\">=").and_then(|it| it.strip_suffix("-0\""));
        let wanted = wanted.with_context(|| format!("{condition}: not \">=MAJOR.MINOR-0\""))?;
        let version = look_up(path, values)?.as_str().context("a version is a word")?;
        return Ok(minor(version)? >= minor(wanted)?);
    }
    let (path, wanted) = condition.strip_prefix("not ").map_or((condition, true), |path| (path, false));
    Ok(match look_up(path, values)? {
        Value::Bool(is) => *is == wanted,
        Value::Array(list) => list.is_empty() != wanted,
        other => bail!("`if {condition}`: {other} is neither a boolean nor a list"),
    })
}

/// Major and minor version of `1.30` or `v1.30.2`.
fn minor(version: &str) -> Result<(u32, u32)> {
    let mut numbers = version.trim_start_matches('v').split('.').map(str::parse);
    let mut next = || numbers.next().with_context(|| format!("{version}: no version"));
    Ok((next()??, next()??))
}

fn value(action: &str, values: &Value) -> Result<String> {
    if let Some(rest) = action.strip_prefix("toYaml ") {
        let (path, indent) =
            rest.split_once(" | nindent ").with_context(|| format!("{action}: no nindent"))?;
        let indent = " ".repeat(indent.parse()?);
        // JSON on one line is YAML too; but a list continues the items above it.
        return Ok(match look_up(path, values)? {
            Value::Array(items) => items.iter().map(|item| format!("\n{indent}- {item}")).collect(),
            other => format!("\n{indent}{other}"),
        });
    }
    if let Some(action) = action.strip_suffix(" | quote") {
        return Ok(Value::from(value(action, values)?).to_string());
    }
    if let Some(action) = action.strip_suffix(" | sha256sum") {
        // Only one property matters here: another input gives another value.
        let mut hasher = DefaultHasher::new();
        value(action, values)?.hash(&mut hasher);
        return Ok(format!("{:064x}", hasher.finish()));
    }
    if let Some(rest) = action.strip_prefix("required \"") {
        let (message, path) = rest.split_once("\" ").with_context(|| format!("{action}: no message"))?;
        let word = value(path, values)?;
        ensure!(!word.is_empty(), "{message}");
        return Ok(word);
    }
    match look_up(action, values)? {
        Value::String(word) => Ok(word.clone()),
        other => bail!("{action} is {other}, no word"),
    }
}

/// `.Values.image.tag` or `.Release.Namespace`.
fn look_up<'a>(path: &str, values: &'a Value) -> Result<&'a Value> {
    let pointer = path.replace('.', "/");
    values.pointer(&pointer).with_context(|| format!("`{path}` is nothing this reader of templates knows"))
}

/// The chart's objects with changed values.
fn chart(changes: Value) -> Result<Vec<Value>> {
    chart_for("v1.37.0", changes)
}

fn chart_for(kubernetes: &str, changes: Value) -> Result<Vec<Value>> {
    let dir = repository().join("manifests/helm/shunt");
    let mut values = kustomize::documents(&dir.join("values.yaml"))?.pop().context("values")?;
    for (field, value) in changes.as_object().context("a map")? {
        *values.get_mut(field).with_context(|| format!("values.yaml has no {field}"))? = value.clone();
    }
    let values = json!({
        "Values": values,
        "Release": {"Namespace": "kube-system"},
        "Capabilities": {"KubeVersion": {"Version": kubernetes}},
    });
    let mut objects = Vec::new();
    for entry in fs::read_dir(dir.join("templates"))? {
        let path = entry?.path();
        let mut out = String::new();
        let end = render(
            &mut tokens(&fs::read_to_string(&path)?)?.into_iter().peekable(),
            &values,
            true,
            &mut out,
        )?;
        ensure!(end.is_none(), "{}: `{end:?}` out of place", path.display());
        objects.extend(kustomize::parse(&out).with_context(|| format!("{}:\n{out}", path.display()))?);
    }
    Ok(objects)
}

/// Sorted, with the configuration parsed, so that its formatting does not matter.
fn plain(mut objects: Vec<Value>) -> Result<Value> {
    for object in &mut objects {
        if let Some(text) = object.pointer("/data/config.conf").and_then(Value::as_str) {
            object["data"]["config.conf"] = kustomize::parse(text)?.pop().context("a configuration")?;
        }
    }
    objects.sort_by_key(|it| (it["kind"].to_string(), it["metadata"]["name"].to_string()));
    Ok(json!(objects))
}

#[test]
fn the_chart_is_the_base() -> Result<()> {
    let mut base = kustomize::build(&repository().join("manifests/base"))?;
    // The base contains no API server; the chart requires one when it is rendered.
    let error = chart(json!({})).err().context("refused")?;
    assert!(error.to_string().starts_with("apiServers: "), "{error}");
    let at = kustomize::position(&base, "ConfigMap", "shunt")?;
    base[at]["data"]["api-servers"] = SERVER.into();
    let mut objects = chart(json!({"apiServers": SERVER}))?;
    let checksum = annotations(&mut objects)?.remove(CHECKSUM);
    assert_eq!(plain(objects)?, plain(base)?);
    // Another address restarts the pods; kustomize has no means for that.
    let mut others = chart(json!({"apiServers": "https://192.168.8.202:6443"}))?;
    assert!(checksum.is_some() && annotations(&mut others)?.remove(CHECKSUM) != checksum);
    Ok(())
}

fn annotations(objects: &mut [Value]) -> Result<&mut Map<String, Value>> {
    let at = kustomize::position(objects, "DaemonSet", "shunt")?;
    objects[at]["spec"]["template"]["metadata"]["annotations"].as_object_mut().context("annotations")
}

#[test]
fn before_1_30_it_is_the_component() -> Result<()> {
    let older = chart_for("v1.29.14", json!({"kubeadm": true}))?;
    assert_eq!(plain(older)?, plain(with(overlay("kubeadm")?, "before-1.30")?)?);
    Ok(())
}

#[test]
fn its_pod_monitor_is_the_one_of_monitoring() -> Result<()> {
    let is_it = |object: &Value| object["kind"] == "PodMonitor";
    assert!(!chart(json!({"kubeadm": true}))?.iter().any(is_it));
    let objects = chart(json!({"kubeadm": true, "podMonitor": true}))?;
    let plain = kustomize::documents(&repository().join("manifests/monitoring/podmonitor.yaml"))?;
    assert_eq!(objects.iter().find(|it| is_it(it)), plain.first());
    Ok(())
}

#[test]
fn its_values_are_the_overlays() -> Result<()> {
    assert_eq!(plain(chart(json!({"kubeadm": true}))?)?, plain(overlay("kubeadm")?)?);
    let both = chart(json!({"kubeadm": true, "privileged": true}))?;
    assert_eq!(plain(both)?, plain(overlay("privileged")?)?);
    Ok(())
}

#[test]
fn what_is_set_arrives() -> Result<()> {
    let objects = chart(json!({
        "apiServers": SERVER,
        "image": {"repository": "registry.example/shunt", "tag": "1", "pullPolicy": "Always"},
        "extraArgs": ["--xdp=native"],
        "extraEnv": [{"name": "SHUNT_LOG", "value": "debug"}],
        "resources": {},
    }))?;
    let config = &objects[kustomize::position(&objects, "ConfigMap", "shunt")?];
    assert_eq!(config["data"]["api-servers"], SERVER);
    let daemon_set = &objects[kustomize::position(&objects, "DaemonSet", "shunt")?];
    let container = &daemon_set["spec"]["template"]["spec"]["containers"][0];
    assert_eq!(container["image"], "registry.example/shunt:1");
    assert_eq!(container["args"][3], "--xdp=native");
    assert_eq!(container["env"][2], json!({"name": "SHUNT_LOG", "value": "debug"}));
    assert_eq!(container["resources"], json!({}));
    Ok(())
}

#[test]
fn the_chart_has_the_version_of_the_binary() -> Result<()> {
    let file = kustomize::documents(&repository().join("manifests/helm/shunt/Chart.yaml"))?;
    assert_eq!(file[0]["appVersion"], env!("CARGO_PKG_VERSION"));
    let values = kustomize::documents(&repository().join("manifests/helm/shunt/values.yaml"))?;
    assert_eq!(values[0]["image"]["tag"], env!("CARGO_PKG_VERSION"));
    let base = kustomize::documents(&repository().join("manifests/base/kustomization.yaml"))?;
    assert_eq!(base[0]["images"][0]["newTag"], env!("CARGO_PKG_VERSION"));
    Ok(())
}

#[test]
fn constructs_it_does_not_know_are_refused() {
    let values = json!({"Values": {"a": true}});
    let text = |template: &str| -> Result<String> {
        let mut out = String::new();
        render(&mut tokens(template)?.into_iter().peekable(), &values, true, &mut out)?;
        Ok(out)
    };
    assert_eq!(text("x\n  {{- if .Values.a }}\ny\n{{- else }}\nz\n{{- end }}\n").unwrap(), "x\ny\n");
    assert!(text("{{ include \"x\" . }}").is_err());
    assert!(text("{{ .Values.b }}").is_err());
    assert!(text("{{ .Values.a | upper }}").is_err());
    assert!(text("{{ if semverCompare \"<1.30-0\" .Values.a }}{{ end }}").is_err());
    assert!(text("{{ if .Values.a }}").is_err());
}
