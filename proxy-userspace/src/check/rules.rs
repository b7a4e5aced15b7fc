//! What the node's packet filter rules mean for translated packets: rules that ask for a connection's state and
//! bridged pods, a forward policy of drop, marks on connections to the node's own addresses, and the XDP lane that
//! passes them all by.

use std::{fs, path::Path};

use super::{
    Finding,
    survey::{Maps, Survey},
};
use crate::netfilter::{Chain, FORWARD, POSTROUTING, PREROUTING, reached};

/// How many of a kind are named.
const NAMED: usize = 3;

pub(super) fn examine(survey: &Survey) -> Vec<Finding> {
    // Where they cannot be read, that is said once, by `conflicts`.
    let chains = survey.rules.as_deref().unwrap_or_default();
    let readable = survey.rules.is_ok();
    let sysctl = |name: &str| {
        let path = Path::new("/proc/sys/net/bridge").join(name);
        fs::read_to_string(path).is_ok_and(|text| !matches!(text.trim(), "" | "0"))
    };
    let bridged = bridged_pods(survey);
    let mut findings = vec![judge_bridge(&bridged, readable.then_some(chains), |family| {
        sysctl(if family == "ip6" { "bridge-nf-call-ip6tables" } else { "bridge-nf-call-iptables" })
    })];
    findings.push(judge_forward_policy(chains, survey.maps.as_ref()));
    findings.extend(judge_marks(chains));
    findings.extend(judge_lane(survey, chains));
    findings
}

fn listed(names: impl Iterator<Item = String>) -> String {
    let all: Vec<_> = names.collect();
    let more = all.len().saturating_sub(NAMED);
    let text = all.iter().take(NAMED).map(String::as_str).collect::<Vec<_>>().join(", ");
    if more > 0 { format!("{text} and {more} more") } else { text }
}

/// Bridges with a port whose other end is in another network namespace.
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

/// `filters`: whether a bridge hands packets to this family's (`ip`, `ip6`) rules.
fn judge_bridge(bridges: &[String], chains: Option<&[Chain]>, filters: impl Fn(&str) -> bool) -> Finding {
    const CHECK: &str = "bridge netfilter";
    if bridges.is_empty() {
        return Finding::ok(CHECK, "no bridged pods here");
    }
    let bridges = bridges.join(", ");
    let off: Vec<_> = ["ip", "ip6"].into_iter().filter(|family| !filters(family)).collect();
    if off.is_empty() {
        return Finding::ok(CHECK, format!("packets between pods on {bridges} meet the node's rules"));
    }
    const FIX: &str = "modprobe br_netfilter; sysctl -w net.bridge.bridge-nf-call-iptables=1 \
                       net.bridge.bridge-nf-call-ip6tables=1";
    let Some(chains) = chains else {
        return Finding::warn(
            CHECK,
            format!(
                "bridge-nf-call-iptables is off for pods on {bridges}; rules that ask for a connection's state \
                     would miss half of each"
            ),
            FIX,
        );
    };
    let crossed = reached(chains, &[PREROUTING, FORWARD, POSTROUTING]);
    let asking = crossed.into_iter().filter(|chain| {
        let families: &[&str] = match chain.table.family {
            "ip" => &["ip"],
            "ip6" => &["ip6"],
            "inet" => &["ip", "ip6"],
            _ => &[],
        };
        families.iter().any(|family| off.contains(family)) && chain.rules.iter().any(|rule| rule.asks_state)
    });
    let asking = listed(asking.map(Chain::to_string));
    if asking.is_empty() {
        return Finding::ok(
            CHECK,
            format!(
                "bridge-nf-call-iptables is off for pods on {bridges}, and no rule asks for a connection's state"
            ),
        );
    }
    Finding::warn(
        CHECK,
        format!(
            "bridge-nf-call-iptables is off: of a connection between two pods on {bridges} the requests meet \
             {asking}, which ask for its state, and the switched replies do not"
        ),
        FIX,
    )
}

