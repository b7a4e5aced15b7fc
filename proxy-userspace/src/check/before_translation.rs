//! Rules of the node's firewall that expect packets of Services as they are before translation. shunt translates before
//! netfilter and without it: a rule sees the backend's address and port, and conntrack knows of no translation.

use std::collections::BTreeSet;

use super::{finding::Finding, packet_filter::listed, survey::Survey};
use crate::netfilter::{Chain, FORWARD, INPUT, Kind, PREROUTING, Rule, reached};

/// The API server's default range of NodePorts.
const NODE_PORTS: (u16, u16) = (30000, 32767);
const FIX: &str = "restrict the clients of NodePorts with --nodeport-source-ranges or a Service's annotation \
                   shunt.dev/nodeport-source-ranges, or match the backend's address and port in the forward hook";

pub(super) fn examine(survey: &Survey) -> Vec<Finding> {
    // `conflicts` reports rules that cannot be read.
    let chains = survey.rules.as_deref().unwrap_or_default();
    let none = BTreeSet::new();
    let known = survey.maps.as_ref().map_or(&none, |maps| &maps.node_ports);
    [evaluate_ports(chains, known), evaluate_translations(chains), evaluate_final_rejects(chains)]
        .into_iter()
        .flatten()
        .collect()
}

/// Rules that match the number of a NodePort where packets come in.
fn evaluate_ports(chains: &[Chain], known: &BTreeSet<u16>) -> Option<Finding> {
    let overlaps = |(low, high): &(u16, u16)| {
        *low <= NODE_PORTS.1 && NODE_PORTS.0 <= *high
            || low <= high && known.range(low..=high).next().is_some()
    };
    let rules = rules_at(chains, &[PREROUTING, INPUT]).filter_map(|(chain, at, rule)| {
        let ports: Vec<_> = rule.ports.iter().filter(|range| overlaps(range)).map(text_of).collect();
        (!ports.is_empty()).then(|| named(chain, at, rule, &format!("dport {}", ports.join(", "))))
    });
    let rules = listed(rules);
    (!rules.is_empty()).then(|| {
        Finding::warn(
            "NodePort rules",
            format!(
                "{rules} match NodePorts by number: packets of Services pass them, because they arrive translated, with the \
                 backend's address and port"
            ),
            FIX,
        )
    })
}

/// Rules that ask conntrack for the destination before a translation, or whether there was one.
fn evaluate_translations(chains: &[Chain]) -> Option<Finding> {
    let rules = rules_at(chains, &[PREROUTING, INPUT, FORWARD])
        .filter_map(|(chain, at, rule)| Some(named(chain, at, rule, rule.asks_translation?)));
    let rules = listed(rules);
    (!rules.is_empty()).then(|| {
        Finding::warn(
            "conntrack rules",
            format!(
                "{rules} ask conntrack for a translation: for packets of Services it knows none, and takes the backend's address \
                 and port for the original destination"
            ),
            FIX,
        )
    })
}

/// Chains that accept forwarded packets by policy, and end with a rule that rejects the rest, as firewalld's do. What
/// kube-proxy translated is accepted there by `ct status dnat`.
fn evaluate_final_rejects(chains: &[Chain]) -> Option<Finding> {
    let rules = chains
        .iter()
        .filter(|chain| chain.hook == Some(FORWARD) && !chain.drops && is_ip(chain))
        .filter_map(|chain| {
            let rule = chain.rules.last().filter(|rule| rule.rejects_all)?;
            Some(named(chain, chain.rules.len() - 1, rule, "rejects what is left"))
        });
    let rules = listed(rules);
    (!rules.is_empty()).then(|| {
        Finding::warn(
            "final reject",
            format!(
                "{rules}, behind a policy that accepts: it also rejects forwarded packets of Services that no rule accepts by the \
                 backend's address"
            ),
            "accept the pods' ranges, and other backends, before it (firewalld: firewall-cmd --permanent --zone=trusted \
             --add-source=POD-CIDR); restrict clients with --nodeport-source-ranges",
        )
    })
}

/// The rules that packets may reach on these hooks, each with its chain and its index there; without those of kube-proxy and
/// of a CNI's portmap, which serve what they match.
fn rules_at<'a>(chains: &'a [Chain], hooks: &[u32]) -> impl Iterator<Item = (&'a Chain, usize, &'a Rule)> {
    let others = |chain: &&Chain| {
        !chain.name.starts_with("KUBE-")
            && !chain.name.starts_with("CNI-")
            && chain.table.name != "kube-proxy"
    };
    // A hook of the family netdev with the number of PREROUTING is ingress; others have no incoming packets.
    let is_crossed = |chain: &&Chain| {
        is_ip(chain) || chain.table.family == "netdev" && chain.hook.is_none_or(|hook| hook == 0)
    };
    let found = reached(chains, hooks).into_iter().filter(is_crossed).filter(others);
    found.flat_map(|chain| chain.rules.iter().enumerate().map(move |(at, rule)| (chain, at, rule)))
}

