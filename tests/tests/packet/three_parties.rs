//! The node's sockets, netfilter's masquerade and shunt choose ports of one address in any order. There are few ports
//! and few remotes, so their choices collide. No two live flows share a tuple on the wire, and each reply reaches its
//! owner, byte for byte except for the changes of its owner's translation. The parties are [`tests::packet::parties`];
//! shunt is the real object.

use std::net::SocketAddr;

use anyhow::Result;
use proptest::{prelude::*, test_runner::TestCaseError};
use tests::packet::{
    Datapath, Hook, Ip, Link, Packet, Transport, Way,
    datapath::shared,
    frame::{ACK, RST, SYN, ends},
    parties::{Flow, Parties, Party},
    world::{FAR_POD, NODE, OUTSIDE, POD, UPLINK, at},
};

/// Frontends: NodePorts of two Services, each with one of the backends.
const NODE_PORTS: [u16; 2] = [30_080, 30_082];
const BACKENDS: [u16; 2] = [FAR_POD, FAR_POD + 5];
const TARGET: u16 = 8080;
/// Servers that are not backends.
const STRANGERS: [u16; 2] = [OUTSIDE, OUTSIDE + 1];
/// Ports that all parties choose from.
const PORTS: [u16; 6] = [30_080, 30_082, 2000, 2001, 45_000, 61_000];
const CLIENTS: [u16; 3] = [OUTSIDE + 2, OUTSIDE + 3, OUTSIDE + 4];
const PODS: [u16; 2] = [POD + 3, POD + 4];

/// The next step; the numbers index the constants.
#[derive(Clone, Copy, Debug)]
enum Step {
    /// A process of the node sends a request to a remote from a port of its own.
    Socket { port: usize, remote: usize, is_tcp: bool },
    /// A pod sends a request to a remote, and netfilter gives it a port of the node.
    Masquerade { pod: usize, own: usize, port: usize, remote: usize, is_tcp: bool },
    /// An outside client sends a request to a NodePort.
    Client { client: usize, own: usize, node_port: usize, is_tcp: bool },
    /// The remote of a flow replies.
    Answer(usize),
    /// The owner of a flow sends another packet.
    More(usize),
    /// The owner of a flow closes it (TCP only).
    Over(usize),
}

fn step() -> impl Strategy<Value = Step> {
    let port = 0..PORTS.len();
    let remote = 0..BACKENDS.len() + STRANGERS.len();
    prop_oneof![
        3 => (port.clone(), remote.clone(), any::<bool>())
            .prop_map(|(port, remote, is_tcp)| Step::Socket { port, remote, is_tcp }),
        3 => (0..PODS.len(), port.clone(), port.clone(), remote, any::<bool>())
            .prop_map(|(pod, own, port, remote, is_tcp)| Step::Masquerade { pod, own, port, remote, is_tcp }),
        4 => (0..CLIENTS.len(), port, 0..NODE_PORTS.len(), any::<bool>())
            .prop_map(|(client, own, node_port, is_tcp)| Step::Client { client, own, node_port, is_tcp }),
        6 => any::<usize>().prop_map(Step::Answer),
        3 => any::<usize>().prop_map(Step::More),
        1 => any::<usize>().prop_map(Step::Over),
    ]
}

/// A node's datapath, and the parties around it.
struct World<'a> {
    node: &'a Datapath,
    ip: Ip,
    parties: Parties,
}

type Ends = (SocketAddr, SocketAddr);

fn transport(proto: u8, flags: u8) -> Transport {
    if proto == 6 { Transport::tcp(flags) } else { Transport::Udp }
}

