//! The maps and accessors for the per-CPU scratch memory. Keys, values and their meaning are documented in `proxy-common`.
//! The sizes here are defaults; the loader sets the real ones.

use aya_ebpf::{
    bindings::{BPF_F_MMAPABLE, BPF_F_NO_PREALLOC},
    macros::map,
    maps::{Array, HashMap, LpmTrie, LruHashMap, PerCpuArray, PerCpuHashMap, ProgramArray, RingBuf},
};
use proxy_common::{
    Addr, Affinity, AffinityKey, Backend, BackendMeta, CtEntry, CtKey, Device, DropKey, Fragment,
    FragmentKey, Frontend, FrontendKey, Held, Monitor, NodeConfig, Service, ServiceMeta, ServiceStats,
    SetMember, SockKey, SockPeer,
    counter::COUNTERS_LEN,
    fragment::HELD_FRAMES,
    node::{Agent, SOURCE_CURSORS_LEN},
    observe::{DROPS_LEN, EVENTS_BYTES},
};

use crate::base::scratch::{
    ChecksumBlock, FlowContext, Followed, HalfOpenSlot, SlowPacket, SourceSearch, TeardownKeys,
};

#[map]
pub static FRONTENDS: HashMap<FrontendKey, Frontend> = HashMap::pinned(65_536, BPF_F_NO_PREALLOC);

#[map]
pub static SLOTS: Array<u32> = Array::pinned(524_288, 0);

#[map]
pub static BACKENDS: Array<Backend> = Array::pinned(131_072, 0);

#[map]
pub static SERVICES: Array<Service> = Array::pinned(65_536, 0);

/// Preallocated: an insert in softirq must not fail for lack of memory. A plain hash and never an LRU, which evicts
/// live flows under pressure; user space removes expired entries.
#[map]
pub static CONNTRACK: HashMap<CtKey, CtEntry> = HashMap::pinned(262_144, 0);

#[map]
pub static BACKEND_ADDRS: HashMap<FrontendKey, u32> = HashMap::pinned(131_072, BPF_F_NO_PREALLOC);

#[map]
pub static AFFINITY: LruHashMap<AffinityKey, Affinity> = LruHashMap::pinned(65_536, 0);

#[map]
pub static SET_MEMBERS: HashMap<SetMember, u32> = HashMap::pinned(524_288, BPF_F_NO_PREALLOC);

/// The key is `SourceRange` without its prefix length.
#[map]
pub static SOURCE_RANGES: LpmTrie<[u32; 5], u32> = LpmTrie::pinned(65_536, 0);

#[map]
pub static PORTS: Array<u32> = Array::pinned(65_536, 0);

#[map]
pub static NODE_ADDRS: HashMap<Addr, u32> = HashMap::pinned(1024, BPF_F_NO_PREALLOC);

#[map]
pub static NODE_CONFIG: Array<NodeConfig> = Array::pinned(1, 0);

#[map]
pub static DEVICES: HashMap<u32, Device> = HashMap::pinned(16_384, BPF_F_NO_PREALLOC);

/// The key without its prefix length is what `SourceAddrKey` holds behind it.
#[map]
pub static SOURCE_ADDRS: LpmTrie<[u32; 5], Addr> = LpmTrie::pinned(16_384, 0);

#[map]
pub static COUNTERS: PerCpuArray<u64> = PerCpuArray::pinned(COUNTERS_LEN, 0);

#[map]
pub static SOCK_REVNAT: LruHashMap<SockKey, SockPeer> = LruHashMap::pinned(65_536, 0);

#[map]
pub static SOCK_BACKEND: LruHashMap<SockKey, SockPeer> = LruHashMap::pinned(65_536, 0);

/// An LRU: an entry is needed only while the fragments of its datagram arrive.
#[map]
pub static FRAGMENTS: LruHashMap<FragmentKey, Fragment> = LruHashMap::pinned(8192, 0);

#[map]
pub static HELD: Array<Held> = Array::pinned(HELD_FRAMES as u32 + 1, 0);

/// Names for the inspect commands; no program reads them.
#[map]
pub static SERVICE_META: HashMap<u32, ServiceMeta> = HashMap::pinned(65_536, BPF_F_NO_PREALLOC);

#[map]
pub static BACKEND_META: HashMap<u32, BackendMeta> = HashMap::pinned(131_072, BPF_F_NO_PREALLOC);

#[map]
pub static AGENT: Array<Agent> = Array::pinned(1, 0);