/// Base chains of the forward hook that drop what no rule accepts.
fn judge_forward_policy(chains: &[Chain], maps: Option<&Maps>) -> Finding {
    const CHECK: &str = "forward policy";
    const FIX: &str = "the pod network's own rules normally accept its pods; for other backends add a rule to that \
                       chain";
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

/// Backends that are on no node of the cluster, and in no pod range.
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

/// Rules that mark connections by their destination being the node's: they see the backend instead.
fn judge_marks(chains: &[Chain]) -> Option<Finding> {
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
                "{found}, as AWS VPC CNI makes them, route replies by marks on connections to this node's addresses: \
                 they see the backend's address instead, so a NodePort's replies may leave by another interface"
            ),
            "run shunt with --masquerade-all; with AWS_VPC_K8S_CNI_EXTERNALSNAT=true on daemonset aws-node the source \
             translation of these chains is not needed",
        )
    })
}

/// An agent with --xdp, and rules that would have something to say.
fn judge_lane(survey: &Survey, chains: &[Chain]) -> Option<Finding> {
    const CHECK: &str = "xdp lane";
    let lane = &survey.maps.as_ref()?.xdp;
    if lane.is_empty() {
        return None;
    }
    let devices = listed(lane.iter().map(|index| survey.device_name(*index)));
    let hooks = [PREROUTING, FORWARD];
    let missed = reached(chains, &hooks)
        .into_iter()
        .filter(|chain| chain.drops_forwarded() || !chain.rules.is_empty());
    let missed = listed(missed.map(Chain::to_string));
    Some(if missed.is_empty() {
        Finding::ok(CHECK, format!("on {devices}; no rules are passed by"))
    } else {
        Finding::warn(
            CHECK,
            format!("traffic of NodePorts and load balancer addresses on {devices} does not meet {missed}"),
            "run shunt without --xdp where these rules must see it; use loadBalancerSourceRanges to restrict it",
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        check::Level,
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
    fn bridges_matter_with_rules_that_ask_for_state() {
        let judge = |bridges: &[&str], chains: Option<&[Chain]>, on: &[&str]| {
            let bridges: Vec<_> = bridges.iter().map(|name| (*name).to_owned()).collect();
            judge_bridge(&bridges, chains, |family| on.contains(&family)).level
        };
        let chains = [stateful("ip")];
        assert_eq!(judge(&[], Some(&chains), &[]), Level::Ok);
        assert_eq!(judge(&["cni0"], Some(&chains), &[]), Level::Warn);
        assert_eq!(judge(&["cni0"], Some(&chains), &["ip"]), Level::Ok, "the rules are IPv4's");
        assert_eq!(judge(&["cni0"], Some(&[stateful("inet")]), &["ip"]), Level::Warn);
        assert_eq!(judge(&["cni0"], Some(&[]), &[]), Level::Ok);
        assert_eq!(judge(&["cni0"], None, &[]), Level::Warn, "rules unknown");
        let mut input = stateful("ip");
        input.hook = Some(1);
        assert_eq!(judge(&["cni0"], Some(&[input]), &[]), Level::Ok, "nothing forwarded meets it");
    }

    #[test]
    fn a_dropping_forward_chain_and_backends_outside() {
        let mut dropping = chain("filter", "FORWARD", Some(FORWARD), &[]);
        assert_eq!(judge_forward_policy(std::slice::from_ref(&dropping), None).level, Level::Ok);
        dropping.drops = true;
        let dropping = [dropping];
        assert!(judge_forward_policy(&dropping, None).detail.contains("chain FORWARD of nftables table ip"));
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
        assert_eq!(judge_forward_policy(&dropping, Some(&maps)).level, Level::Ok);
        maps.backends.push(backend("203.0.113.7", ""));
        let named = judge_forward_policy(&dropping, Some(&maps));
        assert!(
            named.level == Level::Warn && named.detail.contains("203.0.113.7 of default/out"),
            "{named:?}"
        );
    }

    #[test]
    fn marks_of_connections() {
        assert_eq!(judge_marks(&[chain("mangle", "PREROUTING", Some(PREROUTING), &[""])]), None);
        assert!(judge_marks(&[chain("nat", "AWS-CONNMARK-CHAIN-0", None, &[])]).is_some());
        let mut marking = chain("mangle", "PREROUTING", Some(PREROUTING), &[]);
        marking.rules.push(Rule {
            target: "CONNMARK".to_owned(),
            matches: ["addrtype".to_owned()].into(),
            ..Rule::default()
        });
        assert!(judge_marks(&[marking]).unwrap().fix.contains("--masquerade-all"));
    }

    #[test]
    fn long_lists_are_cut() {
        assert_eq!(listed((1..=5).map(|n| n.to_string())), "1, 2, 3 and 2 more");
    }
}
