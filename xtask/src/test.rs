//! `cargo xtask test`: every level of tests, summed up in one last line `N passed, N failed`.
//!
//! A level is a set of cargo targets. Nothing is skipped: a level without tests, a test marked `#[ignore]`,
//! a missing privilege or program is a failure that names its fix.

use std::{
    fs,
    io::{BufRead as _, BufReader, IsTerminal as _, Read},
    path::Path,
    process::{Command, ExitCode, Stdio},
};

use anyhow::{Context as _, Result};

use crate::{
    build, kernels, process,
    progress::say,
    qemu,
    setup::{
        self,
        packages::{self, Program},
    },
    workspace::Workspace,
};

#[derive(Debug, clap::Args)]
pub struct Args {
    /// What to run; all of it without.
    #[arg(value_enum)]
    levels: Vec<Level>,
    /// Only tests whose name contains this.
    #[arg(long)]
    only: Option<String>,
    /// The network suite with its nodes' outside traffic in this XDP lane
    #[arg(long, value_enum)]
    xdp: Option<Lane>,
}

/// `shunt run --xdp`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Lane {
    Native,
    Generic,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Level {
    /// At the foot of each module; needs nothing.
    Unit,
    /// Golden scenarios: manifests in, the table dump out; needs nothing.
    Compile,
    /// BPF_PROG_TEST_RUN of the real object; needs root.
    Packet,
    /// Network namespaces, real sockets, the real program; needs root.
    Network,
    /// A Kubernetes API server that is followed, with its faults; needs root.
    Api,
    /// Other kernels under qemu.
    Vm,
}

impl Level {
    const ALL: [Self; 6] = [Self::Unit, Self::Compile, Self::Packet, Self::Network, Self::Api, Self::Vm];

    fn name(self) -> &'static str {
        match self {
            Self::Unit => "unit",
            Self::Compile => "compile",
            Self::Packet => "packet",
            Self::Network => "network",
            Self::Api => "api",
            Self::Vm => "vm",
        }
    }

    /// The programs of the system that its tests call.
    fn programs(self) -> &'static [Program] {
        match self {
            Self::Unit | Self::Compile => &[],
            Self::Packet | Self::Api => packages::NAMESPACES,
            Self::Network => packages::NETWORK_TESTS,
            Self::Vm => packages::VM_TESTS,
        }
    }

    fn needs_root(self) -> bool {
        matches!(self, Self::Packet | Self::Network | Self::Api)
    }

    /// Cargo's words for the targets of this level: of the suites, the files whose name begins with it.
    fn selection(self) -> Vec<String> {
        let words: &[&str] = match self {
            Self::Unit => &["--lib", "--bins"],
            level => &["-p", "tests", "--test", &format!("{}*", level.name())],
        };
        words.iter().map(|word| (*word).to_owned()).collect()
    }
}

/// Passed and failed tests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Sum {
    passed: usize,
    failed: usize,
    /// Tests that were there and did not run.
    ignored: usize,
}

