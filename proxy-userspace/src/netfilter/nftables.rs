//! nf_tables over netlink: chains and rules are listed by dumps and removed by transactions. iptables-nft's tables are
//! ordinary tables; its matches and targets are expressions (`match`, `target`), its jumps and verdicts those of
//! nftables.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
};

use super::{
    attribute::{be32, find},
    chain::{Chain, Kind, Rule, Table},
    registers::Registers,
    xt_match,
};
use crate::datapath::netlink::{Message, Request, Socket, attributes, read_str};

/// `NFNL_SUBSYS_NFTABLES << 8` and its messages (uapi/linux/netfilter/nf_tables.h).
const NFT: u16 = 10 << 8;
const NEWTABLE: u16 = NFT;
const GETTABLE: u16 = NFT | 1;
const DELTABLE: u16 = NFT | 2;
const NEWCHAIN: u16 = NFT | 3;
const GETCHAIN: u16 = NFT | 4;
const DELCHAIN: u16 = NFT | 5;
const NEWRULE: u16 = NFT | 6;
const GETRULE: u16 = NFT | 7;
const DELRULE: u16 = NFT | 8;
const NEWSETELEM: u16 = NFT | 12;
const GETSETELEM: u16 = NFT | 13;

const TABLE_NAME: u16 = 1;
const CHAIN_TABLE: u16 = 1;
const CHAIN_NAME: u16 = 3;
const CHAIN_HOOK: u16 = 4;
const CHAIN_POLICY: u16 = 5;
const HOOK_HOOKNUM: u16 = 1;
const RULE_TABLE: u16 = 1;
const RULE_CHAIN: u16 = 2;
const RULE_HANDLE: u16 = 3;
const RULE_EXPRESSIONS: u16 = 4;
const EXPR_NAME: u16 = 1;
const EXPR_DATA: u16 = 2;
const DATA_VALUE: u16 = 1;
const IMMEDIATE_DATA: u16 = 2;
const DATA_VERDICT: u16 = 2;
const VERDICT_CODE: u16 = 1;
const VERDICT_CHAIN: u16 = 2;
/// Of `match` and of `target`.
const XT_NAME: u16 = 1;
const XT_INFO: u16 = 3;
const CT_KEY: u16 = 2;
const CT_STATE: u32 = 0;

const ELEMENTS_TABLE: u16 = 1;
const ELEMENTS_SET: u16 = 2;
const ELEMENTS: u16 = 3;
const ELEMENT_KEY: u16 = 1;
const ELEMENT_FLAGS: u16 = 3;
const ELEMENT_INTERVAL_END: u32 = 1;

const NF_DROP: u32 = 0;
/// `struct nfgenmsg`.
const HEADER: usize = 4;
/// Requests per transaction: about 100 bytes each, far below the socket's send limit.
const BATCH: usize = 1000;

fn family_name(number: u8) -> &'static str {
    match number {
        1 => "inet",
        2 => "ip",
        3 => "arp",
        5 => "netdev",
        7 => "bridge",
        10 => "ip6",
        _ => "other",
    }
}

/// All tables of all families; none without nftables.
pub fn tables() -> io::Result<Vec<Table>> {
    let mut found = Vec::new();
    dump(GETTABLE, |message| {
        if message.kind == NEWTABLE
            && let Some(table) = table(&message, TABLE_NAME)
            && !found.contains(&table)
        {
            found.push(table);
        }
    })?;
    Ok(found)
}

/// All chains of all families with their rules.
pub fn chains() -> io::Result<Vec<Chain>> {
    let mut chains = BTreeMap::new();
    dump(GETCHAIN, |message| {
        if let Some(chain) = chain(&message) {
            chains.insert((chain.table.clone(), chain.name.clone()), chain);
        }
    })?;
    let mut rules = BTreeMap::new();
    dump(GETRULE, |message| {
        if let Some((key, rule)) = rule(&message) {
            // An interrupted dump is repeated: the handle identifies duplicates.
            rules.entry(key).or_insert_with(BTreeMap::new).entry(rule.handle).or_insert(rule);
        }
    })?;
    for (key, found) in rules {
        if let Some(chain) = chains.get_mut(&key) {
            chain.rules = found.into_values().collect();
        }
    }
    for chain in chains.values_mut() {
        for rule in &mut chain.rules {
            for set in &rule.port_sets {
                // A set that went meanwhile, or cannot be read, has no ports.
                rule.ports.extend(ports_in(&chain.table, set).unwrap_or_default());
            }
        }
    }
    Ok(chains.into_values().collect())
}

