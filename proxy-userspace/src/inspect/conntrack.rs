//! `shunt conntrack list|flush`: flows, assembled from the entries ("halves") of CONNTRACK. [`proxy_common::conntrack`]
//! describes the halves and how their keys derive from each other.

use std::{
    collections::{HashMap, HashSet},
    io::{self, Write},
};

use proxy_common::{Backend, CtEntry, CtKey, Half, ServiceMeta, map, tcp};
use serde::Serialize;

use super::{
    InspectError,
    jiffies::Jiffies,
    pins::Pins,
    services::split_name,
    table::print_table_into,
    text::{addr_port, proto_name},
};

/// One flow, or one half of a flow.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct FlowView {
    pub protocol: String,
    pub client: String,
    /// The destination that the client used; in a direct flow the backend itself.
    pub vip: String,
    pub backend: String,
    pub state: &'static str,
    /// `request` for a whole flow.
    pub direction: &'static str,
    /// Seconds since the first packet.
    pub age_seconds: u64,
    /// Seconds since the last packet in either direction, with a precision of one second.
    pub idle_seconds: u64,
    /// `service`; `direct`: to the address of a backend; `adopted`: netfilter translates it, for the previous proxy.
    pub kind: &'static str,
    /// `NAMESPACE/NAME`; empty for a direct flow.
    pub service: String,
    /// The node address and port that the backend sees; empty if it sees the client's.
    pub masquerade: String,
}

/// The map entries behind the views.
#[derive(Debug, Default)]
pub struct Flows {
    pub entries: HashMap<CtKey, CtEntry>,
    pub services: HashMap<u32, ServiceMeta>,
    /// Read only if there are adopted flows, whose entries do not contain the backend address.
    pub backends: HashMap<u32, Backend>,
}

impl Flows {
    pub fn read(pins: &Pins) -> Result<Self, InspectError> {
        let entries: HashMap<CtKey, CtEntry> = pins.read(map::CONNTRACK)?.into_iter().collect();
        let backends = if entries.values().any(is_adopted) {
            pins.read(map::BACKENDS)?.into_iter().collect()
        } else {
            HashMap::new()
        };
        Ok(Self { entries, services: pins.read(map::SERVICE_META)?.into_iter().collect(), backends })
    }

    /// The ids of the ports of a Service; empty if the Service does not exist, which then has no flows either.
    pub fn ids_of(&self, name: &str) -> Result<HashSet<u32>, InspectError> {
        let (namespace, service) = split_name(name)?;
        Ok(self
            .services
            .iter()
            .filter(|(_, meta)| meta.namespace.as_str() == namespace && meta.name.as_str() == service)
            .map(|(id, _)| *id)
            .collect())
    }

    /// Views of flows or, with `halves`, of every entry; of one Service or all.
    pub fn views(
        &self,
        service: Option<&str>,
        halves: bool,
        clock: Jiffies,
    ) -> Result<Vec<FlowView>, InspectError> {
        let ids = service.map(|name| self.ids_of(name)).transpose()?;
        let mut views: Vec<_> = self
            .entries
            .iter()
            .filter(|(_, entry)| halves || entry.has(CtEntry::REQUEST))
            .filter(|(_, entry)| {
                ids.as_ref().is_none_or(|ids| entry.has(CtEntry::SERVICE) && ids.contains(&entry.service))
            })
            .map(|(key, entry)| self.view(key, entry, clock))
            .collect();
        views.sort_by(|a, b| {
            let order = |view: &FlowView| {
                (view.protocol.clone(), view.vip.clone(), view.client.clone(), view.direction)
            };
            order(a).cmp(&order(b))
        });
        Ok(views)
    }

