//! The node as the datapath knows it: addresses, devices, roles, configuration.

use core::fmt;

use crate::{Addr, pod};

pod! {
    /// The only value of NODE_CONFIG (array of one): the configuration for new flows. A change takes effect with the
    /// next new flow.
    pub struct NodeConfig [304] {
        /// `NodeConfig::MASQUERADE_ALL` and the other flags.
        pub flags: u32,
        /// How many of `pod_prefixes` are in use.
        pub pod_prefix_count: u32,
        /// The node's primary InternalIP of each family, unspecified if there is none: the fallback source address of
        /// translated flows.
        pub primary_v4: Addr,
        pub primary_v6: Addr,
        /// How many of `service_prefixes` are in use.
        pub service_prefix_count: u32,
        pub reserved: u32,
        /// A source inside one of these is a local pod (detectLocalMode ClusterCIDR and NodeCIDR).
        pub pod_prefixes: [Prefix; 4],
        /// The ServiceCIDRs: an address inside that no Service has is unallocated.
        pub service_prefixes: [Prefix; 4],
    }

    /// The only value of AGENT (array of one): the controller's own status, for `shunt status`. Programs do not read
    /// it.
    pub struct Agent [40] {
        /// Unix time in seconds when the controller started.
        pub started: u64,
        /// Unix time in seconds of the last complete write of the maps; 0 before the first.
        pub last_sync: u64,
        /// Unix time in seconds, refreshed every second while the controller runs.
        pub heartbeat: u64,
        pub pid: u32,
        /// 1 after the first complete sync, while the controller runs.
        pub ready: u32,
        /// How many Services the controller holds.
        pub services: u32,
        pub reserved: u32,
    }

    /// An address range; IPv4 ranges in v4-mapped form (a /24 shares 120 bits).
    pub struct Prefix [32] {
        pub addr: Addr,
        /// Ones where an address must equal `addr`.
        pub mask: Addr,
    }

    /// Value of DEVICES (hash by ifindex): what source translation and XDP need to know of a device.
    pub struct Device [48] {
        /// `Device::POD` and the other flags.
        pub flags: u32,
        /// Bytes of link-layer header: 14, or 0 for L3-only devices.
        pub header_len: u32,
        /// The source address of translated flows that leave by this device; unspecified if there is none.
        pub source_v4: Addr,
        pub source_v6: Addr,
        /// Its link-layer address; zero if there is none.
        pub mac: [u16; 3],
        pub reserved: u16,
    }
}

/// Roles of an address in NODE_ADDRS (hash: [`Addr`] -> `u32`).
pub mod role {
    /// Accepts NodePort traffic.
    pub const NODEPORT: u32 = 1;
    /// One of the node's own addresses.
    pub const OWN: u32 = 2;
    /// A loopback address: only the socket hooks serve NodePorts on it, to the node's own processes.
    pub const LOOPBACK: u32 = 4;
}

/// Bits of PORTS (array of 65536 `u32`, by port in host order): an array read in front of each hash lookup that it
/// may save. Each bit is a superset of the contents of the hashes.
pub mod port_bits {
    use crate::Proto;

    /// Some frontend address has this port: shift for TCP, UDP, SCTP.
    const FRONTEND: u32 = 0;
    /// Some NodePort is this port.
    const NODEPORT: u32 = 3;
    /// Some backend listens on this port.
    const BACKEND: u32 = 6;

    /// Some backend's address ends in these 16 bits: fragments, which have no ports, are filtered by it.
    pub const BACKEND_ADDR: u32 = 1 << 10;

    /// Some ClusterIP ends in these 16 bits.
    pub const CLUSTER_IP: u32 = 1 << 11;

    #[inline(always)]
    const fn bit(base: u32, proto: u8) -> u32 {
        match proto {
            Proto::TCP => 1 << base,
            Proto::UDP => 2 << base,
            Proto::SCTP => 4 << base,
            _ => 0,
        }
    }

    #[inline(always)]
    pub const fn frontend(proto: u8) -> u32 {
        bit(FRONTEND, proto)
    }

    #[inline(always)]
    pub const fn nodeport(proto: u8) -> u32 {
        bit(NODEPORT, proto)
    }

    #[inline(always)]
    pub const fn backend(proto: u8) -> u32 {
        bit(BACKEND, proto)
    }

