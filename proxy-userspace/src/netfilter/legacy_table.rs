//! A table of iptables-legacy in the kernel's format: one blob of entries, in which jumps are byte offsets. Parsed into
//! chains, and rebuilt without some of them. Pure: [`super::legacy`] talks to the kernel.
//!
//! Entries of IPv4 and IPv6 differ only in the length of their first part (uapi/linux/netfilter_ipv4/ip_tables.h,
//! netfilter_ipv6/ip6_tables.h, netfilter/x_tables.h; 64-bit layouts).

use std::collections::{BTreeSet, HashMap};

use super::{
    chain::{Chain, Rule, Table},
    xt_match,
};

/// `struct ipt_ip` and `struct ip6t_ip6`.
pub const IPV4: usize = 84;
pub const IPV6: usize = 136;
/// `struct xt_counters`: packets, bytes.
pub const COUNTERS: usize = 16;
/// `struct xt_entry_match` and `struct xt_entry_target` have the same header: size, name, revision.
const XT_HEADER: usize = 32;
const XT_NAME: usize = 29;
/// The target name of the entry that begins a user chain (it holds the chain's name) and of the last entry of a table.
const ERROR: &str = "ERROR";
/// `-NF_DROP - 1`.
const DROP: i32 = -1;
/// Where base chains begin and end, by hook.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Hooks {
    pub valid: u32,
    pub entry: [u32; 5],
    pub underflow: [u32; 5],
}

/// A table's rules.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Blob {
    pub table: Table,
    /// [`IPV4`] or [`IPV6`].
    pub ip_len: usize,
    pub hooks: Hooks,
    pub entries: Vec<u8>,
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    at: usize,
    len: usize,
    /// Offset of the target in the blob.
    target: usize,
}

/// A chain's name and its entries; `first` is its first rule, after the head entry of a user chain.
#[derive(Clone, Debug)]
struct Span {
    name: String,
    hook: Option<usize>,
    first: usize,
    end: usize,
}

/// The result of [`Blob::without`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rewritten {
    pub hooks: Hooks,
    pub entries: Vec<u8>,
    /// The old position of each new entry, for its counters.
    pub was: Vec<usize>,
}

impl Blob {
    /// The number of entries; `None` if the blob cannot be parsed.
    pub fn count(&self) -> Option<usize> {
        Some(self.walk()?.len())
    }

    pub fn chains(&self) -> Option<Vec<Chain>> {
        let entries = self.walk()?;
        let spans = self.spans(&entries)?;
        let starts: HashMap<usize, &str> =
            spans.iter().filter_map(|span| Some((entries.get(span.first)?.at, span.name.as_str()))).collect();
        let chains = spans.iter().map(|span| {
            // The last entry is the policy, or a user chain's return.
            let rules = (span.first..span.end.saturating_sub(1)).map(|position| {
                let entry = entries[position];
                let next = entry.at + entry.len;
                let jump = self.verdict(&entry).and_then(|verdict| usize::try_from(verdict).ok());
                let mut rule = Rule {
                    handle: position as u64,
                    // A rule without a target "jumps" to the next one.
                    jumps_to: jump
                        .filter(|to| *to != next)
                        .and_then(|to| starts.get(&to))
                        .map(|name| (*name).to_owned()),
                    target: self.target_name(&entry),
                    ..Rule::default()
                };
                self.describe_matches(&entry, &mut rule);
                rule.rejects_all = (rule.target == "REJECT" || self.verdict(&entry) == Some(DROP))
                    && rule.matches.is_empty()
                    && self.matches_every_packet(&entry);
                rule
            });
            let policy = span.hook.and_then(|_| self.verdict(&entries[span.end - 1]));
            Chain {
                table: self.table.clone(),
                name: span.name.clone(),
                hook: span.hook.map(|hook| hook as u32),
                drops: policy == Some(DROP),
                rules: rules.collect(),
            }
        });
        Some(chains.collect())
    }

    /// The same table without these chains and entries; `None` if a remaining rule jumps to a removed chain.
    pub fn without(&self, chains: &BTreeSet<&str>, rules: &BTreeSet<u64>) -> Option<Rewritten> {
        let entries = self.walk()?;
        let mut gone: BTreeSet<usize> = rules.iter().map(|position| *position as usize).collect();
        for span in self.spans(&entries)? {
            if span.hook.is_none() && chains.contains(span.name.as_str()) {
                gone.extend(span.first - 1..span.end);
            }
        }
        // The new offset of each entry; a removed entry has that of the next remaining one.
        let mut moved = Vec::with_capacity(entries.len());
        let mut len = 0;
        for (position, entry) in entries.iter().enumerate() {
            moved.push((entry.at, len));
            len += if gone.contains(&position) { 0 } else { entry.len };
        }
        let position_of = |at: usize| moved.binary_search_by_key(&at, |it| it.0).ok();
        let place = |at: usize| u32::try_from(moved[position_of(at)?].1).ok();
        let mut rewritten =
            Rewritten { hooks: self.hooks, entries: Vec::with_capacity(len), was: Vec::new() };
        for (position, entry) in entries.iter().enumerate().filter(|(position, _)| !gone.contains(position)) {
            let begin = rewritten.entries.len();
            rewritten.entries.extend_from_slice(self.entries.get(entry.at..entry.at + entry.len)?);
            rewritten.was.push(position);
            // The kernel fills in `comefrom` and the counters.
            let head = self.ip_len.next_multiple_of(4) + 8;
            rewritten.entries[begin + head..begin + self.head_len()].fill(0);
            if let Some(to) = self.verdict(entry).and_then(|verdict| usize::try_from(verdict).ok()) {
                if to != entry.at + entry.len && gone.contains(&position_of(to)?) {
                    return None;
                }
                let at = begin + (entry.target - entry.at) + XT_HEADER;
                rewritten.entries[at..at + 4].copy_from_slice(&place(to)?.to_ne_bytes());
            }
        }
        for hook in (0..5).filter(|hook| self.hooks.valid & 1 << hook != 0) {
            rewritten.hooks.entry[hook] = place(self.hooks.entry[hook] as usize)?;
            rewritten.hooks.underflow[hook] = place(self.hooks.underflow[hook] as usize)?;
        }
        Some(rewritten)
    }

