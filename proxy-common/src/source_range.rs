//! SOURCE_RANGES: the clients that a load balancer address serves (loadBalancerSourceRanges), and those that a NodePort
//! serves (`--nodeport-source-ranges`).

use crate::{Addr, FrontendKind, pod};

pod! {
    /// Key of SOURCE_RANGES (LPM trie, to 1): clients for which a service port's load balancer addresses, or its
    /// NodePort, accept flows.
    pub struct SourceRange [24] {
        /// Bits that must match, counted from the beginning of `service`.
        pub prefix_len: u32,
        /// The service id; with [`SourceRange::NODE_PORT`] for the ranges of its NodePort.
        pub service: u32,
        pub addr: Addr,
    }
}

impl SourceRange {
    /// Set in `service`: the range is the NodePort's. Service ids are far below.
    pub const NODE_PORT: u32 = 1 << 31;

    /// `service` of the ranges that frontends of this kind ask: NodePort or LoadBalancerIP, as number. Without a branch: the
    /// verifier would follow the XDP programs twice from there, beyond its limit.
    #[inline(always)]
    pub const fn owner(service: u32, kind: u32) -> u32 {
        const { assert!(FrontendKind::NodePort as u32 & 1 == 0 && FrontendKind::LoadBalancerIp as u32 & 1 == 1) };
        service | (!kind & 1) << 31
    }

    /// The service id, whichever of its frontends the range is for.
    pub const fn service_id(&self) -> u32 {
        self.service & !Self::NODE_PORT
    }

    /// The kind of the frontends that the range is for.
    pub const fn kind(&self) -> FrontendKind {
        if self.service & Self::NODE_PORT != 0 {
            FrontendKind::NodePort
        } else {
            FrontendKind::LoadBalancerIp
        }
    }

    /// The range of addresses with the same first `len` bits (of 128) as `addr`.
    #[inline(always)]
    pub const fn new(service: u32, addr: Addr, len: u32) -> Self {
        Self { prefix_len: 32 + len, service, addr }
    }

    /// A single client, for lookups.
    #[inline(always)]
    pub const fn client(service: u32, addr: Addr) -> Self {
        Self::new(service, addr, 128)
    }

    /// How many bits of the address must match: of 128, or of 32 for IPv4.
    pub const fn address_bits(&self) -> u32 {
        let bits = self.prefix_len.saturating_sub(32);
        if self.addr.is_v4() { bits.saturating_sub(96) } else { bits }
    }
}

#[cfg(test)]
mod tests {
    use core::net::Ipv4Addr;

    use super::*;

    #[test]
    fn prefix_lengths_are_in_the_usual_notation() {
        let v4 = SourceRange::new(1, Ipv4Addr::new(10, 0, 0, 0).into(), 96 + 8);
        assert_eq!((v4.prefix_len, v4.address_bits()), (136, 8));
        assert_eq!(SourceRange::client(1, Addr::UNSPECIFIED_V6).address_bits(), 128);
    }

    #[test]
    fn ranges_of_both_kinds_belong_to_one_service() {
        let of = |kind| SourceRange::client(SourceRange::owner(7, kind as u32), Addr::UNSPECIFIED_V6);
        let (node_port, address) = (of(FrontendKind::NodePort), of(FrontendKind::LoadBalancerIp));
        assert_ne!(node_port.service, address.service);
        assert_eq!((node_port.service_id(), address.service_id()), (7, 7));
        assert_eq!(node_port.kind(), FrontendKind::NodePort);
        assert_eq!(address.kind(), FrontendKind::LoadBalancerIp);
    }
}