#[map]
pub static SERVICE_STATS: PerCpuArray<ServiceStats> = PerCpuArray::pinned(65_536, 0);

#[map]
pub static DROPS: PerCpuHashMap<DropKey, u64> = PerCpuHashMap::pinned(DROPS_LEN, BPF_F_NO_PREALLOC);

/// Memory-mapped by `shunt monitor`, which renews `until` while programs add to `lost`.
#[map]
pub static MONITOR: Array<Monitor> = Array::pinned(1, BPF_F_MMAPABLE);

/// Has one reader at a time: `shunt monitor`.
#[map]
pub static EVENTS: RingBuf = RingBuf::pinned(EVENTS_BYTES, 0);

/// The tail call of `ingress_xdp`: the ingress program in slot 0. Pinned, because a slot lives only as long as user
/// space holds the map.
#[map]
pub static INGRESS: ProgramArray = ProgramArray::pinned(1, 0);

/// Where the search for a source port towards a backend goes on, by a hash of the backend. Pinned: an agent that starts anew
/// would begin among the ports that are taken.
#[map]
pub static SOURCE_CURSORS: Array<u64> = Array::pinned(SOURCE_CURSORS_LEN, 0);

/// Scratch memory; not pinned, not part of the map contract.
#[map]
pub static FLOW_CONTEXT: PerCpuArray<FlowContext> = PerCpuArray::with_max_entries(1, 0);

/// Scratch memory of `entry::remove`; not pinned.
#[map]
pub static TEARDOWN_KEYS: PerCpuArray<TeardownKeys> = PerCpuArray::with_max_entries(1, 0);

/// Scratch memory of the search for a source port; not pinned.
#[map]
pub static SOURCE_SEARCH: PerCpuArray<SourceSearch> = PerCpuArray::with_max_entries(1, 0);

/// Scratch memory of `checksum::checksum_holds_at_tc`; not pinned.
#[map]
pub static CHECKSUM_BLOCK: PerCpuArray<ChecksumBlock> = PerCpuArray::with_max_entries(1, 0);

/// Scratch memory of `follow.rs` and `reuse.rs`; not pinned.
#[map]
pub static FOLLOWED: PerCpuArray<Followed> = PerCpuArray::with_max_entries(1, 0);

/// Scratch memory of the slow path; not pinned.
#[map]
pub static SLOW_PACKET: PerCpuArray<SlowPacket> = PerCpuArray::with_max_entries(1, 0);

/// The latest flows created, for `half_open::track`; element 0 holds the ring's position. Not pinned: flows that an
/// earlier run left half-open are the collector's.
#[map]
pub static HALF_OPEN: Array<HalfOpenSlot> = Array::with_max_entries(32_769, 0);

/// -EEXIST, as map updates return it.
pub const EEXIST: i32 = -17;

#[inline(always)]
pub fn flow_context() -> Option<&'static mut FlowContext> {
    // SAFETY: an element of a per-CPU array, with one user at a time (see `FlowContext`).
    FLOW_CONTEXT.get_ptr_mut(0).map(|flow| unsafe { &mut *flow })
}

#[inline(always)]
pub fn teardown_keys() -> Option<&'static mut TeardownKeys> {
    // SAFETY: an element of a per-CPU array, with one user at a time.
    TEARDOWN_KEYS.get_ptr_mut(0).map(|keys| unsafe { &mut *keys })
}

#[inline(always)]
pub fn source_search() -> Option<&'static mut SourceSearch> {
    // SAFETY: an element of a per-CPU array, with one user at a time.
    SOURCE_SEARCH.get_ptr_mut(0).map(|search| unsafe { &mut *search })
}

#[inline(always)]
pub fn checksum_block() -> Option<&'static mut ChecksumBlock> {
    // SAFETY: an element of a per-CPU array, with one user at a time.
    CHECKSUM_BLOCK.get_ptr_mut(0).map(|block| unsafe { &mut *block })
}

#[inline(always)]
pub fn followed() -> Option<&'static mut Followed> {
    // SAFETY: an element of a per-CPU array, with one user at a time.
    FOLLOWED.get_ptr_mut(0).map(|followed| unsafe { &mut *followed })
}

#[inline(always)]
pub fn slow_packet() -> Option<&'static mut SlowPacket> {
    // SAFETY: an element of a per-CPU array, with one user at a time.
    SLOW_PACKET.get_ptr_mut(0).map(|packet| unsafe { &mut *packet })
}