impl World<'_> {
    fn packet(&self, (src, dst): Ends, proto: u8, flags: u8) -> Packet {
        Packet::new(Link::Ethernet, self.ip, src, dst, transport(proto, flags))
    }

    /// A packet at a hook of the uplink or of the pods' device: it must pass with only its source and destination
    /// changed.
    fn hook(&self, hook: Hook, way: (u32, u32), packet: &Packet) -> Result<Packet, TestCaseError> {
        let way = Way { device: way.0, came_in: way.1, complete: false };
        let out = self.node.run(hook, Link::Ethernet, &packet.bytes(), way);
        prop_assert!(out.is_passed(), "{hook:?}: verdict {} of {packet:?}", out.verdict);
        let (src, dst) = ends(&out.bytes, Link::Ethernet);
        let on = packet.from(src).to(dst);
        prop_assert_eq!(&out.bytes, &on.bytes(), "{:?}: bytes of {:?}", hook, packet);
        Ok(on)
    }

    fn remote(&self, nth: usize) -> SocketAddr {
        match nth.checked_sub(BACKENDS.len()) {
            None => at(self.ip, BACKENDS[nth], TARGET),
            Some(nth) => at(self.ip, STRANGERS[nth], 53),
        }
    }

    /// A packet leaves the host's stack through the uplink; returns the packet on the wire.
    fn leave(&self, party: Party, packet: &Packet) -> Result<Packet, TestCaseError> {
        let came_in = match party {
            Party::Socket => 0,
            Party::Masquerade => self.node.pod,
            Party::Service => self.node.uplink,
        };
        self.hook(Hook::Egress, (self.node.uplink, came_in), packet)
    }

    /// A packet arrives on the owner's device; returns the packet in the host's stack, after netfilter's translation.
    fn enter(&self, flow: &Flow, flags: u8) -> Result<Packet, TestCaseError> {
        let packet = self.packet(flow.own, flow.proto, flags);
        match flow.party {
            Party::Socket => Ok(packet),
            Party::Masquerade => {
                let inside = self.hook(Hook::Ingress, (self.node.pod, self.node.pod), &packet)?;
                prop_assert_eq!(inside.dst, flow.own.1, "a pod's direct packet was sent elsewhere");
                Ok(inside.from(flow.inside.0))
            }
            Party::Service => self.hook(Hook::Ingress, (self.node.uplink, self.node.uplink), &packet),
        }
    }

    fn begin(&mut self, party: Party, proto: u8, own: Ends, inside: Ends) -> Result<(), TestCaseError> {
        let mut flow = Flow { party, proto, own, inside, wire: inside };
        let packet = self.enter(&flow, SYN)?;
        if party == Party::Service {
            flow.inside = (packet.src, packet.dst);
        }
        let out = self.leave(party, &packet)?;
        prop_assert_eq!(out.dst, packet.dst, "the destination changed at egress");
        flow.wire = (out.src, out.dst);
        self.parties.begin(flow).map_err(TestCaseError::fail)
    }

    fn step(&mut self, step: Step) -> Result<(), TestCaseError> {
        let ip = self.ip;
        let proto = |is_tcp| if is_tcp { 6 } else { 17 };
        match step {
            Step::Socket { port, remote, is_tcp } => {
                let ends = (at(ip, UPLINK, PORTS[port]), self.remote(remote));
                if self.parties.is_free_to_netfilter(&(ends.0, ends.1, proto(is_tcp))) {
                    self.begin(Party::Socket, proto(is_tcp), ends, ends)?;
                }
            }
            Step::Masquerade { pod, own, port, remote, is_tcp } => {
                let own = (at(ip, PODS[pod], PORTS[own]), self.remote(remote));
                let inside = (at(ip, UPLINK, PORTS[port]), own.1);
                let is_free = self.parties.is_free_to_netfilter(&(inside.0, inside.1, proto(is_tcp)));
                if is_free && !self.parties.has_client(own, proto(is_tcp)) {
                    self.begin(Party::Masquerade, proto(is_tcp), own, inside)?;
                }
            }
            Step::Client { client, own, node_port, is_tcp } => {
                let own = (at(ip, CLIENTS[client], PORTS[own]), at(ip, NODE, NODE_PORTS[node_port]));
                if !self.parties.has_client(own, proto(is_tcp)) {
                    self.begin(Party::Service, proto(is_tcp), own, own)?;
                }
            }
            Step::Answer(seed) => {
                if let Some((_, flow)) = self.parties.pick(seed) {
                    self.answer(flow)?;
                }
            }
            Step::More(seed) => {
                if let Some((_, flow)) = self.parties.pick(seed) {
                    self.more(flow, ACK)?;
                }
            }
            Step::Over(seed) => {
                let tcp = self.parties.pick(seed).filter(|(_, flow)| flow.proto == 6);
                if let Some((id, flow)) = tcp {
                    self.more(flow, RST)?;
                    self.parties.end(id);
                }
            }
        }
        Ok(())
    }

    /// A packet from the remote reaches the owner of the flow.
    fn answer(&self, flow: &Flow) -> Result<(), TestCaseError> {
        let (src, dst, proto) = flow.answer();
        let packet = self.packet((src, dst), proto, SYN | ACK);
        let inside = self.hook(Hook::Ingress, (self.node.uplink, self.node.uplink), &packet)?;
        let want = (flow.inside.1, flow.inside.0);
        prop_assert_eq!((inside.src, inside.dst), want, "the answer to {:?} inside the node", flow);
        // The host's stack delivers it to the owner.
        let (device, handed) = match flow.party {
            Party::Socket => return Ok(()),
            // Netfilter addresses the pod as it saw it.
            Party::Masquerade => (self.node.pod, inside.to(self.stand_in(flow)?)),
            Party::Service => (self.node.uplink, inside),
        };
        let out = self.hook(Hook::Egress, (device, self.node.uplink), &handed)?;
        prop_assert_eq!((out.src, out.dst), (flow.own.1, flow.own.0), "the answer to {:?}", flow);
        Ok(())
    }

    /// A masqueraded pod as netfilter saw it, after the ingress hook of the pod's device: with its own port or a
    /// substitute.
    fn stand_in(&self, flow: &Flow) -> Result<SocketAddr, TestCaseError> {
        let packet = self.packet(flow.own, flow.proto, ACK);
        Ok(self.hook(Hook::Ingress, (self.node.pod, self.node.pod), &packet)?.src)
    }

    /// Further packets of the owner leave like the flow's first packet.
    fn more(&self, flow: &Flow, flags: u8) -> Result<(), TestCaseError> {
        let packet = self.enter(flow, flags)?;
        prop_assert_eq!((packet.src, packet.dst), flow.inside, "{:?} inside the node", flow);
        let out = self.leave(flow.party, &packet)?;
        prop_assert_eq!((out.src, out.dst), flow.wire, "{:?} on the wire", flow);
        Ok(())
    }
}

