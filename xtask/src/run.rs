//! `cargo xtask run`, `demo` and `bench`: built as the user, run as root.
//!
//! The last step replaces this process: Ctrl-C and every other signal reach the program itself, and whoever
//! started us waits for it.

use std::{os::unix::process::CommandExt as _, path::Path};

use anyhow::{Context as _, Result};

use crate::{
    build, process,
    setup::{self, Need},
    workspace::Workspace,
};

#[derive(Debug, clap::Args)]
pub struct RunArgs {
    /// Arguments of `shunt run`; without `--manifests` those of the demo.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    args: Vec<String>,
}

#[derive(Debug, clap::Args)]
pub struct DemoArgs {
    /// Arguments of the demo: `--once` walks through its steps and exits.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    args: Vec<String>,
}

#[derive(Debug, clap::Args)]
pub struct BenchArgs {
    /// Arguments of the bench.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    args: Vec<String>,
}

pub fn run(workspace: &Workspace, args: RunArgs) -> Result<()> {
    if !names_manifests(&args.args) {
        setup::say("run", "no --manifests: starting the demo");
        return demo(workspace, DemoArgs { args: args.args });
    }
    setup::ensure(workspace, Need::Run)?;
    build::cargo_build(workspace, false, &["-p", "proxy-userspace"])?;
    let mut all = vec!["run".to_owned()];
    all.extend(args.args);
    become_root(&workspace.binary("debug", "shunt"), &all)
}

pub fn demo(workspace: &Workspace, args: DemoArgs) -> Result<()> {
    setup::ensure(workspace, Need::Run)?;
    build::cargo_build(workspace, false, &["-p", "proxy-userspace", "-p", "tests", "--bins"])?;
    become_root(&workspace.binary("debug", "shunt-demo"), &args.args)
}

/// With optimisations: the bench times user space too.
pub fn bench(workspace: &Workspace, args: BenchArgs) -> Result<()> {
    setup::ensure(workspace, Need::Run)?;
    build::cargo_build(workspace, true, &["-p", "proxy-userspace", "-p", "tests", "--bins"])?;
    become_root(&workspace.binary("release", "shunt-bench"), &args.args)
}

fn names_manifests(args: &[String]) -> bool {
    args.iter().any(|arg| arg == "--manifests" || arg.starts_with("--manifests="))
}

/// Replaces this process by `program`, through sudo where it is not root's already.
pub fn become_root(program: &Path, args: &[String]) -> Result<()> {
    let mut command = if process::is_root() {
        std::process::Command::new(program)
    } else {
        let sudo = process::which("sudo").with_context(|| {
            format!("{} must run as root, and there is no sudo: call cargo as root", program.display())
        })?;
        let mut command = std::process::Command::new(sudo);
        command.arg("--").arg(program);
        command
    };
    let error = command.args(args).exec();
    Err(error).with_context(|| format!("starting {}", program.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn manifests_are_recognised_in_both_spellings() {
        let args = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
        assert!(names_manifests(&args(&["--node-name", "a", "--manifests", "dir"])));
        assert!(names_manifests(&args(&["--manifests=dir"])));
        assert!(!names_manifests(&args(&["--node-name", "a"])));
    }
}
