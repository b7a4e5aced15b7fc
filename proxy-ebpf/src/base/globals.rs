//! Read-only globals, set by the loader before the programs are verified: the verifier removes branches on them, so
//! they cost nothing at run time.

use aya_ebpf::Global;

/// Jiffies per second.
#[unsafe(no_mangle)]
static HZ: Global<u32> = Global::new(250);

/// Cookie of the network namespace whose sockets are translated; 0 is every namespace in the cgroup.
#[unsafe(no_mangle)]
static SOCKET_NETNS: Global<u64> = Global::new(0);

/// Cookie of the host's network namespace: only its sockets reach NodePorts at loopback addresses.
#[unsafe(no_mangle)]
static HOST_NETNS: Global<u64> = Global::new(0);

/// Trace one in this many decisions; 0 disables the trace.
#[unsafe(no_mangle)]
static TRACE: Global<u32> = Global::new(0);

/// BPF_F_IPV6 where bpf_l4_csum_replace supports it (6.16 and backports), else 0. Without it a rewritten IPv6 address
/// corrupts skb->csum of packets whose checksum the device computed.
#[unsafe(no_mangle)]
static CSUM_IPV6: Global<u64> = Global::new(0);

/// 1 where bpf_set_retval exists (5.18): without it a refused connect() fails with EPERM.
#[unsafe(no_mangle)]
static SET_RETVAL: Global<u32> = Global::new(0);

/// Flags with which bpf_fib_lookup names the source of a route (6.7), as far as this kernel knows them; 0 where it cannot.
#[unsafe(no_mangle)]
static FIB_SOURCE: Global<u32> = Global::new(0);

/// The limit on half-open flows: slots in HALF_OPEN's ring. 0 is unlimited.
#[unsafe(no_mangle)]
static HALF_OPEN_MAX: Global<u32> = Global::new(32_768);

/// 1 where SERVICE_STATS is maintained.
#[unsafe(no_mangle)]
static STATS: Global<u32> = Global::new(1);

/// 1 with `--symmetric-replies`.
#[unsafe(no_mangle)]
static SYMMETRIC: Global<u32> = Global::new(0);

#[inline(always)]
pub fn symmetric_replies() -> bool {
    SYMMETRIC.load() != 0
}

#[inline(always)]
pub fn stats() -> bool {
    STATS.load() != 0
}

#[inline(always)]
pub fn half_open() -> u32 {
    HALF_OPEN_MAX.load()
}

#[inline(always)]
pub fn hz() -> u32 {
    HZ.load()
}

#[inline(always)]
pub fn socket_netns() -> u64 {
    SOCKET_NETNS.load()
}

#[inline(always)]
pub fn host_netns() -> u64 {
    HOST_NETNS.load()
}

#[inline(always)]
pub fn trace() -> u32 {
    TRACE.load()
}

#[inline(always)]
pub fn csum_ipv6() -> u64 {
    CSUM_IPV6.load()
}

#[inline(always)]
pub fn fib_source() -> u32 {
    FIB_SOURCE.load()
}

#[inline(always)]
pub fn has_set_retval() -> bool {
    SET_RETVAL.load() != 0
}
