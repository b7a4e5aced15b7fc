//! What the binary is made of, as a CycloneDX 1.5 document: every crate that `cargo metadata` says is linked into it
//! (normal dependencies, from proxy-userspace down; the caller asks for this platform's), with version, licence, where it came
//! from, and who needs whom.
//! The eBPF object's crates are in it, too.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

use super::layout::rfc3339;

/// The packages whose dependencies count.
const ROOTS: [&str; 2] = ["proxy-userspace", "proxy-ebpf"];

pub fn cyclone_dx(metadata: &Value, version: &str, created: u64) -> Result<Vec<u8>> {
    let list = |value: &'_ Value| value.as_array().cloned().unwrap_or_default();
    let packages: BTreeMap<String, Value> =
        list(&metadata["packages"]).into_iter().map(|package| (word(&package["id"]), package)).collect();
    let nodes: BTreeMap<String, Value> =
        list(&metadata["resolve"]["nodes"]).into_iter().map(|node| (word(&node["id"]), node)).collect();
    let roots: Vec<&String> =
        packages.iter().filter(|(_, it)| ROOTS.contains(&&*word(&it["name"]))).map(|(id, _)| id).collect();
    anyhow::ensure!(roots.len() == ROOTS.len(), "cargo metadata lacks one of {ROOTS:?}");

    let mut needs: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    let mut waiting: Vec<String> = roots.into_iter().cloned().collect();
    while let Some(id) = waiting.pop() {
        if needs.contains_key(&id) {
            continue;
        }
        let node = nodes.get(&id).with_context(|| format!("cargo metadata resolves no {id}"))?;
        let linked: BTreeSet<String> =
            list(&node["deps"]).iter().filter(|dep| is_linked(dep)).map(|dep| word(&dep["pkg"])).collect();
        waiting.extend(linked.iter().cloned());
        needs.insert(id, linked);
    }
    let url = |id: &String| packages.get(id).map(purl).with_context(|| format!("no package {id}"));
    let mut components = Vec::new();
    let mut dependencies = Vec::new();
    for (id, linked) in &needs {
        components.push(component(&packages[id]));
        let linked = linked.iter().map(url).collect::<Result<Vec<_>>>()?;
        dependencies.push(json!({"ref": url(id)?, "dependsOn": linked}));
    }
    let bill = json!({
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "version": 1,
        "metadata": {
            "timestamp": rfc3339(created),
            "component": {"type": "application", "name": "shunt", "version": version, "bom-ref": "shunt"},
        },
        "components": components,
        "dependencies": dependencies,
    });
    Ok(serde_json::to_vec_pretty(&bill)?)
}

/// A normal dependency: not one of tests, nor of build scripts.
fn is_linked(dep: &Value) -> bool {
    dep["dep_kinds"].as_array().into_iter().flatten().any(|kind| kind["kind"].is_null())
}

fn word(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

/// `pkg:cargo/serde@1.0.0`.
fn purl(package: &Value) -> String {
    format!("pkg:cargo/{}@{}", word(&package["name"]), word(&package["version"]).replace('+', "%2B"))
}

fn component(package: &Value) -> Value {
    let purl = purl(package);
    let mut component = json!({
        "type": "library",
        "bom-ref": purl,
        "name": package["name"],
        "version": package["version"],
        "purl": purl,
    });
    if let Some(licence) = package["license"].as_str() {
        component["licenses"] = json!([{"expression": licence.replace('/', " OR ")}]);
    }
    if let Some(repository) = package["repository"].as_str() {
        component["externalReferences"] = json!([{"type": "vcs", "url": repository}]);
    }
    component
}

#[cfg(test)]
mod tests {
    use super::*;

    fn package(name: &str) -> Value {
        json!({"id": name, "name": name, "version": "1.0.0", "license": "MIT/Apache-2.0"})
    }

    fn dep(name: &str, kind: Value, target: Value) -> Value {
        json!({"pkg": name, "dep_kinds": [{"kind": kind, "target": target}]})
    }

    #[test]
    fn what_is_linked_is_listed_and_nothing_else() {
        let null = Value::Null;
        let names = ["proxy-userspace", "proxy-ebpf", "a", "b", "dev", "build"].map(package);
        let metadata = json!({
            "packages": names,
            "resolve": {"nodes": [
                {"id": "proxy-userspace", "deps": [
                    dep("a", null.clone(), null.clone()),
                    dep("dev", "dev".into(), null.clone()),
                    dep("build", "build".into(), null.clone()),
                ]},
                {"id": "proxy-ebpf", "deps": []},
                {"id": "a", "deps": [dep("b", null.clone(), null.clone())]},
                {"id": "b", "deps": [dep("a", null.clone(), null.clone())]},
            ]},
        });
        let bill: Value = serde_json::from_slice(&cyclone_dx(&metadata, "1", 0).unwrap()).unwrap();
        let names: Vec<_> =
            bill["components"].as_array().unwrap().iter().map(|it| word(&it["name"])).collect();
        assert_eq!(names, ["a", "b", "proxy-ebpf", "proxy-userspace"]);
        assert_eq!(bill["components"][0]["licenses"][0]["expression"], "MIT OR Apache-2.0");
        let want = json!({"ref": "pkg:cargo/a@1.0.0", "dependsOn": ["pkg:cargo/b@1.0.0"]});
        assert_eq!(bill["dependencies"][0], want);
    }

    #[test]
    fn nothing_is_left_out_silently() {
        let metadata = json!({"packages": [package("proxy-userspace")], "resolve": {"nodes": []}});
        assert!(cyclone_dx(&metadata, "1", 0).is_err());
    }
}
