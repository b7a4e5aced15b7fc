//! Golden scenarios of the config line: manifests in, the tables of `shunt compile` out.
//!
//! `tests/golden/NAME.yaml` (or the directory `NAME`) is compiled for node `n1`, or the one a line `# node: X`
//! names, with the flags of a line `# flags: ...`, and compared with `NAME.out`; `UPDATE=1` writes those anew. What
//! must hold of any manifests, however they arrive, is then tried with each of them.

mod changes;
mod invariants;
mod random;

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

macro_rules! scenarios {
    ($($name:ident)*) => {
        const SCENARIOS: &[&str] = &[$(stringify!($name)),*];
        $(
            #[test]
            fn $name() -> Result<()> {
                Scenario::new(stringify!($name))?.check()
            }
        )*
    };
}

scenarios! {
    absent_conditions affinity affinity_sets bad_endpoints bad_objects claims cluster_ip detect_local_bridge
    detect_local_cluster_cidr detect_local_node_cidr detect_local_prefix drop_or_refuse dual_stack dump
    duplicate_endpoints endpoints external_ips_off external_local external_name filtered_by_label
    health_check hints hints_all_or_nothing internal_local load_balancer load_balancer_ip_mode no_endpoints
    node_port_zero nodeport_addresses_primary nodeport_addresses_ranges nodeport_source_ranges not_served other_node protocol_twins
    publish_not_ready scheduler_random sctp several_slices shared_backends slices_of_others source_ranges
    terminating two_files vip_is_a_node_address
}

fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("golden")
}

/// One scenario's manifests.
pub struct Scenario {
    name: &'static str,
    manifests: PathBuf,
    node: String,
    config: CompileConfig,
}

impl Scenario {
    fn new(name: &'static str) -> Result<Self> {
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

    fn compile(&self) -> Result<Offline> {
        Ok(Offline::compile(&self.manifests, &self.node, self.config.clone())?)
    }

    fn check(&self) -> Result<()> {
        let offline = self.compile()?;
        self.compare(&offline)?;
        invariants::check(self, &offline).with_context(|| format!("scenario {}", self.name))
    }

    /// What `shunt compile` says, with file names as seen from the golden directory.
    fn text(&self, offline: &Offline) -> Result<String> {
        let mut out = Vec::new();
        print_problems_into(&mut out, offline, &self.node)?;
        print_tables_into(&mut out, &offline.view(), true)?;
        let prefix = format!("{}/", golden().display());
        Ok(String::from_utf8(out)?.replace(&prefix, ""))
    }

    fn compare(&self, offline: &Offline) -> Result<()> {
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

/// Lines only one of the texts has.
fn differences(want: &str, got: &str) -> String {
    let lines = |text: &str| -> BTreeSet<String> { text.lines().map(str::to_owned).collect() };
    let (wanted, found) = (lines(want), lines(got));
    let missing = want.lines().filter(|line| !found.contains(*line)).map(|line| format!("- {line}\n"));
    let new = got.lines().filter(|line| !wanted.contains(*line)).map(|line| format!("+ {line}\n"));
    let text: String = missing.chain(new).collect();
    if text.is_empty() { format!("the same lines in another order; now:\n{got}") } else { text }
}

/// A scenario nobody listed would never be tried.
#[test]
fn every_golden_file_is_a_scenario() -> Result<()> {
    let mut found = BTreeSet::new();
    for entry in fs::read_dir(golden())? {
        let path = entry?.path();
        found.insert(path.file_stem().and_then(|stem| stem.to_str()).context("a name in UTF-8")?.to_owned());
    }
    assert_eq!(found, SCENARIOS.iter().map(|name| (*name).to_owned()).collect());
    Ok(())
}
