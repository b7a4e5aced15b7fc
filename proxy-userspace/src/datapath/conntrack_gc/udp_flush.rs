//! Moves UDP flows off removed endpoints at once: busy flows too, and also when no other endpoint is left (kube-proxy's
//! conntrack cleanup).
//!
//! Input: pairs of service and backend id that no longer belong together. UDP flows and sockets that name such a pair
//! are made to choose a backend again. TCP flows outlive their endpoint. Called by the agent's udp-flush thread.

use std::{collections::HashSet, io};

use bytemuck::pod_read_unaligned;
use proxy_common::{CtEntry, CtKey, Proto, SockKey, SockPeer};

use super::dump::{DeadFlow, remove};
use crate::bpf::map::RawMap;

/// Service id and backend id.
pub type Pair = (u32, u32);

/// Whether this is the request half of a Service's UDP flow.
pub fn is_udp_request(key: &CtKey, entry: &CtEntry) -> bool {
    key.proto == Proto::UDP && entry.has(CtEntry::REQUEST) && entry.has(CtEntry::SERVICE)
}

/// Only the request half is deleted: a reply that is on its way still needs the other halves, which expire once idle.
pub(super) fn request_half(key: &CtKey, entry: &CtEntry) -> DeadFlow {
    DeadFlow { halves: vec![(*key, *entry)], may_revive: false }
}

/// Deletes the UDP flows of the pairs that `is_removed`; returns their numbers, IPv4 and IPv6. Reads CONNTRACK once, in
/// batches, and keeps only what is deleted.
pub fn flush(conntrack: &RawMap, is_removed: impl Fn(Pair) -> bool) -> io::Result<[usize; 2]> {
    let mut gone = [Vec::new(), Vec::new()];
    conntrack.for_each(|key, value| {
        let (key, entry): (CtKey, CtEntry) = (pod_read_unaligned(key), pod_read_unaligned(value));
        if is_udp_request(&key, &entry) && is_removed((entry.service, entry.backend)) {
            gone[usize::from(!key.src.is_v4())].push(request_half(&key, &entry));
        }
    })?;
    Ok([remove(conntrack, &gone[0])?, remove(conntrack, &gone[1])?])
}

/// The pairs that UDP flows name.
pub fn pairs_of_flows(conntrack: &RawMap) -> io::Result<HashSet<Pair>> {
    let mut pairs = HashSet::new();
    conntrack.for_each(|key, value| {
        let (key, entry): (CtKey, CtEntry) = (pod_read_unaligned(key), pod_read_unaligned(value));
        if is_udp_request(&key, &entry) {
            pairs.insert((entry.service, entry.backend));
        }
    })?;
    Ok(pairs)
}

/// The entries of SOCK_BACKEND or SOCK_REVNAT for UDP.
pub fn sockets(map: &RawMap, mut each: impl FnMut(&SockKey, &SockPeer)) -> io::Result<()> {
    map.for_each(|key, value| {
        let (key, peer): (SockKey, SockPeer) = (pod_read_unaligned(key), pod_read_unaligned(value));
        if key.proto == Proto::UDP {
            each(&key, &peer);
        }
    })
}

/// Deletes the SOCK_BACKEND entries of removed pairs, so that unconnected sockets choose a backend again with their next
/// datagram. The hook cannot do that: it sees whether a backend is active, but not for which Service.
pub fn release_sockets(sock_backend: &RawMap, is_removed: impl Fn(Pair) -> bool) -> io::Result<usize> {
    let mut gone = Vec::new();
    sockets(sock_backend, |key, peer| {
        if is_removed((peer.service, peer.backend)) {
            gone.push(*key);
        }
    })?;
    let keys = gone.iter().map(bytemuck::bytes_of);
    sock_backend.delete_all(keys).map_err(|partial| partial.source)
}

/// Sockets that were translated to a removed backend: cookie and original destination. Unconnected sockets may be among
/// them.
pub fn stale_sockets(
    sock_revnat: &RawMap,
    is_removed: impl Fn(Pair) -> bool,
) -> io::Result<HashSet<SockKey>> {
    let mut found = HashSet::new();
    sockets(sock_revnat, |key, peer| {
        if is_removed((peer.service, peer.backend)) {
            found.insert(*key);
        }
    })?;
    Ok(found)
}