fn is_ip(chain: &Chain) -> bool {
    matches!(chain.table.family, "ip" | "ip6" | "inet")
}

/// A rule as the tools name it: by handle in nftables, by its number in iptables-legacy.
fn named(chain: &Chain, at: usize, rule: &Rule, text: &str) -> String {
    match chain.table.kind {
        Kind::Nftables => format!("rule handle {} ({text}) in {chain}", rule.handle),
        Kind::Legacy => format!("rule {} ({text}) in {chain}", at + 1),
    }
}

fn text_of((low, high): &(u16, u16)) -> String {
    if low == high { low.to_string() } else { format!("{low}-{high}") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{check::finding::Level, netfilter::samples::chain};

    fn with(hook: u32, rule: Rule) -> Chain {
        let mut chain = chain("filter", "CHAIN", Some(hook), &[]);
        chain.rules = vec![Rule { handle: 7, ..rule }];
        chain
    }

    fn ports(hook: u32, low: u16, high: u16) -> Chain {
        with(hook, Rule { ports: vec![(low, high)], ..Rule::default() })
    }

    #[test]
    fn rules_by_the_number_of_a_node_port() {
        let evaluate = |chain: Chain| evaluate_ports(&[chain], &[80].into());
        let found = evaluate(ports(INPUT, 30080, 30080)).unwrap();
        assert_eq!(found.level, Level::Warn);
        assert!(
            found
                .detail
                .starts_with("rule handle 7 (dport 30080) in chain CHAIN of nftables table ip filter")
        );
        assert!(evaluate(ports(PREROUTING, 32000, 40000)).unwrap().detail.contains("dport 32000-40000"));
        assert!(evaluate(ports(INPUT, 80, 80)).is_some(), "a NodePort outside the default range");
        assert_eq!(evaluate(ports(INPUT, 443, 443)), None);
        assert_eq!(evaluate(ports(INPUT, 1, 0)), None);
        assert_eq!(evaluate(ports(FORWARD, 30080, 30080)), None, "translated for kube-proxy's rules too");
        for name in ["KUBE-NODEPORTS", "CNI-HOSTPORT-DNAT"] {
            let theirs = Chain { name: name.to_owned(), ..ports(PREROUTING, 30080, 30080) };
            assert_eq!(evaluate(theirs), None);
        }
        let mut ingress = ports(PREROUTING, 30080, 30080);
        ingress.table.family = "netdev";
        assert!(evaluate(ingress).is_some());
        let mut bridge = ports(PREROUTING, 30080, 30080);
        bridge.table.family = "bridge";
        assert_eq!(evaluate(bridge), None);
    }

    #[test]
    fn rules_that_ask_for_a_translation() {
        for hook in [PREROUTING, INPUT, FORWARD] {
            let rule = Rule { asks_translation: Some("ct status dnat"), ..Rule::default() };
            let found = evaluate_translations(&[with(hook, rule)]).unwrap();
            assert!(found.detail.contains("rule handle 7 (ct status dnat)"), "{found:?}");
        }
        assert_eq!(evaluate_translations(&[with(FORWARD, Rule::default())]), None);
    }

    #[test]
    fn a_final_reject_behind_an_accepting_policy() {
        let rejects = Rule { rejects_all: true, ..Rule::default() };
        assert!(evaluate_final_rejects(&[with(FORWARD, rejects.clone())]).is_some());
        assert_eq!(evaluate_final_rejects(&[with(INPUT, rejects.clone())]), None);
        let mut not_last = with(FORWARD, rejects.clone());
        not_last.rules.push(Rule::default());
        assert_eq!(evaluate_final_rejects(&[not_last]), None);
        let dropping = Chain { drops: true, ..with(FORWARD, rejects) };
        assert_eq!(evaluate_final_rejects(&[dropping]), None, "reported as the forward policy");
    }

    #[test]
    fn rules_of_iptables_legacy_have_numbers() {
        let mut legacy = ports(INPUT, 30000, 30010);
        legacy.table.kind = Kind::Legacy;
        let found = evaluate_ports(&[legacy], &BTreeSet::new()).unwrap();
        assert!(
            found.detail.starts_with("rule 1 (dport 30000-30010) in chain CHAIN of iptables-legacy"),
            "{found:?}"
        );
    }
}
