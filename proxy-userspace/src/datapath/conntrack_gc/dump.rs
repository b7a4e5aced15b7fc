//! A copy of CONNTRACK, and the deletion of flows chosen from it.

use std::{collections::HashMap, io};

use bytemuck::{bytes_of, pod_read_unaligned};
use proxy_common::{CtEntry, CtKey};

use crate::bpf::map::{PartialWrite, RawMap};

/// The halves to delete of one flow, as seen in the dump.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeadFlow {
    /// In the order of deletion: the reply half, which reserves the middle tuple, comes last.
    pub halves: Vec<(CtKey, CtEntry)>,
    /// A packet since the dump keeps the flow. Not so a UDP flow to a removed endpoint: a busy flow would stay with it
    /// for ever.
    pub may_revive: bool,
}

/// A copy of CONNTRACK.
pub type Dump = HashMap<CtKey, CtEntry>;

/// Reads all of CONNTRACK.
pub fn dump(conntrack: &RawMap) -> io::Result<Dump> {
    let mut found = HashMap::new();
    conntrack.for_each(|key, value| {
        found.insert(pod_read_unaligned(key), pod_read_unaligned(value));
    })?;
    Ok(found)
}

/// Deletes the halves of dead flows; returns the number of flows deleted. Flows that were used since the dump, or whose
/// tuple another flow has taken over, are left for the next pass.
pub fn remove(conntrack: &RawMap, dead: &[DeadFlow]) -> io::Result<usize> {
    let mut flows = 0;
    for flow in dead {
        // Each flow by itself, right after the check: a client that uses the tuple again in between loses its new connection.
        if is_still_dead(conntrack, flow)? {
            let keys: Vec<_> = flow.halves.iter().map(|(key, _)| *key).collect();
            delete(conntrack, &keys)?;
            flows += 1;
        }
    }
    Ok(flows)
}

fn is_still_dead(conntrack: &RawMap, flow: &DeadFlow) -> io::Result<bool> {
    for (key, before) in &flow.halves {
        let now: Option<CtEntry> = conntrack.lookup(bytes_of(key))?.map(|value| pod_read_unaligned(&value));
        let Some(now) = now else { continue };
        let is_another = (now.created, now.backend) != (before.created, before.backend);
        if is_another || flow.may_revive && now.last_seen != before.last_seen {
            return Ok(false);
        }
    }
    Ok(true)
}

fn delete(conntrack: &RawMap, keys: &[CtKey]) -> io::Result<()> {
    conntrack.delete_all(keys.iter().map(bytes_of)).map(drop).map_err(|PartialWrite { source, .. }| source)
}
