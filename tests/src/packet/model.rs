//! The expected translation, in plain Rust: flows as whole objects, found through two tables of tuples.
//!
//! Written from ARCHITECTURE and the contract in proxy-common, not from the programs. Where the datapath may choose (a
//! substitute for a port in use), the model takes over its choice if that choice was allowed.

use std::{
    collections::{HashMap, HashSet},
    net::{IpAddr, SocketAddr},
};

use proxy_common::tcp;

use super::{
    frame::{ACK, FIN, Link, Packet, RST, SYN, Transport, ends},
    run::Outcome,
};

/// A small random number generator (xorshift64*): the same seed gives the same sequence everywhere.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(seed.max(1))
    }

    pub fn word(&mut self) -> u32 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 32) as u32
    }

    /// A number below `end`.
    pub fn below(&mut self, end: u32) -> u32 {
        self.word() % end
    }

    /// One of these items.
    pub fn of<'a, T>(&mut self, items: &'a [T]) -> &'a T {
        &items[self.below(items.len() as u32) as usize]
    }
}

/// Source, destination, protocol number.
pub type Tuple = (SocketAddr, SocketAddr, u8);

/// A Service's frontend.
#[derive(Clone, Debug)]
pub struct Front {
    /// Frontends of one Service share its round-robin position.
    pub service: u32,
    pub external: bool,
    /// Whether its traffic policy is Local.
    pub local_policy: bool,
    pub cluster: Vec<SocketAddr>,
    pub local: Vec<SocketAddr>,
}

#[derive(Clone, Debug)]
struct Flow {
    proto: u8,
    client: SocketAddr,
    front: SocketAddr,
    /// The client as the backend's side of the node sees it: with its own port or a substitute.
    stand_in: SocketAddr,
    back: SocketAddr,
    /// Whether its source is translated; the new source is set once an egress hook has chosen it.
    masquerade: bool,
    source: Option<SocketAddr>,
    state: u64,
    /// What the client's half and the backend's half keep.
    numbers: [tcp::Numbers; 2],
}

impl Flow {
    /// The request's tuple from the client, and the reply's tuple to the translated source.
    fn ingress_tuples(&self) -> impl Iterator<Item = Tuple> {
        let back = self.source.map(|source| (self.back, source, self.proto));
        [(self.client, self.front, self.proto)].into_iter().chain(back)
    }

    /// The reply's tuple inside the node, and the request's tuple before its source is translated.
    fn egress_tuples(&self) -> impl Iterator<Item = Tuple> {
        let out = self.masquerade.then_some((self.stand_in, self.back, self.proto));
        [(self.back, self.stand_in, self.proto)].into_iter().chain(out)
    }

    fn is_over(&self) -> bool {
        self.proto == 6 && tcp::is_over(self.state)
    }

    /// Whether another flow may use the tuple towards the backend.
    fn has_ended(&self) -> bool {
        self.proto == 6 && tcp::has_ended(self.state)
    }

    fn note(&mut self, packet: &Packet, from_client: bool) {
        let Some(segment) = packet.segment() else { return };
        let [own, peer] = if from_client { [0, 1] } else { [1, 0] };
        let mut flow = tcp::Tracked { state: self.state, own: self.numbers[own], peer: self.numbers[peer] };
        flow.follow(&segment, from_client);
        self.state = flow.state;
        (self.numbers[own], self.numbers[peer]) = (flow.own, flow.peer);
    }
}

/// One node: its configuration and its flows.
#[derive(Clone, Debug, Default)]
pub struct Model {
    /// By address and protocol.
    pub fronts: HashMap<(SocketAddr, u8), Front>,
    /// By port, protocol, and whether IPv4.
    pub node_ports: HashMap<(u16, u8, bool), Front>,
    /// Addresses that serve NodePorts.
    pub node_addrs: HashSet<IpAddr>,
    /// Addresses of this node's pods, clients and backends alike.
    pub pods: HashSet<IpAddr>,
    pub backends: HashSet<(SocketAddr, u8)>,
    /// Translated source addresses: IPv4 and IPv6.
    pub uplink: Vec<IpAddr>,
    flows: HashMap<u32, Flow>,
    ingress: HashMap<Tuple, u32>,
    egress: HashMap<Tuple, u32>,
    turns: HashMap<(u32, bool), usize>,
    last: u32,
}

/// The expected result for a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Want {
    Pass { src: SocketAddr, dst: SocketAddr },
    Refuse,
    Drop,
}

impl Model {
    /// Checks the result of the ingress hook; returns the packet if it is passed on.
    pub fn at_ingress(&mut self, packet: &Packet, got: &Outcome) -> Result<Option<Packet>, String> {
        let want = self.ingress(packet, got)?;
        judge(packet, got, want)
    }

