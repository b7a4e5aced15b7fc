//! TCP's state machine as far as a translator needs it: what a segment changes, and whether it can be believed.
//!
//! Whoever knows a connection's four-tuple can forge a segment of it, but not its numbers. So each half of a flow keeps the
//! sequence number that follows the segments of its direction. It is written once a second, or when it has moved by [`LAG`], so
//! that established flows cost no write per packet; hence what is kept lags behind by up to [`LAG`]. With it:
//!
//! - A handshake is complete when the client acknowledges the backend's SYN-ACK ([`CONFIRMED`]).
//! - RST and FIN count if their number is within [`LAG`] of what is kept. An RST with the exact number and an acknowledgement that
//!   fits is final ([`PROVEN`]). Another one is only a claim, which the next segment of either side takes back: the receiver of
//!   an RST in its window, but not with the exact number, answers with an ACK (RFC 5961, 3.2). From then on ([`DOUBTED`]) both
//!   halves are exact, and only an exact RST counts.
//! - A FIN is taken back by data of the same side beyond it. Both are final when each is acknowledged by its number (`LAST_ACK`).
//! - A SYN never changes a flow whose handshake is complete, unless that flow is over: the backend answers for itself (RFC
//!   5961, 4.2).

use crate::tcp::state::{
    BACKEND_ACKED, BACKEND_FIRST, CLIENT_ACKED, CONFIRMED, DOUBTED, FIN_BACKEND, FIN_CLIENT, OPENED, PROVEN,
    REPLIED, RESET, UNANSWERED, UNANSWERED_TWICE, flag, is_closed, is_syn,
};

/// By how much the number that is kept may lag behind: one segment as offloads build them.
pub const LAG: u32 = 1 << 16;

/// By how much a segment may be ahead of the number that is kept: [`LAG`] and the largest segment (BIG TCP), and some that
/// were lost on their way here.
const AHEAD: i32 = 1 << 20;

/// How much a backend may have sent before the client's first acknowledgement (TCP Fast Open: ten segments).
const FIRST_WINDOW: u32 = 1 << 14;

/// What a flow table reads from a TCP segment.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Segment {
    pub flags: u32,
    pub seq: u32,
    /// The number behind the segment: SYN and FIN count as a byte each.
    pub end: u32,
    pub ack: u32,
}

impl Segment {
    /// `payload`: its length in bytes.
    #[inline(always)]
    pub const fn new(flags: u8, seq: u32, ack: u32, payload: u32) -> Self {
        Self { flags: flags as u32, seq, end: end(seq, flags, payload), ack }
    }

    #[inline(always)]
    pub const fn has(&self, flags: u8) -> bool {
        self.flags & flags as u32 != 0
    }

    #[inline(always)]
    pub const fn is_syn(&self) -> bool {
        is_syn(self.flags as u8)
    }
}

/// The number behind a segment.
#[inline(always)]
pub const fn end(seq: u32, flags: u8, payload: u32) -> u32 {
    let counted = (flags & flag::SYN != 0) as u32 + (flags & flag::FIN != 0) as u32;
    seq.wrapping_add(payload).wrapping_add(counted)
}

/// The numbers that a half keeps. 0: unknown; a number that is 0 is kept as 1.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Numbers {
    /// What follows the segments of this direction; of a FIN, exactly.
    pub next: u32,
    /// The last acknowledgement of this direction, exactly; while the flow is [`DOUBTED`]. Before: the number behind a SYN for a
    /// flow that is said to be over.
    pub ack: u32,
}

/// A flow as one of its halves sees it.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tracked {
    /// Without the number in the upper half.
    pub state: u64,
    /// Of the half whose segment is followed.
    pub own: Numbers,
    /// Of the other half.
    pub peer: Numbers,
}

/// A number as it is kept.
#[inline(always)]
pub const fn kept(number: u32) -> u32 {
    if number == 0 { 1 } else { number }
}

/// Whether the number that is kept is to be written anew for an established flow's segment with this end.
#[inline(always)]
pub const fn has_moved(next: u32, end: u32) -> bool {
    end.wrapping_sub(next) > LAG
}

