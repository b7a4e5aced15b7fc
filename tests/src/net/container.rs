//! A container as a runtime creates it from `manifests/base/daemonset.yaml`, without the runtime: its own namespaces
//! except for the network namespace, a read-only root, three capabilities, no new privileges.
//!
//! Tests start [`Container::command`]; `shunt-contained` (the program in `src/bin`) calls [`enter`].

use std::{
    convert::Infallible,
    ffi::{CString, OsString},
    fs,
    os::unix::ffi::OsStringExt as _,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail};
use clap::Parser;
use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    sched::{CloneFlags, unshare},
    sys::{
        signal::{SigSet, SigmaskHow, Signal, kill, sigprocmask},
        wait::{WaitPidFlag, WaitStatus, waitpid},
    },
    unistd::{ForkResult, chdir, execve, fork, pivot_root},
};

/// The privileges of a container.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Privileges {
    /// The DaemonSet's `capabilities` only.
    Three,
    /// `privileged: true`.
    All,
}

/// CAP_NET_ADMIN, CAP_PERFMON, CAP_BPF.
const THREE: [u8; 3] = [12, 38, 39];

impl Privileges {
    /// The expected mask in `CapEff` of /proc/PID/status, if it is known in advance.
    pub fn effective(self) -> Option<u64> {
        (self == Self::Three).then(|| THREE.iter().map(|cap| 1 << cap).sum())
    }
}

/// A container: its program and the parts of the machine it can see.
#[derive(Clone, Debug, Parser)]
#[command(about = "Runs a program in a container, for shunt's tests")]
pub struct Container {
    /// The program's path on the machine; in the container it is /shunt.
    #[arg(long)]
    pub program: PathBuf,
    /// An empty directory to build the root in.
    #[arg(long)]
    pub root: PathBuf,
    /// Files and directories mounted read-only: PATH, or FROM=TO for a different path outside.
    #[arg(long)]
    pub see: Vec<String>,
    /// The environment: NAME=VALUE.
    #[arg(long)]
    pub env: Vec<String>,
    #[arg(long)]
    pub privileged: bool,
    /// The program's arguments.
    #[arg(last = true)]
    pub args: Vec<OsString>,
}

impl Container {
    pub fn new(program: PathBuf, root: PathBuf, privileges: Privileges) -> Self {
        let privileged = privileges == Privileges::All;
        Self { program, root, see: Vec::new(), env: Vec::new(), privileged, args: Vec::new() }
    }

    /// Mounts this path read-only at the same path in the container.
    pub fn sees(mut self, path: &Path) -> Self {
        self.see.push(path.display().to_string());
        self
    }

    /// Mounts `from` read-only at `to`.
    pub fn sees_at(mut self, from: &Path, to: &str) -> Self {
        self.see.push(format!("{}={to}", from.display()));
        self
    }

    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.env.push(format!("{name}={value}"));
        self
    }

    /// The command that starts the container, `contained` being the path of `shunt-contained`; the program's arguments
    /// follow.
    pub fn command(&self, contained: &Path) -> Vec<OsString> {
        let mut words = vec![contained.into(), "--program".into(), self.program.clone().into()];
        words.extend(["--root".into(), self.root.clone().into()]);
        for path in &self.see {
            words.extend(["--see".into(), path.clone().into()]);
        }
        for pair in &self.env {
            words.extend(["--env".into(), pair.clone().into()]);
        }
        if self.privileged {
            words.push("--privileged".into());
        }
        words.push("--".into());
        words
    }
}

/// Creates the container and runs its program as process 1; returns the program's exit status. The caller must be
/// single-threaded and in the network namespace that the container is to use.
pub fn run(container: &Container) -> Result<i32> {
    // A signal between fork and wait must not be lost.
    let mut signals = SigSet::empty();
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGCHLD] {
        signals.add(signal);
    }
    let mut before = SigSet::empty();
    sigprocmask(SigmaskHow::SIG_BLOCK, Some(&signals), Some(&mut before))?;
    unshare(
        CloneFlags::CLONE_NEWNS
            | CloneFlags::CLONE_NEWPID
            | CloneFlags::CLONE_NEWIPC
            | CloneFlags::CLONE_NEWUTS
            | CloneFlags::CLONE_NEWCGROUP,
    )
    .context("unshare: as root only")?;
    // SAFETY: this process has one thread, so the child may do whatever the parent might.
    match unsafe { fork() }? {
        ForkResult::Child => {
            nix::sys::prctl::set_pdeathsig(Signal::SIGKILL)?;
            sigprocmask(SigmaskHow::SIG_SETMASK, Some(&before), None)?;
            match enter(container)? {}
        }
        ForkResult::Parent { child } => loop {
            match signals.wait()? {
                Signal::SIGCHLD => match waitpid(child, Some(WaitPidFlag::WNOHANG))? {
                    WaitStatus::Exited(_, status) => return Ok(status),
                    WaitStatus::Signaled(_, signal, _) => return Ok(128 + signal as i32),
                    _ => {}
                },
                signal => kill(child, signal)?,
            }
        },
    }
}

fn enter(container: &Container) -> Result<Infallible> {
    build_root(container)?;
    if !container.privileged {
        drop_capabilities()?;
    }
    let text = |word: OsString| CString::new(word.into_vec()).context("a word with a NUL");
    let args = [OsString::from("/shunt")].into_iter().chain(container.args.iter().cloned());
    let args = args.map(text).collect::<Result<Vec<_>>>()?;
    // As a runtime does: only environment variables that the manifest names.
    let env = [OsString::from("NO_COLOR=1")].into_iter().chain(container.env.iter().map(OsString::from));
    let env = env.map(text).collect::<Result<Vec<_>>>()?;
    Ok(execve(c"/shunt", &args, &env)?)
}

