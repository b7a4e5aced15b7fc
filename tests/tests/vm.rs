//! The same program on other kernels: on each kernel series of Debian, every eBPF program loads and attaches, and a
//! Service works. A kernel that lacks a required feature is rejected with a clear message.

use std::{fs, path::Path};

use tests::vm::{Report, Task, machine};

const INIT: &str = env!("CARGO_BIN_EXE_vm-init");

/// Programs of the object, and how each must be attached; `tc` is tcx or clsact, depending on the kernel.
const PROGRAMS: [(&str, &str); 16] = [
    ("ingress_l2", "tc"),
    ("egress_l2", "tc"),
    ("ingress_l3", "tc"),
    ("egress_l3", "tc"),
    ("connect4", "cgroup"),
    ("connect6", "cgroup"),
    ("sendmsg4", "cgroup"),
    ("sendmsg6", "cgroup"),
    ("recvmsg4", "cgroup"),
    ("recvmsg6", "cgroup"),
    ("getpeername4", "cgroup"),
    ("getpeername6", "cgroup"),
    ("clock", ""),
    ("ingress_xdp", "tc"),
    ("xdp_soft", "xdp"),
    // For network drivers; a guest has none.
    ("xdp_native", ""),
];

/// Boots a guest and stores its table for `cargo xtask test vm` to print.
fn boot(series: &str, task: Task) -> Report {
    let report = machine::boot(series, task, Path::new(INIT)).unwrap_or_else(|error| panic!("{error:#}"));
    let tables = Path::new(INIT).ancestors().nth(2).expect("below target").join("vm/tables");
    fs::create_dir_all(&tables).expect("target is ours to write to");
    if task != Task::Ipvs {
        fs::write(tables.join(series), report.table()).expect("target is ours to write to");
        print!("{}", report.table());
    }
    report
}

#[track_caller]
fn serves(series: &str, tc: &str) {
    let report = boot(series, Task::Serve);
    let log = format!("shunt run ({:?}):\n{}", report.run.status, report.run.output);
    assert_eq!(report.failure, None, "{log}");
    for (name, how) in PROGRAMS {
        let program = report.programs.iter().find(|program| program.name == name);
        let program = program.unwrap_or_else(|| panic!("{name} is not loaded: {:?}\n{log}", report.programs));
        assert_eq!(program.attached, if how == "tc" { tc } else { how }, "{name}\n{log}");
        assert!(program.verified_insns > 0, "{name}");
    }
    assert_eq!(report.attempts.len(), 6);
    for attempt in &report.attempts {
        assert!(attempt.answered, "{}\n{log}", attempt.what);
    }
    // Each connection has at least a SYN, an ACK, a request and a FIN, except for packets sent before the neighbour is
    // known.
    assert!(report.lane >= 6, "{} packets translated in XDP\n{log}", report.lane);
    assert_eq!(report.run.status, Some(0), "{log}");
}

#[test]
fn debian_12_kernel_6_1() {
    serves("6.1", "clsact");
}

#[test]
fn debian_13_kernel_6_12() {
    serves("6.12", "tcx");
}

#[test]
fn backported_kernel_6_18() {
    serves("6.18", "tcx");
}

#[test]
fn newest_kernel_7() {
    serves("7", "tcx");
}

/// kube-proxy's virtual servers and its device are removed, foreign ones stay.
#[test]
fn what_ipvs_mode_leaves_is_removed() {
    let report = boot("6.12", Task::Ipvs);
    assert_eq!(report.failure, None, "{report:?}");
    for word in ["3 ipvs virtual servers", "device kube-ipvs0", "shunt cleanup --kube-proxy"] {
        assert!(report.check.output.contains(word), "no {word}:\n{}", report.check.output);
    }
    assert_eq!(report.run.status, Some(0), "{}", report.run.output);
    for word in ["TCP 10.68.0.10:80", "[fd00:10:68::a]:80", "192.168.8.201:443 (at no address"] {
        assert!(report.run.output.contains(word), "no {word}:\n{}", report.run.output);
    }
    for answer in &report.attempts {
        assert!(answer.answered, "{}", answer.what);
    }
}

/// 5.10 has neither atomic fetch-and-add nor the netns cookie.
#[test]
fn debian_11_kernel_5_10_is_refused_in_words() {
    let report = boot("5.10", Task::Refuse);
    assert_eq!(report.failure, None);
    for (command, ended) in [("check", &report.check), ("run", &report.run)] {
        assert_eq!(ended.status, Some(1), "shunt {command}: {}", ended.output);
        for word in [report.kernel.as_str(), "atomic", "5.12"] {
            assert!(ended.output.contains(word), "shunt {command} does not say {word:?}:\n{}", ended.output);
        }
    }
}