pub fn run(workspace: &Workspace, args: &Args) -> Result<ExitCode> {
    let levels = if args.levels.is_empty() { &Level::ALL[..] } else { &args.levels };
    setup::build(workspace)?;
    for level in levels {
        // What is missing is the failure of those tests that call it; the others are run.
        if let Err(error) = setup::programs(workspace, level.programs()) {
            eprintln!("{}: {error:#}", level.name());
        }
    }
    if levels.iter().any(|level| level.needs_root()) {
        setup::bpffs()?;
    }
    // The network and vm suites start the real `shunt`, which is not theirs for cargo to build.
    build::cargo_build(workspace, false, &[])?;
    if levels.contains(&Level::Network) {
        // Of the tests in containers and in an empty chroot.
        build::static_build(workspace, false, &[])?;
    }
    let mut total = Sum::default();
    for level in levels {
        let sum = run_level(workspace, *level, args).unwrap_or_else(|error| {
            eprintln!("{}: {error:#}", level.name());
            Sum { failed: 1, ..Sum::default() }
        });
        say(level.name(), format_args!("{} passed, {} failed", sum.passed, sum.failed));
        total.passed += sum.passed;
        total.failed += sum.failed;
    }
    println!("{} passed, {} failed", total.passed, total.failed);
    Ok(if total.failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn run_level(workspace: &Workspace, level: Level, args: &Args) -> Result<Sum> {
    let only = args.only.as_deref();
    if level.needs_root() && !process::is_root() {
        anyhow::bail!(
            "this level loads programs and makes network namespaces: run it as root, `sudo -E cargo xtask test {}`",
            level.name()
        );
    }
    if level != Level::Unit && !has_suite(workspace, level)? {
        anyhow::bail!("there is no tests/tests/{0}*.rs and no tests/tests/{0}*/main.rs", level.name());
    }
    if level == Level::Vm {
        kernels::fetch_all(workspace)?;
        qemu::fetch(workspace)?;
    }
    say("test", level.name());
    let nextest = process::which("cargo-nextest").is_some();
    let mut cargo = workspace.cargo();
    if nextest {
        cargo.args(["nextest", "run", "--no-fail-fast", "--no-tests", "pass"]).args(level.selection());
    } else {
        cargo.args(["test", "--no-fail-fast"]).args(level.selection());
    }
    cargo.args(only);
    cargo.env("SHUNT_BIN", workspace.binary("debug", "shunt")).env("PATH", workspace.path()?);
    match args.xdp {
        Some(Lane::Native) => cargo.env("SHUNT_TEST_XDP", "native"),
        Some(Lane::Generic) => cargo.env("SHUNT_TEST_XDP", "generic"),
        None => cargo.env_remove("SHUNT_TEST_XDP"),
    };
    if std::io::stderr().is_terminal() {
        cargo.env("CARGO_TERM_COLOR", "always");
    }
    let tables = workspace.target().join("vm/tables");
    // Of an earlier run, if it exists.
    let _ = fs::remove_dir_all(&tables);
    let (success, text) = watch(&mut cargo, nextest)?;
    if level == Level::Vm {
        print_tables(&tables);
    }
    let mut sum = if nextest { nextest_sum(&text) } else { libtest_sum(&text) };
    if sum.ignored > 0 && only.is_none() {
        eprintln!(
            "{}: {} tests are marked #[ignore]; a test that does not run counts as failed",
            level.name(),
            sum.ignored
        );
        sum.failed += sum.ignored;
    }
    if !success && sum.failed == 0 {
        // It did not build, or a test process could not be started.
        sum.failed = 1;
    }
    if success && sum.passed == 0 && only.is_none() {
        eprintln!("{}: no test ran", level.name());
        sum.failed += 1;
    }
    Ok(sum)
}

fn has_suite(workspace: &Workspace, level: Level) -> Result<bool> {
    let dir = workspace.root.join("tests/tests");
    let entries = fs::read_dir(&dir).with_context(|| format!("reading {}", dir.display()))?;
    Ok(entries.filter_map(Result::ok).any(|entry| {
        let name = entry.file_name();
        let name = name.to_string_lossy();
        name.starts_with(level.name()) && (name.ends_with(".rs") || entry.path().join("main.rs").is_file())
    }))
}

/// What the vm tests found in each kernel: runners show a test's own output only when it fails.
fn print_tables(dir: &Path) {
    println!("{:<28} {:<14} {:>9}  attached", "kernel", "program", "verified");
    for series in kernels::SERIES {
        // A kernel that was refused, or did not come up, has no table.
        if let Ok(table) = fs::read_to_string(dir.join(series)) {
            print!("{table}");
        }
    }
}

/// Runs, passes everything on as it comes, and returns what was written where the summary stands: nextest
/// writes it to standard error, libtest to standard output.
fn watch(command: &mut Command, summary_on_stderr: bool) -> Result<(bool, String)> {
    if summary_on_stderr {
        command.stderr(Stdio::piped());
    } else {
        command.stdout(Stdio::piped());
    }
    let mut child = command.spawn().context("starting cargo")?;
    let text = match (child.stderr.take(), child.stdout.take()) {
        (Some(stderr), _) => relay(stderr, |line| eprint!("{line}"))?,
        (_, Some(stdout)) => relay(stdout, |line| print!("{line}"))?,
        (None, None) => String::new(),
    };
    Ok((child.wait()?.success(), plain(&text)))
}

fn relay(from: impl Read, show: impl Fn(&str)) -> Result<String> {
    let mut reader = BufReader::new(from);
    let (mut all, mut line) = (String::new(), Vec::new());
    while reader.read_until(b'\n', &mut line)? > 0 {
        let text = String::from_utf8_lossy(&line);
        show(&text);
        all.push_str(&text);
        line.clear();
    }
    Ok(all)
}

/// Without colour escapes.
fn plain(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('\u{1b}') {
        out.push_str(before);
        rest = after.split_once('m').map_or("", |(_, rest)| rest);
    }
    out + rest
}

/// `Summary [   0.4s] 12 tests run: 10 passed (1 slow), 1 failed, 1 timed out, 2 skipped`
fn nextest_sum(text: &str) -> Sum {
    let mut sum = Sum::default();
    for line in text.lines().filter_map(|line| line.trim_start().strip_prefix("Summary [")) {
        let counts = line.split_once("run: ").map_or("", |(_, counts)| counts);
        // What stands in parentheses repeats tests that are counted outside.
        let counts: String =
            counts.split('(').map(|part| part.split_once(')').map_or(part, |(_, rest)| rest)).collect();
        for (number, what) in counts.split(',').filter_map(|part| part.trim().split_once(' ')) {
            let number = number.parse().unwrap_or(0);
            match what.trim() {
                "passed" => sum.passed += number,
                "skipped" => sum.ignored += number,
                _ => sum.failed += number,
            }
        }
    }
    sum
}

/// `test result: ok. 12 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.02s`
fn libtest_sum(text: &str) -> Sum {
    let mut sum = Sum::default();
    for line in text.lines().filter_map(|line| line.trim_start().strip_prefix("test result:")) {
        for part in line.split(['.', ';']) {
            let Some((number, what)) = part.trim().split_once(' ') else { continue };
            let Ok(number) = number.parse::<usize>() else { continue };
            match what {
                "passed" => sum.passed += number,
                "failed" => sum.failed += number,
                "ignored" => sum.ignored += number,
                _ => {}
            }
        }
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nextest_summaries_are_added_up() {
        let text = "     Summary [   0.031s] 12 tests run: 10 passed (2 slow, 1 leaky), 1 failed, 1 timed out, 3 skipped\n";
        assert_eq!(nextest_sum(text), Sum { passed: 10, failed: 2, ignored: 3 });
        assert_eq!(nextest_sum("     Summary [ 1s] 4/5 tests run: 4 passed, 0 skipped").passed, 4);
        assert_eq!(nextest_sum("error: could not compile"), Sum::default());
    }

    #[test]
    fn libtest_results_are_added_up() {
        let line = "test result: FAILED. 3 passed; 2 failed; 1 ignored; 0 measured; 4 filtered out; finished in 0.10s";
        assert_eq!(libtest_sum(&format!("{line}\n{line}\n")), Sum { passed: 6, failed: 4, ignored: 2 });
    }

    #[test]
    fn colours_do_not_hide_a_summary() {
        let text = "\u{1b}[32;1m     Summary\u{1b}[0m [ 1s] \u{1b}[1m2\u{1b}[0m tests run: \u{1b}[1m2\u{1b}[0m \u{1b}[32;1mpassed\u{1b}[0m, \u{1b}[1m0\u{1b}[0m skipped";
        assert_eq!(nextest_sum(&plain(text)), Sum { passed: 2, failed: 0, ignored: 0 });
    }
}
