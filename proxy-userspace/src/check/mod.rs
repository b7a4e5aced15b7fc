//! `shunt check`: whether shunt can work here, and what to do where it cannot. Facts are gathered by trying or
//! reading, never by kernel version; what they mean is decided by pure functions beside them. Changes nothing.

mod cilium;
mod conflicts;
mod kernel;
mod network;
mod pods;
mod privileges;
mod rules;
mod storage;
mod survey;

use std::{
    io::{self, Write},
    path::Path,
};

use serde::Serialize;

pub use self::storage::is_cgroup2;

/// How much a finding matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    Ok,
    /// Works, with a limit worth knowing.
    Warn,
    /// `shunt run` would refuse, or Services would not work.
    Fail,
}

/// One line of the report.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    pub check: &'static str,
    pub level: Level,
    pub detail: String,
    /// What to do about it; empty when nothing is to be done.
    pub fix: String,
}

impl Finding {
    fn ok(check: &'static str, detail: impl Into<String>) -> Self {
        Self { check, level: Level::Ok, detail: detail.into(), fix: String::new() }
    }

    fn warn(check: &'static str, detail: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { check, level: Level::Warn, detail: detail.into(), fix: fix.into() }
    }

    fn fail(check: &'static str, detail: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { check, level: Level::Fail, detail: detail.into(), fix: fix.into() }
    }
}

/// Everything, in the order a machine is put right: privileges, kernel, mounts, network,
/// rules, pods, conflicts.
pub fn examine(bpffs: &Path, cgroup: Option<&Path>) -> Vec<Finding> {
    let mut findings = privileges::examine();
    findings.extend(kernel::examine());
    findings.extend(storage::examine(bpffs, cgroup));
    findings.extend(network::examine());
    let survey = survey::Survey::of(bpffs);
    let types = survey::cni_types(Path::new(pods::CNI_DIR));
    findings.extend(rules::examine(&survey));
    findings.extend(pods::examine(&survey, &types));
    findings.extend(cilium::examine(&survey, &types));
    findings.extend(conflicts::examine(&survey, bpffs));
    findings
}

/// One line a finding, its fix below it; levels in colour when `colour` says so.
pub fn print_findings_into(out: &mut impl Write, findings: &[Finding], colour: bool) -> io::Result<()> {
    for finding in findings {
        let (word, code) = match finding.level {
            Level::Ok => ("ok  ", "32"),
            Level::Warn => ("warn", "33"),
            Level::Fail => ("fail", "31"),
        };
        if colour {
            write!(out, "\x1b[{code}m{word}\x1b[0m")?;
        } else {
            write!(out, "{word}")?;
        }
        writeln!(out, "  {:<18}{}", finding.check, finding.detail)?;
        if !finding.fix.is_empty() {
            writeln!(out, "{:24}fix: {}", "", finding.fix)?;
        }
    }
    let count = |level| findings.iter().filter(|finding| finding.level == level).count();
    writeln!(out, "{} ok, {} to know, {} to fix", count(Level::Ok), count(Level::Warn), count(Level::Fail))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_line_has_its_fix() {
        let findings =
            [Finding::ok("bpffs", "at /sys/fs/bpf"), Finding::fail("cgroup2", "not mounted", "mount it")];
        let mut out = Vec::new();
        print_findings_into(&mut out, &findings, false).unwrap();
        assert_eq!(
            String::from_utf8(out).unwrap(),
            "ok    bpffs             at /sys/fs/bpf\n\
             fail  cgroup2           not mounted\n                        fix: mount it\n\
             1 ok, 0 to know, 1 to fix\n"
        );
        assert_eq!(serde_json::to_value(&findings[1]).unwrap()["level"], "fail");
    }
}
