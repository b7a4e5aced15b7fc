//! Datagrams leave a backend that their Service left: at once, also where no other is left, and busy ones too.
//!
//! The service and backend ids that came apart go in; UDP flows and sockets that name them are made to choose anew. TCP
//! is none of this module's business: its flows outlive their endpoint. Called by the agent's leavers thread.

use std::{collections::HashSet, io};

use bytemuck::pod_read_unaligned;
use proxy_common::{CtEntry, CtKey, Proto, SockKey, SockPeer};

use super::{Dead, remove};
use crate::bpf::map::RawMap;

/// A service id and the id of a backend it was given.
pub type Pair = (u32, u32);

/// Whether this is the half of a UDP flow that sends datagrams of a Service to a backend.
pub fn is_leaver(key: &CtKey, entry: &CtEntry) -> bool {
    key.proto == Proto::UDP && entry.has(CtEntry::REQUEST) && entry.has(CtEntry::SERVICE)
}

/// What `forget` leaves of a flow: only its way to the backend goes. An answer that is on its way still finds its way
/// back; the other halves go when they have been silent for a while.
pub(super) fn forsaken(key: &CtKey, entry: &CtEntry) -> Dead {
    Dead { halves: vec![(*key, *entry)], may_revive: false }
}

/// Forgets the UDP flows of pairs that `has_left`; returns how many, of IPv4 and of IPv6. Reads CONNTRACK once, in batches, and keeps
/// nothing but what goes.
pub fn forget(conntrack: &RawMap, has_left: impl Fn(Pair) -> bool) -> io::Result<[usize; 2]> {
    let mut gone = [Vec::new(), Vec::new()];
    conntrack.for_each(|key, value| {
        let (key, entry): (CtKey, CtEntry) = (pod_read_unaligned(key), pod_read_unaligned(value));
        if is_leaver(&key, &entry) && has_left((entry.service, entry.backend)) {
            gone[usize::from(!key.src.is_v4())].push(forsaken(&key, &entry));
        }
    })?;
    Ok([remove(conntrack, &gone[0])?, remove(conntrack, &gone[1])?])
}

/// Every pair that a UDP flow names.
pub fn pairs_of_flows(conntrack: &RawMap) -> io::Result<HashSet<Pair>> {
    let mut pairs = HashSet::new();
    conntrack.for_each(|key, value| {
        let (key, entry): (CtKey, CtEntry) = (pod_read_unaligned(key), pod_read_unaligned(value));
        if is_leaver(&key, &entry) {
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

/// Unconnected sockets choose anew with their next datagram: their entries in SOCK_BACKEND go. Not left to the hook,
/// which sees whether a backend serves at all, and not for whom.
pub fn release_sockets(sock_backend: &RawMap, has_left: impl Fn(Pair) -> bool) -> io::Result<usize> {
    let mut gone = Vec::new();
    sockets(sock_backend, |key, peer| {
        if has_left((peer.service, peer.backend)) {
            gone.push(*key);
        }
    })?;
    let keys = gone.iter().map(bytemuck::bytes_of);
    sock_backend.delete_all(keys).map_err(|partial| partial.source)
}

/// Sockets that were given a backend which left, by cookie, with the address they send to. Unconnected ones may be
/// among them.
pub fn stranded(sock_revnat: &RawMap, has_left: impl Fn(Pair) -> bool) -> io::Result<HashSet<SockKey>> {
    let mut found = HashSet::new();
    sockets(sock_revnat, |key, peer| {
        if has_left((peer.service, peer.backend)) {
            found.insert(*key);
        }
    })?;
    Ok(found)
}
