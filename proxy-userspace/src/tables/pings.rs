//! Ping entries of VIPs in FRONTENDS: a VIP answers ICMP echo while one of its service ports has an endpoint, and a
//! ClusterIP refuses packets to other ports.

use std::{
    collections::{HashMap, HashSet},
    net::IpAddr,
};

use proxy_common::{Addr, Frontend, FrontendKey, FrontendKind, Port, Proto};

use super::{desired::Tables, port_bits::PortBits};

/// VIPs, and the number of service ports that use them.
#[derive(Debug, Default)]
pub struct Pings {
    vips: HashMap<Addr, Uses>,
    /// Addresses of nodes, which answer pings themselves.
    nodes: HashSet<IpAddr>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Uses {
    ports: u32,
    with_endpoints: u32,
    /// As ClusterIP.
    cluster_ip: u32,
}

/// How a service port uses a VIP.
#[derive(Clone, Copy, Debug)]
pub struct Use {
    pub has_endpoints: bool,
    pub is_cluster_ip: bool,
}

impl Pings {
    /// The entry of FRONTENDS that lets `vip` answer.
    pub fn key(vip: Addr) -> FrontendKey {
        let proto = if vip.is_v4() { Proto::ICMP } else { Proto::ICMPV6 };
        FrontendKey::new(vip, Port::ZERO, proto)
    }

    /// A service port uses `vip`.
    pub fn add(&mut self, vip: Addr, by: Use, tables: &mut Tables, bits: &mut PortBits) {
        let uses = self.vips.entry(vip).or_default();
        uses.ports += 1;
        uses.with_endpoints += u32::from(by.has_endpoints);
        uses.cluster_ip += u32::from(by.is_cluster_ip);
        if by.is_cluster_ip && uses.cluster_ip == 1 {
            bits.add_cluster_ip(vip, tables);
        }
        self.settle(vip, tables);
    }

    /// A service port no longer uses `vip`.
    pub fn remove(&mut self, vip: Addr, by: Use, tables: &mut Tables, bits: &mut PortBits) {
        let Some(uses) = self.vips.get_mut(&vip) else { return };
        uses.ports -= 1;
        uses.with_endpoints -= u32::from(by.has_endpoints);
        uses.cluster_ip -= u32::from(by.is_cluster_ip);
        if by.is_cluster_ip && uses.cluster_ip == 0 {
            bits.remove_cluster_ip(vip, tables);
        }
        if uses.ports == 0 {
            self.vips.remove(&vip);
        }
        self.settle(vip, tables);
    }

    /// Whether `vip` gets an entry when a service port uses it.
    pub fn wants(&self, vip: Addr) -> bool {
        !self.nodes.contains(&vip.to_ip())
    }

    /// The nodes' addresses changed.
    pub fn set_nodes(&mut self, nodes: HashSet<IpAddr>, tables: &mut Tables) {
        let before = std::mem::replace(&mut self.nodes, nodes);
        let changed: Vec<IpAddr> = before.symmetric_difference(&self.nodes).copied().collect();
        changed.into_iter().for_each(|ip| self.settle(ip.into(), tables));
    }

    fn settle(&self, vip: Addr, tables: &mut Tables) {
        let key = Self::key(vip);
        match self.vips.get(&vip).filter(|_| self.wants(vip)) {
            None => tables.frontends.remove(&key),
            Some(uses) => {
                let flags = if uses.with_endpoints > 0 { Frontend::HAS_ENDPOINTS } else { 0 }
                    | if uses.cluster_ip > 0 { Frontend::CLUSTER_IP } else { 0 };
                let zero: Frontend = bytemuck::Zeroable::zeroed();
                tables.frontends.set(key, Frontend { flags, kind: FrontendKind::Ping as u32, ..zero });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proxy_common::node::port_bits;

    use super::*;

    fn used(has_endpoints: bool) -> Use {
        Use { has_endpoints, is_cluster_ip: true }
    }

    #[test]
    fn a_vip_answers_while_any_of_its_ports_has_an_endpoint() {
        let (mut pings, mut tables, mut bits) = <(Pings, Tables, PortBits)>::default();
        let ip: IpAddr = "10.68.0.1".parse().unwrap();
        let vip = Addr::from(ip);
        let answers =
            |tables: &Tables| tables.frontends.get(&Pings::key(vip)).map(|f| f.has(Frontend::HAS_ENDPOINTS));
        pings.add(vip, used(false), &mut tables, &mut bits);
        assert_eq!(answers(&tables), Some(false));
        pings.add(vip, used(true), &mut tables, &mut bits);
        assert_eq!(answers(&tables), Some(true));
        pings.set_nodes(HashSet::from([ip]), &mut tables);
        assert_eq!(answers(&tables), None, "a node answers for itself");
        pings.set_nodes(HashSet::new(), &mut tables);
        pings.remove(vip, used(true), &mut tables, &mut bits);
        assert_eq!(answers(&tables), Some(false));
        pings.remove(vip, used(false), &mut tables, &mut bits);
        assert_eq!(answers(&tables), None);
    }

    #[test]
    fn only_a_cluster_ip_refuses_other_ports() {
        let (mut pings, mut tables, mut bits) = <(Pings, Tables, PortBits)>::default();
        let vip = Addr::from("10.68.1.2".parse::<IpAddr>().unwrap());
        let refuses =
            |tables: &Tables| tables.frontends.get(&Pings::key(vip)).map(|f| f.has(Frontend::CLUSTER_IP));
        let named = Use { has_endpoints: true, is_cluster_ip: false };
        pings.add(vip, named, &mut tables, &mut bits);
        assert_eq!(refuses(&tables), Some(false));
        assert_eq!(tables.ports.get(&0x0102), None);
        pings.add(vip, used(false), &mut tables, &mut bits);
        assert_eq!(refuses(&tables), Some(true));
        assert_eq!(tables.ports.get(&0x0102), Some(&port_bits::CLUSTER_IP));
        pings.remove(vip, used(false), &mut tables, &mut bits);
        assert_eq!(refuses(&tables), Some(false));
        assert!(tables.ports.is_empty());
    }
}
