//! Flags whose values are durations in Go's syntax, as in kube-proxy.

use std::time::Duration;

use super::usage_error::UsageError;
use crate::kube_proxy_config::duration::{self, EXPECTED_DURATION};

/// The longest timeout. Time stamps of flows are 32 bits of jiffies, which can express 24 days at 1000 Hz.
pub const MAX_SECONDS: u32 = 7 * 24 * 3600;

const EXPECTED_TIMEOUT: &str = "a duration from 1s to 168h such as 30s, 10m or 1h30m (0 selects the default)";

/// A duration without bounds.
pub fn parse(flag: &'static str, text: &str) -> Result<Duration, UsageError> {
    let bad = || UsageError::BadValue { flag, value: text.to_owned(), expected: EXPECTED_DURATION };
    duration::parse(text.trim()).ok_or_else(bad)
}

/// A timeout in whole seconds, rounded up; absent or 0 is the default.
pub fn seconds(flag: &'static str, text: &Option<String>, default: u32) -> Result<u32, UsageError> {
    let Some(text) = text else { return Ok(default) };
    let bad = || UsageError::BadValue { flag, value: text.clone(), expected: EXPECTED_TIMEOUT };
    let nanos = duration::parse(text.trim()).ok_or_else(bad)?.as_nanos();
    match nanos.div_ceil(1_000_000_000) {
        0 => Ok(default),
        // Rounding up would hide a wrong unit.
        _ if nanos < 1_000_000_000 => Err(bad()),
        seconds if seconds <= u128::from(MAX_SECONDS) => Ok(seconds as u32),
        _ => Err(bad()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zero_is_the_default_and_bounds_are_kept() {
        let seconds = |flag, text: &str, default| seconds(flag, &Some(text.to_owned()), default);
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
