//! Effects of the node's packet filter rules on translated packets: rules that match connection state together with bridged
//! pods, a FORWARD policy of DROP, connection marks that depend on node addresses, and XDP, which bypasses all rules.

use std::{fs, path::Path};

use super::{
    finding::Finding,
    survey::{Maps, Survey},
};
use crate::netfilter::{Chain, FORWARD, POSTROUTING, PREROUTING, reached};

/// Maximum number of names in a list.
const NAMED: usize = 3;

pub(super) fn examine(survey: &Survey) -> Vec<Finding> {
    // `conflicts` reports rules that cannot be read.
    let chains = survey.rules.as_deref().unwrap_or_default();
    let readable = survey.rules.is_ok();
    let sysctl = |name: &str| {
        let path = Path::new("/proc/sys/net/bridge").join(name);
        fs::read_to_string(path).is_ok_and(|text| !matches!(text.trim(), "" | "0"))
    };
    let bridged = bridged_pods(survey);
    let mut findings = vec![evaluate_bridge(&bridged, readable.then_some(chains), |family| {
        sysctl(if family == "ip6" { "bridge-nf-call-ip6tables" } else { "bridge-nf-call-iptables" })
    })];
    findings.push(evaluate_forward_policy(chains, survey.maps.as_ref()));
    findings.extend(evaluate_marks(chains));
    findings.extend(evaluate_xdp(survey, chains));
    findings
}

pub(super) fn listed(names: impl Iterator<Item = String>) -> String {
    let all: Vec<_> = names.collect();
    let more = all.len().saturating_sub(NAMED);
    let text = all.iter().take(NAMED).map(String::as_str).collect::<Vec<_>>().join(", ");
    if more > 0 { format!("{text} and {more} more") } else { text }
}

/// Bridges with a port whose peer is in another network namespace.
fn bridged_pods(survey: &Survey) -> Vec<String> {
    let links = &survey.devices.links;
    let ports = links.values().filter(|link| link.kind == "veth" && link.peer_elsewhere);
    let mut bridges: Vec<_> = ports
        .filter_map(|port| links.get(&port.master?))
        .filter(|master| master.kind == "bridge")
        .map(|bridge| bridge.name.clone())
        .collect();
    bridges.sort_unstable();
    bridges.dedup();
    bridges
}

/// `filters`: whether bridges pass packets to the rules of a family (`ip`, `ip6`).
fn evaluate_bridge(bridges: &[String], chains: Option<&[Chain]>, filters: impl Fn(&str) -> bool) -> Finding {
    const CHECK: &str = "bridge netfilter";
    if bridges.is_empty() {
        return Finding::ok(CHECK, "no bridged pods");
    }
    let bridges = bridges.join(", ");
    let off: Vec<_> = ["ip", "ip6"].into_iter().filter(|family| !filters(family)).collect();
    if off.is_empty() {
        return Finding::ok(CHECK, format!("packets between pods on {bridges} pass the node's rules"));
    }
    const FIX: &str = "modprobe br_netfilter; sysctl -w net.bridge.bridge-nf-call-iptables=1 \
                       net.bridge.bridge-nf-call-ip6tables=1";
    let Some(chains) = chains else {
        return Finding::warn(
            CHECK,
            format!(
                "bridge-nf-call-iptables is off for pods on {bridges}; rules that match connection state would see only one \
                 direction"
            ),
            FIX,
        );
    };
    let crossed = reached(chains, &[PREROUTING, FORWARD, POSTROUTING]);
    let stateful_chains = crossed.into_iter().filter(|chain| {
        let families: &[&str] = match chain.table.family {
            "ip" => &["ip"],
            "ip6" => &["ip6"],
            "inet" => &["ip", "ip6"],
            _ => &[],
        };
        families.iter().any(|family| off.contains(family)) && chain.rules.iter().any(|rule| rule.asks_state)
    });
    let stateful_chains = listed(stateful_chains.map(Chain::to_string));
    if stateful_chains.is_empty() {
        return Finding::ok(
            CHECK,
            format!(
                "bridge-nf-call-iptables is off for pods on {bridges}, and no rule matches connection state"
            ),
        );
    }
    Finding::warn(
        CHECK,
        format!(
            "bridge-nf-call-iptables is off: between two pods on {bridges}, requests pass {stateful_chains}, which match connection \
             state, and bridged replies do not"
        ),
        FIX,
    )
}