    fn view(&self, key: &CtKey, entry: &CtEntry, clock: Jiffies) -> FlowView {
        let tuple = self.tuple(key, entry);
        // State and time of the last packet are in the request and reply halves. The request half may be deleted already.
        let (main_key, main) = self.request_of(key, entry).unwrap_or((*key, *entry));
        let peer = self.entries.get(&main.egress_key(&main_key));
        let idle = |entry: &CtEntry| clock.seconds_since(entry.last_seen);
        FlowView {
            protocol: proto_name(key.proto),
            client: tuple.client,
            vip: tuple.vip,
            backend: tuple.backend,
            state: tcp::name(main.state, key.proto),
            direction: tuple.direction,
            age_seconds: clock.seconds_since(entry.created),
            idle_seconds: peer.map_or(u64::MAX, idle).min(idle(&main)),
            kind: match (entry.has(CtEntry::SERVICE), entry.has(CtEntry::IDENTITY)) {
                (true, true) => "adopted",
                (true, false) => "service",
                (false, _) if entry.has(CtEntry::NODE_FLOW) => "node",
                (false, _) => "direct",
            },
            service: match self.services.get(&entry.service) {
                Some(meta) if entry.has(CtEntry::SERVICE) => {
                    format!("{}/{}", meta.namespace.as_str(), meta.name.as_str())
                }
                _ => String::new(),
            },
            masquerade: self.masquerade_of(&main_key, &main).unwrap_or_default(),
        }
    }

    /// Client, frontend and backend of a half. What the half does not contain comes from the request half.
    fn tuple(&self, key: &CtKey, entry: &CtEntry) -> Tuple {
        let (source, destination) = (addr_port(key.src, key.sport), addr_port(key.dst, key.dport));
        let rewrite = addr_port(entry.addr, entry.port());
        if is_adopted(entry) {
            let backend = self.backends.get(&entry.backend).filter(|backend| backend.has(Backend::ACTIVE));
            let backend = backend.map_or_else(|| "-".to_owned(), |it| addr_port(it.addr, it.port));
            return if entry.has(CtEntry::REQUEST) {
                Tuple { client: source, vip: destination, backend, direction: "request" }
            } else {
                Tuple { client: destination, vip: source, backend, direction: "reply" }
            };
        }
        if entry.has(CtEntry::NODE_FLOW) {
            // The node is the client; what arrives are answers.
            let is_request = entry.has(CtEntry::REQUEST);
            let (client, remote) = if is_request { (rewrite, source) } else { (source, destination) };
            let direction = if is_request { "request" } else { "reply" };
            return Tuple { client, vip: remote.clone(), backend: remote, direction };
        }
        if entry.has(CtEntry::REQUEST) {
            return Tuple { client: source, vip: destination, backend: rewrite, direction: "request" };
        }
        if entry.has(CtEntry::REPLY) {
            let client = addr_port(key.dst, entry.peer_port);
            return Tuple { client, vip: rewrite, backend: source, direction: "reply" };
        }
        let vip = match self.request_of(key, entry) {
            Some((request, _)) => addr_port(request.dst, request.dport),
            None => "-".to_owned(),
        };
        if entry.has(CtEntry::MASQUERADE) {
            Tuple { client: source, vip, backend: destination, direction: "masquerade" }
        } else {
            Tuple { client: rewrite, vip, backend: source, direction: "unmasquerade" }
        }
    }

    /// The request half of the flow.
    fn request_of(&self, key: &CtKey, entry: &CtEntry) -> Option<(CtKey, CtEntry)> {
        if entry.has(CtEntry::REQUEST) {
            return Some((*key, *entry));
        }
        let reply_key = if entry.has(CtEntry::REPLY) {
            *key
        } else if entry.has(CtEntry::MASQUERADE) {
            CtKey::new(key.dst, key.dport, key.src, key.sport, key.proto, Half::Egress)
        } else {
            CtKey::new(key.src, key.sport, entry.addr, entry.port(), key.proto, Half::Egress)
        };
        let reply = self.entries.get(&reply_key)?;
        let request_key = reply.ingress_key(&reply_key);
        self.entries.get(&request_key).map(|request| (request_key, *request))
    }

    /// The masquerade address and port; `None` until the egress hook has allocated them.
    fn masquerade_of(&self, key: &CtKey, request: &CtEntry) -> Option<String> {
        if request.has(CtEntry::NODE_FLOW) && !request.has(CtEntry::IDENTITY) {
            return Some(addr_port(key.dst, key.dport));
        }
        if !request.has(CtEntry::MASQUERADED) {
            return None;
        }
        let half = self.entries.get(&request.masquerade_key(key))?;
        (half.port().host() != 0).then(|| addr_port(half.addr, half.port()))
    }

