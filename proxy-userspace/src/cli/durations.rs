//! The flags that are durations, which kube-proxy's flags have as Go writes them, and so have ours: the time-outs of
//! flows, and how often to sync.

use std::time::Duration;

use super::{args::TimeoutArgs, resolve::UsageError};
use crate::{
    config::Timeouts,
    kube_proxy_config::duration::{self, LOOKS_LIKE},
};

/// The longest time-out: time stamps of flows are 32 bits of jiffies, which tell 24 days apart at 1000 a second.
pub const MAX: u32 = 7 * 24 * 3600;

const EXPECTED: &str = "a duration from 1s to 168h such as 30s, 10m or 1h30m (0 is the default)";

/// The time-outs of flows.
pub fn timeouts(args: &TimeoutArgs) -> Result<Timeouts, UsageError> {
    let usual = Timeouts::default();
    let found = Timeouts {
        opening: seconds("--conntrack-tcp-timeout-syn", &args.conntrack_tcp_timeout_syn, usual.opening)?,
        established: seconds(
            "--conntrack-tcp-timeout-established",
            &args.conntrack_tcp_timeout_established,
            usual.established,
        )?,
        half_closed: seconds(
            "--conntrack-tcp-timeout-close-wait",
            &args.conntrack_tcp_timeout_close_wait,
            usual.half_closed,
        )?,
        closed: seconds("--conntrack-tcp-timeout-closed", &args.conntrack_tcp_timeout_closed, usual.closed)?,
        time_wait: seconds(
            "--conntrack-tcp-timeout-time-wait",
            &args.conntrack_tcp_timeout_time_wait,
            usual.time_wait,
        )?,
        unreplied: seconds("--conntrack-udp-timeout", &args.conntrack_udp_timeout, usual.unreplied)?,
        assured: seconds(
            "--conntrack-udp-timeout-stream",
            &args.conntrack_udp_timeout_stream,
            usual.assured,
        )?,
    };
    if found.assured < found.unreplied {
        return Err(UsageError::BadValue {
            flag: "--conntrack-udp-timeout-stream",
            value: args.conntrack_udp_timeout_stream.clone().unwrap_or_else(|| format!("{}s", usual.assured)),
            expected: "at least as long as --conntrack-udp-timeout",
        });
    }
    Ok(found)
}

/// Any duration.
pub fn any(flag: &'static str, text: &str) -> Result<Duration, UsageError> {
    let bad = || UsageError::BadValue { flag, value: text.to_owned(), expected: LOOKS_LIKE };
    duration::parse(text.trim()).ok_or_else(bad)
}

/// Whole seconds, rounded up.
fn seconds(flag: &'static str, text: &Option<String>, usual: u32) -> Result<u32, UsageError> {
    let Some(text) = text else { return Ok(usual) };
    let bad = || UsageError::BadValue { flag, value: text.clone(), expected: EXPECTED };
    let nanos = duration::parse(text.trim()).ok_or_else(bad)?.as_nanos();
    match nanos.div_ceil(1_000_000_000) {
        0 => Ok(usual),
        // Less than a second rounds up, which would hide that it was not meant.
        _ if nanos < 1_000_000_000 => Err(bad()),
        seconds if seconds <= u128::from(MAX) => Ok(seconds as u32),
        _ => Err(bad()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zero_is_the_default_and_bounds_are_kept() {
        let seconds = |flag, text: &str, usual| seconds(flag, &Some(text.to_owned()), usual);
        assert_eq!(super::seconds("--x", &None, 7), Ok(7));
        assert_eq!(seconds("--x", "0", 7), Ok(7));
        assert_eq!(seconds("--x", "90s", 7), Ok(90));
        assert_eq!(seconds("--x", "1500ms", 7), Ok(2));
        for text in ["500ms", "169h", "ten", "-1s"] {
            let error = seconds("--x", text, 7).unwrap_err().to_string();
            assert!(error.contains("--x") && error.contains(text) && error.contains("168h"), "{error}");
        }
    }
}
