//! CONNTRACK: the flows.
//!
//! A flow from client C to frontend V, translated to backend B, is recorded as halves. The key of each half is the
//! tuple of a packet *at the hook*:
//!
//! | half | hook | key (source -> destination) | rewrites |
//! |---|---|---|---|
//! | request | ingress | C:c -> V:v | destination to B:b (and the source port to c' if the middle tuple was taken) |
//! | reply | egress | B:b -> C:c' | source to V:v (and the destination port back to c) |
//! | masquerade | egress | C:c' -> B:b | source to N:s, an address of this node |
//! | unmasquerade | ingress | B:b -> N:s | destination to C:c' |
//!
//! The first two exist for every flow, the last two if the source is translated: the masquerade half is recorded with
//! the flow as *pending* and completed, with the unmasquerade half, by the first egress hook. `(C, c', B, b)` is the
//! middle tuple, which the host's own stack sees; the reply half, inserted with BPF_NOEXIST, reserves it. A direct
//! flow to a backend's own address is recorded as a flow whose frontend is the backend. Every half's key can be
//! derived from any other half.
//!
//! A flow that another proxy translates (kube-proxy's, recorded when shunt takes over) has a request and a reply half
//! that rewrite nothing: client and frontend, at both hooks.

use crate::{Addr, Port, pod, tcp};

pod! {
    /// Key of CONNTRACK.
    pub struct CtKey [40] {
        pub src: Addr,
        pub dst: Addr,
        pub sport: Port,
        pub dport: Port,
        pub proto: u8,
        /// A [`Half`] as number: the hook.
        pub half: u8,
        pub reserved: u16,
    }

    /// Value of CONNTRACK.
    pub struct CtEntry [56] {
        /// The address to write: the destination on ingress, the source on egress.
        pub addr: Addr,
        /// The port that goes with `addr`, network order in the low 16 bits; 0 in a masquerade half is *pending*. A
        /// word of its own, because compare-and-exchange completes it. In the upper half, of request and reply halves of TCP:
        /// [`tcp::Numbers::ack`].
        pub port: u64,
        /// Bits of [`tcp`], set and cleared with atomic OR and AND; used in request and reply halves only. In the upper half,
        /// of TCP: [`tcp::Numbers::next`].
        pub state: u64,
        /// The port to write at the other end: the source port on ingress, the destination port on egress.
        pub peer_port: Port,
        /// With `--symmetric-replies`: the uplink (its ifindex) that the flow's first packet arrived on. 0: none, or its ifindex
        /// is larger.
        pub device: u16,
        /// `CtEntry::SERVICE` and the other flags; constant for the lifetime of the entry.
        pub flags: u32,
        /// Low 32 bits of the kernel's jiffies at the last packet of this half, written at most once a second; in
        /// request and reply halves only.
        pub last_seen: u32,
        pub service: u32,
        pub backend: u32,
        /// Low 32 bits of the kernel's jiffies at the creation of the flow.
        pub created: u32,
    }
}

/// The tc hook (the direction) at which a key is looked up; `CtKey::half` stores it as number. An entry is called a half too: a
/// flow has two of them, or four.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Half {
    Ingress = 0,
    Egress = 1,
}

impl CtKey {
    #[inline(always)]
    pub const fn new(src: Addr, sport: Port, dst: Addr, dport: Port, proto: u8, half: Half) -> Self {
        Self { src, dst, sport, dport, proto, half: half as u8, reserved: 0 }
    }

    /// Equality without branches, each of which the verifier would follow.
    #[inline(always)]
    pub fn is(&self, other: &Self) -> bool {
        let (a, b): (&[u32; 10], &[u32; 10]) = (bytemuck::cast_ref(self), bytemuck::cast_ref(other));
        let mut differs = 0;
        let mut i = 0;
        while i < 10 {
            differs |= a[i] ^ b[i];
            i += 1;
        }
        differs == 0
    }
}

