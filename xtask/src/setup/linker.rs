//! bpf-linker, installed for this repository alone. The feature names the LLVM major version of the pinned
//! toolchain, whose own libLLVM it loads: no LLVM has to be installed.

use std::process::Command;

use anyhow::{Context as _, Result};

use crate::{process, progress::say, workspace::Workspace};

const VERSION: &str = "0.10.4";
const LLVM: &str = "rust-llvm-22";

pub fn present(workspace: &Workspace) -> bool {
    let linker = workspace.tools().join("bin/bpf-linker");
    process::output(Command::new(linker).arg("--version"))
        .is_ok_and(|version| version.split_whitespace().nth(1) == Some(VERSION))
}

pub fn install(workspace: &Workspace) -> Result<()> {
    if present(workspace) {
        say("bpf-linker", format_args!("{VERSION} is in {}", workspace.tools().join("bin").display()));
        return Ok(());
    }
    say("bpf-linker", format_args!("compiling {VERSION} with {LLVM}, about a minute"));
    let build = workspace.tools().join("build");
    let mut cargo = workspace.cargo();
    cargo.args(["install", "bpf-linker", "--version", VERSION, "--no-default-features", "--features", LLVM]);
    // Less than half the time of an optimised build, which is most of a fresh machine's wait. What it does by itself is
    // optimised, what it calls hardly matters: a link takes ten seconds instead of eight, and the object is the same.
    cargo.args(["--debug", "--config", "profile.dev.package.bpf-linker.opt-level=2"]);
    cargo.env("CARGO_PROFILE_DEV_DEBUG", "0");
    cargo.args(["--force", "--quiet"]).arg("--root").arg(workspace.tools()).arg("--target-dir").arg(&build);
    // Flags meant for this workspace's crates would change how the linker is built.
    for name in ["RUSTFLAGS", "CARGO_ENCODED_RUSTFLAGS", "CARGO_BUILD_TARGET", "CARGO_TARGET_DIR"] {
        cargo.env_remove(name);
    }
    // An earlier toolchain's linker may be there: it must not survive a failure.
    process::run(&mut cargo).context("bpf-linker links the eBPF object; cargo could not install it")?;
    std::fs::remove_dir_all(&build).with_context(|| format!("removing {}", build.display()))?;
    Ok(())
}
