//! Observability, on which no packet's path depends: SERVICE_STATS, DROPS, and the events of `shunt monitor`.

use crate::{Addr, Port, pod};

pod! {
    /// Value of SERVICE_STATS (per-CPU array by service id, like SERVICES): the traffic of one service port. Each
    /// segment of a GSO or GRO packet counts as a packet; bytes count as they are in memory, with the link-layer
    /// header. A flow that the socket hooks translate counts as a flow; its packets have the backend's address and
    /// are not counted. Nor are later fragments, which belong to no flow.
    pub struct ServiceStats [40] {
        /// New flows.
        pub flows: u64,
        /// From clients.
        pub packets_in: u64,
        pub bytes_in: u64,
        /// To clients.
        pub packets_out: u64,
        pub bytes_out: u64,
    }

    /// Key of DROPS (per-CPU hash to `u64`): packets that one device's hooks rejected or dropped for one reason.
    pub struct DropKey [8] {
        /// 0 for the socket hooks.
        pub ifindex: u32,
        /// A [`crate::Counter`] by number.
        pub reason: u32,
    }

    /// The only value of MONITOR (array of one, mapped into memory by the monitor): the events that the monitor
    /// wants.
    pub struct Monitor [24] {
        /// CLOCK_MONOTONIC in nanoseconds until when events are wanted. The monitor renews it, so that a killed
        /// monitor costs nothing for long. 0: no monitor.
        pub until: u64,
        /// Bits of [`kinds`].
        pub kinds: u32,
        /// One in this many events is reported, at random.
        pub one_in: u32,
        /// Events for which EVENTS had no room.
        pub lost: u64,
    }

    /// An element of EVENTS (ring buffer).
    pub struct FlowEvent [104] {
        /// CLOCK_MONOTONIC in nanoseconds.
        pub time: u64,
        /// For a socket's flow its network namespace, [`crate::socket::netns_addr`].
        pub src: Addr,
        pub dst: Addr,
        /// The backend; unspecified if there is none.
        pub to: Addr,
        pub sport: Port,
        pub dport: Port,
        pub to_port: Port,
        /// The client's port behind the ingress hook: its own unless that was taken. The backend of a masqueraded
        /// flow sees another port, which the egress hook selects later.
        pub client_port: Port,
        pub proto: u8,
        /// An [`EventKind`] by number.
        pub kind: u8,
        /// A [`Hook`] by number.
        pub hook: u8,
        /// `FlowEvent::MASQUERADED` and the other flags.
        pub flags: u8,
        /// Why the packet was rejected or dropped: a [`crate::Counter`] by number.
        pub reason: u32,
        /// 0 if the packet is for no Service, or its path ended before the lookup.
        pub service: u32,
        pub backend: u32,
        /// The device; 0 for a socket's flow.
        pub ifindex: u32,
        /// For a socket's flow the process, by its number in the initial PID namespace.
        pub pid: u32,
        /// Its thread's name, zero-padded: most have exited before /proc can be read.
        pub comm: [u8; 16],
    }
}

macro_rules! numbered {
    ($(#[$doc:meta])* pub enum $name:ident { $($(#[$variant_doc:meta])* $variant:ident = $number:literal, $text:literal;)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[repr(u8)]
        pub enum $name { $($(#[$variant_doc])* $variant = $number,)* }

        impl $name {
            pub const ALL: &[Self] = &[$(Self::$variant,)*];

            pub const fn from_number(number: u8) -> Option<Self> {
                match number { $($number => Some(Self::$variant),)* _ => None }
            }

            /// The name on the command line.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $text,)* }
            }
        }
    };
}

numbered! {
    /// What an event reports.
    pub enum EventKind {
        /// A new flow to a Service.
        Flow = 0, "flow";
        /// A packet or a socket request was rejected.
        Refused = 1, "refused";
        /// A packet was dropped.
        Dropped = 2, "dropped";
    }
}

numbered! {
    /// The hook that reports an event.
    pub enum Hook {
        Ingress = 0, "ingress";
        Egress = 1, "egress";
        Xdp = 2, "xdp";
        Socket = 3, "socket";
    }
}

/// Bits of `Monitor::kinds`.
pub mod kinds {
    use super::EventKind;

    /// The bit of a kind.
    pub const fn bit(kind: EventKind) -> u32 {
        1 << kind as u32
    }

    pub const ALL: u32 = bit(EventKind::Flow) | bit(EventKind::Refused) | bit(EventKind::Dropped);
}

impl DropKey {
    /// Used as `ifindex` for all devices that are gone. Written by the agent only, so that no count of theirs is
    /// lost.
    pub const GONE: u32 = u32::MAX;
}

impl FlowEvent {
    /// The flow's source is translated.
    pub const MASQUERADED: u8 = 1;
    /// Its backend is on this node.
    pub const LOCAL: u8 = 2;

    /// Whether `flag` is set.
    pub const fn has(&self, flag: u8) -> bool {
        self.flags & flag != 0
    }

    /// The name of the process; empty if there is none.
    pub fn comm(&self) -> &str {
        crate::frontend::text_of(&self.comm)
    }
}

/// Entries of DROPS: pairs of device and reason.
pub const DROPS_LEN: u32 = 4096;

/// Bytes of EVENTS: about nine thousand events.
pub const EVENTS_BYTES: u32 = 1 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_round_trip_and_every_kind_has_its_bit() {
        for kind in EventKind::ALL {
            assert_eq!(EventKind::from_number(*kind as u8), Some(*kind));
            assert_eq!(kinds::ALL & kinds::bit(*kind), kinds::bit(*kind));
        }
        assert_eq!(EventKind::from_number(EventKind::ALL.len() as u8), None);
        for hook in Hook::ALL {
            assert_eq!(Hook::from_number(*hook as u8), Some(*hook));
        }
    }
}
