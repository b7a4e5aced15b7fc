//! Options of `shunt monitor`, as resolved from its flags.

use std::time::Duration;

use super::filter::Filter;

/// What to show, and for how long.
#[derive(Clone, Debug)]
pub struct Options {
    pub filter: Filter,
    /// Sampling rate: one event in so many, at random.
    pub one_in: u32,
    /// Exit after this many events.
    pub count: Option<u64>,
    pub duration: Option<Duration>,
}
