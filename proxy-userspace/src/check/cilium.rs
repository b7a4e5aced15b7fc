//! Cilium as the pod network. With BPF host routing its programs redirect packets directly to pods (bpf_redirect_peer) and
//! bypass our egress hook, so replies keep the address of the backend. The only on-node sign of BPF host routing, except
//! Cilium's programs themselves, is the generated header that its agent compiles them with.

use std::{collections::BTreeSet, fs, path::Path};

use super::{finding::Finding, survey::Survey};
use crate::mountinfo::mount_of;

/// Written by Cilium's agent.
const HEADER: &str = "/var/run/cilium/state/globals/node_config.h";
const DEVICES: [&str; 2] = ["cilium_host", "cilium_net"];
/// Cilium's pin directory on the bpf file system.
const PINS: &str = "tc/globals";
const FIX: &str =
    "set Cilium's kubeProxyReplacement=false and bpf.hostLegacyRouting=true, and restart its agents";

/// The settings in the header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Config {
    host_routing: bool,
    /// Cilium itself serves NodePorts (kube-proxy replacement).
    replacement: bool,
}

pub(super) fn examine(survey: &Survey, types: &BTreeSet<String>) -> Option<Finding> {
    let device = survey.devices.links.values().find(|link| DEVICES.contains(&link.name.as_str()));
    let mountinfo = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let pins = mount_of(&mountinfo, "bpf").filter(|mount| has_pins(&mount.join(PINS)));
    let sign = match (device, pins) {
        (Some(device), _) => format!("device {}", device.name),
        (_, Some(mount)) => format!("pins in {}", mount.join(PINS).display()),
        _ if types.contains("cilium-cni") => "the plugin cilium-cni".to_owned(),
        _ => return None,
    };
    Some(evaluate(&sign, fs::read_to_string(HEADER).ok().as_deref().map(config_in)))
}

fn has_pins(dir: &Path) -> bool {
    let names = fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.file_name());
    names.into_iter().any(|name| name.to_string_lossy().starts_with("cilium_"))
}

fn config_in(header: &str) -> Config {
    let defines = |name: &str| {
        header.lines().any(|line| {
            let mut words = line.split_whitespace();
            words.next() == Some("#define") && words.next() == Some(name)
        })
    };
    Config { host_routing: defines("ENABLE_HOST_ROUTING"), replacement: defines("ENABLE_NODEPORT") }
}

fn evaluate(sign: &str, config: Option<Config>) -> Finding {
    const CHECK: &str = "cilium";
    match config {
        None => Finding::warn(
            CHECK,
            format!(
                "present ({sign}); if it uses BPF host routing (see `cilium status`; {HEADER} cannot be read), it bypasses our \
                 egress hook"
            ),
            FIX,
        ),
        Some(Config { host_routing: true, .. }) => Finding::fail(
            CHECK,
            format!(
                "present ({sign}) with BPF host routing: it bypasses our egress hook, so replies from Services have the address \
                 of a backend"
            ),
            FIX,
        ),
        Some(Config { replacement: true, .. }) => Finding::fail(
            CHECK,
            format!(
                "present ({sign}) and serves NodePorts itself: two proxies would translate the same Services"
            ),
            FIX,
        ),
        Some(_) => Finding::ok(CHECK, format!("present ({sign}), with routing by the host's stack")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::finding::Level;

    #[test]
    fn settings_of_the_header() {
        let both = "#pragma once\n#define ENABLE_HOST_ROUTING 1\n#define ENABLE_NODEPORT 1\n";
        assert_eq!(config_in(both), Config { host_routing: true, replacement: true });
        let neither = config_in("// #define ENABLE_HOST_ROUTING\n#define ENABLE_HOST_ROUTING_OLD 1\n");
        assert_eq!(neither, Config { host_routing: false, replacement: false });
        assert_eq!(evaluate("x", None).level, Level::Warn);
        assert_eq!(evaluate("x", Some(neither)).level, Level::Ok);
        for config in [config_in(both), Config { replacement: false, ..config_in(both) }] {
            assert!(evaluate("x", Some(config)).detail.contains("bypasses our egress hook"));
        }
        let replacing = evaluate("device cilium_host", Some(Config { replacement: true, ..neither }));
        assert!(replacing.level == Level::Fail && replacing.detail.contains("two proxies"), "{replacing:?}");
    }
}