    /// The keys to delete for a flush, of one Service or all; and the number of flows.
    pub fn keys_to_flush(&self, service: Option<&str>) -> Result<(Vec<CtKey>, usize), InspectError> {
        let requests = || self.entries.iter().filter(|(_, entry)| entry.has(CtEntry::REQUEST));
        let Some(name) = service else {
            return Ok((self.entries.keys().copied().collect(), requests().count()));
        };
        let ids = self.ids_of(name)?;
        let mine = |entry: &CtEntry| entry.has(CtEntry::SERVICE) && ids.contains(&entry.service);
        let mut keys: HashSet<CtKey> = HashSet::new();
        for (key, entry) in self.entries.iter().filter(|(_, entry)| mine(entry)) {
            keys.insert(*key);
            if entry.has(CtEntry::REQUEST) {
                let masquerade_key = entry.masquerade_key(key);
                keys.insert(entry.egress_key(key));
                if let Some(masquerade) = self.entries.get(&masquerade_key) {
                    keys.insert(masquerade_key);
                    keys.insert(masquerade.ingress_key(&masquerade_key));
                }
            }
        }
        Ok((keys.into_iter().collect(), requests().filter(|(_, entry)| mine(entry)).count()))
    }
}

/// Translated by netfilter, for the previous proxy.
fn is_adopted(entry: &CtEntry) -> bool {
    entry.has(CtEntry::SERVICE) && entry.has(CtEntry::IDENTITY)
}

struct Tuple {
    client: String,
    vip: String,
    backend: String,
    direction: &'static str,
}

/// Deletes flows and returns their number. Reply halves are deleted last: they reserve the tuple, so that no new flow can
/// take the same tuple and lose some of its halves here.
pub fn flush(pins: &Pins, flows: &Flows, service: Option<&str>) -> Result<usize, InspectError> {
    let (mut keys, count) = flows.keys_to_flush(service)?;
    let is_reply = |key: &CtKey| flows.entries.get(key).is_some_and(|entry| entry.has(CtEntry::REPLY));
    keys.sort_by_key(is_reply);
    let conntrack = pins.map(map::CONNTRACK)?;
    for key in &keys {
        conntrack.delete(bytemuck::bytes_of(key)).map_err(|error| {
            InspectError::io("deleting from the map", pins.maps().join(map::CONNTRACK), error)
        })?;
    }
    Ok(count)
}

