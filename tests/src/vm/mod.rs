//! Other kernels: a virtual machine with an initramfs of our own, whose init is a program of this crate.
//!
//! The host's half ([`image`], [`machine`]) builds the initramfs and runs qemu without acceleration; the guest's half
//! ([`guest`]) is process 1 in the virtual machine. The guest sends the host one line of JSON on the serial console,
//! the [`Report`], and a marker after it. Only `cargo xtask` knows where kernels come from.

mod command;
mod cpio;
pub mod guest;
pub mod image;
mod ipvs;
pub mod machine;
mod modules;

use std::fmt::Write as _;

use serde::{Deserialize, Serialize};

/// Prefix of the report's line on the console.
const REPORT: &str = "SHUNT-VM-REPORT ";
/// The last line of a guest that completed. Qemu's exit status does not tell.
const END: &str = "SHUNT-VM-END";

/// The guest's task.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Task {
    /// Serve a Service with `shunt run` and use it.
    Serve,
    /// Check that `shunt check` and `shunt run` refuse to work.
    Refuse,
    /// Check that `shunt cleanup --kube-proxy` removes the leftovers of ipvs mode.
    Ipvs,
}

impl Task {
    /// The task as a word on the kernel's command line.
    const fn word(self) -> &'static str {
        match self {
            Self::Serve => "serve",
            Self::Refuse => "refuse",
            Self::Ipvs => "ipvs",
        }
    }

    /// The modules of the guest's network, unless the kernel has them built in: veth pairs, a tun device, and tc's
    /// hooks below kernel 6.6; or those of kube-proxy's ipvs mode.
    const fn modules(self) -> &'static [&'static str] {
        match self {
            Self::Serve | Self::Refuse => &["veth", "tun", "sch_ingress", "cls_bpf"],
            Self::Ipvs => &["dummy", "ipv6", "ip_vs", "ip_vs_rr"],
        }
    }

    fn from_word(word: &str) -> Option<Self> {
        [Self::Serve, Self::Refuse, Self::Ipvs].into_iter().find(|task| task.word() == word)
    }
}

/// The guest's observations.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// `uname -r`.
    pub kernel: String,
    /// The error that prevented the task.
    pub failure: Option<String>,
    /// All attempts to use the Service, with their results.
    pub attempts: Vec<Seen>,
    pub programs: Vec<Program>,
    /// Packets that the XDP program translated for a backend of the node.
    pub lane: u64,
    /// Output of `shunt run`.
    pub run: Ended,
    /// Output of `shunt check`.
    pub check: Ended,
}

/// One connection attempt.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seen {
    pub answered: bool,
    pub what: String,
}

/// One program in the guest's kernel.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Program {
    pub name: String,
    /// `bpf_prog_info.verified_insns`: the number of instructions the verifier processed.
    pub verified_insns: u32,
    /// `tcx`, `clsact`, `cgroup`; empty if it is not attached.
    pub attached: String,
}

/// A process that exited or was killed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ended {
    /// Exit status; none if it had to be killed.
    pub status: Option<i32>,
    /// Standard output and error.
    pub output: String,
}

impl Report {
    /// Rows `kernel program verified attached`, one per program.
    pub fn table(&self) -> String {
        let mut text = String::new();
        for Program { name, verified_insns, attached } in &self.programs {
            let attached = if attached.is_empty() { "-" } else { attached };
            let _ = writeln!(text, "{:<28} {name:<14} {verified_insns:>9}  {attached}", self.kernel);
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_task_survives_the_command_line() {
        for task in [Task::Serve, Task::Refuse] {
            assert_eq!(Task::from_word(task.word()), Some(task));
        }
        assert_eq!(Task::from_word("quiet"), None);
    }

    #[test]
    fn a_row_for_each_program() {
        let program = |name: &str, attached: &str| Program {
            name: name.into(),
            verified_insns: 1234,
            attached: attached.into(),
        };
        let report = Report {
            kernel: "6.1.0".into(),
            programs: vec![program("ingress_l2", "clsact"), program("clock", "")],
            ..Report::default()
        };
        let rows: Vec<Vec<String>> =
            report.table().lines().map(|line| line.split_whitespace().map(str::to_owned).collect()).collect();
        assert_eq!(rows, [["6.1.0", "ingress_l2", "1234", "clsact"], ["6.1.0", "clock", "1234", "-"]]);
    }
}
