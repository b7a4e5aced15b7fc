//! `cargo xtask lint`: format, clippy for user space and for the eBPF crate, licences, the map schema,
//! the programs' stacks, advisories.
//!
//! Every check runs, also when an earlier one failed; all failures are named at the end. What could not be
//! checked is named, too: advisories, where their database is out of reach.

use std::time::Instant;

use anyhow::{Result, bail};

use crate::{
    advisories::{self, Outcome},
    licences, process, schema,
    setup::{self, Need, say},
    stack,
    workspace::Workspace,
};

type Check = fn(&Workspace) -> Result<()>;

pub fn run(workspace: &Workspace) -> Result<()> {
    setup::ensure(workspace, Need::Build)?;
    let checks: [(&str, Check); 6] = [
        ("format", format),
        ("schema", schema::check),
        ("licences", licences::check),
        ("user space", user_space),
        ("eBPF", ebpf),
        // Behind user space, whose check has made the object.
        ("stack", stack::check),
    ];
    let mut failed = Vec::new();
    for (name, check) in checks {
        let start = Instant::now();
        match check(workspace) {
            Ok(()) => say(name, format_args!("clean ({} s)", start.elapsed().as_secs())),
            Err(error) => {
                say(name, format_args!("{error:#}"));
                failed.push(name);
            }
        }
    }
    match advisories::check(workspace) {
        Ok(Outcome::Clean) => say("advisories", "clean"),
        Ok(Outcome::Unchecked(why)) => say("advisories", format_args!("NOT CHECKED: {why}")),
        Err(error) => {
            say("advisories", format_args!("{error:#}"));
            failed.push("advisories");
        }
    }
    if !failed.is_empty() {
        bail!("lint failed: {}", failed.join(", "));
    }
    Ok(())
}

fn format(workspace: &Workspace) -> Result<()> {
    process::run(workspace.cargo().args(["fmt", "--all", "--check"]))
}

fn user_space(workspace: &Workspace) -> Result<()> {
    process::run(workspace.cargo().args(["clippy", "--all-targets", "--", "-D", "warnings"]))
}

/// Apart from the rest, as it is built apart: a feature that user space turns on in a shared crate (`aya` in
/// proxy-common) must not hide that the eBPF crate does without.
fn ebpf(workspace: &Workspace) -> Result<()> {
    let mut cargo = workspace.cargo();
    cargo
        .args([
            "clippy",
            "-p",
            "proxy-ebpf",
            "--release",
            "--target",
            "bpfel-unknown-none",
            "-Z",
            "build-std=core",
        ])
        // Other flags than the other builds': a directory of its own keeps theirs valid.
        .arg("--target-dir")
        .arg(workspace.target().join("lint-ebpf"))
        .args(["--", "-D", "warnings"])
        // `-Z` on the stable compiler, and the flag that aya-build sets for the real build.
        .env("RUSTC_BOOTSTRAP", "1")
        .env("CARGO_ENCODED_RUSTFLAGS", format!("--cfg=bpf_target_arch=\"{}\"", std::env::consts::ARCH))
        .env_remove("RUSTFLAGS");
    process::run(&mut cargo)
}
