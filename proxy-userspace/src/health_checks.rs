//! All healthCheckNodePorts of this node: addresses, ports and answers. Data only: the controller keeps it,
//! [`health`](crate::health) opens the listeners.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Arc,
};

use proxy_common::{Addr, node::role};

use crate::{
    compile::HealthCheck,
    config::NodePortAddresses,
    model::{Family, ServiceKey},
    problem::{Problem, ProblemKind},
};

/// What one listener answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LocalEndpoints {
    pub service: ServiceKey,
    /// The Service's uid, if known; for Events.
    pub uid: Option<Arc<str>>,
    pub count: usize,
}

/// The answer for every address and port to listen on.
pub type Listeners = BTreeMap<SocketAddr, LocalEndpoints>;

/// The health checks that Services ask for.
#[derive(Debug, Default)]
pub struct HealthChecks {
    claims: BTreeMap<ServiceKey, Claim>,
}

#[derive(Debug)]
struct Claim {
    created: Option<Arc<str>>,
    check: HealthCheck,
}

impl HealthChecks {
    /// Replaces the health check of `service`; returns whether it changed.
    pub fn set(
        &mut self,
        service: &ServiceKey,
        created: Option<&Arc<str>>,
        check: Option<HealthCheck>,
    ) -> bool {
        let Some(check) = check else { return self.claims.remove(service).is_some() };
        let claim = Claim { created: created.cloned(), check };
        match self.claims.insert(service.clone(), claim) {
            Some(old) => old.check != self.claims[service].check || old.created.as_ref() != created,
            None => true,
        }
    }

    /// The Service that owns each port: of several the oldest one, as for frontends.
    fn owners(&self) -> BTreeMap<u16, (&ServiceKey, &Claim)> {
        let mut owners: BTreeMap<u16, (&ServiceKey, &Claim)> = BTreeMap::new();
        // Manifest files have no creation time: the first by name wins.
        let order = |(key, claim): &(&ServiceKey, &Claim)| {
            (claim.created.is_none(), claim.created.clone(), (*key).clone())
        };
        for (key, claim) in &self.claims {
            let owner = owners.entry(claim.check.port).or_insert((key, claim));
            if order(&(key, claim)) < order(owner) {
                *owner = (key, claim);
            }
        }
        owners
    }

    /// The listeners of a node that serves NodePorts on `addresses`.
    pub fn listeners(&self, addresses: &[IpAddr]) -> Listeners {
        let mut listeners = Listeners::new();
        for (port, (service, claim)) in self.owners() {
            for address in addresses {
                let counts = &claim.check.local_endpoints;
                if let Some((_, count)) = counts.iter().find(|(family, _)| *family == (*address).into()) {
                    let answer = LocalEndpoints { service: service.clone(), uid: None, count: *count };
                    listeners.insert(SocketAddr::new(*address, port), answer);
                }
            }
        }
        listeners
    }

    /// Services whose port belongs to another Service.
    pub fn problems(&self) -> impl Iterator<Item = Problem> + '_ {
        let owners = self.owners();
        self.claims.iter().filter_map(move |(key, claim)| {
            let port = claim.check.port;
            let (owner, _) = owners.get(&port)?;
            let taken = || ProblemKind::HealthCheckPortTaken { port, owner: (*owner).clone() };
            (*owner != key).then(|| Problem::new(key, taken()))
        })
    }
}

