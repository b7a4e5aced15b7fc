//! `cargo xtask build`: what the other tasks run, built as the user who calls.

use std::{fs, path::PathBuf};

use anyhow::{Context as _, Result};
use serde_json::Value;

use crate::{process, setup, workspace::Workspace};

/// The package that holds shunt alone.
pub const SHUNT: &str = "proxy-userspace";

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Build with optimisations (the eBPF object always is).
    #[arg(long)]
    release: bool,
    /// shunt linked statically as well, in target/static: for images and empty chroots
    #[arg(long = "static")]
    is_static: bool,
}

pub fn run(workspace: &Workspace, args: &Args) -> Result<()> {
    setup::build(workspace)?;
    if args.is_static {
        return static_build(workspace, args.release, &["-p", SHUNT]).map(drop);
    }
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

/// Builds shunt without any need of shared libraries and says where it is. The crates are those of the build of
/// `selection`: only the last step, main.rs and the linker's, is done once more, with the static C library.
pub fn static_build(workspace: &Workspace, release: bool, selection: &[&str]) -> Result<PathBuf> {
    let mut cargo = workspace.cargo();
    cargo.args(["build", "--message-format=json-render-diagnostics"]).args(selection);
    if release {
        cargo.arg("--release");
    }
    let messages = process::output_beside(&mut cargo)?;
    let library =
        |name: &str| rlib(&messages, name).with_context(|| format!("cargo has built no library {name}"));
    let (shunt, clap) = (library("shunt")?, library("clap")?);
    let dir = workspace.target().join("static").join(if release { "release" } else { "debug" });
    fs::create_dir_all(&dir)?;
    let binary = dir.join("shunt");
    let mut rustc = workspace.command("rustc");
    rustc.args(["--edition=2024", "--crate-name=shunt", "--crate-type=bin", "proxy-userspace/src/main.rs"]);
    // The directory of all of them.
    let deps = clap.parent().context("a library lies in a directory")?;
    for (flag, value) in [("-Ldependency=", deps), ("--extern=shunt=", &shunt), ("--extern=clap=", &clap)] {
        rustc.arg(format!("{flag}{}", value.display()));
    }
    rustc.args(["-Ctarget-feature=+crt-static", "-o"]).arg(&binary);
    if release {
        // Names of functions stay, for backtraces.
        rustc.args(["-Copt-level=3", "-Cstrip=debuginfo"]);
    }
    process::run(&mut rustc).context("linking statically wants libc.a: libc6-dev has it")?;
    Ok(binary)
}

/// Where the library of this name lies, from cargo's messages.
fn rlib(messages: &str, name: &str) -> Option<PathBuf> {
    messages.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok()).find_map(|message| {
        let target = &message["target"];
        let kinds = target["kind"].as_array()?;
        let is_it = target["name"] == name && kinds.iter().any(|kind| kind == "lib");
        let files = message["filenames"].as_array().filter(|_| is_it)?;
        let file = files
            .iter()
            .filter_map(Value::as_str)
            .find(|file| file.ends_with(".rlib") && file.contains("/deps/"));
        // A member of the workspace is named without the hash of its real file, which lies beside it.
        file.or_else(|| files.iter().filter_map(Value::as_str).find(|file| file.ends_with(".rlib")))
            .map(PathBuf::from)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_are_found_among_the_messages() {
        let messages = r#"{"reason":"compiler-artifact","target":{"kind":["bin"],"name":"shunt"},"filenames":["/t/debug/shunt"]}
{"reason":"compiler-artifact","target":{"kind":["lib"],"name":"shunt"},"filenames":["/t/debug/libshunt.rlib","/t/debug/deps/libshunt-1.rmeta"]}
{"reason":"compiler-artifact","target":{"kind":["lib"],"name":"clap"},"filenames":["/t/debug/deps/libclap-2.rlib","/t/debug/deps/libclap-2.rmeta"]}
not a message"#;
        assert_eq!(rlib(messages, "shunt"), Some("/t/debug/libshunt.rlib".into()));
        assert_eq!(rlib(messages, "clap"), Some("/t/debug/deps/libclap-2.rlib".into()));
        assert_eq!(rlib(messages, "serde"), None);
    }
}
