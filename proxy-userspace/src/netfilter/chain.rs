//! Tables, chains and rules, as far as shunt reads them.

use std::{collections::BTreeSet, fmt};

/// Hooks (`NF_INET_*`) that incoming and forwarded packets cross.
pub const PREROUTING: u32 = 0;
pub const INPUT: u32 = 1;
pub const FORWARD: u32 = 2;
pub const POSTROUTING: u32 = 4;

/// The implementation that holds a table: tables of the same name and different kinds are independent.
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
    /// The hook of a base chain (`NF_INET_*`).
    pub hook: Option<u32>,
    /// A base chain whose policy is drop.
    pub drops: bool,
    pub rules: Vec<Rule>,
}

impl Chain {
    /// Whether it drops forwarded packets that no rule accepts.
    pub fn drops_forwarded(&self) -> bool {
        self.hook == Some(FORWARD) && self.drops && matches!(self.table.family, "ip" | "ip6" | "inet")
    }
}

impl fmt::Display for Chain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "chain {} of {}", self.name, self.table)
    }
}

/// A rule, as far as it is used here.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rule {
    /// The rule's handle in nftables; the entry's position in legacy tables.
    pub handle: u64,
    pub jumps_to: Option<String>,
    /// Names of its matches (`xt` matches and nftables expressions).
    pub matches: BTreeSet<String>,
    /// Name of an `xt` target (`MARK`, `CONNMARK`, …); legacy's standard verdicts have none.
    pub target: String,
    /// Matches on the packet's conntrack state.
    pub asks_state: bool,
    /// Ranges of destination ports that it matches.
    pub ports: Vec<(u16, u16)>,
    /// Sets of nftables in which it looks the destination port up.
    pub port_sets: Vec<String>,
    /// It matches what conntrack knows of a destination's translation: how.
    pub asks_translation: Option<&'static str>,
    /// It drops or rejects every packet that it sees.
    pub rejects_all: bool,
}
