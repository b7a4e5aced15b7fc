//! The embedded eBPF object. `datapath` loads it; the packet suite and the bench load the same bytes.

/// The ELF object that `build.rs` compiled from proxy-ebpf.
pub static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/shunt-ebpf"));