    /// Checks the result of the egress hook for a packet, the node's `own` or a forwarded one.
    pub fn at_egress(&mut self, packet: &Packet, own: bool, got: &Outcome) -> Result<Option<Packet>, String> {
        let want = self.egress(packet, own, got)?;
        judge(packet, got, want)
    }

    /// The tuples of all flow halves, by hook: the expected contents of CONNTRACK.
    pub fn tuples(&self) -> (HashSet<Tuple>, HashSet<Tuple>) {
        (self.ingress.keys().copied().collect(), self.egress.keys().copied().collect())
    }

    /// Source and destination for a reply of a random flow, as sent by the backend or the peer it connected to.
    pub fn some_reply(&self, random: &mut Random) -> Option<Tuple> {
        if self.last == 0 {
            return None;
        }
        let flow = (0..20).find_map(|_| self.flows.get(&(1 + random.below(self.last))))?;
        Some((flow.back, flow.source.unwrap_or(flow.stand_in), flow.proto))
    }

    fn ingress(&mut self, packet: &Packet, got: &Outcome) -> Result<Want, String> {
        let tuple = (packet.src, packet.dst, packet.proto());
        if let Some(id) = self.ingress.get(&tuple).copied() {
            let flow = self.flows.get_mut(&id).expect("indexed");
            let is_request = (flow.client, flow.front, flow.proto) == tuple;
            if !is_request {
                return Ok(Want::Pass { src: packet.src, dst: flow.stand_in });
            }
            if !(is_syn(packet) && flow.is_over()) {
                flow.note(packet, true);
                return Ok(Want::Pass { src: flow.stand_in, dst: flow.back });
            }
            self.forget(id);
        }
        if let Some(front) = self.front(packet).cloned() {
            return self.begin_service(packet, &front, got);
        }
        if self.backends.contains(&(packet.dst, packet.proto())) && (!packet.is_tcp() || is_syn(packet)) {
            let stand_in = self.begin(packet, packet.dst, true, false, got)?;
            return Ok(Want::Pass { src: stand_in, dst: packet.dst });
        }
        Ok(Want::Pass { src: packet.src, dst: packet.dst })
    }

    fn front(&self, packet: &Packet) -> Option<&Front> {
        let exact = self.fronts.get(&(packet.dst, packet.proto()));
        exact.or_else(|| {
            let key = (packet.dst.port(), packet.proto(), packet.dst.is_ipv4());
            self.node_ports.get(&key).filter(|_| self.node_addrs.contains(&packet.dst.ip()))
        })
    }

    fn begin_service(&mut self, packet: &Packet, front: &Front, got: &Outcome) -> Result<Want, String> {
        let some = !(front.cluster.is_empty() && front.local.is_empty());
        if !some || packet.is_tcp() && !is_syn(packet) {
            return Ok(refusal(packet));
        }
        let pod = self.pods.contains(&packet.src.ip());
        let local = front.local_policy && !(front.external && pod);
        let set = if local { &front.local } else { &front.cluster };
        if set.is_empty() {
            return Ok(Want::Drop);
        }
        let turn = self.turns.entry((front.service, local)).or_default();
        let back = set[*turn % set.len()];
        *turn += 1;
        let masquerade = back.ip() == packet.src.ip() || !pod && !self.pods.contains(&back.ip());
        let stand_in = self.begin(packet, back, false, masquerade, got)?;
        Ok(Want::Pass { src: stand_in, dst: back })
    }

    /// Records a flow; returns the client's address as it is passed on.
    fn begin(
        &mut self,
        packet: &Packet,
        back: SocketAddr,
        direct: bool,
        masquerade: bool,
        got: &Outcome,
    ) -> Result<SocketAddr, String> {
        let proto = packet.proto();
        let mut stand_in = packet.src;
        let itself = !direct && packet.src == back;
        if let Some(holder) = self.egress.get(&(back, packet.src, proto)).copied() {
            let flow = &self.flows[&holder];
            if flow.has_ended() && (flow.back, flow.stand_in) == (back, packet.src) {
                self.forget(holder);
            }
        }
        if itself || self.egress.contains_key(&(back, packet.src, proto)) {
            let (src, _) = passed_ends(packet, got)?;
            let free = !self.egress.contains_key(&(back, src, proto));
            if src.ip() != packet.src.ip() || src == packet.src || !in_pool(src.port()) || !free {
                return Err(format!("{} was given the stand-in {src}, free: {free}", packet.src));
            }
            stand_in = src;
        }
        self.last += 1;
        let mut flow = Flow {
            proto,
            client: packet.src,
            front: packet.dst,
            stand_in,
            back,
            masquerade,
            source: None,
            state: 0,
            numbers: Default::default(),
        };
        flow.note(packet, true);
        self.ingress.extend(flow.ingress_tuples().map(|tuple| (tuple, self.last)));
        self.egress.extend(flow.egress_tuples().map(|tuple| (tuple, self.last)));
        self.flows.insert(self.last, flow);
        Ok(stand_in)
    }

