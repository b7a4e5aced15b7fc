//! The state of a flow: whether it is beginning, open, closing or over. Bits that both halves of a flow have; `track.rs` sets those
//! of TCP.

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
/// The TCP handshake is complete: the client has acknowledged the backend's first segment.
pub const CONFIRMED: u64 = 32;

/// The backend has sent FIN before the client: it keeps the tuple in TIME-WAIT for a minute.
pub const BACKEND_FIRST: u64 = 128;

/// The RST had the exact numbers: nothing takes it back.
pub const PROVEN: u64 = 256;

/// A claim to reset the flow was taken back. Both halves keep exact numbers from now on.
pub const DOUBTED: u64 = 512;

/// The FIN has been acknowledged: the client's, the backend's.
pub const CLIENT_ACKED: u64 = 1024;
pub const BACKEND_ACKED: u64 = 2048;

/// Both FINs have been acknowledged.
pub const LAST_ACK: u64 = CLIENT_ACKED | BACKEND_ACKED;

/// SYNs of the client, a second apart, that a backend which is no longer served has left unanswered: one, two.
pub const UNANSWERED: u64 = 4096;
pub const UNANSWERED_TWICE: u64 = 8192;

/// The half of the stored word that holds these bits; the upper half is a sequence number.
pub const FLAGS: u64 = 0xffff_ffff;

/// An established flow of which there is nothing to notice but traffic.
pub const ESTABLISHED: u64 = OPENED | REPLIED | CONFIRMED;

/// The first segment of a connection: SYN without ACK, RST, FIN.
#[inline(always)]
pub const fn is_syn(flags: u8) -> bool {
    flags & (flag::SYN | flag::ACK | flag::RST | flag::FIN) == flag::SYN
}

/// The flow is said to be over: what follows may contradict it.
#[inline(always)]
pub const fn is_closed(state: u64) -> bool {
    state & RESET != 0 || state & (FIN_CLIENT | FIN_BACKEND) == FIN_CLIENT | FIN_BACKEND
}

/// The flow is over for sure: a SYN begins another one.
#[inline(always)]
pub const fn is_over(state: u64) -> bool {
    state & PROVEN != 0 || state & LAST_ACK == LAST_ACK
}

/// Another flow may use the same tuple towards the backend. In LAST-ACK, and mostly in TIME-WAIT (the timestamps of another
/// connection are not comparable), the backend takes a new SYN for a segment of the old connection.
#[inline(always)]
pub const fn has_ended(state: u64) -> bool {
    state & PROVEN != 0 || is_over(state) && state & BACKEND_FIRST == 0
}

/// The state of a flow that begins with a segment with these flags.
#[inline(always)]
pub const fn first(flags: u8) -> u64 {
    if flags & flag::FIN != 0 { OPENED | FIN_CLIENT } else { OPENED }
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

    /// Each of two CPUs sees one acknowledgement of a simultaneous close.
    #[test]
    fn acknowledgements_seen_apart_end_the_flow() {
        let state = ESTABLISHED | FIN_CLIENT | FIN_BACKEND;
        assert!(!is_over(state | CLIENT_ACKED) && is_over(state | CLIENT_ACKED | BACKEND_ACKED));
    }
}