    /// The NodePort of any protocol: such a port is never used for source translation.
    pub const ANY_NODEPORT: u32 = 7 << NODEPORT;
}

impl NodeConfig {
    /// Translate the source of every Service flow (`--masquerade-all`).
    pub const MASQUERADE_ALL: u32 = 1;
    /// No `pod_prefixes` are known for this family: a source is a local pod if its packet arrived on a device with
    /// [`Device::POD`].
    pub const LOCAL_BY_DEVICE_V4: u32 = 2;
    pub const LOCAL_BY_DEVICE_V6: u32 = 8;
    /// Both of them.
    pub const LOCAL_BY_DEVICE: u32 = Self::LOCAL_BY_DEVICE_V4 | Self::LOCAL_BY_DEVICE_V6;
    /// `pod_prefixes` contain the pods of every node (detectLocalMode ClusterCIDR): a source inside them is a pod of
    /// this node only if its packet arrived on a device with [`Device::POD`].
    pub const CLUSTER_PREFIXES: u32 = 4;
    /// shunt is taking over a node and records another proxy's flows: a mid-stream TCP segment of no known flow is
    /// dropped (and will be sent again) instead of reset.
    pub const TAKING_OVER: u32 = 16;
}

impl Device {
    /// Pods are behind this device.
    pub const POD: u32 = 1;
    /// Traffic of other hosts arrives here: neither a pod's device nor a tunnel.
    pub const UPLINK: u32 = 2;
    /// A tunnel between nodes.
    pub const TUNNEL: u32 = 4;
    /// Our XDP program runs in its driver, and the driver can send frames of other devices.
    pub const XDP_NATIVE: u32 = 8;
    /// Our XDP program runs on its skbs.
    pub const XDP_GENERIC: u32 = 16;
}

impl Prefix {
    /// The range of all addresses with the same first `len` bits as `addr`.
    pub fn new(addr: Addr, len: u32) -> Self {
        let word = |first: u32| {
            let bits = len.saturating_sub(first).min(32);
            if bits == 0 { 0 } else { (u32::MAX << (32 - bits)).to_be() }
        };
        Self { addr, mask: Addr::from_v6_be([word(0), word(32), word(64), word(96)]) }
    }

    /// The length of the prefix in bits.
    pub fn prefix_len(&self) -> u32 {
        self.mask.words().iter().map(|word| word.count_ones()).sum()
    }

    /// Whether `addr` is in the range. No branches: the verifier would follow each.
    #[inline(always)]
    pub const fn contains(&self, addr: &Addr) -> bool {
        let (mine, theirs, mask) = (self.addr.words(), addr.words(), self.mask.words());
        (mine[0] ^ theirs[0]) & mask[0]
            | (mine[1] ^ theirs[1]) & mask[1]
            | (mine[2] ^ theirs[2]) & mask[2]
            | (mine[3] ^ theirs[3]) & mask[3]
            == 0
    }
}

/// In the usual notation: an IPv4 prefix does not include the bits of the v4-mapped form.
impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mapped = if self.addr.is_v4() { 96 } else { 0 };
        write!(f, "{}/{}", self.addr, self.prefix_len().saturating_sub(mapped))
    }
}

#[cfg(test)]
mod tests {
    use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn prefix_agrees_with_shifted_bits(base: u32, other: u32, len in 0u32..=32, flip in 0u32..=32) {
            let near = if flip < 32 { base ^ (1 << flip) } else { base };
            for other in [other, near] {
                let prefix = Prefix::new(IpAddr::V4(Ipv4Addr::from_bits(base)).into(), 96 + len);
                let want = len == 0 || base >> (32 - len) == other >> (32 - len);
                prop_assert_eq!(prefix.contains(&IpAddr::V4(Ipv4Addr::from_bits(other)).into()), want);
            }
        }

        #[test]
        fn prefix_v6(base: u128, flip in 0u32..128, len in 0u32..=128) {
            let prefix = Prefix::new(IpAddr::V6(Ipv6Addr::from_bits(base)).into(), len);
            let other = Ipv6Addr::from_bits(base ^ (1u128 << (127 - flip)));
            prop_assert_eq!(prefix.contains(&IpAddr::V6(other).into()), flip >= len);
        }
    }
}