    fn forget(&mut self, id: u32) {
        let flow = self.flows.remove(&id).expect("indexed");
        for tuple in flow.ingress_tuples() {
            self.ingress.remove(&tuple);
        }
        for tuple in flow.egress_tuples() {
            self.egress.remove(&tuple);
        }
    }

    fn egress(&mut self, packet: &Packet, own: bool, got: &Outcome) -> Result<Want, String> {
        let tuple = (packet.src, packet.dst, packet.proto());
        let Some(id) = self.egress.get(&tuple).copied() else {
            let front = self.fronts.get(&(packet.dst, packet.proto())).filter(|_| own);
            return Ok(match front {
                Some(front) if front.cluster.is_empty() && front.local.is_empty() => refusal(packet),
                Some(front) if front.local_policy && !front.external && front.local.is_empty() => Want::Drop,
                _ => Want::Pass { src: packet.src, dst: packet.dst },
            });
        };
        let flow = self.flows.get_mut(&id).expect("indexed");
        if (flow.back, flow.stand_in, flow.proto) == tuple {
            flow.note(packet, false);
            return Ok(Want::Pass { src: flow.front, dst: flow.client });
        }
        if flow.source.is_none() {
            self.give_source(id, packet, got)?;
        }
        let source = self.flows[&id].source.expect("given");
        Ok(Want::Pass { src: source, dst: packet.dst })
    }

    /// The first egress hook chooses the node address and port with which a flow leaves.
    fn give_source(&mut self, id: u32, packet: &Packet, got: &Outcome) -> Result<(), String> {
        let (back, proto) = (packet.dst, packet.proto());
        let (source, _) = passed_ends(packet, got)?;
        let own = SocketAddr::new(source.ip(), packet.src.port());
        // A closed flow keeps its port as long as there are free ones, which is always the case here.
        let own_is_free = own.port() >= 1024
            && !self.node_ports.keys().any(|(port, ..)| *port == own.port())
            && !self.ingress.contains_key(&(back, own, proto));
        let allowed = self.uplink.contains(&source.ip())
            && source.port() >= 1024
            && !self.node_ports.keys().any(|(port, ..)| *port == source.port())
            && !self.ingress.contains_key(&(back, source, proto))
            && (source == own || !own_is_free);
        if !allowed {
            return Err(format!("{} was given the source {source}", packet.src));
        }
        self.flows.get_mut(&id).expect("indexed").source = Some(source);
        self.ingress.insert((back, source, proto), id);
        Ok(())
    }
}

fn is_syn(packet: &Packet) -> bool {
    matches!(packet.transport, Transport::Tcp { flags, .. } if flags & (SYN | ACK | RST | FIN) == SYN)
}

/// A reset is never answered.
fn refusal(packet: &Packet) -> Want {
    match packet.transport {
        Transport::Tcp { flags, .. } if flags & RST != 0 => Want::Drop,
        _ => Want::Refuse,
    }
}

/// Substitute ports: outside the node's own ephemeral range.
fn in_pool(port: u16) -> bool {
    (1024..30_000).contains(&port) || port >= 61_000
}

fn passed_ends(packet: &Packet, got: &Outcome) -> Result<(SocketAddr, SocketAddr), String> {
    if got.is_passed() { Ok(ends(&got.bytes, packet.link)) } else { Err(format!("verdict {}", got.verdict)) }
}

/// Compares the verdict and every byte.
fn judge(packet: &Packet, got: &Outcome, want: Want) -> Result<Option<Packet>, String> {
    let (right, bytes, on) = match &want {
        Want::Pass { src, dst } => {
            let on = packet.from(*src).to(*dst);
            (got.is_passed(), Some(on.bytes()), Some(on))
        }
        Want::Refuse if packet.is_tcp() => (got.is_redirected(), Some(packet.reset()), None),
        Want::Refuse => (got.is_redirected(), Some(packet.unreachable()), None),
        Want::Drop => (got.is_dropped(), None, None),
    };
    if right && bytes.as_ref().is_none_or(|bytes| *bytes == got.bytes) {
        return Ok(on);
    }
    let ends = (packet.link == Link::Ethernet || got.is_passed()).then(|| ends(&got.bytes, packet.link));
    Err(format!(
        "want {want:?}, got verdict {} with ends {ends:?}\nwant bytes {bytes:02x?}\ngot bytes  {:02x?}",
        got.verdict, got.bytes
    ))
}
