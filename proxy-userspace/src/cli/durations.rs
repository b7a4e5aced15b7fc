//! Durations as Go writes them (`1h30m`, `5s`, `1.5m`, `250ms`): kube-proxy's flags take these, so ours do. And the
//! time-outs of flows, which are given so.

use super::{args::TimeoutArgs, resolve::UsageError};
use crate::config::Timeouts;

/// The longest time-out: time stamps of flows are 32 bits of jiffies, which tell 24 days apart at 1000 a second.
const MAX: u32 = 7 * 24 * 3600;

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
            value: args.conntrack_udp_timeout_stream.clone(),
            expected: "at least as long as --conntrack-udp-timeout",
        });
    }
    Ok(found)
}

/// Whole seconds, rounded up.
fn seconds(flag: &'static str, text: &str, usual: u32) -> Result<u32, UsageError> {
    let bad = || UsageError::BadValue { flag, value: text.to_owned(), expected: EXPECTED };
    let nanos = go_duration(text.trim()).ok_or_else(bad)?;
    match nanos.div_ceil(1_000_000_000) {
        0 => Ok(usual),
        // Less than a second rounds up, which would hide that it was not meant.
        _ if nanos < 1_000_000_000 => Err(bad()),
        seconds if seconds <= u128::from(MAX) => Ok(seconds as u32),
        _ => Err(bad()),
    }
}

/// Nanoseconds: numbers with units one after the other, without a sign; `0` needs no unit.
fn go_duration(text: &str) -> Option<u128> {
    if text == "0" {
        return Some(0);
    }
    let mut rest = text;
    let mut total = 0u128;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let (number, after) = rest.split_at(digits);
        let units = after.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(after.len());
        let (unit, more) = after.split_at(units);
        let scale: u128 = match unit {
            "ns" => 1,
            "us" | "µs" => 1_000,
            "ms" => 1_000_000,
            "s" => 1_000_000_000,
            "m" => 60_000_000_000,
            "h" => 3_600_000_000_000,
            _ => return None,
        };
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if number.len() > 12 || whole.is_empty() && fraction.is_empty() {
            return None;
        }
        let parse = |digits: &str| if digits.is_empty() { Some(0) } else { digits.parse::<u128>().ok() };
        let part = parse(fraction)? * scale / 10u128.pow(fraction.len() as u32);
        total += parse(whole)? * scale + part;
        rest = more;
    }
    (!text.is_empty()).then_some(total)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_as_go_reads_them() {
        for (text, want) in [
            ("24h0m0s", Some(86_400 * 1_000_000_000)),
            ("1h30m", Some(5_400 * 1_000_000_000)),
            ("1.5m", Some(90 * 1_000_000_000)),
            (".5s", Some(500_000_000)),
            ("250ms", Some(250_000_000)),
            ("0", Some(0)),
            ("0s", Some(0)),
            ("", None),
            ("5", None),
            ("-5s", None),
            ("s", None),
            (".s", None),
            ("5d", None),
            ("1h 5m", None),
            ("1.2.3s", None),
        ] {
            assert_eq!(go_duration(text), want, "{text:?}");
        }
    }

    #[test]
    fn zero_is_the_default_and_bounds_are_kept() {
        assert_eq!(seconds("--x", "0", 7), Ok(7));
        assert_eq!(seconds("--x", "90s", 7), Ok(90));
        assert_eq!(seconds("--x", "1500ms", 7), Ok(2));
        for text in ["500ms", "169h", "ten", "-1s"] {
            let error = seconds("--x", text, 7).unwrap_err().to_string();
            assert!(error.contains("--x") && error.contains(text) && error.contains("168h"), "{error}");
        }
    }
}
