//! Capabilities of this process, from /proc/self/status. `shunt run` needs three of them and no others.

use std::fs;

use super::finding::Finding;

/// Numbers of uapi/linux/capability.h.
const NET_ADMIN: u64 = 1 << 12;
const SYS_ADMIN: u64 = 1 << 21;
const PERFMON: u64 = 1 << 38;
const BPF: u64 = 1 << 39;

pub(super) fn examine() -> Vec<Finding> {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    vec![evaluate(effective(&status))]
}

/// The effective set in /proc/PID/status.
fn effective(status: &str) -> u64 {
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    line.and_then(|digits| u64::from_str_radix(digits.trim(), 16).ok()).unwrap_or(0)
}

/// SYS_ADMIN includes BPF and PERFMON (capabilities(7), since Linux 5.8), but not NET_ADMIN.
fn evaluate(set: u64) -> Finding {
    const CHECK: &str = "capabilities";
    const FIX: &str = "run as root, or with the capabilities BPF, NET_ADMIN and PERFMON (drop all others)";
    let has = |capability| set & capability != 0 || (capability != NET_ADMIN && set & SYS_ADMIN != 0);
    let missing: Vec<_> = [(BPF, "CAP_BPF"), (NET_ADMIN, "CAP_NET_ADMIN")]
        .into_iter()
        .filter(|(capability, _)| !has(*capability))
        .map(|(_, name)| name)
        .collect();
    if !missing.is_empty() {
        Finding::fail(CHECK, format!("missing {}", missing.join(" and ")), FIX)
    } else if !has(PERFMON) {
        Finding::warn(CHECK, "no CAP_PERFMON: programs load, but are 20 % larger", FIX)
    } else {
        Finding::ok(CHECK, "BPF, NET_ADMIN and PERFMON")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::finding::Level;

    #[test]
    fn missing_capabilities_are_named() {
        assert_eq!(evaluate(u64::MAX).level, Level::Ok);
        assert_eq!(evaluate(BPF | NET_ADMIN | PERFMON).level, Level::Ok);
        assert_eq!(evaluate(SYS_ADMIN | NET_ADMIN).level, Level::Ok);
        assert_eq!(evaluate(BPF | NET_ADMIN).level, Level::Warn);
        let none = evaluate(0);
        assert_eq!(none.level, Level::Fail);
        assert!(none.detail.contains("CAP_BPF and CAP_NET_ADMIN"), "{}", none.detail);
        assert!(evaluate(SYS_ADMIN).detail.contains("CAP_NET_ADMIN"));
    }

    #[test]
    fn the_effective_set_is_parsed() {
        assert_eq!(effective("Name:\tx\nCapInh:\t0\nCapEff:\t000001ff\n"), 0x1ff);
        assert_eq!(effective(""), 0);
    }
}
