//! Which flows have expired: a pure function of a dump of CONNTRACK, the clock and the timeouts.

use std::collections::HashSet;

use proxy_common::{CtEntry, CtKey};

use super::{
    dump::{DeadFlow, Dump},
    udp_flush,
};
use crate::config::Timeouts;

/// The clock of the maps' time stamps: the low 32 bits of the kernel's jiffies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Clock {
    pub now: u32,
    /// Jiffies per second.
    pub hz: u32,
}

impl Clock {
    /// Whole seconds since `stamp`; a stamp from just after `now` was read counts as now.
    fn seconds_since(&self, stamp: u32) -> u32 {
        let passed = self.now.wrapping_sub(stamp);
        if passed > u32::MAX / 2 { 0 } else { passed / self.hz.max(1) }
    }
}

/// A half without its partner is kept for this many idle seconds: the datapath may be recording the flow, the dump may
/// have passed the partner's bucket before it was written, or a removed backend's reply may be on its way.
const ORPHAN_GRACE: u32 = 10;

/// The result of one pass over CONNTRACK.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GcResult {
    pub dead: Vec<DeadFlow>,
    /// Ids that the remaining flows name.
    pub services: HashSet<u32>,
    pub backends: HashSet<u32>,
    /// Entries in the dump.
    pub entries: usize,
}

/// Decides for every flow of `dump` whether it is kept. `serves(service, backend)`: whether UDP flows of a Service may
/// still use a backend; TCP flows outlive their endpoint.
pub fn find_dead(
    dump: &Dump,
    clock: Clock,
    timeouts: &Timeouts,
    serves: impl Fn(u32, u32) -> bool,
) -> GcResult {
    let mut found = GcResult { entries: dump.len(), ..GcResult::default() };
    let mut seen = HashSet::with_capacity(dump.len());
    for (key, entry) in dump.iter().filter(|(_, entry)| entry.has(CtEntry::REQUEST)) {
        let Some((reply_key, reply)) =
            own(dump, entry.egress_key(key), |k, e| e.has(CtEntry::REPLY) && e.ingress_key(k) == *key)
        else {
            continue;
        };
        let mut halves = source_halves(dump, key, entry);
        halves.push((*key, *entry));
        halves.push((reply_key, *reply));
        seen.extend(halves.iter().map(|half| half.0));
        let silent = clock.seconds_since(entry.last_seen).min(clock.seconds_since(reply.last_seen));
        let age = clock.seconds_since(entry.created);
        let (state, is_masqueraded) = (entry.state | reply.state, entry.has(CtEntry::MASQUERADED));
        let lasted = age.saturating_sub(silent);
        let expired = silent >= timeouts.of(state, key.proto, is_masqueraded, lasted);
        if !expired && udp_flush::is_udp_request(key, entry) && !serves(entry.service, entry.backend) {
            found.dead.push(udp_flush::request_half(key, entry));
        } else if expired {
            found.dead.push(DeadFlow { halves, may_revive: true });
        } else {
            found.services.insert(entry.service);
            found.backends.insert(entry.backend);
        }
    }
    for (key, entry) in dump.iter().filter(|(key, _)| !seen.contains(*key)) {
        if clock.seconds_since(entry.created).min(clock.seconds_since(entry.last_seen)) >= ORPHAN_GRACE {
            found.dead.push(DeadFlow { halves: vec![(*key, *entry)], may_revive: true });
        } else {
            found.services.insert(entry.service);
            found.backends.insert(entry.backend);
        }
    }
    found
}

/// The entry at `key`, unless it belongs to another flow that has taken over the tuple.
fn own(dump: &Dump, key: CtKey, is_ours: impl Fn(&CtKey, &CtEntry) -> bool) -> Option<(CtKey, &CtEntry)> {
    dump.get(&key).filter(|entry| is_ours(&key, entry)).map(|entry| (key, entry))
}

