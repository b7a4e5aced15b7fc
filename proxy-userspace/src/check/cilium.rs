//! Cilium as the pod network. With BPF host routing its programs hand packets straight to pods (redirect_peer), past
//! our egress hook on their devices, so replies keep the backend's address. Whether it does that stands in one place
//! on the node that is not the inside of a program: the header that the agent compiles its programs with.

use std::{collections::BTreeSet, fs, path::Path};

use super::{Finding, survey::Survey};
use crate::cli::mount_of;

/// Written by Cilium's agent.
const HEADER: &str = "/var/run/cilium/state/globals/node_config.h";
const DEVICES: [&str; 2] = ["cilium_host", "cilium_net"];
/// Where Cilium pins its maps, below the bpf file system.
const PINS: &str = "tc/globals";
const FIX: &str =
    "set Cilium's kubeProxyReplacement=false and bpf.hostLegacyRouting=true, and restart its agents";

/// What the header says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Config {
    host_routing: bool,
    /// Cilium serves NodePorts and the like itself.
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
    Some(judge(&sign, fs::read_to_string(HEADER).ok().as_deref().map(config_in)))
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

fn judge(sign: &str, config: Option<Config>) -> Finding {
    const CHECK: &str = "cilium";
    match config {
        None => Finding::warn(
            CHECK,
            format!(
                "it is here ({sign}); if it does BPF host routing (`cilium status` says so; {HEADER} cannot be read), \
                 it hands packets to pods past our egress hook"
            ),
            FIX,
        ),
        Some(Config { host_routing: true, .. }) => Finding::fail(
            CHECK,
            format!(
                "it is here ({sign}) with BPF host routing: it hands packets to pods past our egress hook, so replies \
                 from Services come with a backend's address"
            ),
            FIX,
        ),
        Some(Config { replacement: true, .. }) => Finding::fail(
            CHECK,
            format!(
                "it is here ({sign}) and serves NodePorts itself: two proxies would translate the same Services"
            ),
            FIX,
        ),
        Some(_) => Finding::ok(CHECK, format!("here ({sign}), routing by the host's stack")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::Level;

    #[test]
    fn what_the_header_says() {
        let both = "#pragma once\n#define ENABLE_HOST_ROUTING 1\n#define ENABLE_NODEPORT 1\n";
        assert_eq!(config_in(both), Config { host_routing: true, replacement: true });
        let neither = config_in("// #define ENABLE_HOST_ROUTING\n#define ENABLE_HOST_ROUTING_OLD 1\n");
        assert_eq!(neither, Config { host_routing: false, replacement: false });
        assert_eq!(judge("x", None).level, Level::Warn);
        assert_eq!(judge("x", Some(neither)).level, Level::Ok);
        for config in [config_in(both), Config { replacement: false, ..config_in(both) }] {
            assert!(judge("x", Some(config)).detail.contains("past our egress hook"));
        }
        let replacing = judge("device cilium_host", Some(Config { replacement: true, ..neither }));
        assert!(replacing.level == Level::Fail && replacing.detail.contains("two proxies"), "{replacing:?}");
    }
}
