//! Conflicts over frontends: several Services may claim one address and port; one of them is served.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use proxy_common::{Frontend, FrontendKey, FrontendKind};

use super::{desired::Tables, port_bits::PortBits};
use crate::{
    model::ServiceKey,
    problem::{Problem, ProblemKind},
};

/// All claims on all frontends. The winner does not depend on the order of arrival: a ClusterIP takes precedence over a
/// load balancer address, and that over an externalIP (CVE-2020-8554); then the older Service wins, then the first by
/// name.
#[derive(Debug, Default)]
pub struct Claims {
    by_key: HashMap<FrontendKey, Vec<Claim>>,
    /// Claims that lost, and the winners.
    taken: BTreeMap<(ServiceKey, FrontendKey), ServiceKey>,
    /// Claims that lost since the last call; some may have won again.
    fresh: Vec<(ServiceKey, FrontendKey)>,
}

#[derive(Debug)]
struct Claim {
    rank: Rank,
    value: Frontend,
}

/// The order of claims: the smallest wins. Fields in order of significance.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Rank {
    given_by: GivenBy,
    age_unknown: bool,
    created: Option<Arc<str>>,
    service: ServiceKey,
}

/// The origin of the claimed address.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
enum GivenBy {
    Cluster,
    /// The cluster's load balancers; also NodePorts, which conflict with no address.
    LoadBalancer,
    /// The Service itself (externalIPs).
    Itself,
}

impl GivenBy {
    fn of(frontend: &Frontend) -> Self {
        match FrontendKind::from_number(frontend.kind) {
            Some(FrontendKind::ClusterIp) => Self::Cluster,
            Some(FrontendKind::LoadBalancerIp | FrontendKind::NodePort) => Self::LoadBalancer,
            _ => Self::Itself,
        }
    }
}

impl Claims {
    /// `service` claims `key`, or changes its value.
    pub fn put(
        &mut self,
        service: &ServiceKey,
        created: Option<&Arc<str>>,
        key: FrontendKey,
        value: Frontend,
        tables: &mut Tables,
        bits: &mut PortBits,
    ) {
        let rank = Rank {
            given_by: GivenBy::of(&value),
            age_unknown: created.is_none(),
            created: created.cloned(),
            service: service.clone(),
        };
        let claims = self.by_key.entry(key).or_default();
        if claims.is_empty() {
            bits.add_frontend(key, tables);
        }
        match claims.iter_mut().find(|claim| claim.rank.service == *service) {
            Some(claim) => *claim = Claim { rank, value },
            None => claims.push(Claim { rank, value }),
        }
        self.settle(key, tables);
    }

    /// `service` gives up its claim; the next in rank takes over.
    pub fn remove(
        &mut self,
        service: &ServiceKey,
        key: FrontendKey,
        tables: &mut Tables,
        bits: &mut PortBits,
    ) {
        let Some(claims) = self.by_key.get_mut(&key) else { return };
        claims.retain(|claim| claim.rank.service != *service);
        self.taken.remove(&(service.clone(), key));
        if claims.is_empty() {
            self.by_key.remove(&key);
            tables.frontends.remove(&key);
            bits.remove_frontend(key, tables);
        } else {
            self.settle(key, tables);
        }
    }

    /// The Service that is served at `key`.
    pub fn owner(&self, key: &FrontendKey) -> Option<&ServiceKey> {
        let claims = self.by_key.get(key)?;
        claims.iter().map(|claim| &claim.rank).min().map(|rank| &rank.service)
    }

    /// Every claim that lost.
    pub fn problems(&self) -> impl Iterator<Item = Problem> + '_ {
        self.taken.iter().map(|(claim, owner)| lost(claim, owner))
    }

    /// Claims that lost since the last call and still do: two Services that swap frontends in one sync conflict only
    /// temporarily.
    pub fn take_fresh(&mut self) -> Vec<Problem> {
        let fresh = std::mem::take(&mut self.fresh);
        fresh.iter().filter_map(|claim| Some(lost(claim, self.taken.get(claim)?))).collect()
    }

    fn settle(&mut self, key: FrontendKey, tables: &mut Tables) {
        let Some(claims) = self.by_key.get(&key) else { return };
        let Some(winner) = claims.iter().min_by(|a, b| a.rank.cmp(&b.rank)) else { return };
        tables.frontends.set(key, winner.value);
        if claims.len() == 1 && self.taken.is_empty() {
            return;
        }
        let owner = winner.rank.service.clone();
        for claim in claims {
            let service = claim.rank.service.clone();
            if service == owner {
                self.taken.remove(&(service, key));
            } else {
                let claim = (service, key);
                if self.taken.insert(claim.clone(), owner.clone()).as_ref() != Some(&owner) {
                    self.fresh.push(claim);
                }
            }
        }
    }
}

