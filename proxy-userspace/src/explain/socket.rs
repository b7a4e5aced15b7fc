//! The node's own processes: their sockets are translated when they connect or send, and socket-address programs cannot
//! be test-run. So the tables are walked here as `socket.rs` of the programs does it; what is left of the way, from the
//! egress hook on, is run.
//!
//! Taken for granted: a new socket of the host's network namespace inside `--cgroup`, which has asked for nothing before.

use std::net::IpAddr;

use proxy_common::{
    Addr, Affinity, AffinityKey, Backend, Counter, Frontend, Port, Proto, Service, SetMember,
    affinity::set_bits, map, node::role, socket,
};

use super::{
    copies, tables,
    view::Rewrite,
    walk::{Next, Result, Walk},
};

impl Walk {
    /// A packet of the node's own: first its socket, then the hooks behind it.
    pub(super) fn leave_node(&mut self) -> Result<Next> {
        self.view.from.kind = "node";
        self.view.stage("from", "a process of the node itself");
        let is_attached = self.pins.links().join("connect4").exists();
        let roles = role::NODEPORT | role::LOOPBACK;
        if !matches!(self.tuple.proto, Proto::TCP | Proto::UDP) || !is_attached {
            let found = self.describe(roles)?;
            if let (false, Some(_)) = (is_attached, found) {
                self.view.note("--socket-lb off: processes of the node itself do not reach Services");
            } else if found.is_some() && self.tuple.proto == Proto::SCTP {
                self.view.note(
                    "the node's own SCTP sockets reach no Services: socket hooks know TCP and UDP only",
                );
            }
            self.sees_source(found, self.tuple.src.ip())?;
            return Ok(Next::GoesOn);
        }
        self.view.lane = "socket";
        self.view.stage("lane", "socket: at connect() or sendmsg(), before there is a packet");
        let (bound, judged) = self.source()?;
        let Some(frontend) = self.describe(roles)? else {
            if self.view.destination == "other_port_of_cluster_ip" {
                return Ok(self.refused(Counter::NoServicePort));
            }
            return Ok(Next::GoesOn);
        };
        let client = socket::netns_addr(self.twin.global("HOST_NETNS")?);
        copies::service(&self.twin, &frontend, client, &self.tuple)?;
        self.policy(&frontend, true, judged)?;
        if self.view.policy.as_ref().is_some_and(|policy| policy.let_in == Some(false)) {
            // Left alone here: the egress hook drops it.
            self.sees_source(Some(frontend), self.tuple.src.ip())?;
            return Ok(Next::GoesOn);
        }
        if !frontend.has(Frontend::HAS_ENDPOINTS) {
            return Ok(self.refused(Counter::NoBackend));
        }
        let local = tables::uses_local(&frontend, true);
        let count = if local { frontend.local_count } else { frontend.cluster_count };
        if count == 0 {
            return Ok(Next::GoesOn);
        }
        let kept = self.kept(&frontend, client, local)?;
        let id = match kept {
            Some(id) => id,
            None => self.in_turn(&frontend, local)?,
        };
        let Some(backend) = self.twin.copy::<_, Backend>(map::BACKENDS, &id)? else {
            return Ok(self.refused(Counter::BadSlot));
        };
        self.backend(&frontend, id, kept.is_none(), "the node")?;
        self.view.counters.push(Counter::SocketTranslated.name());
        self.connect(backend.addr, backend.port, bound);
        Ok(Next::GoesOn)
    }

    /// Whether the socket is bound to the source that was given, and the address that source ranges judge it by. A
    /// source that a socket without one would get anyway is not taken for a bound one: with the destination it changes.
    fn source(&mut self) -> Result<(bool, IpAddr)> {
        let (src, dst) = (self.tuple.src.ip(), self.tuple.dst.ip());
        let config = tables::config(&self.twin)?;
        let primary = if src.is_ipv4() { config.primary_v4 } else { config.primary_v6 }.to_ip();
        let natural = self.route(dst).ok().and_then(|route| route.source);
        let bound = !(src.is_loopback() || src == primary || natural == Some(src));
        Ok((bound, if bound { src } else { primary }))
    }

    /// The backend that the node stays with at this frontend.
    fn kept(&self, frontend: &Frontend, client: Addr, local: bool) -> Result<Option<u32>> {
        let seconds = frontend.affinity_seconds;
        let key = AffinityKey { client, service: frontend.service };
        let known: Option<Affinity> = match seconds {
            0 => None,
            _ => self.twin.copy(map::AFFINITY, &key)?,
        };
        let Some(known) =
            known.filter(|known| known.is_fresh(self.clock.now, seconds, self.clock.per_second))
        else {
            return Ok(None);
        };
        let member = SetMember { service: frontend.service, backend: known.backend };
        let sets: u32 = self.twin.copy(map::SET_MEMBERS, &member)?.unwrap_or(0);
        let set = if local { set_bits::LOCAL } else { set_bits::CLUSTER };
        Ok((sets & set != 0).then_some(known.backend))
    }

    /// The next backend of the set.
    fn in_turn(&self, frontend: &Frontend, local: bool) -> Result<u32> {
        let turns: Option<Service> = self.twin.copy(map::SERVICES, &frontend.service)?;
        let (base, count, turn) = if local {
            (frontend.local_base, frontend.local_count, turns.map(|service| service.local_next))
        } else {
            (frontend.cluster_base, frontend.cluster_count, turns.map(|service| service.cluster_next))
        };
        let slot = base + (turn.unwrap_or(0) % u64::from(count.max(1))) as u32;
        Ok(self.twin.copy(map::SLOTS, &slot)?.unwrap_or(0))
    }

    /// The socket hook writes the backend; the kernel then chooses the source by the way there.
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

    /// Copies what the egress hook asks about a source.
    fn sees_source(&self, frontend: Option<Frontend>, source: IpAddr) -> Result<()> {
        match frontend.filter(|frontend| frontend.has(Frontend::SOURCE_RANGES)) {
            Some(frontend) => tables::let_in(&self.twin, frontend.service, source).map(drop),
            None => Ok(()),
        }
    }

    fn refused(&mut self, reason: Counter) -> Next {
        self.view.verdict = "refused";
        self.view.reason = Some(reason.name());
        self.view.answer = Some("connection_refused");
        self.view.counters.push(reason.name());
        let text = format!("refused: the system call fails with ECONNREFUSED: {}", reason.name());
        self.view.stage("verdict", text);
        Next::Ends
    }
}
