//! Flows that are open from an address of the node before a frontend takes their number: a NodePort, or a load balancer's or an
//! external address that the node has. From then on the programs record such flows when they leave; those that are open already
//! are found here, in nf_conntrack and among the node's sockets, and recorded before the frontend is written. Otherwise the next
//! packet of theirs that arrives would be a new flow to the Service.
//!
//! [`NodeFlowStore`] does so between the writes of a sync: the port's bit in PORTS is written, so the programs record what
//! begins; then what is open is recorded; then the frontend is written. The agent's task calls.

use std::{
    collections::{HashMap, HashSet},
    io,
};

use bytemuck::{Zeroable as _, bytes_of, pod_read_unaligned};
use proxy_common::{Addr, CtEntry, CtKey, FrontendKey, Half, Port, Proto, map, node::role, tcp};

use crate::{
    bpf::{map::RawMap, prog},
    datapath::{
        load::Loaded,
        nf_conntrack::{self, Tracked},
        sock_diag::SockDiag,
    },
    maps::{MapError, MapStore, Op, RawEntries},
};

/// The kernel's maps; open flows are recorded before a new frontend at an address of the node is written.
pub(super) struct NodeFlowStore<'a> {
    loaded: &'a mut Loaded,
}

impl<'a> NodeFlowStore<'a> {
    pub(super) fn new(loaded: &'a mut Loaded) -> Self {
        Self { loaded }
    }

    /// Which of these frontends are at an address of the node and not in the map.
    fn new_frontends(&self, ops: &[Op]) -> io::Result<HashSet<FrontendKey>> {
        let store = |map| self.loaded.store.map(map).map_err(io::Error::other);
        let (frontends, node_addrs) = (store(map::FRONTENDS)?, roles(store(map::NODE_ADDRS)?)?);
        let mut new = HashSet::new();
        for op in ops.iter().filter(|op| is_frontend(op)) {
            let key: FrontendKey = pod_read_unaligned(op.key());
            let is_at_node = key.addr.is_unspecified() || node_addrs.contains_key(&key.addr);
            if is_at_node && frontends.lookup(op.key())?.is_none() {
                new.insert(key);
            }
        }
        Ok(new)
    }

    /// Records open flows where frontends are new; what fails is logged, because the Service must be served all the same.
    fn record_open_flows(&self, ops: &[Op]) {
        let recorded = self.new_frontends(ops).and_then(|new| match new.len() {
            0 => Ok(0),
            _ => record(self.loaded, &new),
        });
        match recorded {
            Ok(0) => {}
            Ok(flows) => {
                tracing::info!(flows, "open flows of the node continue on a port that is now a Service's")
            }
            Err(error) => tracing::warn!(
                %error,
                "the node's open flows cannot be read: those on a port that is now a Service's may break"
            ),
        }
    }
}

fn is_frontend(op: &Op) -> bool {
    matches!(op, Op::Put { map: map::FRONTENDS, .. })
}

impl MapStore for NodeFlowStore<'_> {
    fn read(&mut self, map: &'static str) -> Result<RawEntries, MapError> {
        self.loaded.store.read(map)
    }

    fn write(&mut self, ops: &[Op]) -> Result<(), (usize, MapError)> {
        let Some(first) = ops.iter().position(is_frontend) else {
            return self.loaded.store.write(ops);
        };
        let (before, frontends) = ops.split_at(first);
        self.loaded.store.write(before)?;
        self.record_open_flows(frontends);
        self.loaded.store.write(frontends).map_err(|(done, error)| (first + done, error))
    }
}

/// Records the flows that are open from the numbers of these frontends; returns how many were not known.
pub(super) fn record(loaded: &Loaded, frontends: &HashSet<FrontendKey>) -> io::Result<usize> {
    let store = |map| loaded.store.map(map).map_err(io::Error::other);
    let node_addrs = roles(store(map::NODE_ADDRS)?)?;
    let flows: HashSet<OpenFlow> =
        open_flows()?.into_iter().filter(|flow| flow.is_at(frontends, &node_addrs)).collect();
    if flows.is_empty() {
        return Ok(0);
    }
    let clock = loaded.program("clock").map_err(io::Error::other)?;
    let now = prog::test_run(clock, &[0; 64])?;
    let conntrack = store(map::CONNTRACK)?;
    // A quarter of the map at most, two halves each.
    let room = conntrack.info().max_entries as usize / 8;
    let mut recorded = 0;
    for flow in flows.iter().take(room) {
        let [ingress, egress] = flow.halves(now);
        // As the programs do it: the half of what arrives comes first. Where either exists, the flow is known.
        if !conntrack.insert(bytes_of(&ingress.0), bytes_of(&ingress.1))? {
            continue;
        }
        if conntrack.insert(bytes_of(&egress.0), bytes_of(&egress.1))? {
            recorded += 1;
        } else {
            conntrack.delete(bytes_of(&ingress.0))?;
        }
    }
    if flows.len() > room {
        tracing::warn!(
            left_out = flows.len() - room,
            "not all open flows of the node are recorded: a quarter of CONNTRACK (--conntrack-max) is used"
        );
    }
    Ok(recorded)
}

fn roles(node_addrs: &RawMap) -> io::Result<HashMap<Addr, u32>> {
    let mut found = HashMap::new();
    node_addrs.for_each(|key, value| {
        found.insert(pod_read_unaligned(key), pod_read_unaligned(value));
    })?;
    Ok(found)
}

