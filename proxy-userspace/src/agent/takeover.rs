//! Coming to a node on which another proxy (kube-proxy) has served: its open connections live on in netfilter's connection
//! tracking, which translates them whether or not that proxy and its rules are still there. They are recorded in CONNTRACK
//! as flows that rewrite nothing, so that the programs let them pass instead of ending them.
//!
//! Twice: before the programs are attached, and right after, for what began meanwhile. In between
//! `NodeConfig::TAKING_OVER` makes them drop, not reset, segments of connections they do not know yet; TCP sends those again.

use std::io;

use bytemuck::{Zeroable as _, bytes_of};
use proxy_common::{CtEntry, CtKey, FrontendKey, Half, Proto, map, node::role, tcp};

use crate::{
    bpf::prog,
    datapath::{
        load::Loaded,
        nf_conntrack::{self, Translated},
    },
    tables::Tables,
};

/// What became of another proxy's flows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Taken {
    /// Recorded now.
    pub new: usize,
    /// Left out for want of room.
    pub left: usize,
}

/// Records the flows that netfilter translates to backends of Services we serve, established connections first. They take
/// three quarters of CONNTRACK at most: a node that takes no new flows is worse off than one that resets some old ones.
pub fn record(loaded: &Loaded, tables: &Tables) -> io::Result<Taken> {
    let mut flows = nf_conntrack::translated()?;
    let mut taken = Taken::default();
    if flows.is_empty() {
        return Ok(taken);
    }
    flows.sort_by_key(|flow| !is_established(flow));
    let clock = loaded.program("clock").map_err(io::Error::other)?;
    let now = prog::test_run(clock, &[0; 64])?;
    let conntrack = loaded.store.map(map::CONNTRACK).map_err(io::Error::other)?;
    // Two halves each.
    let room = conntrack.info().max_entries as usize / 8 * 3;
    for flow in &flows {
        let Some([reply, request]) = halves(flow, tables, now) else { continue };
        if taken.new >= room {
            taken.left += 1;
            continue;
        }
        // The reply half first, as always: a request half that packets find has one. Where either is there already, the
        // flow is known.
        if !conntrack.insert(bytes_of(&reply.0), bytes_of(&reply.1))? {
            continue;
        }
        if conntrack.insert(bytes_of(&request.0), bytes_of(&request.1))? {
            taken.new += 1;
        } else {
            conntrack.delete(bytes_of(&reply.0))?;
        }
    }
    Ok(taken)
}

/// Open, and with an answer.
fn is_established(flow: &Translated) -> bool {
    flow.state & tcp::CONFIRMED != 0 && !tcp::is_closed(flow.state)
}

/// Reply and request half of a flow; nothing where it is none of our business.
fn halves(flow: &Translated, tables: &Tables, now: u32) -> Option<[(CtKey, CtEntry); 2]> {
    let (client, port) = flow.client;
    let (addr, frontend_port) = flow.frontend;
    // The node's own packets meet no ingress hook; sockets that are connected go on as they are.
    if tables.node_addrs.get(&client).is_some_and(|roles| roles & role::OWN != 0) {
        return None;
    }
    let exact = tables.frontends.get(&FrontendKey::new(addr, frontend_port, flow.proto));
    let node_port = || {
        tables.node_addrs.get(&addr).filter(|roles| *roles & role::NODEPORT != 0)?;
        tables.frontends.get(&FrontendKey::new(addr.unspecified_alike(), frontend_port, flow.proto))
    };
    let service = exact.or_else(node_port)?.service;
    let backend =
        tables.backend_addrs.get(&FrontendKey::new(flow.backend.0, flow.backend.1, flow.proto)).copied();
    // A connection drains from an endpoint that left the Service; a datagram had better find one that serves.
    if backend.is_none() && flow.proto == Proto::UDP {
        return None;
    }
    let entry = |flags| CtEntry {
        state: flow.state,
        flags: flags | CtEntry::SERVICE | CtEntry::IDENTITY,
        last_seen: now,
        created: now,
        service,
        backend: backend.unwrap_or(0),
        ..CtEntry::zeroed()
    };
    let reply =
        CtEntry { addr, port: u64::from(frontend_port.be()), peer_port: port, ..entry(CtEntry::REPLY) };
    let request = CtEntry { flags: reply.flags & !CtEntry::REPLY | CtEntry::REQUEST, ..reply };
    Some([
        (CtKey::new(addr, frontend_port, client, port, flow.proto, Half::Egress), reply),
        (CtKey::new(client, port, addr, frontend_port, flow.proto, Half::Ingress), request),
    ])
}
