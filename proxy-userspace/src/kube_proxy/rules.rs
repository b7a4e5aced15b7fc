//! kube-proxy's rules in iptables and nftables: which exist and which can be removed. Pure; `netfilter` reads and
//! removes rules.
//!
//! A jump in a base chain is removed with its target, because kube-proxy puts its jumps there. A chain that another
//! program's chain jumps to is kept, with everything it needs.

use std::collections::{BTreeMap, BTreeSet};

use super::names::{self, MARK_MASQ, NFTABLES_TABLE, POSTROUTING};
use crate::netfilter::{Chain, Kind, Table, nftables::Removal};

/// kube-proxy's rules.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rules {
    pub removal: Removal,
    /// Chains that must be kept, and why.
    pub kept: Vec<(Table, String, String)>,
}

impl Rules {
    pub fn among(tables: &[Table], chains: &[Chain]) -> Self {
        let mut rules = Self::default();
        rules.removal.tables.extend(tables.iter().filter(|table| is_own(table)).cloned());
        let mut by_table: BTreeMap<&Table, Vec<&Chain>> = BTreeMap::new();
        for chain in chains.iter().filter(|chain| matches!(chain.table.family, "ip" | "ip6")) {
            by_table.entry(&chain.table).or_default().push(chain);
        }
        for (table, chains) in by_table {
            rules.add(table, &chains);
        }
        rules
    }

    fn add(&mut self, table: &Table, chains: &[&Chain]) {
        let owned: BTreeMap<&str, &Chain> = chains
            .iter()
            .filter(|chain| chain.hook.is_none() && names::is_chain(&table.name, &chain.name))
            .map(|chain| (chain.name.as_str(), *chain))
            .collect();
        let kept = needed(&owned, chains);
        let goes = |name: &str| owned.contains_key(name) && !kept.contains_key(name);
        for chain in chains.iter().filter(|chain| chain.hook.is_some()) {
            let jumps = chain.rules.iter().filter(|rule| rule.jumps_to.as_deref().is_some_and(&goes));
            self.removal.rules.extend(jumps.map(|rule| (table.clone(), chain.name.clone(), rule.handle)));
        }
        let chains = owned.keys().filter(|name| goes(name));
        self.removal.chains.extend(chains.map(|name| (table.clone(), (*name).to_owned())));
        let reasons = kept.into_iter().map(|(name, why)| (table.clone(), name.to_owned(), why));
        self.kept.extend(reasons);
    }

    /// Tables with chains that only kube-proxy creates; chains that the kubelet creates too do not count.
    pub fn places(&self) -> BTreeSet<String> {
        let mut places: BTreeMap<&Table, usize> = BTreeMap::new();
        for (table, name) in &self.removal.chains {
            *places.entry(table).or_default() +=
                usize::from(![MARK_MASQ, POSTROUTING].contains(&name.as_str()));
        }
        let chains = places.into_iter().filter(|(_, count)| *count > 0);
        let chains = chains.map(|(table, count)| format!("KUBE chains of {table} ({count})"));
        chains.chain(self.removal.tables.iter().map(Table::to_string)).collect()
    }
}

fn is_own(table: &Table) -> bool {
    table.kind == Kind::Nftables && matches!(table.family, "ip" | "ip6") && table.name == NFTABLES_TABLE
}

/// kube-proxy's chains that other programs' chains jump to, and the chains these need, each with the reason.
fn needed<'a>(owned: &BTreeMap<&'a str, &'a Chain>, chains: &[&'a Chain]) -> BTreeMap<&'a str, String> {
    let mut needed = BTreeMap::new();
    let mut waiting = Vec::new();
    let foreign =
        chains.iter().filter(|chain| chain.hook.is_none() && !owned.contains_key(chain.name.as_str()));
    for chain in foreign {
        waiting.extend(targets(chain).map(|to| (to, format!("{} jumps to it", chain.name))));
    }
    while let Some((name, why)) = waiting.pop() {
        let Some(chain) = owned.get(name) else { continue };
        if needed.insert(name, why).is_some() {
            continue;
        }
        waiting.extend(targets(chain).map(|to| (to, format!("{name} jumps to it"))));
        // One chain marks what the other masquerades.
        if name == MARK_MASQ {
            waiting.push((POSTROUTING, format!("{MARK_MASQ} relies on it")));
        }
    }
    needed
}