fn lost((service, frontend): &(ServiceKey, FrontendKey), owner: &ServiceKey) -> Problem {
    Problem::new(service, ProblemKind::FrontendTaken { frontend: *frontend, owner: owner.clone() })
}

#[cfg(test)]
mod tests {
    use proxy_common::{Addr, Port, Proto};

    use super::*;

    fn value(service: u32, kind: FrontendKind) -> Frontend {
        Frontend { service, kind: kind as u32, ..bytemuck::Zeroable::zeroed() }
    }

    fn frontend() -> FrontendKey {
        FrontendKey::new(Addr::UNSPECIFIED_V4, Port::new(30080), Proto::TCP)
    }

    #[test]
    fn the_winner_does_not_depend_on_arrival() {
        let by_name = [("a", None, 1), ("b", None, 2), ("c", Some("2026-01-01T00:00:00Z"), 3)];
        for order in [[0, 1, 2], [2, 1, 0], [1, 0, 2], [1, 2, 0]] {
            let (mut claims, mut tables, mut bits) = <(Claims, Tables, PortBits)>::default();
            for i in order {
                let (name, created, id) = by_name[i];
                let created = created.map(Arc::from);
                let key = ServiceKey::new("default", name);
                let value = value(id, FrontendKind::NodePort);
                claims.put(&key, created.as_ref(), frontend(), value, &mut tables, &mut bits);
            }
            // A known creation time wins; the others follow by name.
            for (winner, losers) in [(3, 2), (1, 1), (2, 0)] {
                assert_eq!(tables.frontends.get(&frontend()).unwrap().service, winner, "{order:?}");
                assert_eq!(claims.problems().count(), losers, "{order:?}");
                let owner = claims.owner(&frontend()).unwrap().clone();
                claims.remove(&owner, frontend(), &mut tables, &mut bits);
            }
            assert!(tables.frontends.is_empty() && tables.ports.is_empty());
        }
    }

    #[test]
    fn a_frontend_that_changes_hands_is_no_conflict() {
        let (mut claims, mut tables, mut bits) = <(Claims, Tables, PortBits)>::default();
        let [old, new] = ["old", "new"].map(|name| ServiceKey::new("default", name));
        let port = |service| value(service, FrontendKind::NodePort);
        claims.put(&old, None, frontend(), port(1), &mut tables, &mut bits);
        claims.put(&new, None, frontend(), port(2), &mut tables, &mut bits);
        claims.remove(&old, frontend(), &mut tables, &mut bits);
        assert_eq!(claims.take_fresh(), []);
        claims.put(&old, None, frontend(), port(1), &mut tables, &mut bits);
        assert_eq!(claims.take_fresh().len(), 1);
        assert_eq!(claims.take_fresh(), [], "said once");
    }

    #[test]
    fn an_address_that_was_given_cannot_be_taken_by_naming_it() {
        let old = Arc::from("2020-01-01T00:00:00Z");
        let thief = ServiceKey::new("a", "thief");
        let owner = ServiceKey::new("z", "owner");
        for given in [FrontendKind::ClusterIp, FrontendKind::LoadBalancerIp] {
            let (mut claims, mut tables, mut bits) = <(Claims, Tables, PortBits)>::default();
            let named = value(1, FrontendKind::ExternalIp);
            claims.put(&thief, Some(&old), frontend(), named, &mut tables, &mut bits);
            claims.put(&owner, None, frontend(), value(2, given), &mut tables, &mut bits);
            assert_eq!(claims.owner(&frontend()), Some(&owner));
        }
    }
}