/// A flow by what arrives of it on the node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct OpenFlow {
    proto: u8,
    remote: (Addr, Port),
    own: (Addr, Port),
    /// Bits of [`tcp`].
    state: u64,
}

impl OpenFlow {
    /// Whether its own end is one of these frontends.
    fn is_at(&self, frontends: &HashSet<FrontendKey>, node_addrs: &HashMap<Addr, u32>) -> bool {
        let (addr, port) = self.own;
        let Some(roles) = node_addrs.get(&addr) else { return false };
        frontends.contains(&FrontendKey::new(addr, port, self.proto))
            || roles & role::NODEPORT != 0
                && frontends.contains(&FrontendKey::new(addr.unspecified_alike(), port, self.proto))
    }

    /// Ingress and egress half, as `conntrack/node_flow.rs` of the programs records them.
    fn halves(&self, now: u32) -> [(CtKey, CtEntry); 2] {
        let ((remote, remote_port), (own, port)) = (self.remote, self.own);
        let entry = |flag| CtEntry {
            addr: own,
            port: u64::from(port.be()),
            peer_port: remote_port,
            state: self.state,
            flags: CtEntry::NODE_FLOW | CtEntry::IDENTITY | flag,
            last_seen: now,
            created: now,
            ..CtEntry::zeroed()
        };
        [
            (CtKey::new(remote, remote_port, own, port, self.proto, Half::Ingress), entry(CtEntry::REQUEST)),
            (CtKey::new(own, port, remote, remote_port, self.proto, Half::Egress), entry(CtEntry::REPLY)),
        ]
    }
}

/// Every flow that nf_conntrack or a socket of the node knows, by both of its ends that may be the node's.
fn open_flows() -> io::Result<Vec<OpenFlow>> {
    let mut found: Vec<_> = nf_conntrack::tracked()?.iter().flat_map(ends).collect();
    let open = tcp::OPENED | tcp::REPLIED | tcp::CONFIRMED;
    let mut sockets = SockDiag::open()?;
    for (proto, connected) in [(Proto::TCP, sockets.connections()?), (Proto::UDP, sockets.connected_udp()?)] {
        found.extend(connected.iter().map(|socket| OpenFlow {
            proto,
            remote: (socket.peer, socket.port),
            own: (socket.local, socket.local_port()),
            state: open,
        }));
    }
    Ok(found)
}

/// The node may have begun the flow, also for a pod whose source it translates: then answers arrive at the reply's destination.
/// Or it may be asked: then requests arrive, unless their destination is translated, which is another proxy's flow
/// (`takeover`).
fn ends(flow: &Tracked) -> impl Iterator<Item = OpenFlow> {
    let answered = OpenFlow { proto: flow.proto, remote: flow.reply.0, own: flow.reply.1, state: flow.state };
    let asked = (!flow.has_dnat).then_some(OpenFlow {
        proto: flow.proto,
        remote: flow.original.0,
        own: flow.original.1,
        state: flow.state,
    });
    [Some(answered), asked].into_iter().flatten()
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use super::*;

    fn end(ip: [u8; 4], port: u16) -> (Addr, Port) {
        (IpAddr::from(ip).into(), Port::new(port))
    }

    const NODE: [u8; 4] = [192, 168, 8, 201];

    fn masqueraded() -> Tracked {
        let (pod, server) = (end([172, 20, 0, 4], 5353), end([9, 9, 9, 9], 53));
        Tracked {
            proto: Proto::UDP,
            original: (pod, server),
            reply: (server, end(NODE, 30_053)),
            has_dnat: false,
            state: tcp::OPENED,
        }
    }

    fn at(frontends: &[FrontendKey], roles: u32) -> usize {
        let node_addrs = HashMap::from([(end(NODE, 0).0, roles)]);
        let frontends = frontends.iter().copied().collect();
        ends(&masqueraded()).filter(|flow| flow.is_at(&frontends, &node_addrs)).count()
    }

    #[test]
    fn flows_are_found_by_number_protocol_and_role() {
        let node_port = |proto| FrontendKey::new(Addr::UNSPECIFIED_V4, Port::new(30_053), proto);
        let exact = FrontendKey::new(end(NODE, 0).0, Port::new(30_053), Proto::UDP);
        assert_eq!(at(&[node_port(Proto::UDP)], role::NODEPORT | role::OWN), 1);
        assert_eq!(at(&[node_port(Proto::UDP)], role::OWN), 0, "no NodePorts at this address");
        assert_eq!(at(&[node_port(Proto::TCP)], role::NODEPORT | role::OWN), 0);
        assert_eq!(at(&[exact], role::OWN), 1);
    }

    #[test]
    fn the_halves_lead_to_each_other() {
        let flow = ends(&masqueraded()).next().unwrap();
        let [ingress, egress] = flow.halves(7);
        assert_eq!(ingress.1.egress_key(&ingress.0), egress.0);
        assert_eq!(egress.1.ingress_key(&egress.0), ingress.0);
    }

    #[test]
    fn another_proxys_flow_to_the_node_is_not_the_nodes() {
        let client = end([192, 168, 8, 1], 4000);
        let flow = Tracked {
            proto: Proto::TCP,
            original: (client, end(NODE, 30_080)),
            reply: (end([172, 20, 0, 4], 80), client),
            has_dnat: true,
            state: tcp::OPENED,
        };
        assert!(ends(&flow).all(|end| end.own.0 != flow.original.1.0));
    }
}
