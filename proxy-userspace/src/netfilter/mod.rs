//! The node's packet filter rules as shunt needs to know them: which chains there are, what hook they sit on, which
//! other chains their rules jump to. Of nftables (iptables-nft's rules among them) and of iptables-legacy, both read
//! and changed through the kernel's own interfaces, so that no program need be installed.
//!
//! What the rules mean for shunt is decided in `check`; which are kube-proxy's, in `kube_proxy`.

pub mod legacy;
mod legacy_table;
pub mod nftables;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt, io,
};

/// Hooks (`NF_INET_*`) that forwarded packets cross.
pub const PREROUTING: u32 = 0;
pub const FORWARD: u32 = 2;
pub const POSTROUTING: u32 = 4;

/// Who holds a table: two tables of one name, one of each kind, know nothing of each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    Nftables,
    Legacy,
}

/// Family and name of a table.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Table {
    pub kind: Kind,
    /// `ip`, `ip6`, `inet`, …, as nft calls them.
    pub family: &'static str,
    pub name: String,
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.kind, self.family) {
            (Kind::Nftables, family) => write!(f, "nftables table {family} {}", self.name),
            (Kind::Legacy, "ip6") => write!(f, "ip6tables-legacy table {}", self.name),
            (Kind::Legacy, _) => write!(f, "iptables-legacy table {}", self.name),
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chain {
    pub table: Table,
    pub name: String,
    /// Where a base chain sits (`NF_INET_*`).
    pub hook: Option<u32>,
    /// A base chain whose policy is drop.
    pub drops: bool,
    pub rules: Vec<Rule>,
}

impl Chain {
    /// Whether forwarded packets that no rule accepts end here.
    pub fn drops_forwarded(&self) -> bool {
        self.hook == Some(FORWARD) && self.drops && matches!(self.table.family, "ip" | "ip6" | "inet")
    }
}

impl fmt::Display for Chain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "chain {} of {}", self.name, self.table)
    }
}

/// As much of a rule as somebody asks for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rule {
    /// nftables' name of the rule within its table; for legacy the entry's position.
    pub handle: u64,
    pub jumps_to: Option<String>,
    /// Names of what it matches by (`xt` matches by their name, nftables expressions by theirs).
    pub matches: BTreeSet<String>,
    /// Name of an `xt` target (`MARK`, `CONNMARK`, …); legacy's standard verdicts have none.
    pub target: String,
    /// Asks whether the packet belongs to a connection that conntrack knows.
    pub asks_state: bool,
}

/// Every chain of every family of both kinds.
pub fn chains() -> io::Result<Vec<Chain>> {
    let mut chains = nftables::chains()?;
    chains.extend(legacy::chains()?);
    Ok(chains)
}

/// The chains that packets on one of `hooks` may come to. A chain that no jump names may be the target of a verdict
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
