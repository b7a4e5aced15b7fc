//! Ports for translated sources: which ones may be used, and how many are tried.

use aya_ebpf::helpers::bpf_get_prandom_u32;
use proxy_common::{Port, node::port_bits};

use crate::load_balancing::frontend;

/// How many other ports are tried when one is taken.
pub const PROBES: u32 = 14;

/// A random port outside the host's own ephemeral range (32768-60999), so that no socket of the node uses it.
#[inline(always)]
pub fn random_port() -> Port {
    const LOW: u32 = 30_000 - 1024;
    const HIGH: u32 = 65_536 - 61_000;
    // SAFETY: takes no arguments and has no effect.
    let at = unsafe { bpf_get_prandom_u32() } % (LOW + HIGH);
    Port::new(if at < LOW { 1024 + at } else { 61_000 + (at - LOW) } as u16)
}

/// Whether a port may be used for source translation: outside the ephemeral range, and no NodePort.
#[inline(always)]
pub fn is_in_pool(port: Port) -> bool {
    let host = port.host();
    ((1024..30_000).contains(&host) || host >= 61_000)
        && frontend::port_flags(port) & port_bits::ANY_NODEPORT == 0
}
