//! Known vulnerabilities of the crates in Cargo.lock: cargo-deny and cargo-audit, where they are installed and the
//! advisory database can be had. Where not, that is said, and is no success: [`Outcome::Unchecked`].
//!
//! `cargo xtask setup --audit` compiles both into target/tools; without the word setup does not, because they take longer
//! than all the rest of it.

use std::{path::PathBuf, process::Command, time::Duration};

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use crate::{process, workspace::Workspace};

/// What came of it, if it did not fail.
#[derive(Debug, PartialEq, Eq)]
pub enum Outcome {
    Clean,
    /// And why.
    Unchecked(String),
}

/// How long the database may take to come.
const FETCH: Duration = Duration::from_secs(120);

pub fn check(workspace: &Workspace) -> Result<Outcome> {
    let deny = installed(workspace, "cargo-deny");
    let audit = installed(workspace, "cargo-audit");
    if deny.is_none() && audit.is_none() {
        let why = "neither cargo-deny nor cargo-audit is here; `cargo xtask setup --audit` compiles them";
        return Ok(Outcome::Unchecked(why.to_owned()));
    }
    let mut unchecked = Vec::new();
    if let Some(deny) = deny {
        unchecked.extend(run_deny(workspace, &deny)?);
    }
    if let Some(audit) = audit {
        unchecked.extend(run_audit(workspace, &audit)?);
    }
    Ok(if unchecked.is_empty() { Outcome::Clean } else { Outcome::Unchecked(unchecked.join("; ")) })
}

/// In target/tools, else wherever the user has it.
pub fn installed(workspace: &Workspace, program: &str) -> Option<PathBuf> {
    let own = workspace.tools().join("bin").join(program);
    if own.is_file() { Some(own) } else { process::which(program) }
}

/// Why it could not look, if so.
fn run_deny(workspace: &Workspace, deny: &PathBuf) -> Result<Option<String>> {
    if let Err(error) = process::run_for(workspace.command(deny).args(["fetch", "db"]), FETCH) {
        return Ok(Some(format!("cargo-deny has no advisory database: {error:#}")));
    }
    process::run(workspace.command(deny).args(["check", "--disable-fetch", "advisories"]))?;
    Ok(None)
}

fn run_audit(workspace: &Workspace, audit: &PathBuf) -> Result<Option<String>> {
    let mut command: Command = workspace.command(audit);
    let output = command.args(["audit", "--json"]).output().context("starting cargo-audit")?;
    judge_audit(&String::from_utf8_lossy(&output.stdout), &String::from_utf8_lossy(&output.stderr))
}

/// cargo-audit writes a report when it could look, whatever it found, and none when it could not.
fn judge_audit(report: &str, errors: &str) -> Result<Option<String>> {
    let Ok(report) = serde_json::from_str::<Value>(report) else {
        let last = errors.lines().map(str::trim).rfind(|line| !line.is_empty()).unwrap_or("it says nothing");
        return Ok(Some(format!("cargo-audit has no advisory database: {last}")));
    };
    let found = report["vulnerabilities"]["list"].as_array().context("a report without a list")?;
    if found.is_empty() {
        return Ok(None);
    }
    let line = |it: &Value| {
        let word = |pointer: &str| it.pointer(pointer).and_then(Value::as_str).unwrap_or("?").to_owned();
        let (name, version) = (word("/package/name"), word("/package/version"));
        format!("{name} {version}: {} {}", word("/advisory/id"), word("/advisory/title"))
    };
    bail!("cargo-audit found\n  {}", found.iter().map(line).collect::<Vec<_>>().join("\n  "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_is_believed_and_its_absence_told() {
        assert_eq!(judge_audit(r#"{"vulnerabilities":{"list":[]}}"#, "").unwrap(), None);
        let report = r#"{"vulnerabilities":{"list":[{"advisory":{"id":"RUSTSEC-1","title":"bad"},
                         "package":{"name":"p","version":"1.0.0"}}]}}"#;
        let error = judge_audit(report, "").unwrap_err().to_string();
        assert!(error.contains("p 1.0.0: RUSTSEC-1 bad"), "{error}");
        let why = judge_audit("", "  Fetching advisory database\nerror: couldn't fetch\n\n").unwrap();
        assert_eq!(why.as_deref(), Some("cargo-audit has no advisory database: error: couldn't fetch"));
    }
}
