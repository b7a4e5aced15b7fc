//! What the kernel can do: each feature is tried (`bpf::probe`), so a backport counts and a version does not.

use std::{fs, io, os::fd::AsFd as _, thread};

use nix::sched::{CloneFlags, unshare};

use super::Finding;
use crate::{
    bpf::{
        probe::{Features, kernel_release},
        prog,
    },
    datapath::{attach::Direction, clsact, netlink::Socket},
};

pub(super) fn examine() -> Vec<Finding> {
    let mut findings = vec![Finding::ok("kernel", kernel_release())];
    let probed = Features::probe();
    let tcx = probed.as_ref().is_ok_and(|features| features.tcx);
    let loads = probed.is_ok();
    findings.extend(judge(probed));
    if loads {
        findings.push(judge_hooks(tcx, try_clsact));
    }
    findings.extend(judge_jit(&fs::read_to_string("/proc/sys/net/core/bpf_jit_enable").unwrap_or_default()));
    findings
}

fn judge(probed: io::Result<Features>) -> Vec<Finding> {
    let features = match probed {
        Ok(features) => features,
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            return vec![Finding::fail(
                "bpf programs",
                "the kernel refuses to load them",
                "run as root or with CAP_BPF and CAP_NET_ADMIN; where that is given, look for kernel lockdown \
                 (/sys/kernel/security/lockdown) or a seccomp filter that forbids bpf(2)",
            )];
        }
        Err(error) => {
            return vec![Finding::fail(
                "bpf programs",
                format!("loading one fails: {error}"),
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
            "use a kernel that has them: Linux 5.12 and newer, or a distribution's backport",
        )
    });
    findings.push(if features.netns_cookie {
        Finding::ok("socket hooks", "know their network namespace")
    } else {
        Finding::fail(
            "socket hooks",
            "no bpf_get_netns_cookie in cgroup socket-address programs",
            "use Linux 5.7 or newer with CONFIG_CGROUP_BPF",
        )
    });
    findings.push(if features.set_retval {
        Finding::ok("set_retval", "the node's own processes see \"connection refused\"")
    } else {
        Finding::warn(
            "set_retval",
            "no bpf_set_retval: the node's own processes see \"operation not permitted\" where a Service has no \
             endpoint",
            "nothing needs it; Linux 5.18 and newer have it",
        )
    });
    findings
}

/// Links where the kernel has tcx, else filters on clsact, which are tried before anything relies on them.
fn judge_hooks(tcx: bool, clsact: impl FnOnce() -> io::Result<Clsact>) -> Finding {
    const CHECK: &str = "tc hooks";
    if tcx {
        return Finding::ok(CHECK, "tcx links");
    }
    match clsact() {
        Ok(Clsact::Works) => Finding::ok(CHECK, "clsact filters (no tcx, which Linux has since 6.6)"),
        Ok(Clsact::Untried) => Finding::warn(
            CHECK,
            "no tcx; clsact filters are not tried, for that needs a network namespace of our own (SYS_ADMIN)",
            "run this check as root",
        ),
        Err(error) => Finding::fail(
            CHECK,
            format!("no tcx, and a clsact filter cannot be made: {error}"),
            "modprobe sch_ingress cls_bpf, or use a kernel with CONFIG_NET_SCH_INGRESS and CONFIG_NET_CLS_BPF",
        ),
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Clsact {
    Works,
    Untried,
}

/// Makes a filter on the loopback device of a network namespace that lives as long as the thread that made it.
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

/// 0 is the interpreter; a kernel without the file has no choice to offer.
fn judge_jit(text: &str) -> Option<Finding> {
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
    use crate::check::Level;

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
    fn what_is_needed_fails_and_what_is_not_does_not() {
        assert_eq!(worst(&judge(Ok(ALL))), Level::Ok);
        assert_eq!(
            worst(&judge(Ok(Features { tcx: false, csum_ipv6: false, fib_source: 0, ..ALL }))),
            Level::Ok
        );
        assert_eq!(worst(&judge(Ok(Features { set_retval: false, ..ALL }))), Level::Warn);
        for lacking in [Features { atomic_fetch: false, ..ALL }, Features { netns_cookie: false, ..ALL }] {
            assert_eq!(worst(&judge(Ok(lacking))), Level::Fail);
        }
        assert!(
            judge(Ok(Features { atomic_fetch: false, ..ALL })).iter().any(|it| it.detail.contains("atomic"))
        );
    }

    #[test]
    fn hooks_of_either_kind_will_do() {
        let unasked = || -> io::Result<Clsact> { panic!("tcx is enough") };
        assert_eq!(judge_hooks(true, unasked).level, Level::Ok);
        assert_eq!(judge_hooks(false, || Ok(Clsact::Works)).level, Level::Ok);
        assert_eq!(judge_hooks(false, || Ok(Clsact::Untried)).level, Level::Warn);
        let none = judge_hooks(false, || Err(io::ErrorKind::NotFound.into()));
        assert!(none.level == Level::Fail && none.fix.contains("sch_ingress"), "{none:?}");
    }

    #[test]
    fn a_refusal_is_not_a_missing_feature() {
        let findings = judge(Err(io::ErrorKind::PermissionDenied.into()));
        assert_eq!((findings.len(), worst(&findings)), (1, Level::Fail));
        assert!(findings[0].fix.contains("CAP_BPF"));
    }

    #[test]
    fn an_interpreter_is_slow() {
        assert_eq!(judge_jit("0\n").unwrap().level, Level::Warn);
        assert_eq!(judge_jit("1\n").unwrap().level, Level::Ok);
        assert_eq!(judge_jit(""), None);
    }
}