/// Base chains of the forward hook with policy drop.
fn evaluate_forward_policy(chains: &[Chain], maps: Option<&Maps>) -> Finding {
    const CHECK: &str = "forward policy";
    const FIX: &str =
        "the rules of the pod network normally accept its pods; for other backends add a rule to that chain";
    let dropping = listed(chains.iter().filter(|chain| chain.drops_forwarded()).map(Chain::to_string));
    if dropping.is_empty() {
        return Finding::ok(CHECK, "accepts");
    }
    let Some(maps) = maps else {
        return Finding::warn(
            CHECK,
            format!("drop in {dropping}: backends outside the pod range need a rule that accepts them"),
            FIX,
        );
    };
    let outside =
        listed(outside_pod_range(maps).map(|(address, services)| format!("{address} of {services}")));
    if outside.is_empty() {
        return Finding::ok(CHECK, format!("drop in {dropping}; every backend is a pod's"));
    }
    Finding::warn(
        CHECK,
        format!("drop in {dropping}: connections forwarded to {outside} need a rule that accepts them"),
        FIX,
    )
}

/// Backends on no node of the cluster and in no pod range.
fn outside_pod_range(maps: &Maps) -> impl Iterator<Item = (&str, String)> {
    let in_range = |address: &str| {
        address
            .parse()
            .is_ok_and(|ip: std::net::IpAddr| maps.pod_ranges.iter().any(|range| range.contains(&ip)))
    };
    let outside = maps
        .backends
        .iter()
        .filter(move |backend| !backend.local && backend.node.is_empty() && !in_range(&backend.address));
    outside.map(|backend| {
        (backend.address.as_str(), backend.services.iter().map(String::as_str).collect::<Vec<_>>().join(", "))
    })
}

/// Rules that mark connections to node addresses: behind the translation they see the backend instead.
fn evaluate_marks(chains: &[Chain]) -> Option<Finding> {
    const AWS: [&str; 2] = ["AWS-CONNMARK-CHAIN", "AWS-SNAT-CHAIN"];
    let by_name = |chain: &&Chain| AWS.iter().any(|prefix| chain.name.starts_with(prefix));
    let marks = |chain: &&Chain| {
        chain.hook == Some(PREROUTING)
            && chain.rules.iter().any(|rule| rule.target == "CONNMARK" && rule.matches.contains("addrtype"))
    };
    let found = listed(chains.iter().filter(|chain| by_name(chain) || marks(chain)).map(Chain::to_string));
    (!found.is_empty()).then(|| {
        Finding::warn(
            "connection marks",
            format!(
                "{found}, as created by AWS VPC CNI, route replies by marks on connections to this node's addresses: they see \
                 the address of the backend instead, so replies of a NodePort may use another interface"
            ),
            "run shunt with --masquerade-all; with AWS_VPC_K8S_CNI_EXTERNALSNAT=true on daemonset aws-node, the SNAT of these \
             chains is not needed",
        )
    })
}

