//! One kind of packet, and its path through a node's hooks.

use std::net::SocketAddr;

use tests::packet::{
    Datapath, Hook, Ip, Link, Outcome, Packet, Transport, Way,
    frame::{SYN, ends},
    world::at,
};

/// Framing, IP header and transport protocol of a flow.
#[derive(Clone, Copy, Debug)]
pub struct Case {
    pub link: Link,
    pub ip: Ip,
    pub transport: Transport,
}

impl Case {
    /// All kinds of packets.
    pub fn all() -> Vec<Self> {
        let mut all = Vec::new();
        for link in Link::BOTH {
            for ip in Ip::ALL {
                for transport in [Transport::SYN, Transport::Udp, Transport::UdpNoSum] {
                    // Over IPv6 a UDP checksum is mandatory.
                    if transport != Transport::UdpNoSum || ip.is_v4() {
                        all.push(Self { link, ip, transport });
                    }
                }
            }
        }
        all
    }

    /// All kinds of TCP packets.
    pub fn tcp() -> impl Iterator<Item = Self> {
        Self::all().into_iter().filter(Self::is_tcp)
    }

    /// The kinds of one transport protocol, over plain Ethernet.
    pub fn ethernet(transport: Transport) -> [Self; 2] {
        [Ip::V4, Ip::V6].map(|ip| Self { link: Link::Ethernet, ip, transport })
    }

    pub fn at(&self, host: u16, port: u16) -> SocketAddr {
        at(self.ip, host, port)
    }

    /// Protocol number.
    pub fn proto(&self) -> u8 {
        self.transport.proto(self.ip.is_v4())
    }

    pub fn is_tcp(&self) -> bool {
        matches!(self.transport, Transport::Tcp { .. })
    }

    /// The packet that opens a flow (TCP: a SYN).
    pub fn packet(&self, src: SocketAddr, dst: SocketAddr) -> Packet {
        Packet::new(self.link, self.ip, src, dst, self.transport).flagged(SYN)
    }

    /// Arriving at the uplink, or forwarded and leaving through it.
    pub fn way(&self, hook: Hook, node: &Datapath) -> Way {
        // A checksum over the whole packet cannot be kept correct if the transport checksum is absent, and no receiver
        // checks it then. Without Ethernet a test run computes it from the wrong offset.
        let complete = self.link == Link::Ethernet && self.transport != Transport::UdpNoSum;
        let came_in = if hook == Hook::Ingress { node.uplink } else { node.pod };
        Way { device: node.uplink, came_in, complete }
    }

    /// A packet that arrives at the uplink.
    #[track_caller]
    pub fn ingress(&self, node: &Datapath, packet: &[u8]) -> Outcome {
        self.run(node, Hook::Ingress, packet)
    }

    /// A forwarded packet that leaves through the uplink.
    #[track_caller]
    pub fn egress(&self, node: &Datapath, packet: &[u8]) -> Outcome {
        self.run(node, Hook::Egress, packet)
    }

    /// Runs either hook.
    #[track_caller]
    pub fn run(&self, node: &Datapath, hook: Hook, packet: &[u8]) -> Outcome {
        node.run(hook, self.link, packet, self.way(hook, node))
    }

    /// Forwards a packet through the node: in through one hook, out through the other; both must pass it.
    #[track_caller]
    pub fn through(&self, node: &Datapath, packet: &[u8]) -> Vec<u8> {
        let inside = self.ingress(node, packet).passed();
        self.egress(node, &inside).passed()
    }

    /// Sends a packet through the node and returns its source and destination on output. Only these and checksums may
    /// differ from the input.
    #[track_caller]
    pub fn goes_whole(&self, node: &Datapath, packet: &Packet) -> (SocketAddr, SocketAddr) {
        let out = self.through(node, &packet.bytes());
        let (src, dst) = ends(&out, self.link);
        assert_eq!(out, packet.from(src).to(dst).bytes(), "{self:?}");
        (src, dst)
    }
}
