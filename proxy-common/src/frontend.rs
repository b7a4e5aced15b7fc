//! Services as the datapath sees them: frontends, slots, backends and round-robin counters, and the names that `shunt
//! service list` shows even while the controller is down.

use crate::{Addr, Port, pod};

pod! {
    /// Key of FRONTENDS: the destination of a packet. A NodePort has the unspecified address of its family; the ping
    /// entry of a VIP has port 0 and protocol ICMP or ICMPv6. Also the key of BACKEND_ADDRS, whose value is the
    /// backend's id (`u32`).
    pub struct FrontendKey [20] {
        pub addr: Addr,
        pub port: Port,
        /// IANA protocol number.
        pub proto: u8,
        pub reserved: u8,
    }

    /// Value of FRONTENDS. Replacing it switches a frontend atomically from one set of backends to another: the slots
    /// are written before and freed after.
    pub struct Frontend [32] {
        /// Index into SERVICES and SERVICE_META.
        pub service: u32,
        /// `Frontend::EXTERNAL` and the other flags.
        pub flags: u32,
        /// The cluster-wide set is SLOTS[cluster_base .. cluster_base + cluster_count].
        pub cluster_base: u32,
        pub cluster_count: u32,
        /// The local set, an independent range: because of terminating endpoints and hints it need not be a subset.
        pub local_base: u32,
        pub local_count: u32,
        /// Session affinity by client address, in seconds; 0 is none.
        pub affinity_seconds: u32,
        /// A [`FrontendKind`] as number.
        pub kind: u32,
    }

    /// Value of BACKENDS, indexed by backend id (0 is never used).
    pub struct Backend [24] {
        pub addr: Addr,
        pub port: Port,
        /// IANA protocol number.
        pub proto: u8,
        /// `Backend::LOCAL` and the other flags.
        pub flags: u8,
        pub reserved: u32,
    }

    /// Value of SERVICES, indexed by service id (0 is never used): one per service port and family. Programs write it
    /// by atomic add only; user space only clears it before an id is reused.
    pub struct Service [32] {
        /// Turns taken in the cluster-wide set: one per new flow, none for a client that keeps its backend. The next
        /// turn is slot `cluster_next % cluster_count`.
        pub cluster_next: u64,
        /// The same for the local set.
        pub local_next: u64,
        /// New flows rejected (no endpoint).
        pub refused: u64,
        /// New flows dropped (policy Local without a local endpoint).
        pub dropped: u64,
    }

    /// Up to 63 bytes of a DNS label, zero-padded.
    pub struct Name [64] {
        bytes: [u8; 64],
    }

    /// Value of SERVICE_META (hash by service id): the names of a service id.
    pub struct ServiceMeta [200] {
        pub namespace: Name,
        pub name: Name,
        /// The port's name; empty if it has none.
        pub port_name: Name,
        /// The Service's port, independent of the frontend.
        pub port: Port,
        pub proto: u8,
        /// 4 or 6.
        pub family: u8,
        /// [`ServiceMeta::GONE`].
        pub flags: u32,
    }

    /// Value of BACKEND_META (hash by backend id): the node that a backend runs on, zero-padded; a node's name is a
    /// DNS subdomain of up to 253 bytes.
    pub struct BackendMeta [256] {
        pub node: [u8; 256],
    }
}

/// The kind of a frontend's address; `Frontend::kind` stores it as number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u32)]
pub enum FrontendKind {
    ClusterIp = 1,
    NodePort = 2,
    LoadBalancerIp = 3,
    ExternalIp = 4,
    /// Not a service port: makes a VIP answer ICMP echo.
    Ping = 5,
}

impl FrontendKind {
    /// The kind with this number, if there is one.
    pub const fn from_number(number: u32) -> Option<Self> {
        Some(match number {
            1 => Self::ClusterIp,
            2 => Self::NodePort,
            3 => Self::LoadBalancerIp,
            4 => Self::ExternalIp,
            5 => Self::Ping,
            _ => return None,
        })
    }

    /// The name in the CLI's JSON.
    pub const fn name(self) -> &'static str {
        match self {
            Self::ClusterIp => "ClusterIP",
            Self::NodePort => "NodePort",
            Self::LoadBalancerIp => "LoadBalancerIP",
            Self::ExternalIp => "ExternalIP",
            Self::Ping => "Ping",
        }
    }
}

