//! COUNTERS (per-CPU array of `u64`, by [`Counter`] number): what the datapath did and why it dropped.

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident = $number:literal, $text:literal;)*) => {
        /// Index into COUNTERS. Numbers are part of the map contract: they are never reused.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(u32)]
        pub enum Counter { $($(#[$doc])* $name = $number,)* }

        impl Counter {
            /// Every counter, by number.
            pub const ALL: &[Self] = &[$(Self::$name,)*];

            /// As `shunt counter list` and the metrics name it.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$name => $text,)* }
            }
        }
    };
}

counters! {
    /// Flows to a Service that began (tc hooks).
    FlowNew = 0, "flow_new";
    /// Direct flows to a backend's own address that were recorded.
    FlowDirect = 1, "flow_direct";
    /// Flows whose source is translated.
    FlowMasqueraded = 2, "flow_masqueraded";
    /// Flows given another client port because their middle tuple was taken.
    FlowPortChanged = 3, "flow_port_changed";
    /// Connections and datagrams translated at the socket.
    SocketTranslated = 4, "socket_translated";
    /// Refused: the Service has no endpoint.
    NoBackend = 5, "no_backend";
    /// Dropped: policy Local and no endpoint on this node.
    NoLocalEndpoints = 6, "no_local_endpoints";
    /// Refused: a TCP segment of no known flow to a frontend.
    NoFlow = 7, "no_flow";
    /// Dropped: CONNTRACK is full.
    ConntrackFull = 8, "conntrack_full";
    /// Dropped: no free client port for a taken middle tuple.
    NoFreePort = 9, "no_free_port";
    /// Dropped: no free port or no address for source translation.
    NoFreeSource = 10, "no_free_source";
    /// Dropped: a frontend names a slot or backend that is not there.
    BadSlot = 11, "bad_slot";
    /// Dropped: a helper refused to change the packet.
    RewriteFailed = 12, "rewrite_failed";
    /// ICMP echo requests to a VIP that were answered.
    PingAnswered = 13, "ping_answered";
    /// Later fragments that came before their datagram's first and were kept for it.
    FragmentHeld = 14, "fragment_held";
    /// Such fragments that passed as they were: too long to be kept, or too many.
    FragmentNotHeld = 15, "fragment_not_held";
    /// Kept fragments that were not let go when the first came: overwritten or too old.
    FragmentLost = 16, "fragment_lost";
    /// Dropped: fragments of a datagram whose first was refused or dropped.
    FragmentDropped = 17, "fragment_dropped";
    /// Dropped: a first fragment that ends inside its transport header.
    FragmentTiny = 18, "fragment_tiny";
    /// Dropped: the client is in none of the load balancer's source ranges.
    SrcRange = 19, "src_range";
    /// Packets that the XDP lane translated for a backend of this node.
    XdpLocal = 20, "xdp_local";
    /// Packets that the XDP lane translated and sent out.
    XdpForwarded = 21, "xdp_forwarded";
    /// Packets of the XDP lane's flows and frontends that it left to tc.
    XdpLeft = 22, "xdp_left";
    /// Flows forgotten half-open, because as many others began since as may be so at a time.
    HalfOpenForgotten = 23, "half_open_forgotten";
    /// Refused: no service port of this ClusterIP.
    NoServicePort = 24, "no_service_port";
    /// Dropped: an address of a ServiceCIDR that no Service has.
    Unallocated = 25, "unallocated";
    /// ICMP errors about a flow's packets that were translated.
    IcmpErrorTranslated = 26, "icmp_error_translated";
    /// Dropped: an ICMP redirect about a translated flow's packet.
    RedirectDropped = 27, "redirect_dropped";
    /// Dropped: an SCTP flow would need another port, which SCTP's checksum does not let change.
    SctpPort = 28, "sctp_port";
    /// Dropped, to be sent again: TCP segments of no known flow, while another proxy's flows were being recorded.
    TakingOver = 29, "taking_over";
}

/// Entries of COUNTERS; leaves room, so that a new counter does not change the map.
pub const COUNTERS_LEN: u32 = 64;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_dense_and_fit() {
        for (i, counter) in Counter::ALL.iter().enumerate() {
            assert_eq!(*counter as usize, i);
        }
        assert!(Counter::ALL.len() <= COUNTERS_LEN as usize);
    }
}
