//! Processes of the node: their sockets are translated at connect and sendmsg, and socket-address programs cannot be
//! test-run. This module evaluates the tables like these programs do. The rest of the path, from the egress hook on, is
//! test-run.
//!
//! It assumes a new socket of the host's network namespace, in `--cgroup`.

use std::net::IpAddr;

use proxy_common::{
    Addr, Affinity, AffinityKey, Backend, Counter, CtEntry, Frontend, FrontendKind, Half, Port, Proto,
    Service, SetMember, affinity::set_bits, map, node::role, socket,
};

use super::{
    sandbox::copy,
    tables,
    view::Rewrite,
    walk::{Next, Result, Walk},
};

impl Walk {
    /// A packet of the node itself: the socket hook comes first.
    pub(super) fn leave_node(&mut self) -> Result<Next> {
        self.view.from.kind = "node";
        self.view.stage("from", "a process of the node");
        let is_attached = self.pins.links().join("connect4").exists();
        let roles = role::NODEPORT | role::LOOPBACK;
        if !matches!(self.tuple.proto, Proto::TCP | Proto::UDP) || !is_attached {
            let found = self.describe(roles)?;
            if let (false, Some(_)) = (is_attached, found) {
                self.view.note("--socket-lb off: processes of the node cannot reach Services");
            } else if found.is_some() && self.tuple.proto == Proto::SCTP {
                self.view.note(
                    "SCTP sockets of the node cannot reach Services: socket hooks support only TCP and UDP",
                );
            }
            self.copy_source_range(found, self.tuple.src.ip())?;
            return Ok(Next::Continue);
        }
        self.view.lane = "socket";
        self.view.stage("lane", "socket: at connect() or sendmsg(), before there is a packet");
        let (bound, client_ip) = self.source()?;
        let Some(frontend) = self.describe(roles)? else {
            if self.view.destination == "other_port_of_cluster_ip" {
                return Ok(self.refused(Counter::NoServicePort));
            }
            return Ok(Next::Continue);
        };
        if self.answers_a_direct_flow(&frontend)? {
            self.view
                .note("this is a reply of a flow that another node began from this address: not translated");
            return Ok(Next::Continue);
        }
        let client = socket::netns_addr(self.sandbox.global("HOST_NETNS")?);
        copy::service(&self.sandbox, &frontend, client, &self.tuple)?;
        self.policy(&frontend, true, client_ip)?;
        if self.view.policy.as_ref().is_some_and(|policy| policy.let_in == Some(false)) {
            if frontend.kind == FrontendKind::NodePort as u32 {
                return Ok(self.refused(Counter::SrcRange));
            }
            // The socket hook does not translate it; the egress hook drops it.
            self.copy_source_range(Some(frontend), self.tuple.src.ip())?;
            return Ok(Next::Continue);
        }
        if !frontend.has(Frontend::HAS_ENDPOINTS) {
            return Ok(self.refused(Counter::NoBackend));
        }
        let local = tables::uses_local(&frontend, true);
        let count = if local { frontend.local_count } else { frontend.cluster_count };
        if count == 0 {
            return Ok(Next::Continue);
        }
        let kept = self.affinity(&frontend, client, local)?;
        let id = match kept {
            Some(id) => id,
            None => self.round_robin(&frontend, local)?,
        };
        let Some(backend) = self.sandbox.copy::<_, Backend>(map::BACKENDS, &id)? else {
            return Ok(self.refused(Counter::BadSlot));
        };
        self.backend(&frontend, id, kept.is_none(), "the node")?;
        self.view.counters.push(Counter::SocketTranslated.name());
        self.connect(backend.addr, backend.port, bound);
        Ok(Next::Continue)
    }