    /// `ip`, nfcache, target_offset, next_offset, comefrom, counters (aligned to 8).
    fn head_len(&self) -> usize {
        (self.ip_len + 12).next_multiple_of(8) + COUNTERS
    }

    fn walk(&self) -> Option<Vec<Entry>> {
        let mut entries = Vec::new();
        let mut at = 0;
        while at < self.entries.len() {
            let target = usize::from(u16_at(&self.entries, at + self.ip_len + 4)?);
            let len = usize::from(u16_at(&self.entries, at + self.ip_len + 6)?);
            if target < self.head_len() || len < target + XT_HEADER || at + len > self.entries.len() {
                return None;
            }
            entries.push(Entry { at, len, target: at + target });
            at += len;
        }
        Some(entries)
    }

    fn spans(&self, entries: &[Entry]) -> Option<Vec<Span>> {
        const NAMES: [&str; 5] = ["PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"];
        let position = |at: u32| entries.binary_search_by_key(&(at as usize), |entry| entry.at).ok();
        let mut spans = Vec::new();
        for hook in (0..5).filter(|hook| self.hooks.valid & 1 << hook != 0) {
            let end = position(self.hooks.underflow[hook])? + 1;
            let first = position(self.hooks.entry[hook])?;
            spans.push(Span { name: NAMES[hook].to_owned(), hook: Some(hook), first, end });
        }
        let heads: Vec<usize> =
            (0..entries.len()).filter(|position| self.target_name(&entries[*position]) == ERROR).collect();
        // The last entry ends the table.
        for pair in heads.windows(2) {
            let name = self.entries.get(entries[pair[0]].target + XT_HEADER..)?;
            spans.push(Span { name: text(name), hook: None, first: pair[0] + 1, end: pair[1] });
        }
        Some(spans)
    }

    fn target_name(&self, entry: &Entry) -> String {
        let name = entry.target + 2;
        self.entries.get(name..name + XT_NAME).map(text).unwrap_or_default()
    }

    /// The verdict of a standard target: an offset to jump to, or negative.
    fn verdict(&self, entry: &Entry) -> Option<i32> {
        if !self.target_name(entry).is_empty() {
            return None;
        }
        let at = entry.target + XT_HEADER;
        Some(i32::from_ne_bytes(self.entries.get(at..at + 4)?.try_into().ok()?))
    }

    /// Whether the first part (`struct ipt_ip`) names no address, device or protocol.
    fn matches_every_packet(&self, entry: &Entry) -> bool {
        self.entries[entry.at..entry.at + self.ip_len].iter().all(|byte| *byte == 0)
    }

    fn describe_matches(&self, entry: &Entry, rule: &mut Rule) {
        let mut at = entry.at + self.head_len();
        while at + XT_HEADER <= entry.target {
            let len = usize::from(u16_at(&self.entries, at).unwrap_or(0)).max(XT_HEADER);
            let name = text(&self.entries[at + 2..at + 2 + XT_NAME]);
            let info = self.entries.get(at + XT_HEADER..(at + len).min(entry.target)).unwrap_or_default();
            xt_match::describe(&name, info, rule);
            rule.matches.insert(name);
            at += len;
        }
    }
}

fn u16_at(data: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(data.get(at..at + 2)?.try_into().ok()?))
}

/// A zero-terminated string.
fn text(data: &[u8]) -> String {
    let len = data.iter().position(|byte| *byte == 0).unwrap_or(data.len());
    String::from_utf8_lossy(&data[..len]).into_owned()
}

#[cfg(test)]
mod tests {
    use super::{super::chain::Kind, *};

