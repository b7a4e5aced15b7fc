//! What a namespace's own stack has found wrong with checksums: zero, whatever shunt rewrote. [`super::Cluster`] looks
//! at every namespace of its own when it goes away, so every test of the suite is a test of this.

use std::fs;

use anyhow::{Context, Result};

use super::Netns;

/// The end of every such counter's name: `Tcp: InCsumErrors`, `IpExt: InCsumErrors`, `Udp6InCsumErrors`, ...
const SUFFIX: &str = "InCsumErrors";

/// The counters that are not zero, as `NAMESPACE: COUNTER VALUE`.
pub fn errors(netns: &Netns) -> Result<Vec<String>> {
    let read = |name: &str| {
        netns
            .enter(|| fs::read_to_string(format!("/proc/thread-self/net/{name}")))
            .with_context(|| format!("{}: reading /proc/net/{name}", netns.name()))
    };
    let mut found = paired(&read("snmp")?);
    found.extend(paired(&read("netstat")?));
    found.extend(listed(&read("snmp6")?));
    found.retain(|(_, value)| *value != 0);
    Ok(found.into_iter().map(|(name, value)| format!("{}: {name} {value}", netns.name())).collect())
}

/// `snmp` and `netstat`: a line of names, then one of values, both beginning with the protocol's name.
fn paired(text: &str) -> Vec<(String, u64)> {
    let lines: Vec<&str> = text.lines().collect();
    let mut found = Vec::new();
    for pair in lines.chunks_exact(2) {
        let protocol = pair[0].split(':').next().unwrap_or_default();
        let columns = pair[0].split_whitespace().zip(pair[1].split_whitespace()).skip(1);
        for (name, value) in columns.filter(|(name, _)| name.ends_with(SUFFIX)) {
            found.push((format!("{protocol}{name}"), value.parse().unwrap_or(u64::MAX)));
        }
    }
    found
}

/// `snmp6`: a name and a value a line.
fn listed(text: &str) -> Vec<(String, u64)> {
    text.lines()
        .filter_map(|line| line.split_once(char::is_whitespace))
        .filter(|(name, _)| name.ends_with(SUFFIX))
        .map(|(name, value)| (name.to_owned(), value.trim().parse().unwrap_or(u64::MAX)))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_are_found_by_their_ends() {
        let snmp = "Icmp: InMsgs InErrors InCsumErrors\nIcmp: 4 1 3\nTcp: InSegs InCsumErrors\nTcp: 9 0\n";
        assert_eq!(paired(snmp), [("IcmpInCsumErrors".to_owned(), 3), ("TcpInCsumErrors".to_owned(), 0)]);
        let snmp6 = "Udp6InDatagrams                 \t7\nUdp6InCsumErrors                \t2\n";
        assert_eq!(listed(snmp6), [("Udp6InCsumErrors".to_owned(), 2)]);
    }

    /// The kernel's own files have the names this looks for.
    #[test]
    fn this_kernel_counts_them() {
        let read = |name| fs::read_to_string(format!("/proc/self/net/{name}")).unwrap();
        let names = |found: Vec<(String, u64)>| found.into_iter().map(|(name, _)| name).collect::<Vec<_>>();
        let v4 = names(paired(&read("snmp")));
        for name in ["TcpInCsumErrors", "UdpInCsumErrors", "IcmpInCsumErrors"] {
            assert!(v4.iter().any(|found| found == name), "no {name} in {v4:?}");
        }
        let v6 = names(listed(&read("snmp6")));
        for name in ["Udp6InCsumErrors", "Icmp6InCsumErrors"] {
            assert!(v6.iter().any(|found| found == name), "no {name} in {v6:?}");
        }
        assert!(names(paired(&read("netstat"))).iter().any(|found| found == "IpExtInCsumErrors"));
    }
}
