//! Takes over from another proxy (kube-proxy): its open connections continue in nf_conntrack, which translates them whether
//! or not that proxy and its rules still exist. They are recorded in CONNTRACK as flows that rewrite nothing, so that the
//! programs pass them instead of resetting them.
//!
//! Recorded twice: before the programs are attached, and right after, for connections opened in between. Until then
//! `NodeConfig::TAKING_OVER` makes the programs drop, not reset, segments of unknown connections; TCP retransmits them.

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

/// Number of flows of another proxy.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Recorded {
    /// Recorded by this call.
    pub new: usize,
    /// Not recorded, because there is no room.
    pub left_out: usize,
}

/// Records the flows that nf_conntrack translates to backends of known Services, established connections first. They take
/// at most three quarters of CONNTRACK: resetting some old connections is better than refusing new ones.
pub fn record(loaded: &Loaded, tables: &Tables) -> io::Result<Recorded> {
    let mut flows = nf_conntrack::translated()?;
    let mut recorded = Recorded::default();
    if flows.is_empty() {
        return Ok(recorded);
    }
    flows.sort_by_key(|flow| !is_established(flow));
    let clock = loaded.program("clock").map_err(io::Error::other)?;
    let now = prog::test_run(clock, &[0; 64])?;
    let conntrack = loaded.store.map(map::CONNTRACK).map_err(io::Error::other)?;
    // Two halves each.
    let room = conntrack.info().max_entries as usize / 8 * 3;
    for flow in &flows {
        let Some([reply, request]) = halves(flow, tables, now) else { continue };
        if recorded.new >= room {
            recorded.left_out += 1;
            continue;
        }
        // The reply half comes first, as always: a visible request half has a reply half. If either exists, the flow is
        // known.
        if !conntrack.insert(bytes_of(&reply.0), bytes_of(&reply.1))? {
            continue;
        }
        if conntrack.insert(bytes_of(&request.0), bytes_of(&request.1))? {
            recorded.new += 1;
        } else {
            conntrack.delete(bytes_of(&reply.0))?;
        }
    }
    Ok(recorded)
}

/// Open, and confirmed by both ends.
fn is_established(flow: &Translated) -> bool {
    flow.state & tcp::CONFIRMED != 0 && !tcp::is_closed(flow.state)
}

/// Reply and request half of a flow; `None` if it is not a Service's.
fn halves(flow: &Translated, tables: &Tables, now: u32) -> Option<[(CtKey, CtEntry); 2]> {
    let (client, port) = flow.client;
    let (addr, frontend_port) = flow.frontend;
    // The node's own packets pass no ingress hook; its connected sockets continue unchanged.
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
    // TCP drains from a removed endpoint; a UDP flow should choose one that serves.
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
