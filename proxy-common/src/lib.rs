//! The map contract: every key and value that shunt's eBPF programs and its controller share, and the pure arithmetic
//! that both sides use.
//!
//! Nothing here calls a kernel, allocates, or uses Kubernetes client types. Every map type is `#[repr(C)]`, contains
//! neither padding nor a Rust enum or bool, and has its size asserted at compile time: a change of layout is a change
//! of [`SCHEMA`], which is part of the pin directory.
//!
//! Byte order: [`Addr`] and [`Port`] are in network order; every other integer is in host order.
#![no_std]

pub mod addr;
pub mod affinity;
pub mod conntrack;
pub mod counter;
pub mod csum;
pub mod fragment;
pub mod frontend;
pub mod node;
pub mod observe;
pub mod socket;
pub mod source_addr;
pub mod source_range;
pub mod tcp;

pub use addr::{Addr, Port, Proto};
pub use affinity::{Affinity, AffinityKey, SetMember};
pub use conntrack::{CtEntry, CtKey, Half};
pub use counter::Counter;
pub use fragment::{Fragment, FragmentKey, Held};
pub use frontend::{Backend, BackendMeta, Frontend, FrontendKey, FrontendKind, Name, Service, ServiceMeta};
pub use node::{Agent, Device, NodeConfig, Prefix};
pub use observe::{DropKey, EventKind, FlowEvent, Hook, Monitor, ServiceStats};
pub use socket::{SockKey, SockPeer};
pub use source_addr::SourceAddrKey;
pub use source_range::SourceRange;

/// Version of the layouts below; maps are pinned under `<bpffs>/v<SCHEMA>/`.
pub const SCHEMA: u32 = 1;

/// Names of the maps, as in bpftool and `shunt map list`.
pub mod map {
    pub const FRONTENDS: &str = "FRONTENDS";
    pub const SLOTS: &str = "SLOTS";
    pub const BACKENDS: &str = "BACKENDS";
    pub const SERVICES: &str = "SERVICES";
    pub const CONNTRACK: &str = "CONNTRACK";
    pub const BACKEND_ADDRS: &str = "BACKEND_ADDRS";
    pub const AFFINITY: &str = "AFFINITY";
    pub const SET_MEMBERS: &str = "SET_MEMBERS";
    pub const SOURCE_RANGES: &str = "SOURCE_RANGES";
    pub const PORTS: &str = "PORTS";
    pub const NODE_ADDRS: &str = "NODE_ADDRS";
    pub const NODE_CONFIG: &str = "NODE_CONFIG";
    pub const DEVICES: &str = "DEVICES";
    pub const SOURCE_ADDRS: &str = "SOURCE_ADDRS";
    pub const COUNTERS: &str = "COUNTERS";
    pub const SOCK_REVNAT: &str = "SOCK_REVNAT";
    pub const SOCK_BACKEND: &str = "SOCK_BACKEND";
    pub const FRAGMENTS: &str = "FRAGMENTS";
    pub const HELD: &str = "HELD";
    pub const SERVICE_META: &str = "SERVICE_META";
    pub const BACKEND_META: &str = "BACKEND_META";
    pub const AGENT: &str = "AGENT";
    pub const SERVICE_STATS: &str = "SERVICE_STATS";
    pub const DROPS: &str = "DROPS";
    pub const MONITOR: &str = "MONITOR";
    pub const SOURCE_CURSORS: &str = "SOURCE_CURSORS";
    /// The input of `shunt monitor`: a ring buffer, which has no entries to list.
    pub const EVENTS: &str = "EVENTS";
    /// The tail call of `ingress_xdp`: a program array, which contains no data.
    pub const INGRESS: &str = "INGRESS";
    /// The programs' read-only globals as this run set them: pinned for `shunt explain`, which runs the same programs
    /// over maps of its own.
    pub const GLOBALS: &str = "GLOBALS";
    /// Pinned maps without entries to list.
    pub const WITHOUT_ENTRIES: [&str; 3] = [EVENTS, INGRESS, GLOBALS];
    /// Every other map, in the order of `shunt map list`.
    pub const ALL: [&str; 26] = [
        FRONTENDS,
        SLOTS,
        BACKENDS,
        SERVICES,
        CONNTRACK,
        BACKEND_ADDRS,
        AFFINITY,
        SET_MEMBERS,
        SOURCE_RANGES,
        PORTS,
        NODE_ADDRS,
        NODE_CONFIG,
        DEVICES,
        SOURCE_ADDRS,
        COUNTERS,
        SOCK_REVNAT,
        SOCK_BACKEND,
        FRAGMENTS,
        HELD,
        SERVICE_META,
        BACKEND_META,
        AGENT,
        SERVICE_STATS,
        DROPS,
        MONITOR,
        SOURCE_CURSORS,
    ];
}

/// Declares map types: derives what a map value needs, proves by `bytemuck::Pod` that there is no padding and any bit
/// pattern is valid, asserts the size, and (feature `user`) implements `aya::Pod`.
#[macro_export]
macro_rules! pod {
    ($($(#[$meta:meta])* pub struct $name:ident [$size:literal] { $($body:tt)* })*) => {$(
        $(#[$meta])*
        #[repr(C)]
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, $crate::bytemuck::Pod, $crate::bytemuck::Zeroable)]
        #[bytemuck(crate = "::bytemuck")]
        pub struct $name { $($body)* }
        const _: () = assert!(core::mem::size_of::<$name>() == $size);
        // SAFETY: the derive above proves `bytemuck::Pod`, which requires everything that `aya::Pod` requires.
        #[cfg(feature = "user")]
        unsafe impl ::aya::Pod for $name {}
    )*};
}

#[doc(hidden)]
pub use bytemuck;
