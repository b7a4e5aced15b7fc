//! The demo: its walk-through succeeds, and nothing of it remains after Ctrl-C.

use std::{
    fs,
    io::{BufRead, BufReader},
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use nix::{
    sys::signal::{Signal, killpg},
    unistd::Pid,
};
use tests::net::{cgroup, cluster::eventually};

/// The demo in a process group of its own, as started by a shell.
fn start(args: &[&str]) -> Result<Child> {
    Command::new(env!("CARGO_BIN_EXE_shunt-demo"))
        .args(args)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .process_group(0)
        .spawn()
        .context("starting shunt-demo")
}

/// Everything with the demo's name: directories, pins, cgroups, namespaces, and processes by their command lines.
fn left_of(demo: u32) -> Result<Vec<PathBuf>> {
    let name = format!("shunt-demo-{demo}-");
    let mut left = Vec::new();
    for dir in [Path::new("/run/netns"), Path::new("/sys/fs/bpf"), &cgroup::root()?, &std::env::temp_dir()] {
        let entries = fs::read_dir(dir).into_iter().flatten().flatten();
        left.extend(
            entries.filter(|entry| entry.file_name().to_string_lossy().starts_with(&name)).map(|e| e.path()),
        );
    }
    for entry in fs::read_dir("/proc")?.flatten() {
        let command = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        if String::from_utf8_lossy(&command).contains(&name) {
            left.push(entry.path());
        }
    }
    Ok(left)
}

#[test]
fn once() -> Result<()> {
    let mut demo = start(&["--once"])?;
    let out = BufReader::new(demo.stdout.take().context("stdout is piped")?);
    let text: Vec<String> = out.lines().collect::<std::io::Result<_>>()?;
    let status = demo.wait()?;
    ensure!(status.success(), "{status}\n{}", text.join("\n"));
    let left = left_of(demo.id())?;
    ensure!(left.is_empty(), "left behind: {left:?}");
    Ok(())
}

#[test]
fn interrupted() -> Result<()> {
    let mut demo = start(&[])?;
    let mut out = BufReader::new(demo.stdout.take().context("stdout is piped")?).lines();
    let up = out.find(|line| line.as_ref().is_ok_and(|line| line.contains("Ctrl-C")));
    ensure!(up.is_some(), "it ended before it was up: {}", demo.wait()?);
    ensure!(!left_of(demo.id())?.is_empty(), "a running demo is not found by its name");
    killpg(Pid::from_raw(demo.id() as i32), Signal::SIGINT)?;
    let ended = eventually(Duration::from_secs(10), || demo.try_wait().is_ok_and(|status| status.is_some()));
    if ended.is_err() {
        demo.kill()?;
    }
    let status = demo.wait()?;
    ended.context("still there after SIGINT")?;
    ensure!(status.success(), "{status} after SIGINT");
    let left = left_of(demo.id())?;
    ensure!(left.is_empty(), "left behind: {left:?}");
    Ok(())
}
