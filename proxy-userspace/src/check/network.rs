//! Settings of the host's network that decide whether translated packets get where they should.

use std::{fs, path::Path};

use super::Finding;
use crate::datapath::{devices::Devices, netlink::Socket};

pub(super) fn examine() -> Vec<Finding> {
    let sysctl = |name: &str| fs::read_to_string(Path::new("/proc/sys/net").join(name)).ok();
    let forward = sysctl("ipv4/ip_forward");
    let forward_v6 = sysctl("ipv6/conf/all/forwarding");
    let bridge_nf = sysctl("bridge/bridge-nf-call-iptables");
    vec![
        judge_forward(forward.as_deref()),
        judge_forward_v6(forward_v6.as_deref()),
        judge_bridge(bridge_nf.as_deref(), has_bridge()),
    ]
}

/// Whether this network namespace has a bridge. Not from /sys/class/net, which shows the namespace that sysfs
/// was mounted in.
fn has_bridge() -> bool {
    let devices = Socket::open().and_then(|mut netlink| Devices::dump(&mut netlink));
    devices.is_ok_and(|devices| devices.links.values().any(|link| link.kind == "bridge"))
}

fn is_on(value: Option<&str>) -> bool {
    value.is_some_and(|text| !matches!(text.trim(), "" | "0"))
}

fn judge_forward(value: Option<&str>) -> Finding {
    if is_on(value) {
        Finding::ok("ip_forward", "on")
    } else {
        Finding::warn(
            "ip_forward",
            "off: this node forwards nothing, neither between its pods nor NodePort traffic",
            "sysctl -w net.ipv4.ip_forward=1",
        )
    }
}

/// IPv6 may not be in use at all, so being off is only worth a word.
fn judge_forward_v6(value: Option<&str>) -> Finding {
    match value {
        None => Finding::ok("ipv6 forwarding", "no IPv6 on this node"),
        on if is_on(on) => Finding::ok("ipv6 forwarding", "on"),
        _ => Finding::ok(
            "ipv6 forwarding",
            "off (sysctl -w net.ipv6.conf.all.forwarding=1 where pods have IPv6)",
        ),
    }
}

fn judge_bridge(value: Option<&str>, has_bridge: bool) -> Finding {
    const CHECK: &str = "bridge netfilter";
    if !has_bridge {
        Finding::ok(CHECK, "no bridge here")
    } else if is_on(value) {
        Finding::ok(CHECK, "bridge-nf-call-iptables is on")
    } else {
        Finding::warn(
            CHECK,
            "bridge-nf-call-iptables is off: between pods on one bridge, rules that match connection state see \
             requests but not the switched replies",
            "modprobe br_netfilter; sysctl -w net.bridge.bridge-nf-call-iptables=1 (and -ip6tables); not needed \
             without such rules",
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::Level;

    #[test]
    fn forwarding() {
        assert_eq!(judge_forward(Some("1\n")).level, Level::Ok);
        assert_eq!(judge_forward(Some("0\n")).level, Level::Warn);
        assert_eq!(judge_forward(None).level, Level::Warn);
        assert_eq!(judge_forward_v6(None).level, Level::Ok);
        assert!(judge_forward_v6(Some("0")).detail.starts_with("off"));
    }

    #[test]
    fn bridges_matter_where_there_are_any() {
        assert_eq!(judge_bridge(None, false).level, Level::Ok);
        assert_eq!(judge_bridge(None, true).level, Level::Warn);
        assert_eq!(judge_bridge(Some("0"), true).level, Level::Warn);
        assert_eq!(judge_bridge(Some("1"), true).level, Level::Ok);
    }
}
