//! Names used only by kube-proxy. Others use similar names: KUBE-FIREWALL, KUBE-MARK-DROP and KUBE-KUBELET-CANARY
//! belong to the kubelet, KUBE-ROUTER-*, KUBE-POD-FW-*, KUBE-NWPLCY-*, KUBE-SRC-* and KUBE-DST-* to kube-router.

/// Chains that exist once per table.
const CHAINS: [&str; 14] = [
    "KUBE-SERVICES",
    "KUBE-EXTERNAL-SERVICES",
    "KUBE-NODEPORTS",
    MARK_MASQ,
    POSTROUTING,
    "KUBE-FORWARD",
    "KUBE-PROXY-FIREWALL",
    "KUBE-PROXY-CANARY",
    // ipvs mode.
    "KUBE-LOAD-BALANCER",
    "KUBE-NODE-PORT",
    "KUBE-SOURCE-RANGES-FIREWALL",
    "KUBE-IPVS-FILTER",
    "KUBE-IPVS-OUT-FILTER",
    "KUBE-LOAD-BALANCER-FW",
];
/// Prefixes of chains per Service port, endpoint and so on; a hash follows.
const PREFIXES: [&str; 6] = ["KUBE-SVC-", "KUBE-SVL-", "KUBE-SEP-", "KUBE-EXT-", "KUBE-FW-", "KUBE-XLB-"];

/// Two chains that others use as well: a CNI's portmap jumps to the first and relies on the second, and a kubelet
/// before 1.28 creates both.
pub const MARK_MASQ: &str = "KUBE-MARK-MASQ";
pub const POSTROUTING: &str = "KUBE-POSTROUTING";

/// Tables that kube-proxy's iptables and ipvs modes write to.
const TABLES: [&str; 3] = ["nat", "filter", "mangle"];

/// The table of its nftables mode, one per family.
pub const NFTABLES_TABLE: &str = "kube-proxy";

/// The device that holds the VIPs of ipvs mode.
pub const IPVS_DEVICE: &str = "kube-ipvs0";

/// Sets of ipvs mode, without the prefix `KUBE-` (IPv4) or `KUBE-6-` (IPv6).
const SETS: [&str; 18] = [
    "CLUSTER-IP",
    "LOOP-BACK",
    "EXTERNAL-IP",
    "EXTERNAL-IP-LOCAL",
    "LOAD-BALANCER",
    "LOAD-BALANCER-LOCAL",
    "LOAD-BALANCER-FW",
    "LOAD-BALANCER-SOURCE-IP",
    "LOAD-BALANCER-SOURCE-CIDR",
    "LOAD-BALANCER-SRC-CIDR",
    "NODE-PORT-TCP",
    "NODE-PORT-LOCAL-TCP",
    "NODE-PORT-UDP",
    "NODE-PORT-LOCAL-UDP",
    "NODE-PORT-SCTP-HASH",
    "NODE-PORT-LOCAL-SCTP-HASH",
    "HEALTH-CHECK-NODE-PORT",
    "IPVS-IPS",
];
/// The kernel limits a set's name to 31 bytes; kube-proxy truncates its names.
const SET_NAME_LEN: usize = 31;

pub fn is_chain(table: &str, name: &str) -> bool {
    let hashed = || PREFIXES.iter().any(|prefix| name.len() > prefix.len() && name.starts_with(prefix));
    TABLES.contains(&table) && (CHAINS.contains(&name) || hashed())
}

pub fn is_set(name: &str) -> bool {
    let Some(rest) = name.strip_prefix("KUBE-") else { return false };
    let stem = rest.strip_prefix("6-").unwrap_or(rest);
    SETS.iter().any(|set| *set == stem || (name.len() == SET_NAME_LEN && set.starts_with(stem)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chains_by_name() {
        for name in ["KUBE-SERVICES", "KUBE-SEP-ABCDEFGHIJKLMNOP", "KUBE-XLB-A", "KUBE-PROXY-CANARY"] {
            assert!(is_chain("nat", name), "{name}");
        }
        for name in [
            "KUBE-FIREWALL",
            "KUBE-MARK-DROP",
            "KUBE-KUBELET-CANARY",
            "KUBE-ROUTER-FORWARD",
            "KUBE-POD-FW-ABCDEFGHIJKLMNOP",
            "KUBE-NWPLCY-ABCDEFGHIJKLMNOP",
            "KUBE-SVC-",
            "KUBE-SERVICES-2",
            "CNI-FORWARD",
        ] {
            assert!(!is_chain("filter", name), "{name}");
        }
        assert!(!is_chain("raw", "KUBE-SERVICES"), "kube-proxy writes nothing there");
    }

    #[test]
    fn sets_by_name() {
        for name in ["KUBE-CLUSTER-IP", "KUBE-6-CLUSTER-IP", "KUBE-NODE-PORT-LOCAL-SCTP-HASH"] {
            assert!(is_set(name), "{name}");
        }
        assert!(is_set("KUBE-6-NODE-PORT-LOCAL-SCTP-HAS"), "cut by the kernel");
        for name in ["KUBE-SRC-ABCDEFGHIJKLMNOP", "KUBE-DST-ABCDEFGHIJKLMNOP", "KUBE-", "cali40s:abc"] {
            assert!(!is_set(name), "{name}");
        }
    }
}
