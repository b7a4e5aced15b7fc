//! Programs of the system that a task calls. Each task has a list of its own: what only tests call is not installed for
//! the demo. apt adds packages and never removes one.
//!
//! Not here: qemu and the kernels of the vm tests, which are unpacked below target/ and not installed.

use std::{fs, path::Path, process::Command};

use anyhow::{Context as _, Result, bail};

use crate::{process, progress::say, workspace::Workspace};

/// A program, and Debian's package of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Program {
    name: &'static str,
    package: &'static str,
}

const fn program(name: &'static str, package: &'static str) -> Program {
    Program { name, package }
}

const IP: Program = program("ip", "iproute2");

/// The namespaces of the demo, of the bench and of the levels of tests that need no more.
pub const NAMESPACES: &[Program] = &[IP];
pub const NETWORK_TESTS: &[Program] = &[
    IP,
    program("tc", "iproute2"),
    program("ss", "iproute2"),
    program("nft", "nftables"),
    program("iptables", "iptables"),
    program("ethtool", "ethtool"),
    program("curl", "curl"),
    program("bpftool", "bpftool"),
];
pub const VM_TESTS: &[Program] = &[IP, program("tc", "iproute2"), program("xz", "xz-utils")];

/// The packages of those programs that are not here, each once.
fn missing(programs: &[Program]) -> Vec<&'static str> {
    let absent = programs.iter().filter(|program| process::which(program.name).is_none());
    let mut packages: Vec<_> = absent.map(|program| program.package).collect();
    packages.sort_unstable();
    packages.dedup();
    packages
}

/// Installs what is missing; silent where nothing is.
pub fn install(workspace: &Workspace, programs: &[Program]) -> Result<()> {
    let packages = missing(programs);
    if packages.is_empty() {
        return Ok(());
    }
    let list = packages.join(" ");
    if process::which("apt-get").is_none() {
        bail!("programs are missing; Debian's names of their packages: {list}. Please install them");
    }
    if !process::is_root() {
        bail!(
            "programs are missing: sudo apt-get install --no-install-recommends --no-remove {list}, or call \
             `cargo xtask setup` as root"
        );
    }
    let log = workspace.target().join("setup/apt.log");
    say("packages", format_args!("installing {list} (apt's output: {})", log.display()));
    // Another source of this machine may be unreachable; whether that matters, install says.
    if process::run_logged(&mut apt(&["update"]), &log).is_err() {
        say("packages", "apt-get update failed; trying with the package lists that are here");
    }
    if add(&packages, &log).is_ok() {
        return Ok(());
    }
    // One of them holds up the others: as many as possible, and each refusal with its reason.
    let refused: Vec<_> = packages.iter().filter_map(|package| add(&[package], &log).err()).collect();
    if refused.is_empty() {
        return Ok(());
    }
    let reasons: Vec<_> = refused.iter().map(|error| format!("{error:#}")).collect();
    bail!("{}", reasons.join("\n"))
}

fn apt(words: &[&str]) -> Command {
    let mut command = Command::new("apt-get");
    command.env("DEBIAN_FRONTEND", "noninteractive").env("LC_ALL", "C").args(["-q", "-y"]).args(words);
    command
}

/// Installs, or says why not.
fn add(packages: &[&str], log: &Path) -> Result<()> {
    let start = fs::metadata(log).map_or(0, |meta| meta.len());
    let mut command = apt(&["install", "--no-remove", "--no-install-recommends"]);
    let Err(error) = process::run_logged(command.args(packages), log) else { return Ok(()) };
    let text = fs::read(log).with_context(|| format!("reading {}", log.display()))?;
    let text = String::from_utf8_lossy(text.get(start as usize..).unwrap_or_default()).into_owned();
    let list = packages.join(" ");
    match would_remove(&text) {
        Some(victims) => bail!(
            "{list} is missing and was not installed: apt says \"{}\"; it would remove {victims}. Install a version of \
             {list} that goes with {victims} (perhaps from the suite that it came from), or remove {victims} yourself",
            sentence(&text).unwrap_or_default()
        ),
        None => Err(error)
            .with_context(|| format!("{list} is missing: {}", sentence(&text).unwrap_or("apt-get failed"))),
    }
}

/// The packages that apt-get announces to remove.
fn would_remove(text: &str) -> Option<String> {
    let (_, rest) = text.split_once("The following packages will be REMOVED:\n")?;
    let lines = rest.lines().take_while(|line| line.starts_with(' '));
    Some(lines.flat_map(str::split_whitespace).collect::<Vec<_>>().join(" "))
}

/// apt's own last error.
fn sentence(text: &str) -> Option<&str> {
    text.lines().filter_map(|line| line.strip_prefix("E: ")).next_back()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_names_what_would_be_removed_and_apts_sentence() {
        let text = "Reading package lists...\nThe following packages will be REMOVED:\n  qemu-utils\n  other\n\
                    The following NEW packages will be installed:\n  qemu-system-x86\n\
                    E: Packages need to be removed but remove is disabled.\n";
        assert_eq!(would_remove(text).as_deref(), Some("qemu-utils other"));
        assert_eq!(sentence(text), Some("Packages need to be removed but remove is disabled."));
        assert_eq!((would_remove("E: Unable to locate package x\n"), sentence("done\n")), (None, None));
    }

    #[test]
    fn a_package_is_named_once_however_many_of_its_programs_are_missing() {
        let (a, b) = (program("no-such-program", "one"), program("no-such-either", "one"));
        assert_eq!(missing(&[program("sh", "dash"), b, a]), ["one"]);
    }

    #[test]
    fn the_demo_needs_less_than_the_tests() {
        for name in ["nft", "iptables", "qemu-system-x86_64", "curl", "bpftool", "ethtool"] {
            assert!(!NAMESPACES.iter().any(|program| program.name == name), "{name}");
        }
        assert!(NAMESPACES.iter().all(|program| NETWORK_TESTS.contains(program)));
    }
}
