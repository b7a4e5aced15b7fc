//! `cargo xtask setup`: makes a fresh machine able to build and test. Every step looks first, says what it
//! found or did, and may be run again at any time.

mod audit;
mod linker;
mod mounts;
mod packages;
mod rust_src;
mod toolchain;

use anyhow::Result;

use crate::{progress::say, workspace::Workspace};

/// What a task is about to do, and so what it needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// Compile everything.
    Build,
    /// Compile, and run network namespaces and programs in the kernel as well.
    Run,
}

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
    packages::install()?;
    mounts::mount_bpffs()?;
    say("ready", "`cargo xtask build`, `cargo xtask demo`, `cargo xtask test`");
    Ok(())
}

/// The quick check in front of other tasks: silent where all is well, else the steps that are needed.
pub fn ensure(workspace: &Workspace, need: Need) -> Result<()> {
    if !(rust_src::present(workspace)? && linker::present(workspace)) {
        say("setup", "this machine cannot build yet");
        toolchain::install(workspace)?;
        rust_src::install(workspace)?;
        linker::install(workspace)?;
    }
    if need == Need::Run {
        if !packages::missing().is_empty() {
            packages::install()?;
        }
        if !mounts::bpffs_mounted()? {
            mounts::mount_bpffs()?;
        }
    }
    Ok(())
}
