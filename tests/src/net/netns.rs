//! One network namespace, held by file descriptor: it is removed with the process that created it, however that process
//! ends.
//!
//! It is not entered by `ip netns exec`, which hides bpffs behind a mount namespace of its own.

use std::{
    fs::{self, File},
    io::Write,
    os::{
        fd::{AsRawFd, RawFd},
        unix::process::CommandExt,
    },
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    thread,
};

use anyhow::{Context, Result, bail};
use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    sched::{CloneFlags, setns, unshare},
    sys::signal::Signal,
};

/// Where iproute2 looks for namespaces by name.
const RUN_NETNS: &str = "/run/netns";

/// A network namespace.
#[derive(Debug)]
pub struct Netns {
    name: String,
    file: File,
    published: Option<PathBuf>,
}

impl Netns {
    /// A new, empty namespace with `lo` up, duplicate address detection off and router advertisements ignored.
    pub fn new(name: impl Into<String>) -> Result<Self> {
        let name = name.into();
        let file = thread::spawn(|| -> Result<File> {
            unshare(CloneFlags::CLONE_NEWNET)
                .context("unshare(CLONE_NEWNET): the network suite and the demo must run as root")?;
            Ok(File::open("/proc/thread-self/ns/net")?)
        })
        .join()
        .expect("the thread that makes a namespace does not panic")?;
        let netns = Self { name, file, published: None };
        for scope in ["all", "default"] {
            netns.sysctl(&format!("net/ipv6/conf/{scope}/accept_dad"), "0")?;
            netns.sysctl(&format!("net/ipv6/conf/{scope}/accept_ra"), "0")?;
        }
        netns.ip("link set lo up")?;
        Ok(netns)
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// A path other processes can open while this one lives.
    pub fn path(&self) -> PathBuf {
        match &self.published {
            Some(path) => path.clone(),
            None => format!("/proc/{}/fd/{}", std::process::id(), self.file.as_raw_fd()).into(),
        }
    }

    /// Gives the namespace a name that `ip netns` shows, until the namespace is dropped.
    pub fn publish(&mut self, name: &str) -> Result<()> {
        fs::create_dir_all(RUN_NETNS)?;
        let path = Path::new(RUN_NETNS).join(name);
        File::create_new(&path).with_context(|| format!("making {}", path.display()))?;
        let source = format!("/proc/self/fd/{}", self.file.as_raw_fd());
        if let Err(error) = mount(Some(source.as_str()), &path, None::<&str>, MsFlags::MS_BIND, None::<&str>)
        {
            let _ = fs::remove_file(&path);
            return Err(error).with_context(|| format!("naming namespace {name}"));
        }
        self.published = Some(path);
        Ok(())
    }

    /// Moves the calling thread into the namespace for good.
    pub fn join(&self) -> Result<()> {
        setns(&self.file, CloneFlags::CLONE_NEWNET).with_context(|| format!("setns into {}", self.name))
    }

    /// Runs `f` with the calling thread inside the namespace. Sockets and devices made there stay there.
    pub fn enter<T>(&self, f: impl FnOnce() -> T) -> T {
        /// Returns the thread to its own namespace, also when `f` panics.
        struct Back(File);
        impl Drop for Back {
            fn drop(&mut self) {
                setns(&self.0, CloneFlags::CLONE_NEWNET).expect("back to the thread's own namespace");
            }
        }
        let back = Back(File::open("/proc/thread-self/ns/net").expect("/proc is mounted"));
        setns(&self.file, CloneFlags::CLONE_NEWNET).expect("setns into a namespace of ours, as root");
        let value = f();
        drop(back);
        value
    }

    /// A command that runs inside the namespace and is killed when the calling thread ends.
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let fd: RawFd = self.file.as_raw_fd();
        let mut command = Command::new(program);
        // SAFETY: between fork and exec only two system calls are made, both async-signal-safe; `fd` stays open in
        // the child because the child is a copy of this process, and O_CLOEXEC acts only later.
        unsafe {
            command.pre_exec(move || {
                if libc::setns(fd, libc::CLONE_NEWNET) != 0 {
                    return Err(std::io::Error::last_os_error());
                }
                nix::sys::prctl::set_pdeathsig(Signal::SIGKILL)?;
                Ok(())
            });
        }
        command
    }

    /// Runs a command to completion and returns its stdout; on failure the error has its stderr.
    pub fn run(&self, words: &[&str]) -> Result<String> {
        let output = self.output(words)?;
        if !output.status.success() {
            bail!("{words:?} in {}: {}", self.name, String::from_utf8_lossy(&output.stderr).trim());
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Runs a command to completion, whatever its exit status.
    pub fn output(&self, words: &[&str]) -> Result<Output> {
        let (program, args) = words.split_first().context("an empty command")?;
        self.command(program)
            .args(args)
            .stdin(Stdio::null())
            .output()
            .with_context(|| format!("cannot run {program}: install it (iproute2, nftables)"))
    }

    /// Runs lines in iproute2's batch syntax, without the leading `ip`.
    pub fn ip(&self, lines: &str) -> Result<()> {
        self.fed("ip", &["-batch", "-"], lines)
    }

    /// Runs an nftables script.
    pub fn nft(&self, script: &str) -> Result<()> {
        self.fed("nft", &["-f", "-"], script)
    }

    /// Writes `/proc/sys/KEY` (with slashes) as the namespace sees it.
    pub fn sysctl(&self, key: &str, value: &str) -> Result<()> {
        let path = Path::new("/proc/sys").join(key);
        self.enter(|| fs::write(&path, value))
            .with_context(|| format!("{}: writing {value} to {}", self.name, path.display()))
    }

    fn fed(&self, program: &str, args: &[&str], input: &str) -> Result<()> {
        let mut child: Child = self
            .command(program)
            .args(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot run {program}: install it (iproute2, nftables)"))?;
        // The programs read all of their input before they write more than a pipe holds.
        child.stdin.take().context("stdin is piped")?.write_all(input.as_bytes())?;
        let output = child.wait_with_output()?;
        if !output.status.success() {
            bail!("{program} in {}: {}\n{input}", self.name, String::from_utf8_lossy(&output.stderr).trim());
        }
        Ok(())
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        if let Some(path) = &self.published {
            let _ = umount2(path, MntFlags::MNT_DETACH);
            let _ = fs::remove_file(path);
        }
    }
}

/// Removes the names that dead processes had published for namespaces as `PREFIX-PID-...`.
pub fn sweep(prefix: &str) {
    for entry in fs::read_dir(RUN_NETNS).into_iter().flatten().flatten() {
        let name = entry.file_name();
        if super::scratch::is_orphan(&name.to_string_lossy(), prefix) {
            let _ = umount2(&entry.path(), MntFlags::MNT_DETACH);
            let _ = fs::remove_file(entry.path());
        }
    }
}
