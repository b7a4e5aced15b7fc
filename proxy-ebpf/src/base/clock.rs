//! The clock of all time stamps in the maps: jiffies.

use aya_ebpf::helpers::bpf_jiffies64;

/// Low 32 bits of jiffies: an inlined load, where bpf_ktime_get_ns costs 30 ns.
#[inline(always)]
pub fn now() -> u32 {
    // SAFETY: takes no arguments and has no effect.
    unsafe { bpf_jiffies64() as u32 }
}
