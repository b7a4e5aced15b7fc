//! The part of TCP's state machine that a translator needs: whether a flow is beginning, open, closing or closed.
//!
//! The state is a set of bits that only ever grows, except for RST: a reset from off path must not end a flow, so it
//! shortens the flow's lifetime and is reverted when traffic continues.

/// TCP header flags, as in byte 13.
pub mod flag {
    pub const FIN: u8 = 0x01;
    pub const SYN: u8 = 0x02;
    pub const RST: u8 = 0x04;
    pub const ACK: u8 = 0x10;
}

/// The client has sent something (always set).
pub const OPENED: u64 = 1;
/// The backend has answered.
pub const REPLIED: u64 = 2;
/// The client has sent FIN.
pub const FIN_CLIENT: u64 = 4;
/// The backend has sent FIN.
pub const FIN_BACKEND: u64 = 8;
/// One side has sent RST.
pub const RESET: u64 = 16;
/// The client has sent something after the backend's first answer: the TCP handshake is complete.
pub const CONFIRMED: u64 = 32;

/// A segment without FIN has followed both FINs. Nearly always it acknowledges the last one; numbers are not compared.
pub const LAST_ACK: u64 = 64;

/// The backend has sent FIN before the client: it keeps the tuple in TIME-WAIT for a minute.
pub const BACKEND_FIRST: u64 = 128;

/// The first segment of a connection: SYN without ACK, RST, FIN.
#[inline(always)]
pub const fn is_syn(flags: u8) -> bool {
    flags & (flag::SYN | flag::ACK | flag::RST | flag::FIN) == flag::SYN
}

/// Both sides are done: a new SYN may reuse the tuple at once.
#[inline(always)]
pub const fn is_closed(state: u64) -> bool {
    state & RESET != 0 || state & (FIN_CLIENT | FIN_BACKEND) == FIN_CLIENT | FIN_BACKEND
}

/// Another flow may use the same tuple towards the backend. In LAST-ACK, and mostly in TIME-WAIT (the timestamps of another
/// connection are not comparable), the backend takes a new SYN for a segment of the old connection.
#[inline(always)]
pub const fn has_ended(state: u64) -> bool {
    state & RESET != 0 || state & (LAST_ACK | BACKEND_FIRST) == LAST_ACK
}

/// The state after a TCP segment with these flags from the client (`from_client`) or the backend.
#[inline(always)]
pub const fn advance(state: u64, flags: u8, from_client: bool) -> u64 {
    if flags & flag::RST != 0 {
        return state | RESET;
    }
    const BOTH: u64 = FIN_CLIENT | FIN_BACKEND;
    let mut next = state & !RESET | OPENED;
    if state & BOTH == BOTH && flags & flag::FIN == 0 {
        next |= LAST_ACK;
    }
    if from_client {
        if state & REPLIED != 0 {
            next |= CONFIRMED;
        }
        if flags & flag::FIN != 0 {
            next |= FIN_CLIENT;
        }
    } else {
        next |= REPLIED;
        if flags & flag::FIN != 0 {
            next |= FIN_BACKEND;
            if state & (FIN_CLIENT | FIN_BACKEND) == 0 {
                next |= BACKEND_FIRST;
            }
        }
    }
    next
}

/// The state after a datagram of a protocol without states of its own.
#[inline(always)]
pub const fn advance_datagram(state: u64, from_client: bool) -> u64 {
    if from_client { state | OPENED } else { state | OPENED | REPLIED }
}

/// The flow's state as `shunt conntrack list` shows it.
pub const fn name(state: u64, proto: u8) -> &'static str {
    if proto != crate::Proto::TCP {
        return if state & REPLIED != 0 { "ASSURED" } else { "UNREPLIED" };
    }
    if state & RESET != 0 {
        "CLOSE"
    } else if is_closed(state) {
        "TIME_WAIT"
    } else if state & FIN_CLIENT != 0 {
        "FIN_WAIT"
    } else if state & FIN_BACKEND != 0 {
        "CLOSE_WAIT"
    } else if state & CONFIRMED != 0 {
        "ESTABLISHED"
    } else if state & REPLIED != 0 {
        "SYN_RECV"
    } else {
        "SYN_SENT"
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Proto;

    #[test]
    fn a_connection_from_syn_to_time_wait() {
        let steps = [
            (flag::SYN, true, "SYN_SENT"),
            (flag::SYN | flag::ACK, false, "SYN_RECV"),
            (flag::ACK, true, "ESTABLISHED"),
            (flag::FIN | flag::ACK, true, "FIN_WAIT"),
            (flag::ACK, false, "FIN_WAIT"),
            (flag::FIN | flag::ACK, false, "TIME_WAIT"),
            (flag::FIN | flag::ACK, false, "TIME_WAIT"),
        ];
        let mut state = 0;
        for (flags, from_client, want) in steps {
            state = advance(state, flags, from_client);
            assert_eq!(name(state, Proto::TCP), want, "after {flags:#x} client={from_client}");
        }
        assert!(is_closed(state) && !has_ended(state), "the last FIN is not acknowledged");
        state = advance(state, flag::ACK, true);
        assert!(is_closed(state) && has_ended(state));
    }

    #[test]
    fn a_backend_that_closes_first_keeps_the_tuple() {
        let end = flag::FIN | flag::ACK;
        let steps = [(flag::SYN, true), (end, false), (end, true), (flag::ACK, false), (flag::ACK, true)];
        let state =
            steps.into_iter().fold(0, |state, (flags, from_client)| advance(state, flags, from_client));
        assert!(is_closed(state) && state & LAST_ACK != 0 && !has_ended(state));
        assert!(has_ended(advance(state, flag::RST, true)));
    }

    #[test]
    fn a_reset_is_taken_back_by_traffic() {
        let open = OPENED | REPLIED | CONFIRMED;
        let reset = advance(open, flag::RST, false);
        assert!(is_closed(reset));
        assert!(!is_closed(advance(reset, flag::ACK, true)));
    }
}
