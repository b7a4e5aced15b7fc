//! Kernel features. Each one is probed (`bpf::probe`), so backports are detected; the version is only shown.

use std::{fs, io, os::fd::AsFd as _, thread};

use nix::sched::{CloneFlags, unshare};

use super::finding::Finding;
use crate::{
    bpf::{
        probe::{Features, kernel_release},
        prog,
    },
    datapath::{clsact, direction::Direction, netlink::Socket},
};

pub(super) fn examine() -> Vec<Finding> {
    let mut findings = vec![Finding::ok("kernel", kernel_release())];
    let probed = Features::probe();
    let tcx = probed.as_ref().is_ok_and(|features| features.tcx);
    let loads = probed.is_ok();
    findings.extend(evaluate(probed));
    if loads {
        findings.push(evaluate_hooks(tcx, try_clsact));
    }
    findings
        .extend(evaluate_jit(&fs::read_to_string("/proc/sys/net/core/bpf_jit_enable").unwrap_or_default()));
    findings
}

fn evaluate(probed: io::Result<Features>) -> Vec<Finding> {
    let features = match probed {
        Ok(features) => features,
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            return vec![Finding::fail(
                "bpf programs",
                "the kernel denies loading them",
                "run as root or with CAP_BPF and CAP_NET_ADMIN; if that is the case, check for kernel lockdown \
                 (/sys/kernel/security/lockdown) or a seccomp filter that blocks bpf(2)",
            )];
        }
        Err(error) => {
            return vec![Finding::fail(
                "bpf programs",
                format!("loading fails: {error}"),
                "use a kernel with CONFIG_BPF_SYSCALL, CONFIG_NET_CLS_BPF and CONFIG_CGROUP_BPF",
            )];
        }
    };
    let mut findings = vec![Finding::ok("bpf programs", "load and run")];
    findings.push(if features.atomic_fetch {
        Finding::ok("atomic fetch", "round robin is exact")
    } else {
        Finding::fail(
            "atomic fetch",
            "no atomic fetch-and-add instructions in BPF programs: round robin needs them",
            "use a kernel that has them: Linux 5.12 or newer, or a distribution kernel with a backport",
        )
    });
    findings.push(if features.netns_cookie {
        Finding::ok("socket hooks", "have bpf_get_netns_cookie")
    } else {
        Finding::fail(
            "socket hooks",
            "no bpf_get_netns_cookie in cgroup socket-address programs",
            "use Linux 5.7 or newer with CONFIG_CGROUP_BPF",
        )
    });
    findings.push(if features.set_retval {
        Finding::ok("set_retval", "processes of the node get \"connection refused\"")
    } else {
        Finding::warn(
            "set_retval",
            "no bpf_set_retval: processes of the node get \"operation not permitted\" instead of \"connection refused\" if a \
             Service has no endpoint",
            "optional; available in Linux 5.18 and newer",
        )
    });
    findings
}

/// tcx links if the kernel has them, else clsact filters, which are tried.
fn evaluate_hooks(tcx: bool, clsact: impl FnOnce() -> io::Result<Clsact>) -> Finding {
    const CHECK: &str = "tc hooks";
    if tcx {
        return Finding::ok(CHECK, "tcx links");
    }
    match clsact() {
        Ok(Clsact::Works) => Finding::ok(CHECK, "clsact filters (tcx needs Linux 6.6)"),
        Ok(Clsact::Untried) => Finding::warn(
            CHECK,
            "no tcx; clsact filters were not tried, because that needs a temporary network namespace (CAP_SYS_ADMIN)",
            "run this check as root",
        ),
        Err(error) => Finding::fail(
            CHECK,
            format!("no tcx, and creating a clsact filter fails: {error}"),
            "modprobe sch_ingress cls_bpf, or use a kernel with CONFIG_NET_SCH_INGRESS and CONFIG_NET_CLS_BPF",
        ),
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Clsact {
    Works,
    Untried,
}

/// Creates a filter on the loopback device of a temporary network namespace, which ends with its thread.
fn try_clsact() -> io::Result<Clsact> {
    const LOOPBACK: u32 = 1;
    /// `r0 = 0; exit`.
    const PROGRAM: [u64; 2] = [0xb7, 0x95];
    let attempt = thread::spawn(|| {
        match unshare(CloneFlags::CLONE_NEWNET) {
            Err(nix::errno::Errno::EPERM) => return Ok(Clsact::Untried),
            other => other?,
        }
        let program = prog::load(prog::SCHED_CLS, 0, &PROGRAM)?;
        let mut netlink = Socket::open()?;
        clsact::attach(&mut netlink, LOOPBACK, Direction::Ingress, program.as_fd(), "probe")?;
        Ok(Clsact::Works)
    });
    attempt.join().unwrap_or_else(|_| Err(io::Error::other("the probe panicked")))
}

/// 0 selects the interpreter. A kernel without the file has no such setting.
fn evaluate_jit(text: &str) -> Option<Finding> {
    match text.trim() {
        "" => None,
        "0" => Some(Finding::warn(
            "bpf jit",
            "off: programs are interpreted, several times slower",
            "sysctl -w net.core.bpf_jit_enable=1",
        )),
        _ => Some(Finding::ok("bpf jit", "on")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::finding::Level;

    const ALL: Features = Features {
        atomic_fetch: true,
        netns_cookie: true,
        set_retval: true,
        tcx: true,
        csum_ipv6: true,
        fib_source: 4,
    };

    fn worst(findings: &[Finding]) -> Level {
        findings.iter().map(|finding| finding.level).max().unwrap()
    }

    #[test]
    fn only_required_features_fail() {
        assert_eq!(worst(&evaluate(Ok(ALL))), Level::Ok);
        assert_eq!(
            worst(&evaluate(Ok(Features { tcx: false, csum_ipv6: false, fib_source: 0, ..ALL }))),
            Level::Ok
        );
        assert_eq!(worst(&evaluate(Ok(Features { set_retval: false, ..ALL }))), Level::Warn);
        for lacking in [Features { atomic_fetch: false, ..ALL }, Features { netns_cookie: false, ..ALL }] {
            assert_eq!(worst(&evaluate(Ok(lacking))), Level::Fail);
        }
        assert!(
            evaluate(Ok(Features { atomic_fetch: false, ..ALL }))
                .iter()
                .any(|it| it.detail.contains("atomic"))
        );
    }

    #[test]
    fn either_kind_of_hook_works() {
        let unasked = || -> io::Result<Clsact> { panic!("tcx is sufficient") };
        assert_eq!(evaluate_hooks(true, unasked).level, Level::Ok);
        assert_eq!(evaluate_hooks(false, || Ok(Clsact::Works)).level, Level::Ok);
        assert_eq!(evaluate_hooks(false, || Ok(Clsact::Untried)).level, Level::Warn);
        let none = evaluate_hooks(false, || Err(io::ErrorKind::NotFound.into()));
        assert!(none.level == Level::Fail && none.fix.contains("sch_ingress"), "{none:?}");
    }

    #[test]
    fn a_denied_load_is_not_a_missing_feature() {
        let findings = evaluate(Err(io::ErrorKind::PermissionDenied.into()));
        assert_eq!((findings.len(), worst(&findings)), (1, Level::Fail));
        assert!(findings[0].fix.contains("CAP_BPF"));
    }

    #[test]
    fn the_interpreter_warns() {
        assert_eq!(evaluate_jit("0\n").unwrap().level, Level::Warn);
        assert_eq!(evaluate_jit("1\n").unwrap().level, Level::Ok);
        assert_eq!(evaluate_jit(""), None);
    }
}
