//! The clock of all time stamps in the maps: jiffies.

use aya_ebpf::helpers::bpf_jiffies64;

/// The low 32 bits of jiffies. The JIT inlines the read; bpf_ktime_get_ns costs 30 ns.
#[inline(always)]
pub fn now() -> u32 {
    // SAFETY: takes no arguments and has no effect.
    unsafe { bpf_jiffies64() as u32 }
}
