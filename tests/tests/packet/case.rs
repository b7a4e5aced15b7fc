//! One kind of packet, and its way through the hooks of a node.

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
    /// Every kind of packet there is.
    pub fn all() -> Vec<Self> {
        let mut all = Vec::new();
        for link in Link::BOTH {
            for ip in Ip::ALL {
                for transport in [Transport::SYN, Transport::Udp, Transport::UdpNoSum] {
                    // Over IPv6 a checksum is not optional.
                    if transport != Transport::UdpNoSum || ip.is_v4() {
                        all.push(Self { link, ip, transport });
                    }
                }
            }
        }
        all
    }

    /// Those of one transport protocol, over plain Ethernet.
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

    /// In by the uplink, or forwarded and out by it.
    pub fn way(&self, hook: Hook, node: &Datapath) -> Way {
        // The checksum of the whole packet cannot be kept right where the transport's is absent, and nobody looks at it
        // then. Without Ethernet a test run counts it from the wrong place.
        let complete = self.link == Link::Ethernet && self.transport != Transport::UdpNoSum;
        let came_in = if hook == Hook::Ingress { node.uplink } else { node.pod };
        Way { device: node.uplink, came_in, complete }
    }

    /// In by the uplink.
    #[track_caller]
    pub fn ingress(&self, node: &Datapath, packet: &[u8]) -> Outcome {
        self.run(node, Hook::Ingress, packet)
    }

    /// Forwarded, out by the uplink.
    #[track_caller]
    pub fn egress(&self, node: &Datapath, packet: &[u8]) -> Outcome {
        self.run(node, Hook::Egress, packet)
    }

    /// Through either of them.
    #[track_caller]
    pub fn run(&self, node: &Datapath, hook: Hook, packet: &[u8]) -> Outcome {
        node.run(hook, self.link, packet, self.way(hook, node))
    }

    /// Forwarded through the node: in by one hook, out by the other, both of which must let it pass.
    #[track_caller]
    pub fn through(&self, node: &Datapath, packet: &[u8]) -> Vec<u8> {
        let inside = self.ingress(node, packet).passed();
        self.egress(node, &inside).passed()
    }

    /// Sends a packet through the node and says where it came out: source and destination. It must differ from what
    /// was sent in nothing but these and checksums.
    #[track_caller]
    pub fn goes_whole(&self, node: &Datapath, packet: &Packet) -> (SocketAddr, SocketAddr) {
        let out = self.through(node, &packet.bytes());
        let (src, dst) = ends(&out, self.link);
        assert_eq!(out, packet.from(src).to(dst).bytes(), "{self:?}");
        (src, dst)
    }
}
