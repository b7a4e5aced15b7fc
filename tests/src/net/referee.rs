//! The reference: the kernel's own nf_conntrack under nftables rules of kube-proxy's form, in place of `shunt`. Where a
//! requirement says "as nf_conntrack does", one test body runs under both and both must pass it.
//!
//! The rules follow kube-proxy's nftables mode: a verdict map by address, protocol and port, one for NodePorts behind
//! `fib daddr type local`, DNAT by `numgen random`, a mark for packets to be masqueraded, `masquerade fully-random`.
//! They implement no policies, affinity or endpoint conditions, and reject nothing: no test under them has a Service
//! without endpoints.

use std::{
    collections::BTreeSet,
    fmt::Write as _,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};

use super::{
    Cluster, Node, cluster,
    plan::{BOTH, Family, PODS_V4, PODS_V6},
};
use crate::manifest::{Front, Service};

/// Time limit for `shunt` to apply manifests.
const APPLIED_WITHIN: Duration = Duration::from_secs(10);

/// The proxy that serves the Services of a cluster's nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Proxy {
    Shunt,
    Referee,
}

impl Proxy {
    pub const BOTH: [Self; 2] = [Self::Shunt, Self::Referee];

    /// Starts serving these Services on all nodes. `flags` are `shunt run`'s.
    pub fn start(self, cluster: &Cluster, services: &[Service], flags: &[&str]) -> Result<()> {
        if self == Self::Shunt {
            cluster.apply("services.yaml", &documents(services))?;
            cluster.start(flags)?;
        }
        self.apply(cluster, services)
    }

    /// Serves exactly these Services on all nodes; returns once it does.
    pub fn apply(self, cluster: &Cluster, services: &[Service]) -> Result<()> {
        let fronts: Vec<_> = services.iter().flat_map(Service::fronts).collect();
        match self {
            Self::Shunt => {
                cluster.apply("services.yaml", &documents(services))?;
                cluster.nodes().iter().try_for_each(|node| until_served(node, &fronts))
            }
            Self::Referee => {
                let empty = fronts.iter().find(|front| front.backends.is_empty());
                ensure!(empty.is_none(), "the referee knows no Service without endpoints: {empty:?}");
                let rules: String = BOTH.iter().map(|family| table(&fronts, *family)).collect();
                cluster.nodes().iter().try_for_each(|node| node.netns().nft(&rules))
            }
        }
    }
}

fn documents(services: &[Service]) -> String {
    services.iter().map(Service::yaml).collect::<Vec<_>>().join("---\n")
}

/// A frontend's protocol, address and backends, sorted.
type Row = (String, SocketAddr, Vec<SocketAddr>);

/// Waits until `shunt service list` shows exactly these frontends.
fn until_served(node: &Node, fronts: &[Front]) -> Result<()> {
    let row = |front: &Front| {
        let mut backends = front.backends.clone();
        backends.sort();
        (front.protocol.clone(), front.at, backends)
    };
    let want: BTreeSet<Row> = fronts.iter().map(row).collect();
    let served = || served(node).is_ok_and(|have| have == want);
    cluster::eventually(APPLIED_WITHIN, served)
        .with_context(|| format!("{}: want {want:?}\nhave {:?}", node.name(), self::served(node)))?;
    Ok(())
}

fn served(node: &Node) -> Result<BTreeSet<Row>> {
    let list = node.shunt_json(&["service", "list"])?;
    let at = |row: &serde_json::Value| -> Result<SocketAddr> {
        let addr: IpAddr = row["address"].as_str().context("no address")?.parse()?;
        Ok((addr, row["port"].as_u64().context("no port")? as u16).into())
    };
    let row = |row: &serde_json::Value| -> Result<Row> {
        let backends = row["backends"].as_array().context("no backends")?;
        let mut backends = backends.iter().map(at).collect::<Result<Vec<_>>>()?;
        backends.sort();
        Ok((row["protocol"].as_str().context("no protocol")?.to_lowercase(), at(row)?, backends))
    };
    list.as_array().context("no list")?.iter().map(row).collect()
}

