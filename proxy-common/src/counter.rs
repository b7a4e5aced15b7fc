//! COUNTERS (per-CPU array of `u64`, by [`Counter`] number): what the datapath did and why it dropped.

/// What a counter counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Event,
    /// Packets, and questions of sockets, that were answered with a refusal.
    Refusal,
    /// Packets that ended silently.
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
    /// Flows to a Service that began (tc hooks).
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
    /// Dropped: CONNTRACK is full.
    ConntrackFull = 8, Drop, "conntrack_full";
    /// Dropped: no free client port for a taken middle tuple.
    NoFreePort = 9, Drop, "no_free_port";
    /// Rejected: no free port or no address for source translation.
    NoFreeSource = 10, Refusal, "no_free_source";
    /// Dropped: a frontend names a slot or backend that is not there.
    BadSlot = 11, Drop, "bad_slot";
    /// Dropped: a helper refused to change the packet.
    RewriteFailed = 12, Drop, "rewrite_failed";
    /// ICMP echo requests to a VIP that were answered.
    PingAnswered = 13, Event, "ping_answered";
    /// Later fragments that came before their datagram's first and were kept for it.
    FragmentHeld = 14, Event, "fragment_held";
    /// Such fragments that passed as they were: too long to be kept, or too many.
    FragmentNotHeld = 15, Event, "fragment_not_held";
    /// Kept fragments that were not let go when the first came: overwritten or too old.
    FragmentLost = 16, Drop, "fragment_lost";
    /// Dropped: fragments of a datagram whose first was refused or dropped.
    FragmentDropped = 17, Drop, "fragment_dropped";
    /// Dropped: a first fragment that ends inside its transport header.
    FragmentTiny = 18, Drop, "fragment_tiny";
    /// Dropped: the client is in none of the load balancer's source ranges.
    SrcRange = 19, Drop, "src_range";
    /// Packets that the XDP lane translated for a backend of this node.
    XdpLocal = 20, Event, "xdp_local";
    /// Packets that the XDP lane translated and sent out.
    XdpForwarded = 21, Event, "xdp_forwarded";
    /// Packets of the XDP lane's flows and frontends that it left to tc.
    XdpLeft = 22, Event, "xdp_left";
    /// Flows forgotten half-open, because as many others began since as may be so at a time.
    HalfOpenForgotten = 23, Event, "half_open_forgotten";
    /// Refused: no service port of this ClusterIP.
    NoServicePort = 24, Refusal, "no_service_port";
    /// Dropped: an address of a ServiceCIDR that no Service has.
    Unallocated = 25, Drop, "unallocated";
    /// ICMP errors about a flow's packets that were translated.
    IcmpErrorTranslated = 26, Event, "icmp_error_translated";
    /// Dropped: an ICMP redirect about a translated flow's packet.
    RedirectDropped = 27, Drop, "redirect_dropped";
    /// Dropped: an SCTP flow would need another port, which SCTP's checksum does not let change.
    SctpPort = 28, Drop, "sctp_port";
    /// Dropped, to be sent again: TCP segments of no known flow, while another proxy's flows were being recorded.
    TakingOver = 29, Drop, "taking_over";
    /// Direct flows, and flows of the node's own addresses, that could not be recorded, and pass all the same.
    FlowUnrecorded = 30, Event, "flow_unrecorded";
    /// Flows of the node's own addresses that were recorded: from a frontend's number, or to a backend.
    FlowNode = 31, Event, "flow_node";
}

/// A bit for each number of a [`Kind::Refusal`].
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

    /// [`kind`](Self::kind) for programs, which know a counter by its number: a table of 64 bits instead of a branch each.
    #[inline(always)]
    pub const fn is_refusal(number: u32) -> bool {
        REFUSALS.wrapping_shr(number) & 1 != 0
    }
}

/// Entries of COUNTERS; leaves room, so that a new counter does not change the map.
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

    /// Comments are read by people, kinds by the metrics: they must agree.
    #[test]
    fn kinds_are_what_the_comments_say() {
        let text = include_str!("counter.rs");
        for counter in Counter::ALL {
            let (before, _) = text.split_once(&std::format!("\"{}\";", counter.name())).expect("a name");
            let (_, comment) = before.rsplit_once("/// ").expect("a comment");
            let want = match comment.split([':', ',']).next() {
                Some("Dropped") => Kind::Drop,
                Some("Refused") => Kind::Refusal,
                // Fragments that waited and were never sent on: gone, whatever the comment begins with.
                _ if *counter == Counter::FragmentLost => Kind::Drop,
                _ => Kind::Event,
            };
            assert_eq!(counter.kind(), want, "{}", counter.name());
        }
    }
}
