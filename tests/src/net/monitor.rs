//! A running `shunt monitor` and the events it has printed so far, as JSON.

use std::{
    io::{BufRead, BufReader, Read},
    process::{Child, ChildStderr, ChildStdout, ExitStatus, Stdio},
    sync::{Arc, Mutex},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;

use super::{Node, cluster::eventually, shunt};

/// Time limit for it to start watching, to print an event, and to exit.
const SOON: Duration = Duration::from_secs(5);

/// A running monitor; killed when dropped.
#[derive(Debug)]
pub struct Monitor {
    child: Child,
    lines: Arc<Mutex<Vec<String>>>,
    reader: Option<JoinHandle<()>>,
    stderr: BufReader<ChildStderr>,
}

/// Exit status and output of a monitor.
#[derive(Debug)]
pub struct Ended {
    pub status: ExitStatus,
    /// Its stdout, line by line.
    pub lines: Vec<String>,
    /// Its stderr after it started watching.
    pub stderr: String,
}

impl Monitor {
    /// Starts `shunt monitor -j` with the arguments `more` on the node, and waits until it is watching.
    pub fn start(node: &Node, more: &[&str]) -> Result<Self> {
        Self::start_as(node, &[&["-j"], more].concat())
    }

    /// The same, with an output format in `more`.
    pub fn start_as(node: &Node, more: &[&str]) -> Result<Self> {
        let mut command = node.netns().command(shunt::binary()?);
        command.arg("monitor").args(more).arg("--bpffs").arg(node.bpffs()).env("NO_COLOR", "1");
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().context("starting shunt monitor")?;
        let lines = Arc::new(Mutex::new(Vec::new()));
        let stdout = child.stdout.take().context("stdout is piped")?;
        let mut stderr = BufReader::new(child.stderr.take().context("stderr is piped")?);
        let reader = collect(stdout, lines.clone());
        let mut first = String::new();
        stderr.read_line(&mut first)?;
        let monitor = Self { child, lines, reader: Some(reader), stderr };
        ensure!(first.starts_with("watching"), "shunt monitor {more:?} wrote: {first}");
        Ok(monitor)
    }

    /// The lines it has printed so far.
    pub fn lines(&self) -> Vec<String> {
        self.lines.lock().expect("no holder panics").clone()
    }

    /// The events it has printed so far.
    pub fn events(&self) -> Result<Vec<Value>> {
        self.lines().iter().map(|line| serde_json::from_str(line).with_context(|| line.clone())).collect()
    }

    /// Waits for an event with all these fields and returns the first one.
    pub fn event(&self, fields: &[(&str, Value)]) -> Result<Value> {
        let is = |event: &Value| fields.iter().all(|(name, value)| event[*name] == *value);
        let find = || self.events().map(|events| events.into_iter().find(is));
        let _waited = eventually(SOON, || find().is_ok_and(|found| found.is_some()));
        match find()? {
            Some(event) => Ok(event),
            None => bail!("no event with {fields:?} among {:#?}", self.lines()),
        }
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        // Our child, not yet waited for: the process id cannot have been reused.
        Ok(kill(Pid::from_raw(self.child.id() as i32), signal)?)
    }

    /// Waits until it exits by itself.
    pub fn wait(mut self) -> Result<Ended> {
        let deadline = Instant::now() + SOON;
        let status = loop {
            match self.child.try_wait()? {
                Some(status) => break status,
                None if Instant::now() > deadline => bail!("shunt monitor does not end: {:?}", self.lines()),
                None => thread::sleep(Duration::from_millis(5)),
            }
        };
        let mut stderr = String::new();
        self.stderr.read_to_string(&mut stderr)?;
        self.join();
        Ok(Ended { status, lines: self.lines(), stderr })
    }

    /// Stops it with SIGTERM.
    pub fn stop(self) -> Result<Ended> {
        self.signal(Signal::SIGTERM)?;
        self.wait()
    }

    fn join(&mut self) {
        if let Some(reader) = self.reader.take() {
            let _ = reader.join();
        }
    }
}

fn collect(stdout: ChildStdout, lines: Arc<Mutex<Vec<String>>>) -> JoinHandle<()> {
    thread::spawn(move || {
        for line in BufReader::new(stdout).lines().map_while(Result::ok) {
            lines.lock().expect("no holder panics").push(line);
        }
    })
}

impl Drop for Monitor {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        self.join();
    }
}
