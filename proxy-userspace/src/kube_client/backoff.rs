//! Delay before a retry: growing with each failure, and randomised so that nodes do not retry at the same time.
//!
//! An unreachable server is retried often: changes should arrive within seconds after it is back, and a refused
//! connection is cheap. A server that responds with an error is left alone for longer: every node of the cluster would
//! request all lists from it.

use std::{
    hash::{BuildHasher as _, Hasher as _, RandomState},
    time::Duration,
};

use super::error::RequestError;

const FIRST: Duration = Duration::from_millis(200);
/// Limit while the server is unreachable.
const AWAY: Duration = Duration::from_secs(2);
/// Limit while the server refuses.
const REFUSED: Duration = Duration::from_secs(30);
/// Limit of Retry-After.
const PUT_OFF: Duration = Duration::from_secs(60);

/// Counts consecutive failures.
#[derive(Debug, Default)]
pub struct Backoff {
    failures: u32,
    was_refused: bool,
}

impl Backoff {
    /// A request succeeded.
    pub fn reset(&mut self) {
        self.failures = 0;
    }

    /// The delay after this failure.
    pub fn after(&mut self, error: &RequestError) -> Duration {
        // 502 and 503: a load balancer in front of an unreachable server, or a server that is starting.
        let is_refused = error.code().is_some_and(|code| !matches!(code, 502 | 503));
        if is_refused != std::mem::replace(&mut self.was_refused, is_refused) {
            // The first refusal after the server was unreachable.
            self.failures = 0;
        }
        let limit = if is_refused { REFUSED } else { AWAY };
        let grown = FIRST * (1 << self.failures.min(10));
        self.failures = self.failures.saturating_add(1);
        match error.retry_after() {
            // Retry-After plus a random part: the server sends the same value to every node.
            Some(told) => told.min(PUT_OFF) + FIRST.mul_f64(chance() * 5.0),
            None => grown.min(limit).mul_f64(0.75 + chance() / 2.0),
        }
    }
}

/// A random number from 0 to 1.
pub fn chance() -> f64 {
    // Each RandomState has different keys; good enough to spread nodes.
    let bits = RandomState::new().build_hasher().finish() >> 11;
    bits as f64 / (1u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(code: u16, retry_after: Option<u64>) -> RequestError {
        let retry_after = retry_after.map(Duration::from_secs);
        RequestError::Refused { code, reason: "x".into(), message: "y".into(), retry_after }
    }

    #[test]
    fn waits_grow_to_a_limit_that_depends_on_the_failure() {
        let away = RequestError::Unreachable("refused".into());
        for (error, limit) in [
            (away, AWAY),
            (refused(503, None), AWAY),
            (refused(403, None), REFUSED),
            (refused(504, None), REFUSED),
        ] {
            let mut backoff = Backoff::default();
            assert!(backoff.after(&error) <= FIRST.mul_f64(1.25));
            let waits: Vec<Duration> = (0..20).map(|_| backoff.after(&error)).collect();
            assert!(waits.iter().all(|wait| *wait <= limit.mul_f64(1.25)), "{waits:?}");
            assert!(waits[19] >= limit.mul_f64(0.75), "{waits:?}");
            backoff.reset();
            assert!(backoff.after(&error) <= FIRST.mul_f64(1.25));
        }
    }

    #[test]
    fn a_server_that_is_back_and_refuses_is_asked_again_soon() {
        let mut backoff = Backoff::default();
        let away = RequestError::Unreachable("refused".into());
        let last = (0..20).map(|_| backoff.after(&away)).last();
        assert!(last.is_some_and(|wait| wait > FIRST * 5), "{last:?}");
        assert!(backoff.after(&refused(403, None)) <= FIRST.mul_f64(1.25));
    }

    #[test]
    fn the_servers_word_counts() {
        let wait = Backoff::default().after(&refused(429, Some(3)));
        assert!(wait >= Duration::from_secs(3) && wait <= Duration::from_secs(4), "{wait:?}");
        assert!(Backoff::default().after(&refused(429, Some(86_400))) <= PUT_OFF + FIRST * 5);
    }

    #[test]
    fn two_nodes_do_not_ask_at_the_same_time() {
        let waits: std::collections::BTreeSet<Duration> =
            (0..50).map(|_| Backoff::default().after(&refused(500, None))).collect();
        assert!(waits.len() > 40, "{waits:?}");
    }
}
