//! What on this node works against shunt: another Service proxy, its rules, and the networks of pods that
//! packets cross without meeting our hooks.

use std::{collections::BTreeSet, fs, path::Path};

use super::{
    Finding,
    nftables::{self, Chain},
    xtables,
};

/// Where container runtimes look for the pod network's configuration.
const CNI_DIR: &str = "/etc/cni/net.d";

pub(super) fn examine() -> Vec<Finding> {
    let (chains, unread) = match nftables::chains() {
        Ok(chains) => (chains, None),
        Err(error) => (Vec::new(), Some(error)),
    };
    let legacy = xtables::nat_mentions("KUBE-SERVICES");
    let mut findings = vec![judge_kube_proxy(&kube_proxies(), &rules_of_kube_proxy(&chains, legacy))];
    if let Some(error) = unread {
        findings.push(Finding::warn(
            "nftables",
            format!("its rules cannot be read ({error}), so kube-proxy's are not looked for"),
            "run as root or with CAP_NET_ADMIN",
        ));
    }
    findings.push(judge_forward_policy(&chains));
    findings.extend(judge_cni(&cni_types(Path::new(CNI_DIR))));
    findings
}

/// The ids of processes named kube-proxy, as far as this process's /proc shows them.
fn kube_proxies() -> Vec<u32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let mut pids: Vec<u32> = entries
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter(|pid: &u32| {
            fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|comm| comm.trim() == "kube-proxy")
        })
        .collect();
    pids.sort_unstable();
    pids
}

/// Where kube-proxy's rules stand, in the words of the tool that shows them.
fn rules_of_kube_proxy(chains: &[Chain], legacy: bool) -> BTreeSet<String> {
    let mut places: BTreeSet<String> = chains
        .iter()
        .filter(|chain| chain.table == "kube-proxy" || chain.name == "KUBE-SERVICES")
        .map(|chain| match chain.table.as_str() {
            "kube-proxy" => format!("nftables table {} kube-proxy", chain.family),
            table => format!("chain KUBE-SERVICES of nftables table {} {table}", chain.family),
        })
        .collect();
    if legacy {
        places.insert("chain KUBE-SERVICES of iptables-legacy's nat table".to_owned());
    }
    places
}

fn judge_kube_proxy(pids: &[u32], places: &BTreeSet<String>) -> Finding {
    const CHECK: &str = "kube-proxy";
    let places = places.iter().map(String::as_str).collect::<Vec<_>>().join(", ");
    match (pids, places.as_str()) {
        ([], "") => Finding::ok(CHECK, "not here"),
        ([], places) => Finding::warn(
            CHECK,
            format!("it, or rules it left behind, are here: {places}"),
            "remove kube-proxy from this node (kubectl -n kube-system delete daemonset kube-proxy), then its rules: \
             `kube-proxy --cleanup`, or restart the node",
        ),
        (pids, places) => Finding::fail(
            CHECK,
            format!(
                "it is running (pid {}){}{places}: two proxies would translate the same Services",
                pids.iter().map(u32::to_string).collect::<Vec<_>>().join(", "),
                if places.is_empty() { "" } else { ", with " },
            ),
            "kubectl -n kube-system delete daemonset kube-proxy, then `kube-proxy --cleanup` on each node",
        ),
    }
}

/// Base chains of the forward hook that drop what no rule accepts.
fn judge_forward_policy(chains: &[Chain]) -> Finding {
    let dropping: Vec<_> = chains
        .iter()
        .filter(|chain| chain.drops_forwarded)
        .map(|chain| format!("{} {} {}", chain.family, chain.table, chain.name))
        .collect();
    if dropping.is_empty() {
        return Finding::ok("forward policy", "accepts");
    }
    Finding::warn(
        "forward policy",
        format!(
            "drops in {}: backends outside the pod range need a rule that accepts them",
            dropping.join(", ")
        ),
        "the pod network's own rules normally accept its pods; for other backends add a rule to that chain",
    )
}

