//! COUNTERS.

use proxy_common::Counter;

use crate::maps::COUNTERS;

/// Adds one. Per CPU and not preempted by another program on it: no atomic needed.
#[inline(always)]
pub fn count(counter: Counter) {
    count_number(counter as u32);
}

/// The same by number.
#[inline(always)]
pub fn count_number(counter: u32) {
    if let Some(value) = COUNTERS.get_ptr_mut(counter) {
        // SAFETY: a live element of a per-CPU array, which only this CPU writes.
        unsafe { *value += 1 };
    }
}