pub fn print_flows_into(
    out: &mut impl Write,
    views: &[FlowView],
    headers: bool,
    wide: bool,
) -> io::Result<()> {
    let mut header = vec!["PROTOCOL", "CLIENT", "VIP", "BACKEND", "STATE", "DIRECTION", "AGE"];
    if wide {
        header.extend(["IDLE", "KIND", "SERVICE", "MASQUERADE"]);
    }
    let or_dash = |text: &str| if text.is_empty() { "-".to_owned() } else { text.to_owned() };
    let rows = views.iter().map(|view| {
        let mut cells = vec![
            view.protocol.clone(),
            view.client.clone(),
            view.vip.clone(),
            view.backend.clone(),
            view.state.to_owned(),
            view.direction.to_owned(),
            format!("{}s", view.age_seconds),
        ];
        if wide {
            cells.extend([
                format!("{}s", view.idle_seconds),
                view.kind.to_owned(),
                or_dash(&view.service),
                or_dash(&view.masquerade),
            ]);
        }
        cells
    });
    print_table_into(out, headers, &header, rows)
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use bytemuck::Zeroable as _;
    use proxy_common::{Addr, Name, Port, Proto};

    use super::*;

    const CLOCK: Jiffies = Jiffies { now: 10_000, per_second: 100 };

    fn addr(last: u8) -> Addr {
        Ipv4Addr::new(10, 0, 0, last).into()
    }

    fn entry(to: Addr, port: u16, peer_port: u16, flags: u32) -> CtEntry {
        let mut entry = CtEntry::zeroed();
        entry.addr = to;
        entry.port = Port::new(port).be().into();
        entry.peer_port = Port::new(peer_port);
        entry.flags = flags | CtEntry::SERVICE;
        entry.service = 3;
        entry.created = 9_000;
        entry.last_seen = 9_500;
        entry.state = tcp::OPENED | tcp::REPLIED | tcp::CONFIRMED;
        entry
    }

    fn key(src: u8, sport: u16, dst: u8, dport: u16, half: Half) -> CtKey {
        CtKey::new(addr(src), Port::new(sport), addr(dst), Port::new(dport), Proto::TCP, half)
    }

    /// Client .1:1000 (port changed to 1001), VIP .2:80, backend .3:8080, node .4:5000; and a direct flow.
    fn flows() -> Flows {
        let name = |text| Name::new(text).unwrap();
        let meta = ServiceMeta {
            namespace: name("default"),
            name: name("web"),
            port_name: Name::EMPTY,
            port: Port::new(80),
            proto: Proto::TCP,
            family: 4,
            flags: 0,
        };
        let mut direct = entry(addr(3), 8080, 2000, CtEntry::REQUEST | CtEntry::IDENTITY);
        direct.flags &= !CtEntry::SERVICE;
        direct.service = 0;
        let entries = [
            (
                key(1, 1000, 2, 80, Half::Ingress),
                entry(addr(3), 8080, 1001, CtEntry::REQUEST | CtEntry::MASQUERADED),
            ),
            (
                key(3, 8080, 1, 1001, Half::Egress),
                entry(addr(2), 80, 1000, CtEntry::REPLY | CtEntry::MASQUERADED),
            ),
            (key(1, 1001, 3, 8080, Half::Egress), entry(addr(4), 5000, 8080, CtEntry::MASQUERADE)),
            (key(3, 8080, 4, 5000, Half::Ingress), entry(addr(1), 1001, 8080, CtEntry::UNMASQUERADE)),
            (key(1, 2000, 3, 8080, Half::Ingress), direct),
        ];
        Flows { entries: entries.into(), services: [(3, meta)].into(), backends: HashMap::new() }
    }

    #[test]
    fn one_line_per_flow() {
        let mut out = Vec::new();
        print_flows_into(&mut out, &flows().views(None, false, CLOCK).unwrap(), true, true).unwrap();
        let want = "\
PROTOCOL   CLIENT          VIP             BACKEND         STATE         DIRECTION   AGE   IDLE   KIND      SERVICE       MASQUERADE
TCP        10.0.0.1:1000   10.0.0.2:80     10.0.0.3:8080   ESTABLISHED   request     10s   5s     service   default/web   10.0.0.4:5000
TCP        10.0.0.1:2000   10.0.0.3:8080   10.0.0.3:8080   ESTABLISHED   request     10s   5s     direct    -             -
";
        assert_eq!(String::from_utf8(out).unwrap(), want);
    }

    #[test]
    fn every_half_shows_the_same_flow() {
        let views = flows().views(Some("default/web"), true, CLOCK).unwrap();
        let directions: HashSet<_> = views.iter().map(|view| view.direction).collect();
        assert_eq!(directions, HashSet::from(["request", "reply", "masquerade", "unmasquerade"]));
        for view in &views {
            assert_eq!(
                (view.vip.as_str(), view.backend.as_str()),
                ("10.0.0.2:80", "10.0.0.3:8080"),
                "{view:?}"
            );
            assert_eq!(view.masquerade, "10.0.0.4:5000", "{view:?}");
        }
    }

    #[test]
    fn a_flush_deletes_all_halves_of_one_service() {
        let flows = flows();
        let (keys, count) = flows.keys_to_flush(Some("default/web")).unwrap();
        assert_eq!((keys.len(), count), (4, 1));
        assert_eq!(flows.keys_to_flush(None).unwrap().0.len(), 5);
        assert_eq!(flows.keys_to_flush(Some("default/none")).unwrap(), (Vec::new(), 0));
        assert!(flows.keys_to_flush(Some("none")).unwrap_err().is_usage());
    }

    #[test]
    fn a_pending_masquerade_is_not_shown_as_an_address() {
        let mut flows = flows();
        flows.entries.get_mut(&key(1, 1001, 3, 8080, Half::Egress)).unwrap().port = 0;
        assert!(flows.views(Some("default/web"), false, CLOCK).unwrap()[0].masquerade.is_empty());
    }
}