/// The number to keep after a segment with this end: only what continues it moves it.
#[inline(always)]
pub const fn moved(next: u32, end: u32) -> u32 {
    let ahead = end.wrapping_sub(next) as i32;
    if next == 0 || ahead > 0 && ahead <= AHEAD { kept(end) } else { next }
}

impl Tracked {
    /// Follows a segment of the client (`from_client`) or the backend. Where this completes the handshake, the caller checks the
    /// segment's checksum and follows only one that is right.
    #[inline(always)]
    pub fn follow(&mut self, segment: &Segment, from_client: bool) {
        self.state |= OPENED;
        if self.state & PROVEN != 0 && !segment.has(flag::SYN) {
            return;
        }
        if segment.has(flag::RST) {
            self.reset(segment, from_client);
        } else if segment.has(flag::SYN) {
            self.synchronise(segment, from_client);
        } else {
            self.acknowledge(segment, from_client);
        }
    }

    #[inline(always)]
    fn reset(&mut self, segment: &Segment, from_client: bool) {
        if self.state & (REPLIED | CONFIRMED) == 0 && !from_client {
            // A closed port's answer to the SYN (RFC 9293, 3.10.7.3).
            let is_exact = segment.has(flag::ACK) && segment.ack == self.peer.next;
            self.state |= if is_exact { RESET | PROVEN } else { RESET };
            return;
        }
        let (seq, next) = (segment.seq, self.own.next);
        let is_answer = self.state & DOUBTED != 0 && self.peer.ack != 0 && seq == self.peer.ack;
        // Segments without an acknowledgement that fits move the number, too.
        let is_exact =
            next != 0 && seq == next && segment.has(flag::ACK) && is_near(self.peer.next, segment.ack);
        if is_exact || is_answer {
            self.state |= RESET | PROVEN;
        } else if self.state & DOUBTED == 0 && is_near(next, seq) {
            self.state |= RESET;
        }
    }

    #[inline(always)]
    fn synchronise(&mut self, segment: &Segment, from_client: bool) {
        let begins = self.state & CONFIRMED == 0;
        // Where the flow is said to be over, the backend may begin it anew.
        let may_restart = !begins && is_closed(self.state) && self.state & DOUBTED == 0;
        if from_client {
            if begins && segment.is_syn() {
                self.own.next = kept(segment.end);
                self.state &= !(RESET | PROVEN);
            } else if may_restart {
                self.own.ack = kept(segment.end);
            }
            return;
        }
        if may_restart && segment.has(flag::ACK) && self.peer.ack != 0 && segment.ack == self.peer.ack {
            self.state = OPENED;
            self.peer = Numbers { next: kept(segment.ack), ack: 0 };
        } else if !begins {
            return;
        }
        self.state = self.state & !(RESET | PROVEN) | REPLIED;
        self.own = Numbers { next: kept(segment.end), ack: 0 };
    }

    #[inline(always)]
    fn acknowledge(&mut self, segment: &Segment, from_client: bool) {
        if !from_client {
            self.state |= REPLIED;
        }
        if self.state & CONFIRMED == 0 {
            if from_client {
                let behind = self.peer.next.wrapping_sub(segment.ack);
                let completes = self.state & REPLIED != 0
                    && segment.has(flag::ACK)
                    && (self.peer.next == 0 || behind <= FIRST_WINDOW);
                if !completes {
                    return;
                }
                self.state |= CONFIRMED;
            }
            // A SYN may have been forged since this side's own one.
            if !is_near(self.own.next, segment.end) {
                self.own.next = kept(segment.end);
            }
            self.state &= !RESET;
        }
        if !from_client {
            self.state &= !(UNANSWERED | UNANSWERED_TWICE);
        }
        let ahead = segment.end.wrapping_sub(self.own.next) as i32;
        let is_known = self.own.next != 0;
        if is_known && (ahead > AHEAD || ahead < -(LAG as i32)) {
            return;
        }
        if self.state & RESET != 0 {
            self.state = self.state & !RESET | DOUBTED;
        }
        let (fin, acked, other_fin, other_acked) = if from_client {
            (FIN_CLIENT, CLIENT_ACKED, FIN_BACKEND, BACKEND_ACKED)
        } else {
            (FIN_BACKEND, BACKEND_ACKED, FIN_CLIENT, CLIENT_ACKED)
        };
        if segment.has(flag::FIN) {
            if !is_known || is_near(self.own.next, segment.seq) {
                if self.state & (FIN_CLIENT | FIN_BACKEND) == 0 && !from_client {
                    self.state |= BACKEND_FIRST;
                }
                self.state |= fin;
                self.own.next = kept(segment.end);
            }
        } else {
            if is_known && ahead > 0 && self.state & fin != 0 {
                self.state &= !(fin | acked);
                if !from_client {
                    self.state &= !BACKEND_FIRST;
                }
            }
            self.own.next = moved(self.own.next, segment.end);
        }
        if segment.has(flag::ACK) {
            if self.state & other_fin != 0 && segment.ack == self.peer.next {
                self.state |= other_acked;
            }
            if self.state & DOUBTED != 0 && may_acknowledge(self.peer.next, segment.ack) {
                self.own.ack = kept(segment.ack);
            }
        }
    }
}

