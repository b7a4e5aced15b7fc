//! `cargo xtask build`: what the other tasks run, built as the user who calls.

use anyhow::Result;

use crate::{
    process,
    setup::{self, Need},
    workspace::Workspace,
};

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Build with optimisations (the eBPF object always is).
    #[arg(long)]
    release: bool,
}

pub fn run(workspace: &Workspace, args: &Args) -> Result<()> {
    setup::ensure(workspace, Need::Build)?;
    cargo_build(workspace, args.release, &[])
}

/// Builds the default members, or the packages named by `selection`.
pub fn cargo_build(workspace: &Workspace, release: bool, selection: &[&str]) -> Result<()> {
    let mut cargo = workspace.cargo();
    cargo.arg("build");
    if release {
        cargo.arg("--release");
    }
    process::run(cargo.args(selection))
}