/// The masquerade and unmasquerade halves of a flow, as far as they exist.
fn source_halves(dump: &Dump, request: &CtKey, entry: &CtEntry) -> Vec<(CtKey, CtEntry)> {
    let mut halves = Vec::with_capacity(4);
    if !entry.has(CtEntry::MASQUERADED) {
        return halves;
    }
    let masquerade = own(dump, entry.masquerade_key(request), |_, e| e.has(CtEntry::MASQUERADE));
    if let Some((key, value)) = masquerade {
        halves.push((key, *value));
        let back =
            own(dump, value.ingress_key(&key), |k, e| e.has(CtEntry::UNMASQUERADE) && e.egress_key(k) == key);
        // Pending: no port is allocated yet, so the unmasquerade half does not exist either.
        if value.port != 0 {
            halves.extend(back.map(|(key, value)| (key, *value)));
        }
    }
    halves
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use bytemuck::Zeroable as _;
    use proptest::prelude::*;
    use proxy_common::{Addr, Half, Port, Proto, tcp};

    use super::*;

    const HZ: u32 = 250;

    fn addr(last: u8) -> Addr {
        IpAddr::from([10, 0, 0, last]).into()
    }

    /// A flow's halves as the datapath records them.
    fn flow(
        client: u16,
        proto: u8,
        state: u64,
        last_seen: u32,
        masquerade: Option<u16>,
    ) -> Vec<(CtKey, CtEntry)> {
        let (c, v, b, n) = (addr(1), addr(2), addr(3), addr(4));
        let port = Port::new;
        let base =
            CtEntry { service: 7, backend: 9, state, last_seen, created: last_seen, ..CtEntry::zeroed() };
        let hidden = if masquerade.is_some() { CtEntry::MASQUERADED } else { 0 };
        let mut halves = vec![
            (
                CtKey::new(c, port(client), v, port(80), proto, Half::Ingress),
                CtEntry {
                    addr: b,
                    port: port(8080).be().into(),
                    peer_port: port(client),
                    flags: CtEntry::SERVICE | CtEntry::REQUEST | hidden,
                    ..base
                },
            ),
            (
                CtKey::new(b, port(8080), c, port(client), proto, Half::Egress),
                CtEntry {
                    addr: v,
                    port: port(80).be().into(),
                    peer_port: port(client),
                    flags: CtEntry::SERVICE | CtEntry::REPLY | hidden,
                    ..base
                },
            ),
        ];
        if let Some(node_port) = masquerade {
            halves.push((
                CtKey::new(c, port(client), b, port(8080), proto, Half::Egress),
                CtEntry {
                    addr: n,
                    port: port(node_port).be().into(),
                    peer_port: port(8080),
                    flags: CtEntry::SERVICE | CtEntry::MASQUERADE,
                    ..base
                },
            ));
            if node_port != 0 {
                halves.push((
                    CtKey::new(b, port(8080), n, port(node_port), proto, Half::Ingress),
                    CtEntry {
                        addr: c,
                        port: port(client).be().into(),
                        peer_port: port(8080),
                        flags: CtEntry::SERVICE | CtEntry::UNMASQUERADE,
                        ..base
                    },
                ));
            }
        }
        halves
    }

    fn gc(dump: &[(CtKey, CtEntry)], now: u32, serves: bool) -> GcResult {
        let dump = dump.iter().copied().collect();
        find_dead(&dump, Clock { now, hz: HZ }, &Timeouts::default(), |_, _| serves)
    }

    const OPEN: u64 = tcp::OPENED | tcp::REPLIED | tcp::CONFIRMED;

    #[test]
    fn each_state_has_its_timeout() {
        let cases = [
            (Proto::TCP, tcp::OPENED, 60),
            (Proto::TCP, tcp::OPENED | tcp::REPLIED, 60),
            (Proto::TCP, OPEN, 24 * 3600),
            (Proto::TCP, OPEN | tcp::FIN_CLIENT, 3600),
            (Proto::TCP, OPEN | tcp::FIN_BACKEND, 3600),
            (Proto::TCP, 1 << 32 | OPEN | tcp::FIN_CLIENT | tcp::FIN_BACKEND, 3600),
            (Proto::TCP, OPEN | tcp::FIN_CLIENT | tcp::FIN_BACKEND | tcp::LAST_ACK, 10),
            (Proto::TCP, OPEN | tcp::RESET, 10),
            (Proto::TCP, tcp::OPENED | tcp::RESET, 10),
            (Proto::UDP, tcp::OPENED, 30),
            (Proto::UDP, tcp::OPENED | tcp::REPLIED, 30),
            (Proto::SCTP, tcp::OPENED | tcp::REPLIED, 30),
        ];
        for (proto, state, seconds) in cases {
            // The clock wraps within the flow's life.
            let flow = flow(1000, proto, state, u32::MAX - 100, None);
            let at = |seconds: u32| (u32::MAX - 100).wrapping_add(seconds * HZ);
            assert_eq!(gc(&flow, at(seconds - 1), true).dead, [], "{proto} {state:#x} lives");
            assert_eq!(gc(&flow, at(seconds), true).dead.len(), 1, "{proto} {state:#x} dies");
        }
    }

    #[test]
    fn udp_in_both_directions_for_a_while_is_a_stream() {
        for (lasted, seconds) in [(1, 30), (2, 180), (3600, 180)] {
            let mut halves = flow(1000, Proto::UDP, tcp::OPENED | tcp::REPLIED, 0, None);
            halves.iter_mut().for_each(|half| half.1.last_seen = lasted * HZ);
            assert_eq!(gc(&halves, (lasted + seconds - 1) * HZ, true).dead, [], "after {lasted} s");
            assert_eq!(gc(&halves, (lasted + seconds) * HZ, true).dead.len(), 1, "after {lasted} s");
        }
    }

    #[test]
    fn a_port_of_the_node_is_kept_while_the_backend_remembers_it() {
        let closed = OPEN | tcp::FIN_CLIENT | tcp::FIN_BACKEND | tcp::LAST_ACK;
        for (state, seconds) in [(closed, 60), (closed | tcp::RESET, 10)] {
            let flow = flow(1000, Proto::TCP, state, 0, Some(5000));
            assert_eq!(gc(&flow, (seconds - 1) * HZ, true).dead, [], "{state:#x}");
            assert_eq!(gc(&flow, seconds * HZ, true).dead.len(), 1, "{state:#x}");
        }
    }

    #[test]
    fn traffic_in_either_direction_keeps_a_flow() {
        let mut halves = flow(1000, Proto::UDP, tcp::OPENED | tcp::REPLIED, 0, None);
        halves[1].1.last_seen = 179 * HZ;
        assert_eq!(gc(&halves, 200 * HZ, true).dead, []);
    }

    #[test]
    fn all_halves_die_together_and_the_reservation_last() {
        let halves = flow(1000, Proto::TCP, tcp::OPENED, 0, Some(5000));
        let found = gc(&halves, 3600 * HZ, true);
        assert_eq!(found.dead.len(), 1);
        let mut keys: Vec<_> = found.dead[0].halves.iter().map(|half| half.0).collect();
        assert_eq!(keys.last(), Some(&halves[1].0));
        keys.sort();
        let mut all: Vec<_> = halves.iter().map(|half| half.0).collect();
        all.sort();
        assert_eq!(keys, all);
        assert!(found.backends.is_empty() && found.services.is_empty());
    }

    #[test]
    fn a_pending_masquerade_dies_with_its_flow() {
        let halves = flow(1000, Proto::TCP, tcp::OPENED, 0, Some(0));
        assert_eq!(gc(&halves, 3600 * HZ, true).dead[0].halves.len(), 3);
    }

    #[test]
    fn udp_flows_leave_a_removed_endpoint_and_tcp_flows_stay() {
        let udp = flow(1000, Proto::UDP, tcp::OPENED | tcp::REPLIED, 0, Some(5000));
        let flushed = gc(&udp, HZ, false).dead;
        assert_eq!(flushed[0].halves, udp[..1], "the request half, not the reply half");
        assert!(!flushed[0].may_revive, "a busy socket would stay with the backend");
        let expired = gc(&udp, 3600 * HZ, false).dead;
        assert!(expired[0].may_revive && expired[0].halves.len() == 4);
        let stream = flow(1000, Proto::TCP, OPEN, 0, None);
        let found = gc(&stream, HZ, false);
        assert_eq!(found.dead, []);
        assert!(found.backends.contains(&9) && found.services.contains(&7), "its ids stay taken");
        // A direct flow to the backend's own address is not the Service's.
        let mut direct = flow(1000, Proto::UDP, tcp::OPENED, 0, None);
        direct.iter_mut().for_each(|half| half.1.flags &= !CtEntry::SERVICE);
        assert_eq!(gc(&direct, HZ, false).dead, []);
    }

    #[test]
    fn a_lone_half_waits_for_its_partner() {
        let halves = flow(1000, Proto::TCP, tcp::OPENED, 0, None);
        for half in halves {
            assert_eq!(gc(&[half], 9 * HZ, true).dead, []);
            assert!(gc(&[half], 9 * HZ, true).backends.contains(&9));
            assert_eq!(gc(&[half], 10 * HZ, true).dead.len(), 1);
        }
    }

    #[test]
    fn a_request_half_whose_reservation_belongs_to_another_flow_is_deleted_alone() {
        let old = flow(1000, Proto::TCP, tcp::OPENED, 0, None);
        let mut new = flow(1000, Proto::TCP, OPEN, 20 * HZ, None);
        // The later flow goes to another frontend with the same backend and holds the middle tuple.
        new[0].0.dst = addr(5);
        new[1].1.addr = addr(5);
        let found = gc(&[old[0], new[0], new[1]], 21 * HZ, true);
        assert_eq!(found.dead.len(), 1);
        assert_eq!(found.dead[0].halves, [old[0]]);
    }

    proptest! {
        /// No live flow loses a half, and no dead flow keeps one, whatever other entries exist.
        #[test]
        fn flows_live_and_die_whole(flows in proptest::collection::vec(
            (any::<bool>(), 0u8..3, 0u64..64, 0u32..7 * 3600), 0..40)
        ) {
            let now = 8 * 3600 * HZ;
            let mut all = Vec::new();
            for (i, (is_tcp, masquerade, state, age)) in flows.iter().enumerate() {
                let proto = if *is_tcp { Proto::TCP } else { Proto::UDP };
                let masquerade = [None, Some(0), Some(20_000 + i as u16)][usize::from(*masquerade)];
                all.push(flow(1000 + i as u16, proto, *state, now - age * HZ, masquerade));
            }
            let found = gc(&all.concat(), now, true);
            let dead: HashSet<CtKey> =
                found.dead.iter().flat_map(|flow| flow.halves.iter().map(|half| half.0)).collect();
            for (halves, (is_tcp, masquerade, state, age)) in all.iter().zip(&flows) {
                let proto = if *is_tcp { Proto::TCP } else { Proto::UDP };
                let expired = *age >= Timeouts::default().of(*state, proto, *masquerade > 0, 0);
                prop_assert!(halves.iter().all(|half| dead.contains(&half.0) == expired));
            }
        }
    }
}
