//! The node's packet filter rules: which chains exist, their hooks, and the chains they jump to. Covers nftables
//! (including iptables-nft) and iptables-legacy, both accessed through the kernel's own interfaces, so that no program
//! needs to be installed.
//!
//! `check` evaluates what the rules mean for shunt; `kube_proxy` knows which are kube-proxy's.

mod attribute;
mod chain;
pub mod legacy;
mod legacy_table;
pub mod nftables;
mod registers;
mod xt_match;

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
};

pub use self::chain::{Chain, FORWARD, INPUT, Kind, POSTROUTING, PREROUTING, Rule, Table};

/// All chains of all families and both kinds.
pub fn chains() -> io::Result<Vec<Chain>> {
    let mut chains = nftables::chains()?;
    chains.extend(legacy::chains()?);
    Ok(chains)
}

/// The chains that packets on one of `hooks` may reach. A chain without a jump to it may be the target of a verdict
/// map, which is not read: it counts as reached.
pub fn reached<'a>(chains: &'a [Chain], hooks: &[u32]) -> Vec<&'a Chain> {
    let by_name: BTreeMap<(&Table, &str), usize> =
        chains.iter().enumerate().map(|(at, chain)| ((&chain.table, chain.name.as_str()), at)).collect();
    let jumps = |chain: &'a Chain| {
        let names = chain.rules.iter().filter_map(|rule| rule.jumps_to.as_deref());
        names.filter_map(|name| by_name.get(&(&chain.table, name)).copied()).collect::<Vec<_>>()
    };
    let named: BTreeSet<usize> = chains.iter().flat_map(jumps).collect();
    let mut waiting: Vec<usize> = (0..chains.len())
        .filter(|at| match chains[*at].hook {
            Some(hook) => hooks.contains(&hook),
            None => !named.contains(at),
        })
        .collect();
    let mut found = BTreeSet::new();
    while let Some(at) = waiting.pop() {
        if found.insert(at) {
            waiting.extend(jumps(&chains[at]));
        }
    }
    found.into_iter().map(|at| &chains[at]).collect()
}

#[cfg(test)]
pub mod samples {
    use super::*;

    /// A chain of nftables' `ip TABLE`, with rules that jump.
    pub fn chain(table: &str, name: &str, hook: Option<u32>, jumps: &[&str]) -> Chain {
        Chain {
            table: Table { kind: Kind::Nftables, family: "ip", name: table.to_owned() },
            name: name.to_owned(),
            hook,
            drops: false,
            rules: (1..)
                .zip(jumps)
                .map(|(handle, to)| Rule {
                    handle,
                    jumps_to: (!to.is_empty()).then(|| (*to).to_owned()),
                    ..Rule::default()
                })
                .collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{samples::chain, *};

    #[test]
    fn what_forwarded_packets_come_to() {
        let chains = [
            chain("filter", "FORWARD", Some(FORWARD), &["", "A"]),
            chain("filter", "INPUT", Some(1), &["B"]),
            chain("filter", "A", None, &["C", "A"]),
            chain("filter", "B", None, &[]),
            chain("filter", "C", None, &["NOWHERE"]),
            chain("filter", "MAPPED", None, &[]),
            chain("other", "C", Some(1), &[]),
        ];
        let names: Vec<_> = reached(&chains, &[FORWARD]).iter().map(|chain| chain.name.as_str()).collect();
        assert_eq!(names, ["FORWARD", "A", "C", "MAPPED"]);
        assert_eq!(chains[0].to_string(), "chain FORWARD of nftables table ip filter");
    }
}
