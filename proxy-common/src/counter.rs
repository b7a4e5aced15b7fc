//! COUNTERS (per-CPU array of `u64`, by [`Counter`] number): what the datapath did, and why it dropped.

/// What a counter counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Event,
    /// Packets and socket requests that were answered with a rejection.
    Refusal,
    /// Packets that were dropped silently.
    Drop,
}

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident = $number:literal, $kind:ident, $text:literal;)*) => {
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

            pub const fn kind(self) -> Kind {
                match self { $(Self::$name => Kind::$kind,)* }
            }
        }
    };
}

counters! {
    /// New flows to a Service (tc hooks).
    FlowNew = 0, Event, "flow_new";
    /// Direct flows to a backend's own address that were recorded.
    FlowDirect = 1, Event, "flow_direct";
    /// Flows whose source is translated.
    FlowMasqueraded = 2, Event, "flow_masqueraded";
    /// Flows given another client port because their middle tuple was taken.
    FlowPortChanged = 3, Event, "flow_port_changed";
    /// Connections and datagrams translated at the socket.
    SocketTranslated = 4, Event, "socket_translated";
    /// Refused: the Service has no endpoint.
    NoBackend = 5, Refusal, "no_backend";
    /// Dropped: policy Local and no endpoint on this node.
    NoLocalEndpoints = 6, Drop, "no_local_endpoints";
    /// Refused: a TCP segment of no known flow to a frontend.
    NoFlow = 7, Refusal, "no_flow";
    /// Refused: a new flow to a Service while CONNTRACK is full.
    ConntrackFull = 8, Refusal, "conntrack_full";
    /// Dropped: no free client port for a taken middle tuple.
    NoFreePort = 9, Drop, "no_free_port";
    /// Refused: no free port or no address for source translation.
    NoFreeSource = 10, Refusal, "no_free_source";
    /// Dropped: a frontend names a slot or backend that does not exist.
    BadSlot = 11, Drop, "bad_slot";
    /// Dropped: a helper failed to change the packet.
    RewriteFailed = 12, Drop, "rewrite_failed";
    /// ICMP echo requests to a VIP that were answered.
    PingAnswered = 13, Event, "ping_answered";
    /// Later fragments that arrived before the first of their datagram and were queued.
    FragmentHeld = 14, Event, "fragment_held";
    /// Such fragments that passed unchanged: too long to be queued, or too many.
    FragmentNotHeld = 15, Event, "fragment_not_held";
    /// Queued fragments that were not released when the first arrived: overwritten or too old.
    FragmentLost = 16, Drop, "fragment_lost";
    /// Dropped: fragments of a datagram whose first fragment was rejected or dropped.
    FragmentDropped = 17, Drop, "fragment_dropped";
    /// Dropped: a first fragment that ends inside its transport header.
    FragmentTiny = 18, Drop, "fragment_tiny";
    /// Dropped: the client is in none of the source ranges of the load balancer or the NodePort.
    SrcRange = 19, Drop, "src_range";
    /// Packets that XDP translated for a backend of this node.
    XdpLocal = 20, Event, "xdp_local";
    /// Packets that XDP translated and sent out.
    XdpForwarded = 21, Event, "xdp_forwarded";
    /// Packets of flows and frontends of XDP that it left to tc.
    XdpLeft = 22, Event, "xdp_left";
    /// Half-open flows removed because the limit on them was reached.
    HalfOpenForgotten = 23, Event, "half_open_forgotten";
    /// Refused: not a service port of this ClusterIP.
    NoServicePort = 24, Refusal, "no_service_port";
    /// Dropped: an unallocated address of a ServiceCIDR.
    Unallocated = 25, Drop, "unallocated";
    /// ICMP errors about packets of a flow that were translated.
    IcmpErrorTranslated = 26, Event, "icmp_error_translated";
    /// Dropped: an ICMP redirect about a packet of a translated flow.
    RedirectDropped = 27, Drop, "redirect_dropped";
    /// Dropped: an SCTP flow would need another port, which SCTP's checksum does not allow.
    SctpPort = 28, Drop, "sctp_port";
    /// Dropped, to be sent again: TCP segments of no known flow, while another proxy's flows were being recorded.
    TakingOver = 29, Drop, "taking_over";
    /// Direct flows, and flows of the node's own addresses, that could not be recorded and passed.
    FlowUnrecorded = 30, Event, "flow_unrecorded";
    /// Flows of the node's own addresses that were recorded: from a frontend's address and port, or to a backend.
    FlowNode = 31, Event, "flow_node";
    /// Dropped: packets to a Service that arrive with a loopback address or an address of the node as source.
    Martian = 32, Drop, "martian";
}

/// One bit for each number of a [`Kind::Refusal`].
const REFUSALS: u64 = {
    let (mut bits, mut i) = (0, 0);
    while i < Counter::ALL.len() {
        if matches!(Counter::ALL[i].kind(), Kind::Refusal) {
            bits |= 1 << i;
        }
        i += 1;
    }
    bits
};

impl Counter {
    /// The counter with this number.
    pub const fn from_number(number: u32) -> Option<Self> {
        if (number as usize) < Self::ALL.len() { Some(Self::ALL[number as usize]) } else { None }
    }

    /// Whether the [`kind`](Self::kind) of this number is a refusal, for programs: a 64-bit table instead of a branch
    /// per counter.
    #[inline(always)]
    pub const fn is_refusal(number: u32) -> bool {
        REFUSALS.wrapping_shr(number) & 1 != 0
    }
}

/// Entries of COUNTERS, with spares so that a new counter does not change the map.
pub const COUNTERS_LEN: u32 = 64;

#[cfg(test)]
mod tests {
    extern crate std;

    use super::*;

    #[test]
    fn numbers_are_dense_and_fit() {
        for (i, counter) in Counter::ALL.iter().enumerate() {
            assert_eq!(*counter as usize, i);
        }
        assert!(Counter::ALL.len() <= COUNTERS_LEN as usize && COUNTERS_LEN <= u64::BITS);
    }

    #[test]
    fn kinds_by_number_are_those_by_name() {
        for counter in Counter::ALL {
            assert_eq!(Counter::from_number(*counter as u32), Some(*counter));
            assert_eq!(Counter::is_refusal(*counter as u32), counter.kind() == Kind::Refusal);
        }
        assert_eq!(Counter::from_number(Counter::ALL.len() as u32), None);
    }

    /// People read the comments, metrics use the kinds: they must agree.
    #[test]
    fn kinds_are_what_the_comments_say() {
        let text = include_str!("counter.rs");
        for counter in Counter::ALL {
            let (before, _) = text.split_once(&std::format!("\"{}\";", counter.name())).expect("a name");
            let (_, comment) = before.rsplit_once("/// ").expect("a comment");
            let want = match comment.split([':', ',']).next() {
                Some("Dropped") => Kind::Drop,
                Some("Refused") => Kind::Refusal,
                // Queued fragments that were never sent on: dropped, whatever the comment begins with.
                _ if *counter == Counter::FragmentLost => Kind::Drop,
                _ => Kind::Event,
            };
            assert_eq!(counter.kind(), want, "{}", counter.name());
        }
    }
}