fn bind(from: &Path, to: &Path, read_only: bool) -> Result<()> {
    let none = None::<&str>;
    mount(Some(from), to, none, MsFlags::MS_BIND | MsFlags::MS_REC, none)
        .with_context(|| format!("binding {} to {}", from.display(), to.display()))?;
    if read_only {
        let flags = MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
        mount(none, to, none, flags, none).with_context(|| format!("{}: read-only", to.display()))?;
    }
    Ok(())
}

/// The root: `/shunt`, the mounted paths, /proc, /sys, and the machine's bpffs and cgroups at their usual places;
/// nothing else.
fn build_root(container: &Container) -> Result<()> {
    let (root, none) = (&container.root, None::<&str>);
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).context("/: private")?;
    mount(Some("tmpfs"), root, Some("tmpfs"), MsFlags::empty(), Some("mode=755")).context("a root")?;
    let inside = |path: &Path| root.join(path.strip_prefix("/").unwrap_or(path));
    fs::write(root.join("shunt"), "")?;
    bind(&container.program, &root.join("shunt"), true)?;
    for pair in &container.see {
        let (from, to) = pair.split_once('=').unwrap_or((pair, pair));
        let (path, to) = (Path::new(from), inside(Path::new(to)));
        if path.is_dir() {
            fs::create_dir_all(&to)?;
        } else {
            fs::create_dir_all(to.parent().context("a file in a directory")?)?;
            fs::write(&to, "")?;
        }
        bind(path, &to, true)?;
    }
    for name in ["proc", "sys"] {
        fs::create_dir(root.join(name))?;
    }
    mount(Some("proc"), &root.join("proc"), Some("proc"), MsFlags::empty(), none).context("/proc")?;
    bind(&root.join("proc/sys"), &root.join("proc/sys"), !container.privileged)?;
    let read_only = if container.privileged { MsFlags::empty() } else { MsFlags::MS_RDONLY };
    mount(Some("sysfs"), &root.join("sys"), Some("sysfs"), read_only, none).context("/sys")?;
    bind(Path::new("/sys/fs/bpf"), &root.join("sys/fs/bpf"), false)?;
    bind(Path::new("/sys/fs/cgroup"), &root.join("sys/fs/cgroup"), true)?;
    mount(none, root, none, MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY, none).context("the root: read-only")?;
    // pivot_root stacks the old root on top of the new one, where it is unmounted: it needs no directory.
    chdir(root)?;
    pivot_root(".", ".").context("pivot_root")?;
    umount2(".", MntFlags::MNT_DETACH).context("the old root")?;
    Ok(chdir("/")?)
}

/// Keeps only [`THREE`] in the bounding set, which is what a process of uid 0 has after its next exec.
fn drop_capabilities() -> Result<()> {
    let last: u8 = fs::read_to_string("/proc/sys/kernel/cap_last_cap")?.trim().parse()?;
    for cap in (0..=last).filter(|cap| !THREE.contains(cap)) {
        // SAFETY: this option takes a number and touches no memory of this process.
        if unsafe { libc::prctl(libc::PR_CAPBSET_DROP, libc::c_ulong::from(cap), 0, 0, 0) } != 0 {
            bail!("dropping capability {cap}: {}", std::io::Error::last_os_error());
        }
    }
    nix::sys::prctl::set_no_new_privs().context("no new privileges")
}

/// Whether the root of this process is read-only: read from /proc/PID/mountinfo.
pub fn root_is_read_only(pid: u32) -> Result<bool> {
    let text = fs::read_to_string(format!("/proc/{pid}/mountinfo"))?;
    let root =
        text.lines().map(|line| line.split(' ').collect::<Vec<_>>()).find(|words| words.get(4) == Some(&"/"));
    let super_options = root.context("no root")?.last().copied().unwrap_or_default().to_owned();
    Ok(super_options.split(',').any(|option| option == "ro"))
}

/// The only child of a process. For `shunt-contained`, this is the program.
pub fn child_of(pid: u32) -> Result<u32> {
    let path = format!("/proc/{pid}/task/{pid}/children");
    let text = fs::read_to_string(&path).with_context(|| format!("reading {path}"))?;
    text.trim().parse().with_context(|| format!("{path}: {text:?}"))
}

/// A line of /proc/PID/status.
pub fn status(pid: u32, field: &str) -> Result<String> {
    let text = fs::read(format!("/proc/{pid}/status"))?;
    let text = String::from_utf8_lossy(&text);
    let line = text.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(":\t"));
    Ok(line.with_context(|| format!("no {field}"))?.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn its_words_are_read_back() {
        let container = Container::new("/a".into(), "/r".into(), Privileges::All);
        let container = container.sees(Path::new("/x")).sees_at(Path::new("/y"), "/z").env("A", "b=c");
        let words = container.command(Path::new("shunt-contained"));
        let again =
            Container::try_parse_from(words.into_iter().chain(["run".into(), "--trace".into()])).unwrap();
        assert_eq!((&again.program, &again.root), (&container.program, &container.root));
        assert_eq!((again.see, again.env), (vec!["/x".into(), "/y=/z".into()], vec!["A=b=c".to_owned()]));
        assert!(again.privileged);
        assert_eq!(again.args, ["run", "--trace"]);
    }

    #[test]
    fn three_capabilities_are_three_bits() {
        assert_eq!(Privileges::Three.effective(), Some(0xc0_0000_1000));
        assert_eq!(Privileges::All.effective(), None);
    }
}
