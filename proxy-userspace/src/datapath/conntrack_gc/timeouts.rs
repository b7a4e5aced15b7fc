//! How long a flow may be idle, by protocol and state.

use proxy_common::{Proto, tcp};

use crate::config::Timeouts;

/// UDP traffic in both directions for this many seconds makes a flow a stream, as in nf_conntrack. A single query and its
/// response do not: a busy resolver would fill CONNTRACK with finished flows.
const STREAM: u32 = 2;

impl Timeouts {
    /// Shortened as the table fills: first for closed flows, then for half-open ones, so that a SYN flood does not keep
    /// new flows out for a minute.
    pub fn with_room(self, entries: usize, max: usize) -> Self {
        let mut timeouts = self;
        if entries > max / 2 {
            timeouts.time_wait = self.time_wait.min(self.closed);
        }
        if entries > max / 4 * 3 {
            timeouts.opening = self.opening.min(10);
            timeouts.closed = self.closed.min(3);
            timeouts.time_wait = timeouts.closed;
            timeouts.unreplied = self.unreplied.min(10);
            timeouts.assured = self.assured.min(60);
        }
        timeouts
    }

    /// For a flow whose last packet came `lasted` seconds after its first.
    pub(super) fn of(&self, state: u64, proto: u8, is_masqueraded: bool, lasted: u32) -> u32 {
        let replied = state & tcp::REPLIED != 0;
        // A flow without any number was closed before an upgrade, or under another proxy.
        let is_over = tcp::is_over(state) || tcp::is_closed(state) && state & !tcp::FLAGS == 0;
        let backend_waits = is_masqueraded || state & tcp::BACKEND_FIRST != 0;
        match proto {
            Proto::TCP if state & tcp::RESET != 0 => self.closed,
            Proto::TCP if is_over && backend_waits => self.time_wait,
            Proto::TCP if is_over => self.closed,
            Proto::TCP if state & tcp::CONFIRMED == 0 => self.opening,
            Proto::TCP if state & (tcp::FIN_CLIENT | tcp::FIN_BACKEND) != 0 => self.half_closed,
            Proto::TCP => self.established,
            _ if replied && lasted >= STREAM => self.assured,
            _ => self.unreplied,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_backend_that_closed_first_keeps_its_tuple_in_time_wait() {
        let timeouts = Timeouts::default();
        let ends = tcp::ESTABLISHED | tcp::FIN_CLIENT | tcp::FIN_BACKEND;
        let closed = ends | tcp::LAST_ACK;
        for (state, is_masqueraded, seconds) in [
            (ends, false, timeouts.closed),
            (1 << 32 | ends, false, timeouts.half_closed),
            (closed, false, timeouts.closed),
            (closed, true, timeouts.time_wait),
            (closed | tcp::BACKEND_FIRST, false, timeouts.time_wait),
            (closed | tcp::BACKEND_FIRST | tcp::RESET, false, timeouts.closed),
        ] {
            assert_eq!(
                timeouts.of(state, Proto::TCP, is_masqueraded, 1),
                seconds,
                "{state:#x} {is_masqueraded}"
            );
        }
    }

    #[test]
    fn a_full_table_shortens_what_is_over_and_what_has_not_begun() {
        let usual = Timeouts::default();
        assert_eq!(usual.with_room(500, 1000), usual);
        let half = Timeouts { time_wait: usual.closed, ..usual };
        assert_eq!(usual.with_room(501, 1000), half);
        let full = usual.with_room(751, 1000);
        assert!(
            full.opening < usual.opening && full.unreplied < usual.unreplied && full.closed < usual.closed
        );
        assert_eq!((full.established, full.half_closed), (usual.established, usual.half_closed));
    }
}
