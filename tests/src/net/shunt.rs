//! The real `shunt` as a process of a node.

use std::{
    env,
    ffi::OsString,
    io::{BufRead, BufReader},
    os::unix::process::ExitStatusExt,
    path::PathBuf,
    process::{Child, ExitStatus, Stdio},
    sync::{Arc, Mutex},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use super::{Netns, cgroup::Cgroup};

/// Time limit for a process to exit after SIGTERM.
const GRACE: Duration = Duration::from_secs(10);

/// A running `shunt`; killed when dropped.
#[derive(Debug)]
pub struct Shunt {
    child: Child,
    log: Arc<Mutex<String>>,
    reader: Option<thread::JoinHandle<()>>,
}

/// The program under test: `$SHUNT_BIN`, or `shunt` in the directory cargo built this test into.
pub fn binary() -> Result<PathBuf> {
    if let Some(path) = env::var_os("SHUNT_BIN") {
        let path = PathBuf::from(path);
        if !path.is_file() {
            bail!("SHUNT_BIN names {}, which is no file", path.display());
        }
        return Ok(path.canonicalize()?);
    }
    let this = env::current_exe()?;
    // target/debug/shunt-demo is next to it, target/debug/deps/network-HASH one level below.
    let found = this.ancestors().skip(1).take(2).map(|dir| dir.join("shunt")).find(|path| path.is_file());
    found.with_context(|| {
        format!(
            "no `shunt` beside {}: build it first with `cargo xtask build`, or name it in SHUNT_BIN",
            this.display()
        )
    })
}

/// The statically linked program: `$SHUNT_STATIC_BIN`, or the result of `cargo xtask build --static`.
pub fn static_binary() -> Result<PathBuf> {
    let built = super::repository::repository().join("target/static/debug/shunt");
    let path = env::var_os("SHUNT_STATIC_BIN").map_or(built, PathBuf::from);
    if !path.is_file() {
        bail!("no {}: build it first with `cargo xtask build --static`", path.display());
    }
    Ok(path.canonicalize()?)
}

impl Shunt {
    /// Starts `PROGRAM... ARGS` in the node's namespace and cgroup; the first words are [`binary`], or a command that
    /// starts it.
    pub fn start(netns: &Netns, cgroup: &Cgroup, program: &[OsString], args: &[String]) -> Result<Self> {
        let (first, more) = program.split_first().context("no program")?;
        let mut child = netns
            .command(first)
            .args(more)
            .args(args)
            .env("NO_COLOR", "1")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .context("starting shunt")?;
        cgroup.adopt(child.id())?;
        let log = Arc::new(Mutex::new(String::new()));
        let stderr = BufReader::new(child.stderr.take().context("stderr is piped")?);
        let sink = log.clone();
        let reader = thread::spawn(move || {
            for line in stderr.lines().map_while(Result::ok) {
                let mut log = sink.lock().expect("no holder panics");
                log.push_str(&line);
                log.push('\n');
            }
        });
        Ok(Self { child, log, reader: Some(reader) })
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Its stderr so far.
    pub fn log(&self) -> String {
        self.log.lock().expect("no holder panics").clone()
    }

    /// Its exit status, if it has exited.
    pub fn ended(&mut self) -> Result<Option<ExitStatus>> {
        Ok(self.child.try_wait()?)
    }

    /// Its complete log, after it has exited.
    pub fn whole_log(mut self) -> String {
        if let Some(reader) = self.reader.take() {
            let _ = reader.join();
        }
        self.log()
    }

    /// Sends SIGTERM and waits; fails unless it exits in time with status 0.
    pub fn stop(mut self) -> Result<String> {
        let status = self.finish(Signal::SIGTERM)?;
        let log = self.log();
        if !status.success() {
            bail!("shunt ended with {status} after SIGTERM; it wrote:\n{log}");
        }
        Ok(log)
    }

    /// Kills it without a chance to clean up.
    pub fn kill(mut self) -> Result<String> {
        let status = self.finish(Signal::SIGKILL)?;
        if status.signal() != Some(Signal::SIGKILL as i32) {
            bail!("shunt had ended by itself with {status}; it wrote:\n{}", self.log());
        }
        Ok(self.log())
    }

    fn finish(&mut self, signal: Signal) -> Result<ExitStatus> {
        // The process id cannot have been reused: it is our child and was not waited for.
        kill(Pid::from_raw(self.child.id() as i32), signal)?;
        let deadline = Instant::now() + GRACE;
        let status = loop {
            match self.child.try_wait()? {
                Some(status) => break status,
                None if Instant::now() > deadline => {
                    self.child.kill()?;
                    self.child.wait()?;
                    bail!("shunt did not end within {GRACE:?} of {signal}; it wrote:\n{}", self.log());
                }
                None => thread::sleep(Duration::from_millis(5)),
            }
        };
        if let Some(reader) = self.reader.take() {
            let _ = reader.join();
        }
        Ok(status)
    }
}

impl Drop for Shunt {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if let Some(reader) = self.reader.take() {
            let _ = reader.join();
        }
    }
}