/// XDP together with rules that it bypasses.
fn evaluate_xdp(survey: &Survey, chains: &[Chain]) -> Option<Finding> {
    const CHECK: &str = "xdp lane";
    let devices = &survey.maps.as_ref()?.xdp;
    if devices.is_empty() {
        return None;
    }
    let devices = listed(devices.iter().map(|index| survey.device_name(*index)));
    let hooks = [PREROUTING, FORWARD];
    let missed = reached(chains, &hooks)
        .into_iter()
        .filter(|chain| chain.drops_forwarded() || !chain.rules.is_empty());
    let missed = listed(missed.map(Chain::to_string));
    Some(if missed.is_empty() {
        Finding::ok(CHECK, format!("on {devices}; it bypasses no rules"))
    } else {
        Finding::warn(
            CHECK,
            format!("traffic of NodePorts and load balancer addresses on {devices} bypasses {missed}"),
            "run shunt without --xdp if these rules must apply; use loadBalancerSourceRanges to restrict clients",
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        check::finding::Level,
        inspect::backends::BackendView,
        netfilter::{Rule, samples::chain},
    };

    fn stateful(family: &'static str) -> Chain {
        let mut chain = chain("filter", "FORWARD", Some(FORWARD), &[""]);
        chain.table.family = family;
        chain.rules[0].asks_state = true;
        chain
    }

    #[test]
    fn bridges_matter_with_stateful_rules() {
        let evaluate = |bridges: &[&str], chains: Option<&[Chain]>, on: &[&str]| {
            let bridges: Vec<_> = bridges.iter().map(|name| (*name).to_owned()).collect();
            evaluate_bridge(&bridges, chains, |family| on.contains(&family)).level
        };
        let chains = [stateful("ip")];
        assert_eq!(evaluate(&[], Some(&chains), &[]), Level::Ok);
        assert_eq!(evaluate(&["cni0"], Some(&chains), &[]), Level::Warn);
        assert_eq!(evaluate(&["cni0"], Some(&chains), &["ip"]), Level::Ok, "the rules are IPv4's");
        assert_eq!(evaluate(&["cni0"], Some(&[stateful("inet")]), &["ip"]), Level::Warn);
        assert_eq!(evaluate(&["cni0"], Some(&[]), &[]), Level::Ok);
        assert_eq!(evaluate(&["cni0"], None, &[]), Level::Warn, "rules unknown");
        let mut input = stateful("ip");
        input.hook = Some(1);
        assert_eq!(evaluate(&["cni0"], Some(&[input]), &[]), Level::Ok, "forwarded packets do not pass it");
    }

    #[test]
    fn a_dropping_forward_chain_with_external_backends() {
        let mut dropping = chain("filter", "FORWARD", Some(FORWARD), &[]);
        assert_eq!(evaluate_forward_policy(std::slice::from_ref(&dropping), None).level, Level::Ok);
        dropping.drops = true;
        let dropping = [dropping];
        assert!(
            evaluate_forward_policy(&dropping, None).detail.contains("chain FORWARD of nftables table ip")
        );
        let backend = |address: &str, node: &str| BackendView {
            id: 1,
            address: address.to_owned(),
            port: 80,
            protocol: "TCP".to_owned(),
            node: node.to_owned(),
            local: false,
            ready: true,
            terminating: false,
            services: ["default/out".to_owned()].into(),
        };
        let mut maps = Maps {
            backends: vec![backend("172.20.1.5", ""), backend("192.168.8.202", "node-2")],
            pod_ranges: vec!["172.20.0.0/16".parse().unwrap()],
            ..Maps::default()
        };
        assert_eq!(evaluate_forward_policy(&dropping, Some(&maps)).level, Level::Ok);
        maps.backends.push(backend("203.0.113.7", ""));
        let named = evaluate_forward_policy(&dropping, Some(&maps));
        assert!(
            named.level == Level::Warn && named.detail.contains("203.0.113.7 of default/out"),
            "{named:?}"
        );
    }

    #[test]
    fn connection_marks() {
        assert_eq!(evaluate_marks(&[chain("mangle", "PREROUTING", Some(PREROUTING), &[""])]), None);
        assert!(evaluate_marks(&[chain("nat", "AWS-CONNMARK-CHAIN-0", None, &[])]).is_some());
        let mut marking = chain("mangle", "PREROUTING", Some(PREROUTING), &[]);
        marking.rules.push(Rule {
            target: "CONNMARK".to_owned(),
            matches: ["addrtype".to_owned()].into(),
            ..Rule::default()
        });
        assert!(evaluate_marks(&[marking]).unwrap().fix.contains("--masquerade-all"));
    }

    #[test]
    fn long_lists_are_cut() {
        assert_eq!(listed((1..=5).map(|n| n.to_string())), "1, 2, 3 and 2 more");
    }
}