/// One family's table, which replaces the previous one in one transaction.
fn table(fronts: &[Front], family: Family) -> String {
    let (ip, addr_type, pods, loopback) = match family {
        Family::V4 => ("ip", "ipv4_addr", PODS_V4, "127.0.0.0/8"),
        Family::V6 => ("ip6", "ipv6_addr", PODS_V6, "::1"),
    };
    let (mut chains, mut service_ips, mut node_ports) = (String::new(), String::new(), String::new());
    let of_family = fronts.iter().filter(|front| front.at.is_ipv4() == (family == Family::V4));
    for (nth, front) in of_family.enumerate() {
        let (protocol, port) = (&front.protocol, front.at.port());
        let key = match front.at.ip() {
            addr if addr.is_unspecified() => format!("{protocol} . {port} : goto front-{nth},\n"),
            addr => format!("{addr} . {protocol} . {port} : goto front-{nth},\n"),
        };
        if front.at.ip().is_unspecified() { &mut node_ports } else { &mut service_ips }.push_str(&key);
        let whose = if front.is_external { String::new() } else { format!("{ip} saddr != {pods} ") };
        let mut turns = Vec::new();
        for (turn, backend) in front.backends.iter().enumerate() {
            let addr = backend.ip();
            let _ = writeln!(
                chains,
                "chain endpoint-{nth}-{turn} {{\n{ip} saddr {addr} jump mark-for-masquerade\n\
                 meta l4proto {protocol} dnat to {backend}\n}}"
            );
            turns.push(format!("{turn} : goto endpoint-{nth}-{turn}"));
        }
        let _ = writeln!(
            chains,
            "chain front-{nth} {{\n{whose}jump mark-for-masquerade\nnumgen random mod {} vmap {{ {} }}\n}}",
            turns.len(),
            turns.join(", ")
        );
    }
    let elements =
        |text: &str| if text.is_empty() { String::new() } else { format!("elements = {{ {text} }}") };
    format!(
        "table {ip} kube-proxy\ndelete table {ip} kube-proxy\n\
         table {ip} kube-proxy {{
            map service-ips {{
                type {addr_type} . inet_proto . inet_service : verdict
                {}
            }}
            map service-nodeports {{
                type inet_proto . inet_service : verdict
                {}
            }}
            chain mark-for-masquerade {{
                meta mark set meta mark or 0x4000
            }}
            {chains}
            chain services {{
                {ip} daddr . meta l4proto . th dport vmap @service-ips
                {ip} daddr != {loopback} fib daddr type local meta l4proto . th dport vmap @service-nodeports
            }}
            chain nat-prerouting {{
                type nat hook prerouting priority dstnat; policy accept;
                jump services
            }}
            chain nat-output {{
                type nat hook output priority -100; policy accept;
                jump services
            }}
            chain nat-postrouting {{
                type nat hook postrouting priority srcnat; policy accept;
                meta mark & 0x4000 == 0 return
                meta mark set meta mark ^ 0x4000
                masquerade fully-random
            }}
        }}\n",
        elements(&service_ips),
        elements(&node_ports)
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        manifest::Endpoint,
        net::plan::{node_addr, pod_addr, vip},
    };

    #[test]
    fn rules_have_kube_proxys_shape() {
        let service = Service::new("web", vip(10))
            .node_port(80, 8080, 30080)
            .load_balancer(node_addr(0))
            .endpoints([Endpoint::at(pod_addr(1, 2)), Endpoint::at(pod_addr(1, 3)).unready()]);
        let fronts = service.fronts();
        // Two protocols, two families, three kinds.
        assert_eq!(fronts.len(), 12);
        assert!(fronts.iter().all(|front| front.backends.len() == 1), "{fronts:?}");
        let text = table(&fronts, Family::V6);
        assert!(text.contains("fd00:10:68::a . tcp . 80 : goto front-0,"), "{text}");
        assert!(text.contains("udp . 30080 : goto front-5,"), "{text}");
        assert!(text.contains("meta l4proto tcp dnat to [fd00:172:20:1::2]:8080"), "{text}");
        assert!(!text.contains("192.168") && !text.contains("10.68"), "{text}");
    }
}
