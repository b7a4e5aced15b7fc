//! The subset of kustomize that `manifests/` uses: resources, components, strategic merge patches, patches of one kind,
//! images. It rejects everything else, so that no manifest passes because part of it was ignored.
//!
//! `tests/deploy/*.yaml`, written by `kubectl kustomize`, shows that the result is the same as kustomize's.

use std::{fs, path::Path};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::{Map, Value};

/// The objects of a kustomization's directory, in its order.
pub fn build(dir: &Path) -> Result<Vec<Value>> {
    let mut objects = Vec::new();
    extend(&mut objects, dir).with_context(|| dir.display().to_string())?;
    Ok(objects)
}

/// The documents of a YAML file.
pub fn documents(path: &Path) -> Result<Vec<Value>> {
    let text = fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
    parse(&text).with_context(|| path.display().to_string())
}

pub fn parse(text: &str) -> Result<Vec<Value>> {
    let documents: Vec<Value> = serde_saphyr::from_multiple(text)?;
    Ok(documents.into_iter().filter(|document| !document.is_null()).collect())
}

/// The position of an object of this kind and name.
pub fn position(objects: &[Value], kind: &str, name: &str) -> Result<usize> {
    let found = objects.iter().position(|it| it["kind"] == kind && it["metadata"]["name"] == name);
    found.with_context(|| format!("there is no {kind} {name}"))
}

/// Applies a kustomization or component to the existing objects.
pub fn extend(objects: &mut Vec<Value>, dir: &Path) -> Result<()> {
    let file = documents(&dir.join("kustomization.yaml"))?;
    let [kustomization] = &file[..] else { bail!("a kustomization is one document") };
    let fields = kustomization.as_object().context("a kustomization is a map")?;
    let words = |field: &str| -> Result<Vec<&str>> {
        let list = fields.get(field).and_then(Value::as_array).into_iter().flatten();
        list.map(|word| word.as_str().with_context(|| format!("{field}: a word"))).collect()
    };
    for name in words("resources")? {
        let path = dir.join(name);
        if path.is_dir() {
            extend(objects, &path)?;
        } else {
            objects.extend(documents(&path)?);
        }
    }
    for name in words("components")? {
        extend(objects, &dir.join(name))?;
    }
    for (field, value) in fields {
        match field.as_str() {
            "apiVersion" | "resources" | "components" => {}
            "kind" => ensure!(value == "Kustomization" || value == "Component", "kind {value}"),
            "namespace" => namespace(objects, value),
            "patches" => patches(objects, dir, value)?,
            "images" => images(objects, value)?,
            other => bail!("this reader of kustomizations does not know `{other}`"),
        }
    }
    Ok(())
}

fn namespace(objects: &mut [Value], name: &Value) {
    for object in objects {
        let cluster_wide = object["kind"].as_str().is_some_and(|kind| kind.starts_with("ClusterRole"));
        if !cluster_wide {
            object["metadata"]["namespace"] = name.clone();
        }
    }
}

fn patches(objects: &mut Vec<Value>, dir: &Path, list: &Value) -> Result<()> {
    for entry in list.as_array().context("patches: a list")? {
        let fields = entry.as_object().map_or(0, Map::len);
        let target = entry.get("target");
        let (Some(path), true) = (entry["path"].as_str(), fields == 1 + usize::from(target.is_some())) else {
            bail!("a patch is a path here, and at most a target: {entry}");
        };
        for patch in documents(&dir.join(path))? {
            if let Some(target) = target {
                let (Some(kind), 1) = (target["kind"].as_str(), target.as_object().map_or(0, Map::len))
                else {
                    bail!("a target is a kind here: {entry}");
                };
                // Kind and name of such a patch are ignored.
                let mut patch = patch;
                patch["metadata"] = Value::Object(Map::new());
                for object in objects.iter_mut().filter(|it| it["kind"] == kind) {
                    merge(object, &patch, "")?;
                }
                continue;
            }
            let (kind, name) = (patch["kind"].as_str(), patch["metadata"]["name"].as_str());
            let at = position(objects, kind.unwrap_or_default(), name.unwrap_or_default())?;
            if patch["$patch"] == "delete" {
                objects.remove(at);
            } else {
                merge(&mut objects[at], &patch, "")?;
            }
        }
    }
    Ok(())
}

fn images(objects: &mut [Value], list: &Value) -> Result<()> {
    for entry in list.as_array().context("images: a list")? {
        let field = |name: &str| entry[name].as_str().with_context(|| format!("images: {name}"));
        let (name, new, tag) = (field("name")?, field("newName")?, field("newTag")?);
        for object in objects.iter_mut() {
            let containers =
                object.pointer_mut("/spec/template/spec/containers").and_then(Value::as_array_mut);
            for container in containers.into_iter().flatten() {
                let image = container["image"].as_str().unwrap_or_default();
                if image.split(':').next() == Some(name) {
                    container["image"] = format!("{new}:{tag}").into();
                }
            }
        }
    }
    Ok(())
}

/// A strategic merge patch. Lists of these names are merged by a key, as in the API's types; others are replaced.
fn merge(target: &mut Value, patch: &Value, name: &str) -> Result<()> {
    let key = match name {
        "containers" | "env" | "volumes" => Some("name"),
        "volumeMounts" => Some("mountPath"),
        _ => None,
    };
    match (target, patch, key) {
        (Value::Object(target), Value::Object(patch), _) => {
            for (field, value) in patch {
                if value.is_null() {
                    target.remove(field);
                } else {
                    merge(target.entry(field).or_insert(Value::Null), value, field)?;
                }
            }
        }
        (Value::Array(target), Value::Array(patch), Some(key)) => {
            // kustomize puts new items first.
            let mut new = Vec::new();
            for item in patch {
                let at = target.iter().position(|other| other[key] == item[key]);
                match (at, item["$patch"].as_str()) {
                    (Some(at), Some("delete")) => drop(target.remove(at)),
                    (Some(at), None) => merge(&mut target[at], item, "")?,
                    (None, None) => new.push(item.clone()),
                    (_, what) => bail!("{name}: {item}: $patch {what:?}"),
                }
            }
            target.splice(0..0, new);
        }
        (target, patch, _) => *target = patch.clone(),
    }
    Ok(())
}
