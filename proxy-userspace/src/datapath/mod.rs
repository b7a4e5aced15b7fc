//! Handling of the datapath by `shunt run`: load programs, pin, attach, follow devices, garbage-collect flows.
//!
//! The controller decides what the maps hold; nothing here knows Services.

pub mod attach;
pub mod cgroup_attach;
pub mod clsact;
pub mod conntrack_gc;
pub mod devices;
pub mod direction;
pub mod layout;
pub mod load;
pub mod netlink;
pub mod nf_conntrack;
pub mod pins;
pub mod sock_diag;
pub mod source_addrs;
pub mod xdp;

use std::{
    io,
    path::{Path, PathBuf},
};

use crate::bpf::probe::Lacking;

/// The eBPF object, built with this binary.
pub static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/shunt-ebpf"));

/// Why the datapath cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum DatapathError {
    #[error(
        "programs cannot be loaded: {source} (run as root, or with CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON)"
    )]
    Privilege { source: io::Error },
    #[error(transparent)]
    Kernel(#[from] Lacking),
    #[error("{} is not on a bpf file system: run `mount -t bpf bpf /sys/fs/bpf`, or point --bpffs at one", path.display())]
    NoBpffs { path: PathBuf },
    #[error("another shunt owns {}: stop it first, or choose another --bpffs", path.display())]
    Running { path: PathBuf },
    #[error("pin {}: {source}", path.display())]
    Pin { path: PathBuf, source: io::Error },
    #[error("the map pinned at {} cannot be used: {reason}", path.display())]
    Layout { path: PathBuf, reason: layout::Mismatch },
    #[error("the eBPF object has no map or program {name}")]
    Incomplete { name: &'static str },
    #[error("the eBPF object cannot be loaded: {source}")]
    Object { source: Box<aya::EbpfError> },
    #[error("program {name} does not load on kernel {kernel}: {reason}\n{log}")]
    Program { name: String, kernel: String, reason: String, log: String },
    #[error("cgroup {}: {source}", path.display())]
    Cgroup { path: PathBuf, source: io::Error },
    #[error("{} is not in a cgroup2 mount: point --cgroup at one, or run with --socket-lb off", path.display())]
    NoCgroup2 { path: PathBuf },
    #[error("{action}: {source}")]
    Io { action: &'static str, source: io::Error },
}

impl DatapathError {
    fn pin(path: &Path, source: io::Error) -> Self {
        Self::Pin { path: path.to_owned(), source }
    }
}
