//! Compiles the eBPF object that `shunt` embeds. It needs `rust-src` and `bpf-linker`, which
//! `cargo xtask setup` installs; without them the message below says so instead of a linker trace.

use std::{env, path::PathBuf};

use anyhow::{Context as _, anyhow, ensure};
use aya_build::{Package, Toolchain};

/// Must equal `rust-toolchain.toml`'s channel: `rustup run` takes a toolchain's name, not a file.
const TOOLCHAIN: &str = "1.95.0";

fn main() -> anyhow::Result<()> {
    let manifest_dir = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").context("run by cargo only")?);
    let workspace = manifest_dir.parent().ok_or_else(|| anyhow!("no workspace above {manifest_dir:?}"))?;
    let root = workspace.join("proxy-ebpf");
    let tools = tools_dir(workspace);
    println!("cargo:rerun-if-changed={}", workspace.join("proxy-common").display());
    println!("cargo:rerun-if-env-changed=SHUNT_TOOLS");
    ensure!(
        tools.join("bpf-linker").exists(),
        "bpf-linker is not in {}: run `cargo xtask setup` first",
        tools.display()
    );

    let mut path = vec![tools];
    path.extend(env::split_paths(&env::var_os("PATH").unwrap_or_default()));
    // SAFETY: a build script is single-threaded here; nothing else reads the environment.
    unsafe {
        env::set_var("PATH", env::join_paths(path)?);
        // Unstable `-Z build-std` on the stable compiler, for the nested eBPF build alone.
        env::set_var("RUSTC_BOOTSTRAP", "1");
        // Instruction set v3 (32-bit registers and jumps, kernel 5.1): a tenth fewer instructions than the
        // default. aya-build owns RUSTFLAGS, so the nested build's profile carries the flag; build scripts and
        // macros, which are built for this machine, must not get it, and an empty list would inherit it.
        env::set_var("CARGO_UNSTABLE_PROFILE_RUSTFLAGS", "true");
        env::set_var("CARGO_PROFILE_RELEASE_RUSTFLAGS", "-Ctarget-cpu=v3");
        env::set_var("CARGO_PROFILE_RELEASE_BUILD_OVERRIDE_RUSTFLAGS", "-Cdebuginfo=0");
        // The object must not depend on the caller's environment: an incremental build splits the crate into more codegen
        // units, and inlines and spills differently (544 bytes of stack instead of 512).
        env::set_var("CARGO_INCREMENTAL", "0");
    }
    let root = root.to_str().context("the workspace's path is not UTF-8")?;
    aya_build::build_ebpf(
        [Package { name: "proxy-ebpf", root_dir: root, ..Default::default() }],
        Toolchain::Custom(TOOLCHAIN),
    )
    .context("building proxy-ebpf failed; `cargo xtask setup` installs what it needs")
}

/// Where `cargo xtask setup` puts bpf-linker: `SHUNT_TOOLS`, else `<workspace>/target/tools/bin`.
fn tools_dir(workspace: &std::path::Path) -> PathBuf {
    env::var_os("SHUNT_TOOLS").map_or_else(|| workspace.join("target/tools/bin"), PathBuf::from)
}
