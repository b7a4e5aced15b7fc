//! A router of the underlay with a low MTU: every packet it forwards must fit into the given MTU, and it reports larger
//! ones to their sender. No route leads through it until [`super::Cluster::detour`] adds one.

use std::sync::Arc;

use anyhow::Result;

use super::{
    Netns,
    plan::{
        Dual, EXTERNAL_V4, EXTERNAL_V6, HOP, OUTSIDE, ROUTER, SERVICES_V4, SERVICES_V6, node_addr, pod_addr,
    },
};

/// Kind of destination of routes through the hop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Toward {
    Outside,
    /// A node's own addresses, by node index.
    Node(usize),
    /// A node's pods, by node index.
    Pods(usize),
    /// ClusterIPs and external addresses.
    Services,
    External,
}

impl Toward {
    /// The destination ranges, and the next hop on the underlay.
    fn ranges(self) -> ([String; 2], Dual) {
        let host = |addr: Dual| ([format!("{}/32", addr.v4), format!("{}/128", addr.v6)], addr);
        let range = |v4: &str, v6: &str| ([v4.to_owned(), v6.to_owned()], node_addr(0));
        match self {
            Self::Outside => host(OUTSIDE),
            Self::Node(index) => host(node_addr(index)),
            Self::Pods(index) => {
                let pods = pod_addr(index, 0);
                ([format!("{}/24", pods.v4), format!("{}/64", pods.v6)], node_addr(index))
            }
            Self::Services => range(SERVICES_V4, SERVICES_V6),
            Self::External => range(EXTERNAL_V4, EXTERNAL_V6),
        }
    }

    /// Routes for a machine whose traffic is to go through the hop.
    pub(super) fn detour(self) -> String {
        let ([v4, v6], _) = self.ranges();
        format!("route replace {v4} via {}\nroute replace {v6} via {}\n", HOP.v4, HOP.v6)
    }

    /// Routes for the hop itself: a locked MTU also applies to forwarded packets.
    fn onward(self, mtu: u32) -> String {
        let ([v4, v6], next) = self.ranges();
        let via = |range: &str, next: String| {
            if range.starts_with(&format!("{next}/")) { String::new() } else { format!("via {next} ") }
        };
        format!(
            "route add {v4} {}dev eth0 mtu lock {mtu}\nroute add {v6} {}dev eth0 mtu lock {mtu}\n",
            via(&v4, next.v4.to_string()),
            via(&v6, next.v6.to_string())
        )
    }
}

/// Configures the router; its `eth0` exists already, as a cable to the underlay.
pub(super) fn configure(netns: &Arc<Netns>, nodes: usize, mtu: u32) -> Result<()> {
    for (key, value) in [
        ("net/ipv4/ip_forward", "1"),
        ("net/ipv6/conf/all/forwarding", "1"),
        // It forwards out of the receiving device and must not send redirects.
        ("net/ipv4/conf/all/send_redirects", "0"),
        ("net/ipv4/conf/eth0/send_redirects", "0"),
        // Each packet that is too big is reported, without rate limit.
        ("net/ipv4/icmp_ratelimit", "0"),
        ("net/ipv6/icmp/ratelimit", "0"),
    ] {
        netns.sysctl(key, value)?;
    }
    let mut lines = format!(
        "link set eth0 up\naddr add {}/24 dev eth0\naddr add {}/64 dev eth0 nodad\n\
         route add default via {}\nroute add default via {}\n",
        HOP.v4, HOP.v6, ROUTER.v4, ROUTER.v6
    );
    for toward in [Toward::Outside, Toward::Services, Toward::External]
        .into_iter()
        .chain((0..nodes).flat_map(|index| [Toward::Node(index), Toward::Pods(index)]))
    {
        lines += &toward.onward(mtu);
    }
    netns.ip(&lines)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ways_to_and_from_the_hop() {
        assert_eq!(
            Toward::Pods(1).detour(),
            "route replace 172.20.1.0/24 via 192.168.8.99\nroute replace fd00:172:20:1::/64 via fd00:8::99\n"
        );
        let onward = Toward::Pods(1).onward(1280);
        assert!(
            onward.starts_with("route add 172.20.1.0/24 via 192.168.8.202 dev eth0 mtu lock 1280\n"),
            "{onward}"
        );
        assert!(
            Toward::Outside.onward(1280).starts_with("route add 192.168.8.100/32 dev eth0 mtu lock 1280\n")
        );
    }
}