/// The addresses on which health checks listen: where NodePorts are served (`roles` is what NODE_ADDRS holds). If a
/// family serves NodePorts on all addresses, it has one wildcard listener, which also covers future addresses.
pub fn addresses<'a>(
    roles: impl IntoIterator<Item = (&'a Addr, &'a u32)>,
    chosen: &NodePortAddresses,
) -> Vec<IpAddr> {
    let accepting: Vec<IpAddr> = roles
        .into_iter()
        .filter(|(_, roles)| **roles & role::NODEPORT != 0)
        .map(|(addr, _)| addr.to_ip())
        // A link-local address is meaningless without its device.
        .filter(|ip| !matches!(ip, IpAddr::V6(v6) if v6.is_unicast_link_local()))
        .collect();
    let mut found = Vec::new();
    for family in Family::BOTH {
        let mut mine = accepting.iter().copied().filter(|ip| Family::from(*ip) == family).peekable();
        let everywhere = match chosen {
            NodePortAddresses::All => true,
            NodePortAddresses::Primary => false,
            NodePortAddresses::Cidrs(ranges) => {
                let restricts = |range: &ipnet::IpNet| Family::from(range.addr()) == family;
                !ranges.iter().any(|range| restricts(range) && range.prefix_len() != 0)
            }
        };
        match (everywhere, family) {
            (true, _) if mine.peek().is_none() => {}
            (true, Family::V4) => found.push(Ipv4Addr::UNSPECIFIED.into()),
            (true, Family::V6) => found.push(Ipv6Addr::UNSPECIFIED.into()),
            (false, _) => found.extend(mine),
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(port: u16, v4: usize) -> HealthCheck {
        HealthCheck { port, local_endpoints: vec![(Family::V4, v4)] }
    }

    fn key(name: &str) -> ServiceKey {
        ServiceKey::new("ns", name)
    }

    #[test]
    fn the_older_service_answers_and_the_other_takes_over() {
        let mut checks = HealthChecks::default();
        let any = [IpAddr::from([0; 4]), IpAddr::from([0u16; 8])];
        let (old, new): (Arc<str>, Arc<str>) = ("2026-01-01T00:00:00Z".into(), "2026-02-01T00:00:00Z".into());
        assert!(checks.set(&key("a"), Some(&new), Some(check(32000, 1))));
        assert!(checks.set(&key("b"), Some(&old), Some(check(32000, 2))));
        assert!(!checks.set(&key("b"), Some(&old), Some(check(32000, 2))));
        // A Service without an address in a family has no listener there.
        let listeners = checks.listeners(&any);
        let at: SocketAddr = "0.0.0.0:32000".parse().unwrap();
        assert_eq!(listeners.len(), 1);
        assert_eq!(listeners[&at], LocalEndpoints { service: key("b"), uid: None, count: 2 });
        let problems: Vec<_> = checks.problems().collect();
        assert_eq!(problems.len(), 1);
        assert!(problems[0].to_string().contains("ns/a") && problems[0].to_string().contains("ns/b"));

        assert!(checks.set(&key("b"), Some(&old), Some(check(32001, 2))));
        assert_eq!(checks.listeners(&any)[&at].service, key("a"));
        assert_eq!(checks.problems().count(), 0);
        assert!(checks.set(&key("a"), Some(&new), None));
        assert_eq!(checks.listeners(&any).keys().map(SocketAddr::port).collect::<Vec<_>>(), [32001]);
    }

    #[test]
    fn it_listens_where_node_ports_are_served() {
        let ip = |text: &str| -> IpAddr { text.parse().unwrap() };
        let roles: BTreeMap<Addr, u32> = [
            ("192.168.8.201", role::OWN | role::NODEPORT),
            ("10.9.9.9", role::OWN),
            ("127.0.0.1", role::OWN | role::LOOPBACK),
            ("fd00::201", role::OWN | role::NODEPORT),
            ("fe80::1", role::OWN | role::NODEPORT),
        ]
        .map(|(text, roles)| (ip(text).into(), roles))
        .into();
        let at = |chosen: NodePortAddresses| addresses(&roles, &chosen);
        assert_eq!(at(NodePortAddresses::All), [ip("0.0.0.0"), ip("::")]);
        assert_eq!(at(NodePortAddresses::Primary), [ip("192.168.8.201"), ip("fd00::201")]);
        let ranges = |texts: &[&str]| {
            NodePortAddresses::Cidrs(texts.iter().map(|text| text.parse().unwrap()).collect())
        };
        assert_eq!(at(ranges(&["192.168.8.0/24"])), [ip("192.168.8.201"), ip("::")]);
        assert_eq!(at(ranges(&["0.0.0.0/0", "fd00::/64"])), [ip("0.0.0.0"), ip("fd00::201")]);
        assert_eq!(addresses(&BTreeMap::new(), &NodePortAddresses::All), [] as [IpAddr; 0]);
    }
}