    /// An entry with at most one match and a target of the given length, with the counter `packets`.
    fn entry(ip_len: usize, matches: &str, target: &str, data: &[u8], packets: u64) -> Vec<u8> {
        let head = (ip_len + 12).next_multiple_of(8) + COUNTERS;
        let mut bytes = vec![0; head];
        bytes[head - COUNTERS..head - 8].copy_from_slice(&packets.to_ne_bytes());
        let mut xt = |name: &str, data: &[u8]| {
            let len = (XT_HEADER + data.len()).next_multiple_of(8);
            let begin = bytes.len();
            bytes.resize(begin + len, 0);
            bytes[begin..begin + 2].copy_from_slice(&(len as u16).to_ne_bytes());
            bytes[begin + 2..begin + 2 + name.len()].copy_from_slice(name.as_bytes());
            bytes[begin + XT_HEADER..begin + XT_HEADER + data.len()].copy_from_slice(data);
            begin
        };
        if !matches.is_empty() {
            let mut info = [0; 160];
            // The flag of the state.
            info[146] = 1;
            xt(matches, &info);
        }
        let target = xt(target, data) as u16;
        let len = bytes.len() as u16;
        bytes[ip_len + 4..ip_len + 6].copy_from_slice(&target.to_ne_bytes());
        bytes[ip_len + 6..ip_len + 8].copy_from_slice(&len.to_ne_bytes());
        bytes
    }

    /// FORWARD (hook 2): a jump to OURS, a rule without target, a jump to THEIRS, drop. OURS: a jump to THEIRS.
    fn blob(ip_len: usize) -> Blob {
        let standard = |verdict: i32, packets| entry(ip_len, "", "", &verdict.to_ne_bytes(), packets);
        let with_match = |verdict: i32| entry(ip_len, "conntrack", "", &verdict.to_ne_bytes(), 5);
        let head = |name: &[u8]| entry(ip_len, "", ERROR, &[name, &[0; 30][name.len()..]].concat(), 0);
        let lens: Vec<i32> = [
            standard(0, 0).len(),
            with_match(0).len(),
            standard(0, 0).len(),
            standard(0, 0).len(),
            head(b"").len(),
            standard(0, 0).len(),
            standard(0, 0).len(),
            head(b"").len(),
            standard(0, 0).len(),
            head(b"").len(),
        ]
        .into_iter()
        .map(|len| len as i32)
        .collect();
        let at = |position: usize| lens[..position].iter().sum::<i32>();
        let rows = [
            standard(at(5), 3),
            with_match(at(2)),
            standard(at(8), 7),
            standard(DROP, 9),
            head(b"OURS"),
            standard(at(8), 11),
            standard(-5, 0),
            head(b"THEIRS"),
            standard(-5, 13),
            head(b"ERROR"),
        ];
        let mut hooks = Hooks { valid: 1 << 2, ..Hooks::default() };
        (hooks.entry[2], hooks.underflow[2]) = (0, at(3) as u32);
        let table = Table { kind: Kind::Legacy, family: "ip", name: "filter".to_owned() };
        Blob { table, ip_len, hooks, entries: rows.concat() }
    }

    fn names(chain: &Chain) -> Vec<Option<&str>> {
        chain.rules.iter().map(|rule| rule.jumps_to.as_deref()).collect()
    }

    #[test]
    fn chains_are_read() {
        for ip_len in [IPV4, IPV6] {
            let blob = blob(ip_len);
            assert_eq!(blob.count(), Some(10));
            let chains = blob.chains().unwrap();
            assert_eq!(chains.len(), 3);
            assert!(chains[0].drops_forwarded() && chains[0].rules[1].asks_state, "{chains:?}");
            assert_eq!(names(&chains[0]), [Some("OURS"), None, Some("THEIRS")]);
            assert_eq!((chains[1].name.as_str(), names(&chains[1])), ("OURS", vec![Some("THEIRS")]));
            assert_eq!((chains[2].name.as_str(), chains[2].rules.len()), ("THEIRS", 0));
            assert_eq!(chains[2].to_string(), "chain THEIRS of iptables-legacy table filter");
        }
    }

    #[test]
    fn what_goes_leaves_the_rest_as_it_was() {
        for ip_len in [IPV4, IPV6] {
            let old = blob(ip_len);
            let made = old.without(&["OURS"].into(), &[0].into()).unwrap();
            assert_eq!(made.was, [1, 2, 3, 7, 8, 9]);
            let new = Blob { hooks: made.hooks, entries: made.entries, ..old.clone() };
            let chains = new.chains().unwrap();
            assert_eq!(chains.len(), 2);
            assert_eq!((chains[0].hook, names(&chains[0])), (Some(2), vec![None, Some("THEIRS")]));
            assert!(chains[0].drops && chains[0].rules[0].asks_state);
            for entry in new.walk().unwrap() {
                let counters = entry.at + new.head_len() - COUNTERS..entry.at + new.head_len();
                assert!(new.entries[counters].iter().all(|byte| *byte == 0), "the kernel's to fill in");
            }
            assert_eq!(old.without(&["OURS"].into(), &[].into()), None, "FORWARD still jumps there");
        }
    }

    #[test]
    fn what_is_no_table_is_not_read() {
        let mut blob = blob(IPV4);
        blob.entries.truncate(blob.entries.len() - 1);
        assert_eq!(blob.chains(), None);
        blob.entries = vec![0; 400];
        assert_eq!(blob.count(), None);
    }
}
