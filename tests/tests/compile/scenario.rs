//! One golden scenario: its manifests, the flags in its first lines, and the comparison with its `.out` file.

use std::{
    collections::BTreeSet,
    env, fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail, ensure};
use clap::Parser as _;
use shunt::{
    cli::{
        args::{Cli, Command},
        compile::{config_of, print_problems_into},
    },
    config::CompileConfig,
    offline::{Offline, print_tables_into},
};

/// The directory of the scenarios.
pub fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("golden")
}

/// One scenario's manifests.
pub struct Scenario {
    name: &'static str,
    pub manifests: PathBuf,
    pub node: String,
    pub config: CompileConfig,
}

impl Scenario {
    pub fn new(name: &'static str) -> Result<Self> {
        let directory = golden().join(name);
        let file = golden().join(format!("{name}.yaml"));
        let manifests = if directory.is_dir() { directory } else { file };
        let text = fs::read_to_string(&manifests).unwrap_or_default();
        let line = |start: &str| text.lines().find_map(|line| line.strip_prefix(start));
        let node = line("# node: ").unwrap_or("n1").to_owned();
        let words = ["shunt", "compile", "-f", "-"].into_iter();
        let cli = Cli::try_parse_from(words.chain(line("# flags: ").unwrap_or_default().split_whitespace()))?;
        let Command::Compile(args) = cli.command else { bail!("{name}: flags of another command") };
        Ok(Self { name, manifests, node, config: config_of(&args)? })
    }

    pub fn compile(&self) -> Result<Offline> {
        Ok(Offline::compile(&self.manifests, &self.node, self.config.clone())?)
    }

    /// The output of `shunt compile`, with file names relative to the golden directory.
    fn text(&self, offline: &Offline) -> Result<String> {
        let mut out = Vec::new();
        print_problems_into(&mut out, offline, &self.node)?;
        print_tables_into(&mut out, &offline.view(), true)?;
        let prefix = format!("{}/", golden().display());
        Ok(String::from_utf8(out)?.replace(&prefix, ""))
    }

    pub fn compare(&self, offline: &Offline) -> Result<()> {
        let got = self.text(offline)?;
        let path = golden().join(format!("{}.out", self.name));
        if env::var_os("UPDATE").is_some() {
            return fs::write(&path, got).with_context(|| format!("writing {}", path.display()));
        }
        let want = fs::read_to_string(&path)
            .with_context(|| format!("{}: write it with UPDATE=1 and read it", path.display()))?;
        ensure!(got == want, "{} differs (UPDATE=1 accepts):\n{}", path.display(), differences(&want, &got));
        Ok(())
    }
}

/// Lines that only one of the texts contains.
fn differences(want: &str, got: &str) -> String {
    let lines = |text: &str| -> BTreeSet<String> { text.lines().map(str::to_owned).collect() };
    let (wanted, found) = (lines(want), lines(got));
    let missing = want.lines().filter(|line| !found.contains(*line)).map(|line| format!("- {line}\n"));
    let new = got.lines().filter(|line| !wanted.contains(*line)).map(|line| format!("+ {line}\n"));
    let text: String = missing.chain(new).collect();
    if text.is_empty() { format!("the same lines in another order; now:\n{got}") } else { text }
}