/// The plugin types that the CNI configurations in `dir` name.
fn cni_types(dir: &Path) -> BTreeSet<String> {
    let files = fs::read_dir(dir).into_iter().flatten().flatten();
    files
        .filter(|file| {
            let name = file.file_name();
            Path::new(&name).extension().is_some_and(|it| it == "conf" || it == "conflist" || it == "json")
        })
        .filter_map(|file| fs::read_to_string(file.path()).ok())
        .flat_map(|text| types_in(&text))
        .collect()
}

/// `type` of a network configuration, or of each plugin of a list of them.
fn types_in(text: &str) -> Vec<String> {
    let config: serde_json::Value = serde_json::from_str(text).unwrap_or_default();
    let plugins = config["plugins"].as_array().into_iter().flatten();
    plugins.chain([&config]).filter_map(|plugin| plugin["type"].as_str().map(str::to_owned)).collect()
}

fn judge_cni(types: &BTreeSet<String>) -> Vec<Finding> {
    const CHECK: &str = "pod network";
    let limit = |name: &str| match name {
        "macvlan" | "ipvlan" | "sriov" | "host-device" => Some((
            "its pods have no device on this node, so their packets meet no hook here",
            "use --socket-lb all for such pods (TCP and UDP connections only), or another pod network",
        )),
        "cilium-cni" => Some((
            "with BPF host routing Cilium hands packets to pods past our egress hook",
            "set Cilium's bpf.hostLegacyRouting=true and kubeProxyReplacement=false",
        )),
        "aws-cni" => Some((
            "its connection marks need to see a Service's address before it is translated",
            "use --masquerade-all if connections from outside to NodePorts of other interfaces hang",
        )),
        _ => None,
    };
    let limits: Vec<_> = types
        .iter()
        .filter_map(|name| {
            limit(name).map(|(detail, fix)| Finding::warn(CHECK, format!("{name}: {detail}"), fix))
        })
        .collect();
    if limits.is_empty() {
        let names = types.iter().map(String::as_str).collect::<Vec<_>>().join(", ");
        return vec![Finding::ok(
            CHECK,
            if names.is_empty() { "no configuration in /etc/cni/net.d".to_owned() } else { names },
        )];
    }
    limits
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::Level;

    fn chain(table: &str, name: &str) -> Chain {
        Chain { family: "ip", table: table.into(), name: name.into(), drops_forwarded: false }
    }

    #[test]
    fn a_live_proxy_fails_and_its_rules_warn() {
        let places =
            rules_of_kube_proxy(&[chain("kube-proxy", "services"), chain("nat", "KUBE-SERVICES")], true);
        assert_eq!(places.len(), 3);
        let live = judge_kube_proxy(&[12], &places);
        assert!(live.level == Level::Fail && live.detail.contains("pid 12), with chain"), "{live:?}");
        let left = judge_kube_proxy(&[], &places);
        assert!(left.level == Level::Warn && left.detail.contains("table ip kube-proxy"), "{left:?}");
        assert_eq!(judge_kube_proxy(&[], &BTreeSet::new()).level, Level::Ok);
        assert!(rules_of_kube_proxy(&[chain("nat", "CNI-FORWARD")], false).is_empty());
    }

    #[test]
    fn a_dropping_forward_chain_is_named() {
        let dropping = Chain { drops_forwarded: true, ..chain("filter", "FORWARD") };
        assert_eq!(judge_forward_policy(&[chain("filter", "FORWARD")]).level, Level::Ok);
        assert!(judge_forward_policy(&[dropping]).detail.contains("ip filter FORWARD"));
    }

    #[test]
    fn networks_with_limits() {
        assert_eq!(types_in(r#"{"type": "bridge"}"#), ["bridge"]);
        assert_eq!(
            types_in(r#"{"plugins": [{"type": "cilium-cni"}, {"type": "portmap"}]}"#),
            ["cilium-cni", "portmap"]
        );
        assert!(types_in("not json").is_empty());
        let judged = judge_cni(&["cilium-cni".to_owned(), "portmap".to_owned()].into());
        assert_eq!((judged.len(), judged[0].level), (1, Level::Warn));
        assert_eq!(judge_cni(&["bridge".to_owned()].into())[0].level, Level::Ok);
    }
}
