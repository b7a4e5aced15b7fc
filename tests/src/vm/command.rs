//! Commands inside the guest: each ends within a limit, and what it wrote is kept.

use std::{
    fs::{self, File},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};

use super::Ended;

/// Everything is some ten times slower here than on the machine around it.
pub const SLOW: Duration = Duration::from_secs(60);

/// Runs to its end, or ends it.
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

/// Waits for its end, or ends it; its exit status where it had one.
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

/// Lines of iproute2's grammar in the node's namespace.
pub fn ip(lines: &str) -> Result<()> {
    for line in lines.lines() {
        let ended = ended(Command::new("ip").args(line.split_whitespace()), SLOW)?;
        if ended.status != Some(0) {
            bail!("ip {line}: {}", ended.output.trim());
        }
    }
    Ok(())
}