fn serve(node: &mut Datapath, ip: Ip) -> Result<()> {
    for proto in [6, 17] {
        for (back, node_port) in BACKENDS.into_iter().zip(NODE_PORTS) {
            let backend = node.backend(at(ip, back, TARGET), proto, false)?;
            let service = node.service(proto, &[backend], &[])?;
            node.node_port(&service, ip, node_port, 0)?;
        }
    }
    Ok(())
}

fn parties_meet(ip: Ip, cases: u32) {
    let strategy = prop::collection::vec(step(), 1..80);
    let config =
        ProptestConfig { cases, max_shrink_iters: 2000, failure_persistence: None, ..Default::default() };
    let mut runner = proptest::test_runner::TestRunner::new(config);
    let outcome = runner.run(&strategy, |steps| {
        let mut node = shared().map_err(|error| TestCaseError::fail(error.to_string()))?;
        serve(&mut node, ip).map_err(|error| TestCaseError::fail(error.to_string()))?;
        let mut world = World { node: &node, ip, parties: Parties::default() };
        for step in steps {
            world.step(step)?;
        }
        // At the end all replies of live flows still reach their owners.
        for nth in 0..world.parties.len() {
            let (_, flow) = world.parties.pick(nth).expect("in range");
            world.answer(flow)?;
            world.more(flow, ACK)?;
        }
        Ok(())
    });
    if let Err(error) = outcome {
        panic!("{ip:?}: {error}");
    }
}

#[test]
fn over_ipv4() {
    parties_meet(Ip::V4, 200);
}

#[test]
fn over_ipv6() {
    parties_meet(Ip::V6, 200);
}
