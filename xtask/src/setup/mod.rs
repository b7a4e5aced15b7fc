//! `cargo xtask setup`: makes a fresh machine able to build and test. Every step looks first, says what it
//! found or did, and may be run again at any time.
//!
//! Other tasks call [`build`], [`programs`] and [`bpffs`] for what they are about to do, and no more.

mod audit;
mod linker;
mod mounts;
pub mod packages;
mod rust_src;
mod toolchain;

use anyhow::{Context as _, Result};

use self::packages::Program;
use crate::{progress::say, workspace::Workspace};

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Compile cargo-deny and cargo-audit as well, for `lint`
    #[arg(long)]
    audit: bool,
}

/// Every step, saying what it does.
pub fn run(workspace: &Workspace, args: &Args) -> Result<()> {
    if args.audit {
        audit::install(workspace)?;
    }
    toolchain::install(workspace)?;
    rust_src::install(workspace)?;
    linker::install(workspace)?;
    mounts::mount_bpffs()?;
    // Last: without them shunt can be built all the same.
    programs(workspace, packages::NETWORK_TESTS).context("the machine can build, but not run every test")?;
    programs(workspace, packages::VM_TESTS).context("the machine can build, but not run every test")?;
    say("packages", "every program that the tests call is here");
    say("ready", "`cargo xtask build`, `cargo xtask demo`, `cargo xtask test`");
    Ok(())
}

/// What compiling needs: silent where it is here.
pub fn build(workspace: &Workspace) -> Result<()> {
    if !(rust_src::present(workspace)? && linker::present(workspace)) {
        say("setup", "this machine cannot build yet");
        toolchain::install(workspace)?;
        rust_src::install(workspace)?;
        linker::install(workspace)?;
    }
    Ok(())
}

/// Programs that a task calls; see [`packages`].
pub fn programs(workspace: &Workspace, programs: &[Program]) -> Result<()> {
    packages::install(workspace, programs)
}

/// What pins maps and links.
pub fn bpffs() -> Result<()> {
    if mounts::bpffs_mounted()? { Ok(()) } else { mounts::mount_bpffs() }
}