    /// Whether a datagram replies to one that arrived from the frontend's own address, which may be another node's.
    fn answers_a_direct_flow(&self, frontend: &Frontend) -> Result<bool> {
        if self.tuple.proto != Proto::UDP || !frontend.may_be_node_address() {
            return Ok(false);
        }
        let half: Option<CtEntry> = self.sandbox.copy(map::CONNTRACK, &self.tuple.key(Half::Egress))?;
        Ok(half.is_some_and(|half| half.has(CtEntry::REPLY) && half.has(CtEntry::IDENTITY)))
    }

    /// Whether the socket is bound to the given source, and the address that source ranges are compared with. A source that
    /// an unbound socket gets anyway does not count as bound: it changes with the destination.
    fn source(&mut self) -> Result<(bool, IpAddr)> {
        let (src, dst) = (self.tuple.src.ip(), self.tuple.dst.ip());
        let config = self.sandbox.node_config()?;
        let primary = if src.is_ipv4() { config.primary_v4 } else { config.primary_v6 }.to_ip();
        let natural = self.route(dst).ok().and_then(|route| route.source);
        let bound = !(src.is_loopback() || src == primary || natural == Some(src));
        Ok((bound, if bound { src } else { primary }))
    }

    /// The backend of session affinity.
    fn affinity(&self, frontend: &Frontend, client: Addr, local: bool) -> Result<Option<u32>> {
        let seconds = frontend.affinity_seconds;
        let key = AffinityKey { client, service: frontend.service };
        let known: Option<Affinity> = match seconds {
            0 => None,
            _ => self.sandbox.copy(map::AFFINITY, &key)?,
        };
        let Some(known) =
            known.filter(|known| known.is_fresh(self.clock.now, seconds, self.clock.per_second))
        else {
            return Ok(None);
        };
        let member = SetMember { service: frontend.service, backend: known.backend };
        let sets: u32 = self.sandbox.copy(map::SET_MEMBERS, &member)?.unwrap_or(0);
        let set = if local { set_bits::LOCAL } else { set_bits::CLUSTER };
        Ok((sets & set != 0).then_some(known.backend))
    }

    /// The next backend of the set in round robin.
    fn round_robin(&self, frontend: &Frontend, local: bool) -> Result<u32> {
        let turns: Option<Service> = self.sandbox.copy(map::SERVICES, &frontend.service)?;
        let (base, count, turn) = if local {
            (frontend.local_base, frontend.local_count, turns.map(|service| service.local_next))
        } else {
            (frontend.cluster_base, frontend.cluster_count, turns.map(|service| service.cluster_next))
        };
        let slot = base + (turn.unwrap_or(0) % u64::from(count.max(1))) as u32;
        Ok(self.sandbox.copy(map::SLOTS, &slot)?.unwrap_or(0))
    }

    /// Applies the translation of the socket hook. The kernel then chooses the source by the route to the backend.
    fn connect(&mut self, addr: Addr, port: Port, bound: bool) {
        self.connected(addr, port);
        let natural = self.route(addr.to_ip()).ok().and_then(|route| route.source);
        if let Some(source) = natural.filter(|_| !bound) {
            self.tuple.src.set_ip(source);
        }
        let (source, destination) = (self.tuple.end(self.tuple.src), self.tuple.end(self.tuple.dst));
        self.view.stage("rewrite", format!("socket: {source} -> {destination}"));
        self.view.rewrites.push(Rewrite { hook: "socket", device: None, source, destination });
    }

    /// Copies the source range that the egress hook looks up.
    fn copy_source_range(&self, frontend: Option<Frontend>, source: IpAddr) -> Result<()> {
        if let Some(frontend) = frontend.filter(|frontend| frontend.has(Frontend::SOURCE_RANGES)) {
            tables::accepting_range(&self.sandbox, &frontend, source)?;
        }
        Ok(())
    }

    fn refused(&mut self, reason: Counter) -> Next {
        self.view.verdict = "refused";
        self.view.reason = Some(reason.name());
        self.view.answer = Some("connection_refused");
        self.view.counters.push(reason.name());
        let text = format!("refused: the system call fails with ECONNREFUSED: {}", reason.name());
        self.view.stage("verdict", text);
        Next::Done
    }
}
