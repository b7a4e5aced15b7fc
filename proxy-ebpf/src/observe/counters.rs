//! COUNTERS: what the datapath did, and why it dropped.

use proxy_common::Counter;

use crate::base::maps::COUNTERS;

/// Adds one. Not atomic: the element is per CPU, and no other program preempts this one.
#[inline(always)]
pub fn count(counter: Counter) {
    count_index(counter as u32);
}

/// Like [`count`], for a counter by number.
#[inline(always)]
pub fn count_index(counter: u32) {
    if let Some(value) = COUNTERS.get_ptr_mut(counter) {
        // SAFETY: a live element of a per-CPU array, which only this CPU writes.
        unsafe { *value += 1 };
    }
}