impl CtEntry {
    /// The flow is to a Service. If not set, it is a direct flow to a backend's own address.
    pub const SERVICE: u32 = 1;
    /// The request half of a flow (ingress, client to frontend).
    pub const REQUEST: u32 = 2;
    /// The reply half of a flow (egress, backend to client).
    pub const REPLY: u32 = 4;
    /// In request and reply halves: the flow's source is translated, and the other two halves exist.
    pub const MASQUERADED: u32 = 8;
    /// The masquerade half (egress, client to backend).
    pub const MASQUERADE: u32 = 16;
    /// The unmasquerade half (ingress, backend to node).
    pub const UNMASQUERADE: u32 = 32;
    /// Key and rewrite are equal: a recorded direct flow or, with `SERVICE`, a flow that another proxy had begun to
    /// translate before shunt took over, and that netfilter continues to translate.
    pub const IDENTITY: u32 = 64;
    /// In all halves: XDP serves the flow, and the host's stack sees only its packets to backends of this node.
    pub const XDP: u32 = 128;
    /// In both halves of a flow that another party of the node began from one of its addresses (a socket, or netfilter's
    /// masquerade). As in all flows the request half matches packets that arrive; here the flow's first packet left, by the reply
    /// half.
    pub const NODE_FLOW: u32 = 256;

    /// Whether `flag` is set.
    #[inline(always)]
    pub const fn has(&self, flag: u32) -> bool {
        self.flags & flag != 0
    }

    /// The port that goes with `addr`.
    #[inline(always)]
    pub const fn port(&self) -> Port {
        Port::from_be(self.port as u16)
    }

    /// The sequence numbers that a request or reply half keeps.
    #[inline(always)]
    pub const fn numbers(&self) -> tcp::Numbers {
        tcp::Numbers { next: (self.state >> 32) as u32, ack: (self.port >> 32) as u32 }
    }

    /// From a request half, the key of its reply half; from an unmasquerade half, the key of its masquerade half
    /// (both are egress halves).
    #[inline(always)]
    pub const fn egress_key(&self, key: &CtKey) -> CtKey {
        CtKey::new(self.addr, self.port(), key.src, self.peer_port, key.proto, Half::Egress)
    }

    /// From a reply half, the key of its request half; from a masquerade half, the key of its unmasquerade half.
    #[inline(always)]
    pub const fn ingress_key(&self, key: &CtKey) -> CtKey {
        CtKey::new(key.dst, self.peer_port, self.addr, self.port(), key.proto, Half::Ingress)
    }

    /// From a request half, the key of its masquerade half.
    #[inline(always)]
    pub const fn masquerade_key(&self, key: &CtKey) -> CtKey {
        CtKey::new(key.src, self.peer_port, self.addr, self.port(), key.proto, Half::Egress)
    }
}

#[cfg(test)]
mod tests {
    use core::net::{IpAddr, Ipv4Addr};

    use super::*;

    fn addr(last: u8) -> Addr {
        IpAddr::V4(Ipv4Addr::new(10, 0, 0, last)).into()
    }

    #[test]
    fn every_half_leads_to_the_others() {
        let (c, v, b, n) = (addr(1), addr(2), addr(3), addr(4));
        let p = Port::new;
        let mut entry: CtEntry = bytemuck::Zeroable::zeroed();
        // Client port 1000, replaced by 1001; frontend 80, backend 8080, node port 5000.
        let request = CtKey::new(c, p(1000), v, p(80), 6, Half::Ingress);
        (entry.addr, entry.port, entry.peer_port) = (b, p(8080).be().into(), p(1001));
        let reply = CtKey::new(b, p(8080), c, p(1001), 6, Half::Egress);
        assert_eq!(entry.egress_key(&request), reply);
        assert_eq!(entry.masquerade_key(&request), CtKey::new(c, p(1001), b, p(8080), 6, Half::Egress));
        (entry.addr, entry.port, entry.peer_port) = (v, p(80).be().into(), p(1000));
        assert_eq!(entry.ingress_key(&reply), request);

        let unmasquerade = CtKey::new(b, p(8080), n, p(5000), 6, Half::Ingress);
        let masquerade = CtKey::new(c, p(1001), b, p(8080), 6, Half::Egress);
        (entry.addr, entry.port, entry.peer_port) = (n, p(5000).be().into(), p(8080));
        assert_eq!(entry.ingress_key(&masquerade), unmasquerade);
    }
}
