//! `cargo xtask run`, `demo` and `bench`: built as the user, run as root.
//!
//! The last step replaces this process: Ctrl-C and every other signal reach the program itself, and whoever
//! started us waits for it.

use std::{os::unix::process::CommandExt as _, path::Path};

use anyhow::{Context as _, Result};

use crate::{
    build, process,
    progress::say,
    setup::{self, packages},
    workspace::Workspace,
};

/// shunt and the demo, without what only the suites need.
const DEMO: &[&str] =
    &["-p", build::SHUNT, "-p", "tests", "--bin", "shunt", "--bin", "shunt-demo", "--no-default-features"];

const KUBECONFIG: &str = "KUBECONFIG";

#[derive(Debug, clap::Args)]
pub struct RunArgs {
    /// Arguments of `shunt run`; where no cluster is named and none is found, those of the demo.
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
    let found = if names_source(&args.args) { None } else { kubeconfig() };
    if found.is_none() && !names_source(&args.args) {
        say(
            "run",
            "no --manifests, no --kubeconfig, no --config, no KUBECONFIG, no ~/.kube/config: starting the demo",
        );
        return demo(workspace, DemoArgs { args: args.args });
    }
    setup::build(workspace)?;
    setup::bpffs()?;
    build::cargo_build(workspace, false, &["-p", build::SHUNT])?;
    let mut all = vec!["run".to_owned()];
    match found {
        // By name: sudo keeps neither KUBECONFIG nor the home directory.
        Some(Found::File(path)) => {
            say("run", format_args!("against the cluster of {path}"));
            all.extend(["--kubeconfig".to_owned(), path]);
        }
        Some(Found::List(list)) => say("run", format_args!("against the cluster of KUBECONFIG={list}")),
        None => {}
    }
    all.extend(args.args);
    become_root(&workspace.binary("debug", "shunt"), &all)
}

pub fn demo(workspace: &Workspace, args: DemoArgs) -> Result<()> {
    ready(workspace)?;
    build::cargo_build(workspace, false, DEMO)?;
    become_root(&workspace.binary("debug", "shunt-demo"), &args.args)
}

/// With optimisations: the bench times user space too.
pub fn bench(workspace: &Workspace, args: BenchArgs) -> Result<()> {
    ready(workspace)?;
    build::cargo_build(workspace, true, &["-p", "proxy-userspace", "-p", "tests", "--bins"])?;
    become_root(&workspace.binary("release", "shunt-bench"), &args.args)
}

/// What a cluster of namespaces needs, before minutes of compiling.
fn ready(workspace: &Workspace) -> Result<()> {
    setup::programs(workspace, packages::NAMESPACES)?;
    setup::bpffs()?;
    setup::build(workspace)
}

/// Whether the arguments say where Services come from.
fn names_source(args: &[String]) -> bool {
    let names = |arg: &String, flag: &str| arg == flag || arg.starts_with(&format!("{flag}="));
    ["--manifests", "--kubeconfig", "--config"].iter().any(|flag| args.iter().any(|arg| names(arg, flag)))
}

/// Where kubectl would look for the cluster.
#[derive(Debug, PartialEq, Eq)]
enum Found {
    File(String),
    /// `$KUBECONFIG` names several, which count as one: shunt reads it itself.
    List(String),
}

/// `$KUBECONFIG` where it is set, else `~/.kube/config`.
fn kubeconfig() -> Option<Found> {
    let home = std::env::home_dir().map(|home| home.join(".kube/config").to_string_lossy().into_owned());
    kubeconfig_of(std::env::var(KUBECONFIG).ok(), home)
}

fn kubeconfig_of(variable: Option<String>, home: Option<String>) -> Option<Found> {
    let is_file = |path: &String| Path::new(path).is_file();
    match variable.filter(|list| !list.is_empty()) {
        Some(list) if list.contains(':') => {
            list.split(':').any(|path| is_file(&path.to_owned())).then_some(Found::List(list))
        }
        named => named.or(home).filter(is_file).map(Found::File),
    }
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
        command.arg(format!("--preserve-env={KUBECONFIG}")).arg("--").arg(program);
        command
    };
    let error = command.args(args).exec();
    Err(error).with_context(|| format!("starting {}", program.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cluster_is_where_kubectl_looks() {
        let (file, other, none) = ("/proc/self/status", "/proc/self/stat", "/does/not/exist");
        let found = |variable: Option<&str>, home: &str| {
            kubeconfig_of(variable.map(str::to_owned), Some(home.to_owned()))
        };
        let list = format!("{none}:{file}");
        assert_eq!(found(Some(file), other), Some(Found::File(file.into())));
        assert_eq!(found(Some(&list), other), Some(Found::List(list.clone())));
        assert_eq!(found(None, other), Some(Found::File(other.into())));
        assert_eq!(found(Some(""), other), Some(Found::File(other.into())));
        // Named and not there is no cluster, not another one.
        assert_eq!((found(Some(none), other), found(None, none)), (None, None));
    }

    #[test]
    fn a_source_is_recognised_in_both_spellings() {
        let args = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
        assert!(names_source(&args(&["--node-name", "a", "--manifests", "dir"])));
        assert!(names_source(&args(&["--manifests=dir"])) && names_source(&args(&["--kubeconfig", "x"])));
        assert!(names_source(&args(&["--config", "file"])));
        assert!(!names_source(&args(&["--node-name", "a", "--config-sync-period=1m"])));
    }
}
