//! `shunt check`: whether shunt can work on this node, and how to fix problems. Facts are gathered by trying or reading, never
//! by kernel version; pure functions evaluate them. Changes nothing.

mod before_translation;
mod cilium;
mod conflicts;
mod filesystems;
mod finding;
mod forwarding;
mod kernel;
mod packet_filter;
mod pod_devices;
mod privileges;
mod survey;

use std::{
    io::{self, Write},
    path::Path,
};

pub use self::finding::{Finding, Level};

/// All checks, in the order in which problems are best fixed: privileges, kernel, mounts, forwarding, packet filter, pods,
/// conflicts.
pub fn examine(bpffs: &Path, cgroup: Option<&Path>) -> Vec<Finding> {
    let mut findings = privileges::examine();
    findings.extend(kernel::examine());
    findings.extend(filesystems::examine(bpffs, cgroup));
    findings.extend(forwarding::examine());
    let survey = survey::Survey::of(bpffs);
    let types = survey::cni_types(Path::new(pod_devices::CNI_DIR));
    findings.extend(packet_filter::examine(&survey));
    findings.extend(before_translation::examine(&survey));
    findings.extend(pod_devices::examine(&survey, &types));
    findings.extend(cilium::examine(&survey, &types));
    findings.extend(conflicts::examine(&survey, bpffs));
    findings
}

/// One line per finding, followed by its fix.
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
    writeln!(out, "{} ok, {} warn, {} fail", count(Level::Ok), count(Level::Warn), count(Level::Fail))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_finding_is_followed_by_its_fix() {
        let findings =
            [Finding::ok("bpffs", "at /sys/fs/bpf"), Finding::fail("cgroup2", "not mounted", "mount it")];
        let mut out = Vec::new();
        print_findings_into(&mut out, &findings, false).unwrap();
        assert_eq!(
            String::from_utf8(out).unwrap(),
            "ok    bpffs             at /sys/fs/bpf\n\
             fail  cgroup2           not mounted\n                        fix: mount it\n\
             1 ok, 0 warn, 1 fail\n"
        );
        assert_eq!(serde_json::to_value(&findings[1]).unwrap()["level"], "fail");
    }
}