/// Whether a number is one that the sender may have reached, by what is kept of it.
#[inline(always)]
const fn is_near(next: u32, number: u32) -> bool {
    next != 0 && number.wrapping_sub(next).wrapping_add(LAG) <= 2 * LAG
}

/// Whether an acknowledgement is one that fits what the other side has sent: at most a window behind it.
#[inline(always)]
const fn may_acknowledge(next: u32, ack: u32) -> bool {
    const WINDOW: u32 = 1 << 24;
    ack.wrapping_sub(next).wrapping_add(WINDOW) <= WINDOW + LAG
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        Proto,
        tcp::state::{ESTABLISHED, first, has_ended, is_over, name},
    };

    /// A connection whose numbers are exact: the client's begin at 1000, the backend's at 5000.
    struct Connection {
        state: u64,
        halves: [Numbers; 2],
    }

    const CLIENT: bool = true;
    const BACKEND: bool = false;

    impl Connection {
        fn new() -> Self {
            let halves = [Numbers { next: 1001, ack: 0 }, Numbers::default()];
            Self { state: first(flag::SYN), halves }
        }

        fn open() -> Self {
            let mut open = Self::new();
            open.sends(BACKEND, flag::SYN | flag::ACK, 5000, 1001, 0);
            open.sends(CLIENT, flag::ACK, 1001, 5001, 0);
            assert_eq!(open.state, ESTABLISHED);
            open
        }

        fn sends(&mut self, from_client: bool, flags: u8, seq: u32, ack: u32, payload: u32) -> &'static str {
            let (own, peer) = if from_client { (0, 1) } else { (1, 0) };
            let mut tracked = Tracked { state: self.state, own: self.halves[own], peer: self.halves[peer] };
            tracked.follow(&Segment::new(flags, seq, ack, payload), from_client);
            self.state = tracked.state;
            (self.halves[own], self.halves[peer]) = (tracked.own, tracked.peer);
            name(self.state, Proto::TCP)
        }
    }

    #[test]
    fn a_connection_from_syn_to_time_wait() {
        let mut flow = Connection::new();
        assert_eq!(name(flow.state, Proto::TCP), "SYN_SENT");
        assert_eq!(flow.sends(BACKEND, flag::SYN | flag::ACK, 5000, 1001, 0), "SYN_RECV");
        assert_eq!(flow.sends(CLIENT, flag::ACK, 1001, 5001, 0), "ESTABLISHED");
        assert_eq!(flow.sends(CLIENT, flag::FIN | flag::ACK, 1001, 5001, 100), "FIN_WAIT");
        assert_eq!(flow.sends(BACKEND, flag::ACK, 5001, 1102, 0), "FIN_WAIT");
        assert_eq!(flow.sends(BACKEND, flag::FIN | flag::ACK, 5001, 1102, 0), "TIME_WAIT");
        assert!(is_closed(flow.state) && !is_over(flow.state), "the last FIN is not acknowledged");
        flow.sends(CLIENT, flag::ACK, 1102, 5002, 0);
        assert!(is_over(flow.state) && has_ended(flow.state));
    }

    #[test]
    fn a_backend_that_closes_first_keeps_the_tuple() {
        let mut flow = Connection::open();
        flow.sends(BACKEND, flag::FIN | flag::ACK, 5001, 1001, 0);
        flow.sends(CLIENT, flag::FIN | flag::ACK, 1001, 5002, 0);
        flow.sends(BACKEND, flag::ACK, 5002, 1002, 0);
        assert!(is_over(flow.state) && !has_ended(flow.state));
        flow.sends(CLIENT, flag::RST | flag::ACK, 1002, 5002, 0);
        assert!(has_ended(flow.state));
    }

    #[test]
    fn a_handshake_is_complete_when_the_backends_number_is_acknowledged() {
        for (ack, want) in [
            (5001_u32, true),
            (5000, true),
            (5002, false),
            (4999_u32.wrapping_sub(1 << 14), false),
            (5001 + (1 << 31), false),
        ] {
            let mut flow = Connection::new();
            flow.sends(BACKEND, flag::SYN | flag::ACK, 5000, 1001, 0);
            flow.sends(CLIENT, flag::ACK, 1001, ack, 0);
            assert_eq!(flow.state & CONFIRMED != 0, want, "{ack}");
        }
        let mut flow = Connection::new();
        flow.sends(CLIENT, flag::ACK, 1001, 5001, 0);
        assert_eq!(flow.state, OPENED, "not before the backend's answer");
    }

    #[test]
    fn a_reset_counts_by_its_number() {
        for (seq, closed, over) in [
            (1001, true, true),
            (1000, true, false),
            (1001 + LAG, true, false),
            (1001_u32.wrapping_sub(LAG), true, false),
            (1002 + LAG, false, false),
            (1000_u32.wrapping_sub(LAG), false, false),
            (1001 + (1 << 31), false, false),
        ] {
            let mut flow = Connection::open();
            flow.sends(CLIENT, flag::RST | flag::ACK, seq, 5001, 0);
            assert_eq!((is_closed(flow.state), is_over(flow.state)), (closed, over), "{seq}");
        }
        let mut flow = Connection::open();
        flow.sends(CLIENT, flag::RST, 1001, 0, 0);
        assert!(is_closed(flow.state) && !is_over(flow.state), "without an acknowledgement it is a claim");
    }

    /// Segments that continue the connection by chance move the number, and a reset with it is no proof.
    #[test]
    fn a_number_that_was_moved_proves_nothing() {
        let mut flow = Connection::open();
        flow.sends(CLIENT, flag::ACK, 900_000, 0x7777_7777, 0);
        flow.halves[0].next = 900_000;
        flow.sends(CLIENT, flag::RST | flag::ACK, 900_000, 0x7777_7777, 0);
        assert!(!is_over(flow.state));
        flow.sends(BACKEND, flag::ACK, 5001, 1001, 0);
        assert_eq!(name(flow.state, Proto::TCP), "ESTABLISHED");
    }

    #[test]
    fn a_syn_ack_without_a_syn_begins_nothing_anew() {
        let mut flow = Connection::open();
        flow.sends(CLIENT, flag::RST, 1001, 0, 0);
        let state = flow.state;
        for flags in [flag::SYN, flag::SYN | flag::ACK] {
            flow.sends(BACKEND, flags, 99_000, 0, 0);
            assert_eq!(flow.state, state);
        }
    }

    #[test]
    fn a_claim_is_taken_back_and_not_made_twice() {
        let mut flow = Connection::open();
        flow.sends(CLIENT, flag::RST, 1100, 0, 0);
        assert!(is_closed(flow.state));
        // The backend's answer to a reset that is in its window (RFC 5961).
        flow.sends(BACKEND, flag::ACK, 5001, 1001, 0);
        assert!(!is_closed(flow.state));
        flow.sends(CLIENT, flag::RST, 1100, 0, 0);
        assert!(!is_closed(flow.state), "the backend does not answer twice within half a second");
        flow.sends(CLIENT, flag::RST, 1001, 0, 0);
        assert!(is_over(flow.state));
        flow.sends(BACKEND, flag::ACK, 5001, 1001, 0);
        assert!(is_over(flow.state));
    }

    /// A client that ends an upload: answers of the backend that were on their way arrive at a closed port.
    #[test]
    fn a_reset_among_answers_on_their_way() {
        let mut flow = Connection::open();
        flow.sends(CLIENT, flag::ACK, 1001, 5001, 60_000);
        flow.halves[0].next = 1001; // As after an established flow's packets: it lags.
        flow.sends(CLIENT, flag::RST | flag::ACK, 61_001, 5001, 0);
        assert!(is_closed(flow.state) && !is_over(flow.state));
        for ack in [20_000, 40_000] {
            flow.sends(BACKEND, flag::ACK, 5001, ack, 0);
        }
        assert!(!is_closed(flow.state));
        for seq in [20_000, 40_000] {
            flow.sends(CLIENT, flag::RST, seq, 0, 0);
        }
        assert!(is_over(flow.state));
    }

    #[test]
    fn a_refusal_counts_by_its_acknowledgement() {
        for (ack, over) in [(1001, true), (1000, false), (0, false)] {
            let mut flow = Connection::new();
            flow.sends(BACKEND, flag::RST | flag::ACK, 0, ack, 0);
            assert_eq!((is_closed(flow.state), is_over(flow.state)), (true, over), "{ack}");
        }
    }

    #[test]
    fn a_forged_fin_is_taken_back_by_data_beyond_it() {
        let mut flow = Connection::open();
        assert_eq!(flow.sends(CLIENT, flag::FIN | flag::ACK, 1101, 5001, 0), "FIN_WAIT");
        assert_eq!(flow.sends(CLIENT, flag::ACK, 1001, 5001, 50), "FIN_WAIT", "not beyond it");
        assert_eq!(flow.sends(CLIENT, flag::ACK, 1051, 5001, 500), "ESTABLISHED");
        assert_eq!(flow.sends(CLIENT, flag::FIN | flag::ACK, 1001 + (1 << 30), 5001, 0), "ESTABLISHED");
    }

    #[test]
    fn fins_that_nobody_acknowledged_end_nothing() {
        let mut flow = Connection::open();
        flow.sends(CLIENT, flag::FIN | flag::ACK, 1011, 5001, 0);
        flow.sends(BACKEND, flag::FIN | flag::ACK, 5011, 1001, 0);
        flow.sends(CLIENT, flag::ACK, 1001, 5001, 0);
        assert!(is_closed(flow.state) && !is_over(flow.state));
    }

    #[test]
    fn a_syn_leaves_an_open_flow_alone() {
        for from in [CLIENT, BACKEND] {
            let mut flow = Connection::open();
            let (state, halves) = (flow.state, flow.halves);
            flow.sends(from, flag::SYN, 77_000, 0, 0);
            flow.sends(BACKEND, flag::SYN | flag::ACK, 99_000, 77_001, 0);
            assert_eq!((flow.state, flow.halves), (state, halves));
        }
    }

    /// The client's tuple is used again before the last acknowledgement of the old connection was seen.
    #[test]
    fn a_backend_begins_anew_what_is_said_to_be_over() {
        let mut flow = Connection::open();
        flow.sends(BACKEND, flag::FIN | flag::ACK, 5001, 1001, 0);
        flow.sends(CLIENT, flag::FIN | flag::ACK, 1001, 5002, 0);
        assert!(is_closed(flow.state) && !is_over(flow.state));
        flow.sends(CLIENT, flag::SYN, 77_000, 0, 0);
        flow.sends(BACKEND, flag::SYN | flag::ACK, 99_000, 77_001, 0);
        assert_eq!(flow.sends(CLIENT, flag::ACK, 77_001, 99_001, 0), "ESTABLISHED");
        flow.sends(CLIENT, flag::RST | flag::ACK, 77_001, 99_001, 0);
        assert!(is_over(flow.state));
    }

    #[test]
    fn a_number_moves_only_by_what_continues_it() {
        assert_eq!(moved(1000, 1500), 1500);
        assert_eq!(moved(1000, 900), 1000, "sent again");
        assert_eq!(moved(1000, 1000 + (1 << 30)), 1000, "forged");
        assert_eq!(moved(0, 7), 7, "unknown before");
        assert_eq!(moved(u32::MAX, 0), 1, "0 is kept as 1");
        assert!(!has_moved(1000, 1000 + LAG) && has_moved(1000, 1001 + LAG) && has_moved(1000, 999));
    }
}