/// The ranges of ports in a set, or in the keys of a map.
fn ports_in(table: &Table, set: &str) -> io::Result<Vec<(u16, u16)>> {
    let mut request = request(GETSETELEM, table);
    request.attribute(ELEMENTS_TABLE, &text(&table.name)).attribute(ELEMENTS_SET, &text(set));
    let mut found = BTreeSet::new();
    Socket::open_netfilter()?.dump_request(request, |message| {
        if message.kind == NEWSETELEM {
            let lists = all(message).filter(|attribute| attribute.0 == ELEMENTS);
            found.extend(lists.flat_map(|list| attributes(list.1)).filter_map(|element| key(element.1)));
        }
    })?;
    Ok(intervals(&found))
}

/// The port of an element, and whether an interval begins there; false: the interval before it ends.
fn key(element: &[u8]) -> Option<(u16, bool)> {
    let value = find(find(element, ELEMENT_KEY)?, DATA_VALUE)?;
    let flags = find(element, ELEMENT_FLAGS).and_then(be32).unwrap_or_default();
    Some((u16::from_be_bytes(value.try_into().ok()?), flags & ELEMENT_INTERVAL_END == 0))
}

/// Only a set of intervals has ends: in others each element is a port.
fn intervals(keys: &BTreeSet<(u16, bool)>) -> Vec<(u16, u16)> {
    let begins = keys.iter().filter(|key| key.1).map(|key| key.0);
    if keys.iter().all(|key| key.1) {
        return begins.map(|port| (port, port)).collect();
    }
    let end = |begin: u16| keys.iter().find(|key| !key.1 && key.0 > begin).map_or(u16::MAX, |key| key.0 - 1);
    begins.map(|begin| (begin, end(begin))).collect()
}

/// What to remove, in this order: rules first, so that nothing refers to the chains.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Removal {
    /// Single rules of remaining chains: table, chain, handle.
    pub rules: Vec<(Table, String, u64)>,
    pub chains: Vec<(Table, String)>,
    pub tables: Vec<Table>,
}

/// Removes them. Each step is one or several transactions: once the rules that refer to a chain are gone, the chain can
/// be removed later.
pub fn remove(removal: &Removal) -> io::Result<()> {
    // A kernel without nfnetlink has nothing to remove.
    if *removal == Removal::default() {
        return Ok(());
    }
    let mut steps: [Vec<Request>; 4] = Default::default();
    for (table, chain, handle) in &removal.rules {
        let mut request = request(DELRULE, table);
        request
            .attribute(RULE_TABLE, &text(&table.name))
            .attribute(RULE_CHAIN, &text(chain))
            .attribute(RULE_HANDLE, &handle.to_be_bytes());
        steps[0].push(request);
    }
    for (table, chain) in &removal.chains {
        // Without a handle: all rules of the chain.
        let mut flush = request(DELRULE, table);
        flush.attribute(RULE_TABLE, &text(&table.name)).attribute(RULE_CHAIN, &text(chain));
        steps[1].push(flush);
        let mut request = request(DELCHAIN, table);
        request.attribute(CHAIN_TABLE, &text(&table.name)).attribute(CHAIN_NAME, &text(chain));
        steps[2].push(request);
    }
    for table in &removal.tables {
        let mut request = request(DELTABLE, table);
        request.attribute(TABLE_NAME, &text(&table.name));
        steps[3].push(request);
    }
    let mut socket = Socket::open_netfilter()?;
    for step in steps {
        for batch in step.chunks(BATCH) {
            socket.transaction(NFT >> 8, batch.to_vec())?;
        }
    }
    Ok(())
}

