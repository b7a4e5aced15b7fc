//! Copies the entries that one packet can reach, just before a program may look them up. Entries are copied by key, so that
//! the time does not depend on the number of flows.

use proxy_common::{
    Addr, Affinity, AffinityKey, Backend, CtEntry, CtKey, Device, Frontend, Half, Port, Service, SetMember,
    map, node::role,
};

use super::{Sandbox, SandboxError};
use crate::explain::request::Tuple;

type Result<T> = std::result::Result<T, SandboxError>;

/// Small maps, and maps in which the programs choose the keys themselves (random ports): copied completely.
pub fn whole_maps(sandbox: &Sandbox) -> Result<()> {
    [map::PORTS, map::NODE_ADDRS, map::NODE_CONFIG, map::DEVICES, map::SOURCE_ADDRS, map::SOURCE_CURSORS]
        .into_iter()
        .try_for_each(|name| sandbox.copy_all(name))
}

/// A flow by the key of one of its halves: all its halves, and its backend.
pub fn flow(sandbox: &Sandbox, key: CtKey) -> Result<Option<CtEntry>> {
    let found: Option<CtEntry> = sandbox.copy(map::CONNTRACK, &key)?;
    let mut waiting: Vec<(CtKey, CtEntry)> = found.map(|entry| (key, entry)).into_iter().collect();
    let mut seen = vec![key];
    while let Some((key, entry)) = waiting.pop() {
        let _backend: Option<Backend> = sandbox.copy(map::BACKENDS, &entry.backend)?;
        for other in other_halves(&key, &entry) {
            if seen.contains(&other) {
                continue;
            }
            seen.push(other);
            if let Some(entry) = sandbox.copy(map::CONNTRACK, &other)? {
                waiting.push((other, entry));
            }
        }
    }
    Ok(found)
}

/// The keys of other halves that derive from this half.
fn other_halves(key: &CtKey, entry: &CtEntry) -> Vec<CtKey> {
    if entry.has(CtEntry::REQUEST) {
        vec![entry.egress_key(key), entry.masquerade_key(key)]
    } else if entry.has(CtEntry::REPLY) {
        let masquerade = CtKey::new(key.dst, key.dport, key.src, key.sport, key.proto, Half::Egress);
        vec![entry.ingress_key(key), masquerade]
    } else if entry.has(CtEntry::MASQUERADE) {
        let reply = CtKey::new(key.dst, key.dport, key.src, key.sport, key.proto, Half::Egress);
        let mut keys = vec![reply];
        // Port 0: the masquerade port is not allocated yet.
        if entry.port != 0 {
            keys.push(entry.ingress_key(key));
        }
        keys
    } else {
        let reply = CtKey::new(key.src, key.sport, entry.addr, entry.port(), key.proto, Half::Egress);
        vec![entry.egress_key(key), reply]
    }
}

/// A service port with its sets and backends, and the tuples that a flow of `tuple` to one of them may find in use. `client`
/// is the key for session affinity.
pub fn service(sandbox: &Sandbox, frontend: &Frontend, client: Addr, tuple: &Tuple) -> Result<()> {
    let _counters: Option<Service> = sandbox.copy(map::SERVICES, &frontend.service)?;
    let sources = source_addresses(sandbox, tuple.is_v4())?;
    for (base, count) in
        [(frontend.cluster_base, frontend.cluster_count), (frontend.local_base, frontend.local_count)]
    {
        for slot in base..base.saturating_add(count) {
            let id: Option<u32> = sandbox.copy(map::SLOTS, &slot)?;
            let Some(id) = id.filter(|id| *id != 0) else { continue };
            if let Some(backend) = sandbox.copy::<_, Backend>(map::BACKENDS, &id)? {
                backend_tuples(sandbox, tuple, backend.addr, backend.port, &sources)?;
            }
        }
    }
    if frontend.affinity_seconds != 0 {
        let key = AffinityKey { client, service: frontend.service };
        if let Some(known) = sandbox.copy::<_, Affinity>(map::AFFINITY, &key)? {
            let member = SetMember { service: frontend.service, backend: known.backend };
            let _sets: Option<u32> = sandbox.copy(map::SET_MEMBERS, &member)?;
            let _backend: Option<Backend> = sandbox.copy(map::BACKENDS, &known.backend)?;
        }
    }
    Ok(())
}

/// Flows that may conflict with the flow from the packet's source to this backend: its tuple behind the translation, in both
/// directions, and the masquerade tuples.
pub fn backend_tuples(
    sandbox: &Sandbox,
    tuple: &Tuple,
    addr: Addr,
    port: Port,
    sources: &[Addr],
) -> Result<()> {
    let (src, sport) = (Addr::from(tuple.src.ip()), Port::new(tuple.src.port()));
    flow(sandbox, CtKey::new(addr, port, src, sport, tuple.proto, Half::Egress))?;
    flow(sandbox, CtKey::new(src, sport, addr, port, tuple.proto, Half::Egress))?;
    for own in sources {
        flow(sandbox, CtKey::new(addr, port, *own, sport, tuple.proto, Half::Ingress))?;
    }
    Ok(())
}

/// Every address that a masqueraded flow can have as source.
pub fn source_addresses(sandbox: &Sandbox, v4: bool) -> Result<Vec<Addr>> {
    let config = sandbox.node_config()?;
    let mut found = vec![if v4 { config.primary_v4 } else { config.primary_v6 }];
    sandbox.each_own(map::DEVICES, |_: &u32, device: &Device| {
        found.push(if v4 { device.source_v4 } else { device.source_v6 });
    })?;
    // The kernel chooses among the node's own addresses.
    sandbox.each_own(map::NODE_ADDRS, |addr: &Addr, roles: &u32| {
        if roles & role::OWN != 0 && addr.is_v4() == v4 {
            found.push(*addr);
        }
    })?;
    found.retain(|addr| !addr.is_unspecified());
    found.sort_unstable();
    found.dedup();
    Ok(found)
}

/// The tuple with the first source port, from the given one on, that no flow to this destination uses.
pub fn free_port(sandbox: &Sandbox, mut tuple: Tuple) -> Result<Tuple> {
    for port in tuple.src.port()..=u16::MAX {
        tuple.src.set_port(port);
        if sandbox.live::<_, CtEntry>(map::CONNTRACK, &tuple.key(Half::Ingress))?.is_none() {
            break;
        }
    }
    Ok(tuple)
}