fn targets(chain: &Chain) -> impl Iterator<Item = &str> {
    chain.rules.iter().filter_map(|rule| rule.jumps_to.as_deref())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netfilter::samples::chain;

    fn nat() -> Vec<Chain> {
        vec![
            chain("nat", "PREROUTING", Some(0), &["DOCKER", "KUBE-SERVICES", ""]),
            chain("nat", "POSTROUTING", Some(4), &["KUBE-POSTROUTING", "CNI-HOSTPORT-MASQ"]),
            chain("nat", "KUBE-SERVICES", None, &["KUBE-SVC-A"]),
            chain("nat", "KUBE-SVC-A", None, &["KUBE-MARK-MASQ"]),
            chain("nat", "KUBE-MARK-MASQ", None, &[""]),
            chain("nat", "KUBE-POSTROUTING", None, &[""]),
            chain("nat", "DOCKER", None, &[""]),
            chain("filter", "INPUT", Some(1), &["KUBE-FIREWALL"]),
            chain("filter", "KUBE-FIREWALL", None, &[""]),
        ]
    }

    fn names_of(rules: &Rules) -> Vec<&str> {
        rules.removal.chains.iter().map(|(_, name)| name.as_str()).collect()
    }

    #[test]
    fn its_chains_and_the_jumps_to_them() {
        let table = |family, name: &str| Table { kind: Kind::Nftables, family, name: name.to_owned() };
        let tables = [table("ip6", "kube-proxy"), table("inet", "kube-proxy"), table("ip", "nat")];
        let rules = Rules::among(&tables, &nat());
        assert_eq!(names_of(&rules), ["KUBE-MARK-MASQ", "KUBE-POSTROUTING", "KUBE-SERVICES", "KUBE-SVC-A"]);
        let jumps: Vec<_> =
            rules.removal.rules.iter().map(|(_, chain, handle)| (chain.as_str(), *handle)).collect();
        assert_eq!(jumps, [("PREROUTING", 2), ("POSTROUTING", 1)]);
        assert_eq!(rules.removal.tables, tables[..1]);
        assert!(rules.kept.is_empty());
        assert_eq!(
            rules.places().into_iter().collect::<Vec<_>>(),
            ["KUBE chains of nftables table ip nat (2)", "nftables table ip6 kube-proxy"]
        );
    }

    /// The CNI's portmap plugin, configured to mark with kube-proxy's chain.
    #[test]
    fn what_others_jump_to_stays_with_what_it_needs() {
        let mut chains = nat();
        chains.push(chain("nat", "CNI-HOSTPORT-SETMARK", None, &["KUBE-MARK-MASQ"]));
        let rules = Rules::among(&[], &chains);
        assert_eq!(names_of(&rules), ["KUBE-SERVICES", "KUBE-SVC-A"]);
        assert_eq!(rules.removal.rules.len(), 1, "the jump to KUBE-POSTROUTING stays: {rules:?}");
        let kept: Vec<_> = rules.kept.iter().map(|(_, name, why)| format!("{name}: {why}")).collect();
        assert_eq!(
            kept,
            [
                "KUBE-MARK-MASQ: CNI-HOSTPORT-SETMARK jumps to it",
                "KUBE-POSTROUTING: KUBE-MARK-MASQ relies on it"
            ]
        );
    }

    #[test]
    fn a_kubelet_alone_is_no_sign() {
        let chains = [chain("nat", "KUBE-MARK-MASQ", None, &[]), chain("nat", "KUBE-POSTROUTING", None, &[])];
        assert!(Rules::among(&[], &chains).places().is_empty());
        assert_eq!(Rules::among(&[], &[]), Rules::default());
    }
}
