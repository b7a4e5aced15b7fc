//! COUNTERS.

use proxy_common::Counter;

use crate::maps::COUNTERS;

/// Adds one. Per CPU and not preempted by another program on it: no atomic needed.
#[inline(always)]
pub fn count(counter: Counter) {
    if let Some(value) = COUNTERS.get_ptr_mut(counter as u32) {
        // SAFETY: a live element of a per-CPU array, which only this CPU writes.
        unsafe { *value += 1 };
    }
}
