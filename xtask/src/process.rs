//! Running other programs: every failure names the command line and what it wrote.

use std::{
    env,
    ffi::OsStr,
    fs::{self, File},
    io::Write as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};

/// Lines of a log that a failure repeats.
const TAIL: usize = 12;

/// Runs with inherited output; an exit status other than 0 is an error.
pub fn run(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| format!("starting `{}`", line(command)))?;
    if !status.success() {
        bail!("`{}` failed: {status}", line(command));
    }
    Ok(())
}

/// Runs with inherited output for at most `limit`; then it is killed, and that is an error too.
pub fn run_for(command: &mut Command, limit: Duration) -> Result<()> {
    let mut child =
        command.stdin(Stdio::null()).spawn().with_context(|| format!("starting `{}`", line(command)))?;
    let start = Instant::now();
    loop {
        if let Some(status) = child.try_wait()? {
            if !status.success() {
                bail!("`{}` failed: {status}", line(command));
            }
            return Ok(());
        }
        if start.elapsed() > limit {
            child.kill()?;
            child.wait()?;
            bail!("`{}` was not done after {} s", line(command), limit.as_secs());
        }
        thread::sleep(Duration::from_millis(50));
    }
}

/// Runs with all output appended to the file `log`; a failure repeats the last lines of it.
pub fn run_logged(command: &mut Command, log: &Path) -> Result<()> {
    if let Some(dir) = log.parent() {
        fs::create_dir_all(dir).with_context(|| format!("creating {}", dir.display()))?;
    }
    let open = || File::options().create(true).append(true).open(log);
    let mut file = open().with_context(|| format!("opening {}", log.display()))?;
    writeln!(file, "$ {}", line(command))?;
    let status = command
        .stdin(Stdio::null())
        .stdout(file)
        .stderr(open()?)
        .status()
        .with_context(|| format!("starting `{}`", line(command)))?;
    if !status.success() {
        let text = String::from_utf8_lossy(&fs::read(log)?).into_owned();
        let lines: Vec<_> = text.lines().collect();
        let tail = &lines[lines.len().saturating_sub(TAIL)..];
        bail!("`{}` failed: {status}; the end of {}:\n{}", line(command), log.display(), tail.join("\n"));
    }
    Ok(())
}

/// Runs quietly and returns its standard output.
pub fn output(command: &mut Command) -> Result<String> {
    let output =
        command.stdin(Stdio::null()).output().with_context(|| format!("starting `{}`", line(command)))?;
    if !output.status.success() {
        bail!(
            "`{}` failed: {}\n{}",
            line(command),
            output.status,
            String::from_utf8_lossy(&output.stderr).trim_end()
        );
    }
    String::from_utf8(output.stdout).with_context(|| format!("`{}` wrote no UTF-8", line(command)))
}

/// Returns its standard output, while what it says on standard error is seen as it comes.
pub fn output_beside(command: &mut Command) -> Result<String> {
    let output = command
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .with_context(|| format!("starting `{}`", line(command)))?;
    if !output.status.success() {
        bail!("`{}` failed: {}", line(command), output.status);
    }
    String::from_utf8(output.stdout).with_context(|| format!("`{}` wrote no UTF-8", line(command)))
}

/// Where a program lies in PATH or in the directories of system tools, which a user's PATH may lack.
pub fn which(program: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .chain(["/usr/local/sbin", "/usr/sbin", "/sbin"].map(PathBuf::from))
        .map(|dir| dir.join(program))
        .find(|file| file.is_file())
}

pub fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

fn line(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(OsStr::to_string_lossy).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_names_the_command_and_its_words() {
        let error = output(Command::new("sh").args(["-c", "echo gone >&2; exit 3"])).unwrap_err().to_string();
        assert!(error.contains("sh -c") && error.contains("gone"), "{error}");
    }

    #[test]
    fn a_logged_command_is_silent_and_its_failure_repeats_the_end_of_the_log() {
        let log = env::temp_dir().join(format!("shunt-xtask-log-{}/run.log", std::process::id()));
        run_logged(Command::new("sh").args(["-c", "seq 100; echo also >&2"]), &log).unwrap();
        let error = run_logged(Command::new("sh").args(["-c", "echo gone >&2; exit 3"]), &log).unwrap_err();
        let error = error.to_string();
        assert!(error.ends_with("\n$ sh -c echo gone >&2; exit 3\ngone"), "{error}");
        assert!(error.contains("\nalso\n") && !error.contains("\n50\n"), "{error}");
        fs::remove_dir_all(log.parent().unwrap()).unwrap();
    }

    #[test]
    fn a_command_that_hangs_is_ended() {
        let start = Instant::now();
        let error = run_for(Command::new("sleep").arg("20"), Duration::from_millis(100)).unwrap_err();
        assert!(error.to_string().contains("sleep 20"));
        assert!(start.elapsed() < Duration::from_secs(5));
    }

    #[test]
    fn programs_are_found() {
        assert!(which("sh").is_some());
        assert_eq!(which("no-such-program-of-ours"), None);
    }
}
