//! The licence check: every crate that cargo resolves must be under licences that deny.toml allows, come from a
//! registry, and be asked for by a version.
//!
//! cargo-deny, where it is installed, checks that and duplicates from the same file. It is not installed by setup unless
//! asked (`--audit`). Without it the checks are made here. Advisories: [`crate::advisories`].

use std::{collections::BTreeSet, fs, iter::Peekable};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;

use crate::{advisories, process, progress::say, workspace::Workspace};

pub fn check(workspace: &Workspace) -> Result<()> {
    if let Some(deny) = advisories::installed(workspace, "cargo-deny") {
        return process::run(workspace.command(deny).args(["check", "bans", "licenses", "sources"]));
    }
    let allowed =
        allowed(&fs::read_to_string(workspace.root.join("deny.toml")).context("reading deny.toml")?)?;
    let metadata = process::output(workspace.cargo().args(["metadata", "--format-version=1", "--locked"]))?;
    let metadata: Value = serde_json::from_str(&metadata).context("cargo metadata")?;
    let packages = metadata["packages"].as_array().context("cargo metadata lists no packages")?;
    let refused: Vec<String> = packages.iter().filter_map(|package| complaint(package, &allowed)).collect();
    ensure!(refused.is_empty(), "deny.toml does not allow\n  {}", refused.join("\n  "));
    let twice = duplicates(packages);
    say("licences", format_args!("{} crates, {} of them in several versions", packages.len(), twice.len()));
    Ok(())
}

/// What is wrong with a package of `cargo metadata`.
fn complaint(package: &Value, allowed: &[String]) -> Option<String> {
    let name = format!("{} {}", package["name"].as_str()?, package["version"].as_str()?);
    if let Some(source) = package["source"].as_str()
        && !source.starts_with("registry+")
    {
        return Some(format!("{name}: comes from {source}"));
    }
    let wild = package["dependencies"].as_array().into_iter().flatten();
    let wild = wild.filter(|dep| package["source"].is_null() && dep["path"].is_null() && dep["req"] == "*");
    if let Some(dep) = wild.into_iter().next() {
        return Some(format!("{name}: takes any version of {}", dep["name"]));
    }
    let Some(licence) = package["license"].as_str() else { return Some(format!("{name}: names no licence")) };
    match satisfied(licence, allowed) {
        Ok(true) => None,
        Ok(false) => Some(format!("{name}: {licence}")),
        Err(error) => Some(format!("{name}: {licence}: {error}")),
    }
}

/// Names that several versions have: a warning in deny.toml, and a number here.
fn duplicates(packages: &[Value]) -> BTreeSet<&str> {
    let mut seen = BTreeSet::new();
    packages
        .iter()
        .filter_map(|package| package["name"].as_str())
        .filter(|name| !seen.insert(*name))
        .collect()
}

/// The list `allow` of deny.toml's section `[licenses]`.
fn allowed(text: &str) -> Result<Vec<String>> {
    let section = text.split_once("[licenses]").context("deny.toml has no [licenses]")?.1;
    let list = section.split_once("allow = [").and_then(|(_, rest)| rest.split_once(']'));
    let list = list.context("deny.toml's [licenses] has no `allow = [...]`")?.0;
    Ok(list.split('"').skip(1).step_by(2).map(str::to_owned).collect())
}

/// Whether an SPDX expression can be met with allowed licences alone. `/` is an old spelling of OR.
fn satisfied(expression: &str, allowed: &[String]) -> Result<bool> {
    let spaced = expression.replace('(', " ( ").replace(')', " ) ").replace('/', " OR ");
    let mut words = spaced.split_whitespace().peekable();
    let result = any(&mut words, allowed)?;
    match words.next() {
        None => Ok(result),
        Some(word) => bail!("`{word}` is out of place"),
    }
}

/// `OR` binds less than `AND`.
fn any<'a>(words: &mut Peekable<impl Iterator<Item = &'a str>>, allowed: &[String]) -> Result<bool> {
    let mut result = all(words, allowed)?;
    while words.next_if_eq(&"OR").is_some() {
        result |= all(words, allowed)?;
    }
    Ok(result)
}

fn all<'a>(words: &mut Peekable<impl Iterator<Item = &'a str>>, allowed: &[String]) -> Result<bool> {
    let mut result = one(words, allowed)?;
    while words.next_if_eq(&"AND").is_some() {
        result &= one(words, allowed)?;
    }
    Ok(result)
}

fn one<'a>(words: &mut Peekable<impl Iterator<Item = &'a str>>, allowed: &[String]) -> Result<bool> {
    let word = words.next().context("it ends too early")?;
    if word == "(" {
        let result = any(words, allowed)?;
        ensure!(words.next() == Some(")"), "a parenthesis is not closed");
        return Ok(result);
    }
    let mut licence = word.to_owned();
    if words.next_if_eq(&"WITH").is_some() {
        licence = format!("{word} WITH {}", words.next().context("it ends after WITH")?);
    }
    Ok(allowed.contains(&licence))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allow() -> Vec<String> {
        allowed("[advisories]\n[licenses]\n# why\nallow = [\n  \"MIT\",\n  \"Apache-2.0\",\n  \"Unicode-3.0\",\n]\n").unwrap()
    }

    #[test]
    fn the_list_is_read() {
        assert_eq!(allow(), ["MIT", "Apache-2.0", "Unicode-3.0"]);
    }

    #[test]
    fn expressions_are_met_or_not() {
        let met = |text: &str| satisfied(text, &allow()).unwrap();
        assert!(met("MIT"));
        assert!(met("GPL-2.0-only OR MIT"));
        assert!(met("MIT/Apache-2.0"));
        assert!(met("(MIT OR GPL-2.0-only) AND Unicode-3.0"));
        assert!(!met("GPL-2.0-only"));
        assert!(!met("MIT AND GPL-2.0-only"));
        assert!(!met("MIT AND GPL-2.0-only OR GPL-3.0-only"));
        assert!(!met("Apache-2.0 WITH LLVM-exception"));
        assert!(satisfied("MIT OR", &allow()).is_err());
        assert!(satisfied("MIT Apache-2.0", &allow()).is_err());
    }

    #[test]
    fn a_wildcard_is_refused_but_for_paths() {
        let package = |dep: Value| serde_json::json!({"name": "p", "version": "1.0.0", "license": "MIT", "dependencies": [dep]});
        let any = package(serde_json::json!({"name": "q", "req": "*"}));
        assert!(complaint(&any, &allow()).unwrap().contains("any version of \"q\""));
        let path = package(serde_json::json!({"name": "q", "req": "*", "path": "/q"}));
        assert_eq!(complaint(&path, &allow()), None);
        assert_eq!(duplicates(&[any.clone(), any, path]), BTreeSet::from(["p"]));
    }

    #[test]
    fn packages_without_licence_or_from_elsewhere_are_named() {
        let package = |licence: Value, source: Value| serde_json::json!({"name": "p", "version": "1.0.0", "license": licence, "source": source});
        let registry = Value::from("registry+https://index.example");
        assert_eq!(complaint(&package("MIT".into(), registry.clone()), &allow()), None);
        assert!(complaint(&package(Value::Null, registry), &allow()).unwrap().contains("no licence"));
        let git = Value::from("git+https://git.example/p");
        assert!(complaint(&package("MIT".into(), git), &allow()).unwrap().contains("comes from"));
        assert_eq!(
            complaint(&package("MIT".into(), Value::Null), &allow()),
            None,
            "a member of the workspace"
        );
    }
}
