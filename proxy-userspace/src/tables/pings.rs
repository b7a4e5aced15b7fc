//! Which VIPs answer ICMP echo: those of some service port, while one of their service ports has an endpoint.

use std::{
    collections::{HashMap, HashSet},
    net::IpAddr,
};

use proxy_common::{Addr, Frontend, FrontendKey, FrontendKind, Port, Proto};

use super::Tables;

/// VIPs, and how many service ports use them.
#[derive(Debug, Default)]
pub struct Pings {
    vips: HashMap<Addr, Uses>,
    /// Addresses of nodes, which answer for themselves.
    nodes: HashSet<IpAddr>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Uses {
    ports: u32,
    with_endpoints: u32,
}

impl Pings {
    /// The entry of FRONTENDS that lets `vip` answer.
    pub fn key(vip: Addr) -> FrontendKey {
        let proto = if vip.is_v4() { Proto::ICMP } else { Proto::ICMPV6 };
        FrontendKey::new(vip, Port::ZERO, proto)
    }

    pub fn add(&mut self, vip: Addr, has_endpoints: bool, tables: &mut Tables) {
        let uses = self.vips.entry(vip).or_default();
        uses.ports += 1;
        uses.with_endpoints += u32::from(has_endpoints);
        self.settle(vip, tables);
    }

    pub fn remove(&mut self, vip: Addr, had_endpoints: bool, tables: &mut Tables) {
        let Some(uses) = self.vips.get_mut(&vip) else { return };
        uses.ports -= 1;
        uses.with_endpoints -= u32::from(had_endpoints);
        if uses.ports == 0 {
            self.vips.remove(&vip);
        }
        self.settle(vip, tables);
    }

    /// Whether an entry is wanted for `vip` once a service port uses it.
    pub fn wants(&self, vip: Addr) -> bool {
        !self.nodes.contains(&vip.to_ip())
    }

    /// Other addresses belong to nodes now.
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
                let flags = if uses.with_endpoints > 0 { Frontend::HAS_ENDPOINTS } else { 0 };
                let zero: Frontend = bytemuck::Zeroable::zeroed();
                tables.frontends.set(key, Frontend { flags, kind: FrontendKind::Ping as u32, ..zero });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_vip_answers_while_any_of_its_ports_has_an_endpoint() {
        let (mut pings, mut tables) = <(Pings, Tables)>::default();
        let ip: IpAddr = "10.68.0.1".parse().unwrap();
        let vip = Addr::from(ip);
        let answers =
            |tables: &Tables| tables.frontends.get(&Pings::key(vip)).map(|f| f.has(Frontend::HAS_ENDPOINTS));
        pings.add(vip, false, &mut tables);
        assert_eq!(answers(&tables), Some(false));
        pings.add(vip, true, &mut tables);
        assert_eq!(answers(&tables), Some(true));
        pings.set_nodes(HashSet::from([ip]), &mut tables);
        assert_eq!(answers(&tables), None, "a node answers for itself");
        pings.set_nodes(HashSet::new(), &mut tables);
        pings.remove(vip, true, &mut tables);
        assert_eq!(answers(&tables), Some(false));
        pings.remove(vip, false, &mut tables);
        assert_eq!(answers(&tables), None);
    }
}
