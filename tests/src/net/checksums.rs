//! Checksum errors counted by a namespace's own network stack. They must be zero, whatever shunt rewrote.
//! [`super::Cluster`] checks every namespace it owns when it is dropped, so every test of the suite tests this.

use std::fs;

use anyhow::{Context, Result};

use super::Netns;

/// Suffix of all these counters: `Tcp: InCsumErrors`, `IpExt: InCsumErrors`, `Udp6InCsumErrors`, ...
const SUFFIX: &str = "InCsumErrors";

/// The nonzero counters, as `NAMESPACE: COUNTER VALUE`.
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

/// `snmp` and `netstat`: a line of names followed by a line of values, both starting with the protocol's name.
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

/// `snmp6`: one name and value per line.
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

    /// The counters have these names in the kernel's own files.
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
