//! Rules as a CNI with NetworkPolicy installs on its nodes, in the strictest form. Every forwarded packet is dropped
//! except for established flows, new flows to a pod's real address and port, and new flows that leave the cluster.
//! Packets that conntrack classifies as invalid are counted and dropped. Pod traffic that leaves the pod range is
//! masqueraded.
//!
//! Under these rules a proxy fails if conntrack sees only half of a flow, or sees a VIP.

use std::net::IpAddr;

use anyhow::{Context, Result};

use super::{
    Netns,
    plan::{PODS_V4, PODS_V6, SERVICES_V4, SERVICES_V6},
};

/// Installs the rules except for [`masquerade`].
pub fn install(netns: &Netns) -> Result<()> {
    netns.nft(&format!(
        "table inet cni {{
            counter invalid {{ }}
            counter refused {{ }}
            set allowed4 {{ type ipv4_addr . inet_proto . inet_service; }}
            set allowed6 {{ type ipv6_addr . inet_proto . inet_service; }}
            chain input {{
                type filter hook input priority 0; policy accept;
                ct state invalid counter name invalid drop
            }}
            chain forward {{
                type filter hook forward priority 0; policy drop;
                ct state invalid counter name invalid drop
                ct state established,related accept
                meta l4proto icmpv6 accept
                ct state new ip daddr . meta l4proto . th dport @allowed4 accept
                ct state new ip6 daddr . meta l4proto . th dport @allowed6 accept
                ct state new ip daddr != {{ {PODS_V4}, {SERVICES_V4} }} accept
                ct state new ip6 daddr != {{ {PODS_V6}, {SERVICES_V6} }} accept
                counter name refused
            }}
            chain output {{
                type filter hook output priority 0; policy accept;
                # The kernel's own; conntrack calls every one of them invalid, and shunt drops those about Services.
                icmpv6 type nd-redirect accept
                ct state invalid counter name invalid drop
            }}
        }}"
    ))
}

/// Installs the masquerading only. Without it, other machines would see pod addresses that only the tunnels route.
pub fn masquerade(netns: &Netns) -> Result<()> {
    netns.nft(&format!(
        "table inet cni-masquerade {{
            chain postrouting {{
                type nat hook postrouting priority srcnat; policy accept;
                ip saddr {PODS_V4} ip daddr != {PODS_V4} masquerade
                ip6 saddr {PODS_V6} ip6 daddr != {PODS_V6} masquerade
            }}
        }}"
    ))
}

/// The same as CNIs with `--random-fully` do it: a port from 1024 to 65535, even if another flow may use it.
pub fn masquerade_randomly(netns: &Netns) -> Result<()> {
    netns.nft(&format!(
        "table inet cni-masquerade {{
            chain postrouting {{
                type nat hook postrouting priority srcnat; policy accept;
                ip saddr {PODS_V4} ip daddr != {PODS_V4} masquerade random,fully-random
                ip6 saddr {PODS_V6} ip6 daddr != {PODS_V6} masquerade random,fully-random
            }}
        }}"
    ))
}

/// Allows new flows to `addr:port`.
pub fn allow(netns: &Netns, addr: IpAddr, protocol: &str, port: u16) -> Result<()> {
    let set = if addr.is_ipv4() { "allowed4" } else { "allowed6" };
    netns.nft(&format!("add element inet cni {set} {{ {addr} . {protocol} . {port} }}"))
}

/// Number of packets so far that conntrack classified as invalid.
pub fn invalid(netns: &Netns) -> Result<u64> {
    counter(netns, "invalid")
}

/// Number of packets so far that no rule accepted.
pub fn refused(netns: &Netns) -> Result<u64> {
    counter(netns, "refused")
}

fn counter(netns: &Netns, name: &str) -> Result<u64> {
    let text = netns.run(&["nft", "-j", "list", "counter", "inet", "cni", name])?;
    let value: serde_json::Value = serde_json::from_str(&text)?;
    value["nftables"]
        .as_array()
        .and_then(|items| items.iter().find_map(|item| item["counter"]["packets"].as_u64()))
        .with_context(|| format!("no counter {name} in {text}"))
}
