//! Commands inside the guest: each has a time limit, and its output is kept.

use std::{
    fs::{self, File},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};

use super::Ended;

/// Everything is about ten times slower here than on the host.
pub const SLOW: Duration = Duration::from_secs(60);

/// Runs a command to completion, or kills it at the limit.
pub fn ended(command: &mut Command, limit: Duration) -> Result<Ended> {
    const LOG: &str = "/run/ended.log";
    let log = File::create(LOG)?;
    let mut child = command
        .env("NO_COLOR", "1")
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .spawn()
        .with_context(|| format!("starting {command:?}"))?;
    let status = wait(&mut child, limit)?;
    Ok(Ended { status, output: String::from_utf8_lossy(&fs::read(LOG)?).into_owned() })
}

/// Waits for its exit, or kills it at the limit; returns its exit status if it had one.
pub fn wait(child: &mut Child, limit: Duration) -> Result<Option<i32>> {
    let deadline = Instant::now() + limit;
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(status.code());
        }
        if Instant::now() > deadline {
            child.kill()?;
            child.wait()?;
            return Ok(None);
        }
        thread::sleep(Duration::from_millis(20));
    }
}

/// Runs lines in iproute2's batch syntax in the node's namespace.
pub fn ip(lines: &str) -> Result<()> {
    for line in lines.lines() {
        let ended = ended(Command::new("ip").args(line.split_whitespace()), SLOW)?;
        if ended.status != Some(0) {
            bail!("ip {line}: {}", ended.output.trim());
        }
    }
    Ok(())
}
