//! Which entries can matter for one packet: copied just before a program may look for them. Everything that is looked
//! up by key is copied by key, so that this takes as long with a million flows as with none.

use proxy_common::{
    Addr, Affinity, AffinityKey, Backend, CtEntry, CtKey, Device, Frontend, Half, Port, Service, SetMember,
    map, node::role,
};

use super::{ExplainError, question::Tuple, tables, twin::Twin};

type Result<T> = std::result::Result<T, ExplainError>;

/// What every packet may need: all of it, because it is looked at by the programs' own choice (random ports), or small.
pub fn whole(twin: &Twin) -> Result<()> {
    [map::PORTS, map::NODE_ADDRS, map::NODE_CONFIG, map::DEVICES, map::SOURCE_ADDRS]
        .into_iter()
        .try_for_each(|name| twin.copy_all(name))
}

/// A flow by the key of one of its halves, and all halves of it; and what is known of its backend.
pub fn flow(twin: &Twin, key: CtKey) -> Result<Option<CtEntry>> {
    let found: Option<CtEntry> = twin.copy(map::CONNTRACK, &key)?;
    let mut waiting: Vec<(CtKey, CtEntry)> = found.map(|entry| (key, entry)).into_iter().collect();
    let mut seen = vec![key];
    while let Some((key, entry)) = waiting.pop() {
        let _backend: Option<Backend> = twin.copy(map::BACKENDS, &entry.backend)?;
        for other in others(&key, &entry) {
            if seen.contains(&other) {
                continue;
            }
            seen.push(other);
            if let Some(entry) = twin.copy(map::CONNTRACK, &other)? {
                waiting.push((other, entry));
            }
        }
    }
    Ok(found)
}

/// The keys of halves that this half leads to.
fn others(key: &CtKey, entry: &CtEntry) -> Vec<CtKey> {
    if entry.has(CtEntry::REQUEST) {
        vec![entry.egress_key(key), entry.masquerade_key(key)]
    } else if entry.has(CtEntry::REPLY) {
        let masquerade = CtKey::new(key.dst, key.dport, key.src, key.sport, key.proto, Half::Egress);
        vec![entry.ingress_key(key), masquerade]
    } else if entry.has(CtEntry::MASQUERADE) {
        let reply = CtKey::new(key.dst, key.dport, key.src, key.sport, key.proto, Half::Egress);
        let mut keys = vec![reply];
        // Pending: it names no port yet.
        if entry.port != 0 {
            keys.push(entry.ingress_key(key));
        }
        keys
    } else {
        let reply = CtKey::new(key.src, key.sport, entry.addr, entry.port(), key.proto, Half::Egress);
        vec![entry.egress_key(key), reply]
    }
}

/// A service port with its sets, its backends, and all that a flow of `tuple` to one of them may find taken.
/// `client` is who affinity knows.
pub fn service(twin: &Twin, frontend: &Frontend, client: Addr, tuple: &Tuple) -> Result<()> {
    let _counters: Option<Service> = twin.copy(map::SERVICES, &frontend.service)?;
    let sources = sources(twin, tuple.is_v4())?;
    for (base, count) in
        [(frontend.cluster_base, frontend.cluster_count), (frontend.local_base, frontend.local_count)]
    {
        for slot in base..base.saturating_add(count) {
            let id: Option<u32> = twin.copy(map::SLOTS, &slot)?;
            let Some(id) = id.filter(|id| *id != 0) else { continue };
            if let Some(backend) = twin.copy::<_, Backend>(map::BACKENDS, &id)? {
                middle(twin, tuple, backend.addr, backend.port, &sources)?;
            }
        }
    }
    if frontend.affinity_seconds != 0 {
        let key = AffinityKey { client, service: frontend.service };
        if let Some(known) = twin.copy::<_, Affinity>(map::AFFINITY, &key)? {
            let member = SetMember { service: frontend.service, backend: known.backend };
            let _sets: Option<u32> = twin.copy(map::SET_MEMBERS, &member)?;
            let _backend: Option<Backend> = twin.copy(map::BACKENDS, &known.backend)?;
        }
    }
    Ok(())
}

/// What stands in the way of the flow from the packet's source to this backend: its middle tuple, the same turned
/// around, and the ports of the node that would stand for the client's own.
pub fn middle(twin: &Twin, tuple: &Tuple, addr: Addr, port: Port, sources: &[Addr]) -> Result<()> {
    let (src, sport) = (Addr::from(tuple.src.ip()), Port::new(tuple.src.port()));
    flow(twin, CtKey::new(addr, port, src, sport, tuple.proto, Half::Egress))?;
    flow(twin, CtKey::new(src, sport, addr, port, tuple.proto, Half::Egress))?;
    for own in sources {
        flow(twin, CtKey::new(addr, port, *own, sport, tuple.proto, Half::Ingress))?;
    }
    Ok(())
}

/// Every address that a translated flow could leave the node with.
pub fn sources(twin: &Twin, v4: bool) -> Result<Vec<Addr>> {
    let config = tables::config(twin)?;
    let mut found = vec![if v4 { config.primary_v4 } else { config.primary_v6 }];
    twin.each_own(map::DEVICES, |_: &u32, device: &Device| {
        found.push(if v4 { device.source_v4 } else { device.source_v6 });
    })?;
    // The kernel chooses among the node's own.
    twin.each_own(map::NODE_ADDRS, |addr: &Addr, roles: &u32| {
        if roles & role::OWN != 0 && addr.is_v4() == v4 {
            found.push(*addr);
        }
    })?;
    found.retain(|addr| !addr.is_unspecified());
    found.sort_unstable();
    found.dedup();
    Ok(found)
}

/// A source port that no flow to this destination has, from the one given on.
pub fn free_port(twin: &Twin, mut tuple: Tuple) -> Result<Tuple> {
    for port in tuple.src.port()..=u16::MAX {
        tuple.src.set_port(port);
        if twin.live::<_, CtEntry>(map::CONNTRACK, &tuple.key(Half::Ingress))?.is_none() {
            break;
        }
    }
    Ok(tuple)
}
