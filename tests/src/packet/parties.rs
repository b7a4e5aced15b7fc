//! Three parties that give away the ports of one address: the node's sockets, netfilter's masquerade, and shunt. Each
//! sees flows of its own and is told nothing by the others; a model of who has what, of what is on the wire, and of where
//! an answer belongs.
//!
//! Sockets and netfilter are modelled by what nf_conntrack knows: it sees a flow between the two hooks, so that of a flow
//! that shunt translates it knows the client and the backend, and no port of the node's.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
};

use super::model::Tuple;

/// Whose flow it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Party {
    /// A process of the node.
    Socket,
    /// A pod that netfilter masquerades.
    Masquerade,
    /// A client outside, of a Service.
    Service,
}

/// A flow that lives.
#[derive(Clone, Debug)]
pub struct Flow {
    pub party: Party,
    pub proto: u8,
    /// As its owner sees it: from itself to whom it asked.
    pub own: (SocketAddr, SocketAddr),
    /// As the host's stack sees it on its way out, behind netfilter's postrouting: what the egress hook is given.
    pub inside: (SocketAddr, SocketAddr),
    /// As it is on the wire.
    pub wire: (SocketAddr, SocketAddr),
}

impl Flow {
    /// The answer's tuple on the wire.
    pub fn answer(&self) -> Tuple {
        (self.wire.1, self.wire.0, self.proto)
    }
}

/// Everybody's flows.
#[derive(Clone, Debug, Default)]
pub struct Parties {
    flows: BTreeMap<u32, Flow>,
    last: u32,
    /// What nf_conntrack knows of the node's address: source, destination, protocol.
    netfilter: BTreeSet<Tuple>,
}

impl Parties {
    /// Whether a socket may have this tuple, or a masquerade be given it: netfilter gives none away twice.
    pub fn is_free_to_netfilter(&self, tuple: &Tuple) -> bool {
        !self.netfilter.contains(tuple)
    }

    /// Whether a client has this tuple already.
    pub fn has_client(&self, own: (SocketAddr, SocketAddr), proto: u8) -> bool {
        self.flows.values().any(|flow| flow.own == own && flow.proto == proto)
    }

    /// A flow begins. Fails where another has its tuple on the wire: the answer could be either's.
    pub fn begin(&mut self, flow: Flow) -> Result<(), String> {
        let taken = self.flows.values().find(|other| other.wire == flow.wire && other.proto == flow.proto);
        if let Some(other) = taken {
            return Err(format!("two flows are one on the wire: {flow:?} and {other:?}"));
        }
        if flow.party != Party::Service {
            let is_new = self.netfilter.insert((flow.inside.0, flow.inside.1, flow.proto));
            assert!(is_new, "netfilter gave a tuple away twice: {flow:?}");
        }
        self.last += 1;
        self.flows.insert(self.last, flow);
        Ok(())
    }

    /// One of those that live.
    pub fn pick(&self, seed: usize) -> Option<(u32, &Flow)> {
        let nth = seed.checked_rem(self.flows.len())?;
        self.flows.iter().nth(nth).map(|(id, flow)| (*id, flow))
    }

    /// A flow is over.
    pub fn end(&mut self, id: u32) {
        if let Some(flow) = self.flows.remove(&id) {
            self.netfilter.remove(&(flow.inside.0, flow.inside.1, flow.proto));
        }
    }

    pub fn len(&self) -> usize {
        self.flows.len()
    }

    pub fn is_empty(&self) -> bool {
        self.flows.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flow(party: Party, inside: u16, wire: u16) -> Flow {
        let at = |port| SocketAddr::from(([192, 0, 2, 1], port));
        let remote = SocketAddr::from(([192, 0, 2, 9], 80));
        Flow { party, proto: 6, own: (at(1), remote), inside: (at(inside), remote), wire: (at(wire), remote) }
    }

    #[test]
    fn one_tuple_on_the_wire_is_one_flows() {
        let mut parties = Parties::default();
        parties.begin(flow(Party::Socket, 2000, 2000)).unwrap();
        parties.begin(flow(Party::Service, 2000, 2001)).unwrap();
        assert!(parties.begin(flow(Party::Service, 2000, 2001)).is_err());
        let (id, _) = parties.pick(0).unwrap();
        parties.end(id);
        parties.begin(flow(Party::Masquerade, 2000, 2000)).unwrap();
        assert_eq!(parties.len(), 2);
    }
}
