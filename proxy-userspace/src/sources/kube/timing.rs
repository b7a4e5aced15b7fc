//! The times that the reflectors keep.

use std::time::Duration;

/// Tests shorten them.
#[derive(Clone, Copy, Debug)]
pub struct Timing {
    /// `timeoutSeconds` of a watch; up to 20 % are added, so that not all watches end together.
    pub watch: Duration,
    /// A server that supports bookmarks sends one every minute. One that has sent bookmarks and then stays silent for
    /// this long hangs, or waits for a version that it will not reach.
    pub bookmark: Duration,
    /// An empty list of a resource that is never empty is accepted once it has been repeated for this long.
    pub believe_empty: Duration,
    /// Delay before such a list is requested again.
    pub ask_again: Duration,
    /// Interval at which a resource that the server does not serve is requested again.
    pub unserved: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            watch: Duration::from_secs(290),
            bookmark: Duration::from_secs(150),
            believe_empty: Duration::from_secs(60),
            ask_again: Duration::from_secs(5),
            unserved: Duration::from_secs(600),
        }
    }
}
