//! `cargo xtask lint`: format, imports, clippy for user space and for the eBPF crate, licences, the map schema, the
//! programs' stacks, advisories.
//!
//! Every check runs, also when an earlier one failed; all failures are named at the end. What could not be
//! checked is named, too: advisories, where their database is out of reach.

use std::time::Instant;

use anyhow::{Result, bail};
use clap::ValueEnum as _;

use crate::{
    advisories::{self, Outcome},
    imports, licences, process,
    progress::say,
    schema, setup, stack,
    workspace::Workspace,
};

#[derive(Debug, clap::Args)]
pub struct Args {
    /// What to check; everything without
    #[arg(value_enum)]
    checks: Vec<Check>,
}

/// In the order they run: the quick ones first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Check {
    /// rustfmt
    Format,
    /// No circle of files, no circle of proxy-userspace's modules, the datapath's floors
    Imports,
    /// The layout of the maps against the version in SCHEMA
    Schema,
    /// Licences and sources of all crates
    Licences,
    /// clippy for user space
    User,
    /// clippy for the eBPF crate
    Ebpf,
    /// The stack of every program, as kernel 6.1 counts it
    Stack,
    /// Known vulnerabilities
    Advisories,
}

impl Check {
    /// Whether it compiles the eBPF crate.
    fn builds(self) -> bool {
        matches!(self, Self::User | Self::Ebpf | Self::Stack)
    }

    fn name(self) -> &'static str {
        match self {
            Self::Format => "format",
            Self::Imports => "imports",
            Self::Schema => "schema",
            Self::Licences => "licences",
            Self::User => "user space",
            Self::Ebpf => "eBPF",
            Self::Stack => "stack",
            Self::Advisories => "advisories",
        }
    }

    fn run(self, workspace: &Workspace) -> Result<Outcome> {
        match self {
            Self::Format => format(workspace)?,
            Self::Imports => imports::check(workspace)?,
            Self::Schema => schema::check(workspace)?,
            Self::Licences => licences::check(workspace)?,
            Self::User => user_space(workspace)?,
            Self::Ebpf => ebpf(workspace)?,
            Self::Stack => stack::check(workspace)?,
            Self::Advisories => return advisories::check(workspace),
        }
        Ok(Outcome::Clean)
    }
}

pub fn run(workspace: &Workspace, args: &Args) -> Result<()> {
    let checks = if args.checks.is_empty() { Check::value_variants() } else { &args.checks };
    if checks.iter().any(|check| check.builds()) {
        setup::build(workspace)?;
    }
    let mut failed = Vec::new();
    for check in checks {
        let (name, start) = (check.name(), Instant::now());
        match check.run(workspace) {
            Ok(Outcome::Clean) => say(name, format_args!("clean ({} s)", start.elapsed().as_secs())),
            Ok(Outcome::Unchecked(why)) => say(name, format_args!("NOT CHECKED: {why}")),
            Err(error) => {
                say(name, format_args!("{error:#}"));
                failed.push(name);
            }
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
    process::run(workspace.cargo().args(["clippy", "--all-targets", "--", "-D", "warnings"]))?;
    // The demo is built without what only the suites need.
    let demo =
        ["clippy", "-p", "tests", "--no-default-features", "--bin", "shunt-demo", "--", "-D", "warnings"];
    process::run(workspace.cargo().args(demo))
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