fn request(kind: u16, table: &Table) -> Request {
    let family = [1, 2, 3, 5, 7, 10].into_iter().find(|number| family_name(*number) == table.family);
    Request::new(kind, 0, &[family.unwrap_or(0), 0, 0, 0])
}

fn text(name: &str) -> Vec<u8> {
    [name.as_bytes(), &[0]].concat()
}

fn dump(kind: u16, each: impl FnMut(Message<'_>)) -> io::Result<()> {
    let listed = Socket::open_netfilter().and_then(|mut socket| socket.dump(kind, &[0; HEADER], each));
    match listed {
        // EINVAL: no nfnetlink subsystem answers for nf_tables; EPROTONOSUPPORT: no nfnetlink at all.
        Err(error) if matches!(error.raw_os_error(), Some(libc::EINVAL | libc::EPROTONOSUPPORT)) => Ok(()),
        other => other,
    }
}

fn all(message: Message<'_>) -> impl Iterator<Item = (u16, &[u8])> {
    attributes(message.body.get(HEADER..).unwrap_or_default())
}

fn table(message: &Message<'_>, attribute: u16) -> Option<Table> {
    let name = all(*message).find(|found| found.0 == attribute)?.1;
    Some(Table { kind: Kind::Nftables, family: family_name(*message.body.first()?), name: read_str(name) })
}

fn chain(message: &Message<'_>) -> Option<Chain> {
    if message.kind != NEWCHAIN {
        return None;
    }
    let find = |kind| all(*message).find(|attribute| attribute.0 == kind).map(|attribute| attribute.1);
    let hook = find(CHAIN_HOOK)
        .and_then(|nested| attributes(nested).find(|attribute| attribute.0 == HOOK_HOOKNUM))
        .and_then(|attribute| be32(attribute.1));
    Some(Chain {
        table: table(message, CHAIN_TABLE)?,
        name: read_str(find(CHAIN_NAME)?),
        hook,
        drops: hook.is_some() && find(CHAIN_POLICY).and_then(be32) == Some(NF_DROP),
        rules: Vec::new(),
    })
}

/// A rule and its chain.
fn rule(message: &Message<'_>) -> Option<((Table, String), Rule)> {
    if message.kind != NEWRULE {
        return None;
    }
    let find = |kind| all(*message).find(|attribute| attribute.0 == kind).map(|attribute| attribute.1);
    let key = (table(message, RULE_TABLE)?, read_str(find(RULE_CHAIN)?));
    let handle = u64::from_be_bytes(find(RULE_HANDLE)?.get(..8)?.try_into().ok()?);
    let mut rule = Rule { handle, ..Rule::default() };
    let mut registers = Registers::default();
    let mut is_unconditional = true;
    for (_, expression) in attributes(find(RULE_EXPRESSIONS).unwrap_or_default()) {
        is_unconditional &= describe(expression, &mut rule, &mut registers);
    }
    registers.finish(&mut rule);
    rule.rejects_all &= is_unconditional;
    Some((key, rule))
}

/// Enters an expression; returns whether every packet passes it.
fn describe(expression: &[u8], rule: &mut Rule, registers: &mut Registers) -> bool {
    let name = find(expression, EXPR_NAME).map(read_str).unwrap_or_default();
    let data = find(expression, EXPR_DATA).unwrap_or_default();
    registers.follow(&name, data, rule);
    let is_unconditional = matches!(name.as_str(), "counter" | "immediate" | "log" | "reject" | "target");
    match name.as_str() {
        "immediate" => {
            let verdict = find(data, IMMEDIATE_DATA).and_then(|value| find(value, DATA_VERDICT));
            if let Some(chain) = verdict.and_then(|verdict| find(verdict, VERDICT_CHAIN)) {
                rule.jumps_to = Some(read_str(chain));
            }
            let code = verdict.and_then(|verdict| find(verdict, VERDICT_CODE)).and_then(be32);
            rule.rejects_all |= code == Some(NF_DROP);
        }
        "match" => {
            let name = find(data, XT_NAME).map(read_str).unwrap_or_default();
            xt_match::describe(&name, find(data, XT_INFO).unwrap_or_default(), rule);
            rule.matches.insert(name);
        }
        "target" => {
            rule.target = find(data, XT_NAME).map(read_str).unwrap_or_default();
            rule.rejects_all |= rule.target == "REJECT";
        }
        "ct" => {
            rule.asks_state |= find(data, CT_KEY).and_then(be32) == Some(CT_STATE);
            rule.matches.insert(name);
        }
        _ => {
            rule.rejects_all |= name == "reject";
            rule.matches.insert(name);
        }
    }
    is_unconditional
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::datapath::netlink::messages;

    fn body(hook: u32, policy: u32) -> Vec<u8> {
        let mut request = Request::new(NEWCHAIN, 0, &[2, 0, 0, 0]);
        request
            .attribute(CHAIN_TABLE, b"filter\0")
            .attribute(CHAIN_NAME, b"FORWARD\0")
            .nested(CHAIN_HOOK, |nested| {
                nested.attribute(HOOK_HOOKNUM, &hook.to_be_bytes());
            })
            .attribute(CHAIN_POLICY, &policy.to_be_bytes());
        request.encoded()
    }

    fn parsed(bytes: &[u8]) -> Chain {
        messages(bytes).find_map(|message| chain(&message)).unwrap()
    }

    #[test]
    fn a_chain_of_the_forward_hook() {
        let dropping = parsed(&body(super::super::chain::FORWARD, NF_DROP));
        assert_eq!(dropping.to_string(), "chain FORWARD of nftables table ip filter");
        assert!(dropping.drops_forwarded());
        assert!(!parsed(&body(super::super::chain::FORWARD, 1)).drops_forwarded());
        assert!(!parsed(&body(1, NF_DROP)).drops_forwarded());
    }

    #[test]
    fn sets_of_ports_and_of_intervals() {
        assert_eq!(intervals(&[(80, true), (30080, true)].into()), [(80, 80), (30080, 30080)]);
        let ends = [(0, false), (80, true), (81, false), (30000, true), (30011, false), (30011, true)];
        assert_eq!(intervals(&ends.into()), [(80, 80), (30000, 30010), (30011, u16::MAX)]);
    }

    #[test]
    fn what_a_rule_asks_and_where_it_goes() {
        let mut request = Request::new(NEWRULE, 0, &[10, 0, 0, 0]);
        let expression = |list: &mut Request, name: &[u8], fill: &dyn Fn(&mut Request)| {
            list.nested(1, |expression| {
                expression.attribute(EXPR_NAME, name).nested(EXPR_DATA, |data| fill(data));
            });
        };
        request
            .attribute(RULE_TABLE, b"nat\0")
            .attribute(RULE_CHAIN, b"PREROUTING\0")
            .attribute(RULE_HANDLE, &7u64.to_be_bytes())
            .nested(RULE_EXPRESSIONS, |list| {
                expression(list, b"ct\0", &|ct| {
                    ct.attribute(CT_KEY, &CT_STATE.to_be_bytes());
                });
                expression(list, b"match\0", &|xt| {
                    xt.attribute(XT_NAME, b"addrtype\0");
                });
                expression(list, b"immediate\0", &|immediate| {
                    immediate.nested(IMMEDIATE_DATA, |value| {
                        value.nested(DATA_VERDICT, |verdict| {
                            verdict.attribute(VERDICT_CHAIN, b"KUBE-SERVICES\0");
                        });
                    });
                });
            });
        let bytes = request.encoded();
        let ((table, chain), rule) = messages(&bytes).find_map(|message| rule(&message)).unwrap();
        assert_eq!((table.family, table.name.as_str(), chain.as_str()), ("ip6", "nat", "PREROUTING"));
        assert_eq!((rule.handle, rule.jumps_to.as_deref()), (7, Some("KUBE-SERVICES")));
        assert!(rule.asks_state && rule.matches.contains("addrtype"), "{rule:?}");
    }
}
