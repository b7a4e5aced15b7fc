//! A program that runs at most as long as its test; its output goes to a file.

use std::{
    fs::File,
    os::unix::process::CommandExt as _,
    path::Path,
    process::{Child, Command, Stdio},
};

use anyhow::{Context as _, Result};
use nix::sys::signal::Signal;

use crate::net::Netns;

/// A running program; killed when dropped.
#[derive(Debug)]
pub(super) struct Process {
    child: Child,
}

impl Process {
    pub(super) fn start(program: &Path, netns: Option<&Netns>, log: &Path, args: &[String]) -> Result<Self> {
        let mut command = match netns {
            Some(netns) => netns.command(program),
            None => {
                let mut command = Command::new(program);
                // SAFETY: between fork and exec one system call is made, which is async-signal-safe.
                unsafe {
                    command.pre_exec(|| Ok(nix::sys::prctl::set_pdeathsig(Signal::SIGKILL)?));
                }
                command
            }
        };
        let log = File::options().create(true).append(true).open(log)?;
        let child = command
            .args(args)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .with_context(|| format!("starting {}", program.display()))?;
        Ok(Self { child })
    }

    pub(super) fn has_ended(&mut self) -> bool {
        !matches!(self.child.try_wait(), Ok(None))
    }

    pub(super) fn kill(&mut self) {
        // It may have exited by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}
