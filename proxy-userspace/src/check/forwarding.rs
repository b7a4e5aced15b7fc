//! sysctl settings that translated packets need. Packet filter rules are in [`super::packet_filter`].

use std::{fs, path::Path};

use super::finding::Finding;

pub(super) fn examine() -> Vec<Finding> {
    let sysctl = |name: &str| fs::read_to_string(Path::new("/proc/sys/net").join(name)).ok();
    let forward = sysctl("ipv4/ip_forward");
    let forward_v6 = sysctl("ipv6/conf/all/forwarding");
    vec![evaluate_forward(forward.as_deref()), evaluate_forward_v6(forward_v6.as_deref())]
}

fn is_on(value: Option<&str>) -> bool {
    value.is_some_and(|text| !matches!(text.trim(), "" | "0"))
}

fn evaluate_forward(value: Option<&str>) -> Finding {
    if is_on(value) {
        Finding::ok("ip_forward", "on")
    } else {
        Finding::warn(
            "ip_forward",
            "off: this node forwards no packets, neither between pods nor for NodePorts",
            "sysctl -w net.ipv4.ip_forward=1",
        )
    }
}

/// Only informational: the cluster may not use IPv6.
fn evaluate_forward_v6(value: Option<&str>) -> Finding {
    match value {
        None => Finding::ok("ipv6 forwarding", "no IPv6 on this node"),
        on if is_on(on) => Finding::ok("ipv6 forwarding", "on"),
        _ => Finding::ok(
            "ipv6 forwarding",
            "off (sysctl -w net.ipv6.conf.all.forwarding=1 if pods have IPv6 addresses)",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::finding::Level;

    #[test]
    fn forwarding() {
        assert_eq!(evaluate_forward(Some("1\n")).level, Level::Ok);
        assert_eq!(evaluate_forward(Some("0\n")).level, Level::Warn);
        assert_eq!(evaluate_forward(None).level, Level::Warn);
        assert_eq!(evaluate_forward_v6(None).level, Level::Ok);
        assert!(evaluate_forward_v6(Some("0")).detail.starts_with("off"));
    }
}
