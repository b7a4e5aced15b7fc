//! Three owners that allocate ports of one address: the node's sockets, netfilter's masquerade, and shunt. Each of them
//! knows only its own flows. The model records which owner has which port, which tuples are on the wire, and which flow
//! a reply belongs to.
//!
//! Sockets and netfilter are modelled by the tuples nf_conntrack knows. nf_conntrack sees a flow between the two hooks,
//! so for a flow that shunt translates it knows the client and the backend, and no port of the node.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
};

use super::model::Tuple;

/// The owner of a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Party {
    /// A process of the node.
    Socket,
    /// A pod masqueraded by netfilter.
    Masquerade,
    /// An outside client of a Service.
    Service,
}

/// A live flow.
#[derive(Clone, Debug)]
pub struct Flow {
    pub party: Party,
    pub proto: u8,
    /// As its owner sees it: from itself to the destination it addressed.
    pub own: (SocketAddr, SocketAddr),
    /// As the host's stack sees it on its way out, after netfilter's postrouting: the egress hook's input.
    pub inside: (SocketAddr, SocketAddr),
    /// As it is on the wire.
    pub wire: (SocketAddr, SocketAddr),
}

impl Flow {
    /// The reply's tuple on the wire.
    pub fn answer(&self) -> Tuple {
        (self.wire.1, self.wire.0, self.proto)
    }
}

/// The flows of all owners.
#[derive(Clone, Debug, Default)]
pub struct Parties {
    flows: BTreeMap<u32, Flow>,
    last: u32,
    /// The tuples of the node's address in nf_conntrack: source, destination, protocol.
    netfilter: BTreeSet<Tuple>,
}

impl Parties {
    /// Whether a socket or a masquerade may use this tuple: netfilter never allocates one twice.
    pub fn is_free_to_netfilter(&self, tuple: &Tuple) -> bool {
        !self.netfilter.contains(tuple)
    }

    /// Whether a client uses this tuple already.
    pub fn has_client(&self, own: (SocketAddr, SocketAddr), proto: u8) -> bool {
        self.flows.values().any(|flow| flow.own == own && flow.proto == proto)
    }

    /// Adds a flow. Fails if another flow has its tuple on the wire, as the reply would be ambiguous.
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

    /// One of the live flows.
    pub fn pick(&self, seed: usize) -> Option<(u32, &Flow)> {
        let nth = seed.checked_rem(self.flows.len())?;
        self.flows.iter().nth(nth).map(|(id, flow)| (*id, flow))
    }

    /// Ends a flow.
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
