//! Programs of the system that the tests and the demo call.

use std::process::Command;

use anyhow::{Context as _, Result};

use crate::{process, progress::say};

/// A program, and Debian's package of it.
const PROGRAMS: [(&str, &str); 12] = [
    ("ip", "iproute2"),
    ("nft", "nftables"),
    ("iptables", "iptables"),
    ("tcpdump", "tcpdump"),
    ("ethtool", "ethtool"),
    ("conntrack", "conntrack"),
    ("curl", "curl"),
    ("socat", "socat"),
    ("nc", "netcat-openbsd"),
    ("ping", "iputils-ping"),
    ("bpftool", "bpftool"),
    ("xz", "xz-utils"),
];

/// Of the vm tests alone.
const VM: [(&str, &str); 1] = [("qemu-system-x86_64", "qemu-system-x86")];

/// The packages whose programs are not there.
pub fn missing() -> Vec<&'static str> {
    PROGRAMS
        .iter()
        .chain(&VM)
        .filter(|(program, _)| process::which(program).is_none())
        .map(|(_, package)| *package)
        .collect()
}

pub fn install() -> Result<()> {
    let missing = missing();
    if missing.is_empty() {
        say("packages", "every program the tests call is here");
        return Ok(());
    }
    let list = missing.join(" ");
    if process::which("apt-get").is_none() {
        say("packages", format_args!("the tests need (Debian's names) {list}: please install them"));
        return Ok(());
    }
    if !process::is_root() {
        say("packages", format_args!("the tests need: sudo apt-get install --no-install-recommends {list}"));
        return Ok(());
    }
    say("packages", format_args!("apt-get install {list}"));
    let apt = || {
        let mut command = Command::new("apt-get");
        command.env("DEBIAN_FRONTEND", "noninteractive").args(["-q", "-q", "-y"]);
        command
    };
    // Another source of this machine may be unreachable; whether that matters, install says.
    if let Err(error) = process::run(apt().arg("update")) {
        say("packages", format_args!("{error:#}"));
    }
    process::run(apt().args(["install", "--no-install-recommends"]).args(&missing))
        .with_context(|| format!("installing {list}"))
}