impl Frontend {
    /// NodePort, LoadBalancer or external address: reachable from outside the cluster.
    pub const EXTERNAL: u32 = 1;
    /// The traffic policy of this frontend is Local.
    pub const LOCAL: u32 = 2;
    /// The Service has a usable endpoint somewhere. Without, new flows are rejected.
    pub const HAS_ENDPOINTS: u32 = 4;
    /// Select a slot at random instead of in turn.
    pub const RANDOM: u32 = 8;
    /// Only clients in SOURCE_RANGES may create flows.
    pub const SOURCE_RANGES: u32 = 16;
    /// In a [`FrontendKind::Ping`] entry: the address is a ClusterIP, so what is not a service port of it is
    /// rejected.
    pub const CLUSTER_IP: u32 = 32;

    /// Whether `flag` is set.
    #[inline(always)]
    pub const fn has(&self, flag: u32) -> bool {
        self.flags & flag != 0
    }

    /// Whether the address can also be an address of a node (load balancer and external addresses). A packet from or to it may then
    /// belong to a connection that a node opened itself.
    #[inline(always)]
    pub const fn may_be_node_address(&self) -> bool {
        const LOAD_BALANCER: u32 = FrontendKind::LoadBalancerIp as u32;
        const EXTERNAL: u32 = FrontendKind::ExternalIp as u32;
        matches!(self.kind, LOAD_BALANCER | EXTERNAL)
    }
}

impl ServiceMeta {
    /// The Service has no such port any more; existing flows still refer to it.
    pub const GONE: u32 = 1;
}

impl Backend {
    /// On this node.
    pub const LOCAL: u8 = 1;
    /// Its endpoint is ready.
    pub const READY: u8 = 2;
    /// Its endpoint is terminating.
    pub const TERMINATING: u8 = 4;
    /// A Service uses it; cleared when the id is retired, which flows may still refer to.
    pub const ACTIVE: u8 = 8;

    /// Whether `flag` is set.
    #[inline(always)]
    pub const fn has(&self, flag: u8) -> bool {
        self.flags & flag != 0
    }
}

impl FrontendKey {
    #[inline(always)]
    pub const fn new(addr: Addr, port: Port, proto: u8) -> Self {
        Self { addr, port, proto, reserved: 0 }
    }
}

impl Name {
    pub const EMPTY: Self = Self { bytes: [0; 64] };

    /// `None` when the text is longer than 63 bytes.
    pub fn new(text: &str) -> Option<Self> {
        let mut bytes = [0; 64];
        if text.len() > 63 {
            return None;
        }
        bytes[..text.len()].copy_from_slice(text.as_bytes());
        Some(Self { bytes })
    }

    /// The text up to the first zero byte; empty if it is not UTF-8.
    pub fn as_str(&self) -> &str {
        text_of(&self.bytes)
    }
}

impl BackendMeta {
    /// Truncates at 255 bytes, which no valid node name reaches.
    pub fn new(node: &str) -> Self {
        let mut bytes = [0; 256];
        let len = node.len().min(255);
        bytes[..len].copy_from_slice(&node.as_bytes()[..len]);
        Self { node: bytes }
    }

    /// The node's name; empty if the endpoint has none.
    pub fn node(&self) -> &str {
        text_of(&self.node)
    }
}

pub(crate) fn text_of(bytes: &[u8]) -> &str {
    let len = bytes.iter().position(|b| *b == 0).unwrap_or(bytes.len());
    core::str::from_utf8(&bytes[..len]).unwrap_or("")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_hold_63_bytes_and_no_more() {
        assert_eq!(Name::new("web").unwrap().as_str(), "web");
        let long = core::str::from_utf8(&[b'a'; 64]).unwrap();
        assert_eq!(Name::new(&long[..63]).unwrap().as_str(), &long[..63]);
        assert!(Name::new(long).is_none());
    }

    #[test]
    fn kinds_round_trip() {
        for number in 0..8 {
            if let Some(kind) = FrontendKind::from_number(number) {
                assert_eq!(kind as u32, number);
            }
        }
    }
}
