//! The Helm chart installs what kustomize installs.
//!
//! Its templates keep to a handful of constructs, which this file renders; any other is an error. That helm itself makes
//! the same of them was tried by hand with helm 4 and is worth trying again after a change.

use std::{fs, iter::Peekable};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::{Value, json};
use tests::net::cluster::repository;

use crate::{kustomize, overlay};

/// A template in pieces.
#[derive(Debug, PartialEq)]
enum Token {
    Text(String),
    /// What stands between the braces.
    Action(String),
}

/// Text and actions; `{{-` and `-}}` take the white space beside them away.
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

/// Renders up to the `else` or `end` that belongs to the caller; returns which it was.
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
    let (path, wanted) = condition.strip_prefix("not ").map_or((condition, true), |path| (path, false));
    Ok(match look_up(path, values)? {
        Value::Bool(is) => *is == wanted,
        Value::Array(list) => list.is_empty() != wanted,
        other => bail!("`if {condition}`: {other} is neither a boolean nor a list"),
    })
}

fn value(action: &str, values: &Value) -> Result<String> {
    if let Some(rest) = action.strip_prefix("toYaml ") {
        let (path, indent) =
            rest.split_once(" | nindent ").with_context(|| format!("{action}: no nindent"))?;
        let indent = " ".repeat(indent.parse()?);
        // JSON on one line is YAML, too; but a list goes on with the items above it.
        return Ok(match look_up(path, values)? {
            Value::Array(items) => items.iter().map(|item| format!("\n{indent}- {item}")).collect(),
            other => format!("\n{indent}{other}"),
        });
    }
    if let Some(path) = action.strip_prefix("quote ") {
        return Ok(Value::from(look_up(path, values)?.as_str().context("quote of a word")?).to_string());
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

/// The chart's objects with some values changed.
fn chart(changes: Value) -> Result<Vec<Value>> {
    let dir = repository().join("manifests/helm/shunt");
    let mut values = kustomize::documents(&dir.join("values.yaml"))?.pop().context("values")?;
    for (field, value) in changes.as_object().context("a map")? {
        *values.get_mut(field).with_context(|| format!("values.yaml has no {field}"))? = value.clone();
    }
    let values = json!({"Values": values, "Release": {"Namespace": "kube-system"}});
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

/// In one order, with the configuration as what it says rather than how that is written.
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
    let base = kustomize::build(&repository().join("manifests/base"))?;
    assert_eq!(plain(chart(json!({}))?)?, plain(base)?);
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
        "apiServers": "https://192.168.8.201:6443",
        "image": {"repository": "registry.example/shunt", "tag": "1", "pullPolicy": "Always"},
        "extraArgs": ["--xdp=native"],
        "extraEnv": [{"name": "SHUNT_LOG", "value": "debug"}],
        "resources": {},
    }))?;
    let config = &objects[kustomize::position(&objects, "ConfigMap", "shunt")?];
    assert_eq!(config["data"]["api-servers"], "https://192.168.8.201:6443");
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
    assert!(text("{{ if .Values.a }}").is_err());
}
