//! One run of qemu: always without acceleration (a /dev/kvm may exist and not work), always with a time limit. The
//! result depends on the guest's output only.

use std::{
    fs,
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::mpsc::{self, RecvTimeoutError},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};

use super::{END, REPORT, Report, Task, image};
use crate::net::shunt;

/// A boot takes 3 to 6 seconds on an idle machine, the task some more; two machines share two cores here.
const LIMIT: Duration = Duration::from_secs(240);
const QEMU: &str = "qemu-system-x86_64";

/// Boots the newest cached kernel of `series`, runs `task`, and returns the report.
pub fn boot(series: &str, task: Task, init: &Path) -> Result<Report> {
    let vm = target(init)?.join("vm");
    let kernel = vm.join("kernels").join(series);
    if !kernel.join("release").is_file() {
        bail!("there is no kernel in {}: `cargo xtask test vm` fetches it", kernel.display());
    }
    let initramfs = Scratch(vm.join(format!("initramfs-{series}-{}-{}", task.word(), std::process::id())));
    fs::write(&initramfs.0, image::build(&kernel, task.modules(), init, &shunt::binary()?)?)?;
    let qemu = Command::new(QEMU)
        .args(["-accel", "tcg", "-cpu", "max", "-m", "1024", "-nodefaults", "-no-reboot"])
        .args(["-display", "none", "-serial", "stdio"])
        .arg("-kernel")
        .arg(kernel.join("vmlinuz"))
        .arg("-initrd")
        .arg(&initramfs.0)
        // no_timer_check: on a busy machine the emulated timer ticks too rarely for the kernel's check, which would
        // panic.
        .args([
            "-append",
            &format!("console=ttyS0 quiet panic=-1 no_timer_check random.trust_cpu=on -- {}", task.word()),
        ])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot run {QEMU}: `cargo xtask test vm` unpacks it"))?;
    let console = Machine(qemu).watch(LIMIT)?;
    let line = console.lines().find_map(|line| line.split_once(REPORT)).map(|(_, json)| json);
    match line {
        Some(json) if console.contains(END) => {
            serde_json::from_str(json.trim()).with_context(|| format!("kernel {series} reports {json}"))
        }
        _ => bail!("kernel {series} came to no end within {LIMIT:?}; its console:\n{console}"),
    }
}

/// Cargo's target directory, from the path of a program in it: target/debug/vm-init.
fn target(init: &Path) -> Result<PathBuf> {
    let dir = init.ancestors().nth(2).context("init does not lie in cargo's target directory")?;
    Ok(dir.to_path_buf())
}

/// A file that is removed with its test.
struct Scratch(PathBuf);

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

/// A running qemu; killed when dropped.
struct Machine(Child);

impl Machine {
    /// Reads the console up to the marker, the exit of qemu or the limit, whichever comes first.
    fn watch(mut self, limit: Duration) -> Result<String> {
        let (lines, console) = mpsc::channel();
        let stdout = self.0.stdout.take().context("stdout is piped")?;
        let stderr = self.0.stderr.take().context("stderr is piped")?;
        for reader in [Box::new(stdout) as Box<dyn std::io::Read + Send>, Box::new(stderr)] {
            let lines = lines.clone();
            thread::spawn(move || {
                let mut reader = BufReader::new(reader);
                let mut line = Vec::new();
                while reader.read_until(b'\n', &mut line).is_ok_and(|length| length > 0) {
                    if lines.send(String::from_utf8_lossy(&line).into_owned()).is_err() {
                        break;
                    }
                    line.clear();
                }
            });
        }
        drop(lines);
        let deadline = Instant::now() + limit;
        let mut text = String::new();
        loop {
            match console.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(line) => {
                    text += &line;
                    if line.contains(END) {
                        return Ok(text);
                    }
                }
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => return Ok(text),
            }
        }
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
