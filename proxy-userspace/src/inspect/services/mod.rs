//! `shunt service list|show`: each frontend with its backends and their connections. [`print`] prints them.

pub mod print;
mod statistics;

use std::collections::{BTreeMap, HashMap};

use proxy_common::{
    Backend, BackendMeta, CtEntry, CtKey, Frontend, FrontendKey, FrontendKind, Proto, Service, ServiceMeta,
    ServiceStats, SourceRange, map, tcp,
};
use serde::Serialize;

pub use self::statistics::{Statistics, Traffic};
use super::{InspectError, pins::Pins, statistics::traffic, text::proto_name};

/// One frontend.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ServiceView {
    pub namespace: String,
    pub name: String,
    pub port_name: String,
    /// `0.0.0.0` or `::` for a NodePort.
    pub address: String,
    pub port: u16,
    pub protocol: String,
    pub kind: &'static str,
    pub scheduler: &'static str,
    pub policy: &'static str,
    /// 0 without session affinity.
    pub affinity_seconds: u32,
    /// Client ranges that a load balancer address accepts; `null` if all.
    pub source_ranges: Option<Vec<String>>,
    /// Whether the Service has a usable endpoint on any node. If not, new flows are refused.
    pub has_endpoints: bool,
    pub backends: Vec<ServiceBackend>,
    /// Index into SERVICES.
    pub id: u32,
    pub statistics: Statistics,
}

/// One backend of one frontend.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ServiceBackend {
    pub address: String,
    pub port: u16,
    pub node: String,
    pub local: bool,
    pub ready: bool,
    pub terminating: bool,
    /// Established TCP connections through this frontend.
    pub active: u64,
    /// Other flows: TCP during handshake or close, and all UDP, as ipvsadm counts.
    pub inactive: u64,
    /// The set that contains it: `cluster`, `local` or `both`.
    pub set: &'static str,
    pub id: u32,
}

/// The map entries behind the views.
#[derive(Clone, Debug, Default)]
pub struct ServiceMaps {
    pub frontends: Vec<(FrontendKey, Frontend)>,
    /// From index to backend id, without zero elements.
    pub slots: HashMap<u32, u32>,
    pub backends: HashMap<u32, Backend>,
    pub services: HashMap<u32, Service>,
    /// By service id; `None` if statistics are disabled.
    pub traffic: Option<Vec<ServiceStats>>,
    pub service_meta: HashMap<u32, ServiceMeta>,
    pub backend_meta: HashMap<u32, BackendMeta>,
    pub conntrack: Vec<(CtKey, CtEntry)>,
    pub source_ranges: Vec<(SourceRange, u32)>,
}

impl ServiceMaps {
    /// Frontends are read first: the slots of a frontend stay unchanged for some time after it is replaced, so that slots
    /// read later still match.
    pub fn read(pins: &Pins) -> Result<Self, InspectError> {
        let frontends: Vec<(FrontendKey, Frontend)> = pins.read(map::FRONTENDS)?;
        let highest = frontends.iter().map(|(_, frontend)| frontend.service).max().unwrap_or(0);
        Ok(Self {
            frontends,
            slots: pins.read(map::SLOTS)?.into_iter().collect(),
            backends: pins.read(map::BACKENDS)?.into_iter().collect(),
            services: pins.read(map::SERVICES)?.into_iter().collect(),
            traffic: traffic(pins, highest.saturating_add(1))?,
            service_meta: pins.read(map::SERVICE_META)?.into_iter().collect(),
            backend_meta: pins.read(map::BACKEND_META)?.into_iter().collect(),
            conntrack: pins.read(map::CONNTRACK)?,
            source_ranges: pins.read(map::SOURCE_RANGES)?,
        })
    }

    /// One view per frontend, sorted by name, kind and address. Frontends for ping replies are skipped.
    pub fn views(&self) -> Vec<ServiceView> {
        let connections = self.connections();
        let mut views: Vec<_> = self
            .frontends
            .iter()
            .filter_map(|(key, frontend)| {
                let kind =
                    FrontendKind::from_number(frontend.kind).filter(|kind| *kind != FrontendKind::Ping)?;
                Some((kind, key.addr.to_ip(), self.view(key, frontend, kind, &connections)))
            })
            .collect();
        views.sort_by(|(a_kind, a_ip, a), (b_kind, b_ip, b)| {
            (&a.namespace, &a.name, &a.port_name, &a.protocol, a_kind, a_ip).cmp(&(
                &b.namespace,
                &b.name,
                &b.port_name,
                &b.protocol,
                b_kind,
                b_ip,
            ))
        });
        views.into_iter().map(|(.., view)| view).collect()
    }

    fn view(
        &self,
        key: &FrontendKey,
        frontend: &Frontend,
        kind: FrontendKind,
        connections: &Connections,
    ) -> ServiceView {
        let meta = self.service_meta.get(&frontend.service);
        let text = |name: fn(&ServiceMeta) -> &str| meta.map_or("", name).to_owned();
        ServiceView {
            namespace: text(|meta| meta.namespace.as_str()),
            name: text(|meta| meta.name.as_str()),
            port_name: text(|meta| meta.port_name.as_str()),
            address: key.addr.to_string(),
            port: key.port.host(),
            protocol: proto_name(key.proto),
            kind: kind.name(),
            scheduler: if frontend.has(Frontend::RANDOM) { "random" } else { "rr" },
            policy: if frontend.has(Frontend::LOCAL) { "Local" } else { "Cluster" },
            affinity_seconds: frontend.affinity_seconds,
            source_ranges: frontend.has(Frontend::SOURCE_RANGES).then(|| self.ranges_of(frontend)),
            has_endpoints: frontend.has(Frontend::HAS_ENDPOINTS),
            backends: self.backends_of(key, frontend, connections),
            id: frontend.service,
            statistics: self.statistics_of(frontend.service),
        }
    }

    fn statistics_of(&self, service: u32) -> Statistics {
        let counts = self.services.get(&service).copied().unwrap_or_else(bytemuck::Zeroable::zeroed);
        let traffic = self.traffic.as_ref().and_then(|all| all.get(service as usize)).copied();
        Statistics::new(counts, traffic)
    }

    /// Sorted by address, wider ranges first.
    fn ranges_of(&self, frontend: &Frontend) -> Vec<String> {
        let owner = SourceRange::owner(frontend.service, frontend.kind);
        let mine = self.source_ranges.iter().map(|(range, _)| range).filter(|range| range.service == owner);
        let mut ranges: Vec<_> = mine.map(|range| (range.addr.to_ip(), range.address_bits())).collect();
        ranges.sort_unstable();
        ranges.into_iter().map(|(ip, bits)| format!("{ip}/{bits}")).collect()
    }

    /// The backends that new flows to this frontend can reach: with policy Cluster the cluster set; with policy Local the
    /// local set. External addresses with policy Local also use the cluster set, for clients on this node.
    fn backends_of(
        &self,
        key: &FrontendKey,
        frontend: &Frontend,
        connections: &Connections,
    ) -> Vec<ServiceBackend> {
        let local_policy = frontend.has(Frontend::LOCAL);
        let range = |base: u32, count: u32| {
            (base..base.saturating_add(count)).filter_map(|slot| self.slots.get(&slot))
        };
        let mut sets: BTreeMap<u32, (bool, bool)> = BTreeMap::new();
        if !local_policy || frontend.has(Frontend::EXTERNAL) {
            range(frontend.cluster_base, frontend.cluster_count)
                .for_each(|id| sets.entry(*id).or_default().0 = true);
        }
        if local_policy {
            range(frontend.local_base, frontend.local_count)
                .for_each(|id| sets.entry(*id).or_default().1 = true);
        }
        let mut backends: Vec<_> = sets
            .into_iter()
            .filter_map(|(id, sets)| {
                let backend = self.backends.get(&id)?;
                let (active, inactive) = connections.get(&(*key, id)).copied().unwrap_or_default();
                let view = ServiceBackend {
                    address: backend.addr.to_string(),
                    port: backend.port.host(),
                    node: self.backend_meta.get(&id).map(|meta| meta.node().to_owned()).unwrap_or_default(),
                    local: backend.has(Backend::LOCAL),
                    ready: backend.has(Backend::READY),
                    terminating: backend.has(Backend::TERMINATING),
                    active,
                    inactive,
                    set: match sets {
                        (true, true) => "both",
                        (false, _) => "local",
                        (true, false) => "cluster",
                    },
                    id,
                };
                Some((backend.addr.to_ip(), view))
            })
            .collect();
        backends.sort_by(|(a_ip, a), (b_ip, b)| (a_ip, a.port, a.id).cmp(&(b_ip, b.port, b.id)));
        backends.into_iter().map(|(_, view)| view).collect()
    }

    /// Active and inactive flows by frontend and backend, from the request halves. The destination of a request half is the
    /// address of a frontend, or a node address with a NodePort.
    fn connections(&self) -> Connections {
        let frontends: HashMap<&FrontendKey, u32> =
            self.frontends.iter().map(|(key, frontend)| (key, frontend.service)).collect();
        let mut counts = Connections::new();
        for (key, entry) in &self.conntrack {
            if !(entry.has(CtEntry::REQUEST) && entry.has(CtEntry::SERVICE)) {
                continue;
            }
            let exact = FrontendKey::new(key.dst, key.dport, key.proto);
            let node_port = FrontendKey::new(key.dst.unspecified_alike(), key.dport, key.proto);
            let Some(frontend) = [exact, node_port]
                .into_iter()
                .find(|frontend| frontends.get(frontend) == Some(&entry.service))
            else {
                continue;
            };
            let (active, inactive) = counts.entry((frontend, entry.backend)).or_default();
            if key.proto == Proto::TCP && tcp::name(entry.state, key.proto) == "ESTABLISHED" {
                *active += 1;
            } else {
                *inactive += 1;
            }
        }
        counts
    }
}

/// Active and inactive flows by frontend and backend id.
type Connections = HashMap<(FrontendKey, u32), (u64, u64)>;

/// Splits `NAMESPACE/NAME`.
pub fn split_name(text: &str) -> Result<(&str, &str), InspectError> {
    match text.split_once('/') {
        Some((namespace, name)) if !namespace.is_empty() && !name.is_empty() && !name.contains('/') => {
            Ok((namespace, name))
        }
        _ => Err(InspectError::BadServiceName(text.to_owned())),
    }
}

/// The frontends of one Service.
pub fn only(views: Vec<ServiceView>, name: &str) -> Result<Vec<ServiceView>, InspectError> {
    let (namespace, service) = split_name(name)?;
    let views: Vec<_> =
        views.into_iter().filter(|view| view.namespace == namespace && view.name == service).collect();
    if views.is_empty() { Err(InspectError::NoSuchService(name.to_owned())) } else { Ok(views) }
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr};

    use proxy_common::{Addr, Half, Name, Port};

    use super::*;

    fn ip(last: u8) -> Addr {
        IpAddr::V4(Ipv4Addr::new(10, 0, 0, last)).into()
    }

    fn frontend(kind: FrontendKind, flags: u32) -> Frontend {
        Frontend {
            service: 7,
            flags,
            cluster_base: 0,
            cluster_count: 2,
            local_base: 8,
            local_count: 1,
            affinity_seconds: 0,
            kind: kind as u32,
        }
    }

    fn backend(last: u8, flags: u8) -> Backend {
        Backend { addr: ip(last), port: Port::new(8080), proto: Proto::TCP, flags, reserved: 0 }
    }

    fn flow(sport: u16, dst: Addr, dport: u16, backend: u32, state: u64) -> (CtKey, CtEntry) {
        let key = CtKey::new(ip(200), Port::new(sport), dst, Port::new(dport), Proto::TCP, Half::Ingress);
        let mut entry: CtEntry = bytemuck::Zeroable::zeroed();
        (entry.flags, entry.service, entry.backend, entry.state) =
            (CtEntry::SERVICE | CtEntry::REQUEST, 7, backend, state);
        (key, entry)
    }

    /// Service 7 at 10.0.0.100:80 and NodePort 30080 (Local), backends 1 (local) and 2 (remote).
    pub(super) fn maps() -> ServiceMaps {
        let open = tcp::OPENED | tcp::REPLIED | tcp::CONFIRMED;
        let name = |text| Name::new(text).unwrap();
        let meta = ServiceMeta {
            namespace: name("default"),
            name: name("web"),
            port_name: name("http"),
            port: Port::new(80),
            proto: Proto::TCP,
            family: 4,
            flags: 0,
        };
        let stats =
            ServiceStats { flows: 6, packets_in: 60, bytes_in: 6000, packets_out: 50, bytes_out: 90_000 };
        let cluster_ip = FrontendKey::new(ip(100), Port::new(80), Proto::TCP);
        let node_port = FrontendKey::new(Addr::UNSPECIFIED_V4, Port::new(30080), Proto::TCP);
        let ping = FrontendKey::new(ip(100), Port::ZERO, Proto::ICMP);
        let flags = Frontend::HAS_ENDPOINTS;
        ServiceMaps {
            frontends: vec![
                (node_port, frontend(FrontendKind::NodePort, flags | Frontend::EXTERNAL | Frontend::LOCAL)),
                (ping, frontend(FrontendKind::Ping, flags)),
                (cluster_ip, frontend(FrontendKind::ClusterIp, flags)),
            ],
            slots: [(0, 1), (1, 2), (8, 1)].into(),
            backends: [
                (1, backend(1, Backend::LOCAL | Backend::READY | Backend::ACTIVE)),
                (2, backend(2, Backend::TERMINATING | Backend::ACTIVE)),
            ]
            .into(),
            services: [(7, Service { cluster_next: 5, local_next: 1, refused: 2, dropped: 3 })].into(),
            traffic: Some(vec![stats; 8]),
            service_meta: [(7, meta)].into(),
            backend_meta: [(1, BackendMeta::new("node-1")), (2, BackendMeta::new("node-2"))].into(),
            conntrack: vec![
                flow(1, ip(100), 80, 1, open),
                flow(2, ip(100), 80, 1, tcp::OPENED),
                flow(3, ip(100), 80, 2, open),
                flow(4, ip(250), 30080, 1, open | tcp::FIN_CLIENT),
            ],
            source_ranges: [(7, ip(0), 120), (7, ip(128), 121), (8, ip(0), 100)]
                .map(|(service, addr, len)| (SourceRange::new(service, addr, len), 1))
                .into(),
        }
    }

    #[test]
    fn json_has_the_contracts_names() {
        let json = serde_json::to_value(&maps().views()[0]).unwrap();
        for name in
            ["namespace", "name", "port_name", "address", "port", "protocol", "kind", "scheduler", "policy"]
        {
            assert!(!json[name].is_null(), "{name}");
        }
        assert_eq!(json["backends"][0]["node"], "node-1");
        for name in ["address", "port", "node", "local", "ready", "terminating", "active", "inactive"] {
            assert!(!json["backends"][0][name].is_null(), "{name}");
        }
        assert_eq!(
            (&json["statistics"]["refused"], &json["statistics"]["bytes_out"]),
            (&2.into(), &90_000.into())
        );
        let off = ServiceMaps { traffic: None, ..maps() };
        let json = serde_json::to_value(&off.views()[0]).unwrap();
        assert!(json["statistics"]["flows"].is_null() && json["statistics"]["dropped"] == 3, "{json}");
    }

    #[test]
    fn local_policy_shows_reachable_backends() {
        let mut maps = maps();
        let views = maps.views();
        assert_eq!(views[1].backends[0].set, "both");
        assert_eq!(views[1].backends[1].set, "cluster");
        // internalTrafficPolicy Local: the local set alone.
        maps.frontends[2].1.flags |= Frontend::LOCAL;
        assert_eq!(maps.views()[0].backends.len(), 1);
        maps.frontends[2].1.local_count = 0;
        assert_eq!(maps.views()[0].no_backend_text(), "no local endpoint: dropped");
        maps.frontends[2].1.flags = 0;
        assert_eq!(maps.views()[0].no_backend_text(), "no endpoint: refused");
    }

    #[test]
    fn source_ranges_are_shown_where_they_apply() {
        let mut maps = maps();
        assert_eq!(maps.views()[0].source_ranges, None);
        maps.frontends[2].1.flags |= Frontend::SOURCE_RANGES;
        let want = Some(vec!["10.0.0.0/24".to_owned(), "10.0.0.128/25".to_owned()]);
        assert_eq!(maps.views()[0].source_ranges, want);
        assert_eq!(maps.views()[1].source_ranges, None);
        maps.source_ranges.clear();
        assert_eq!(maps.views()[0].source_ranges, Some(Vec::new()));
    }

    #[test]
    fn names_have_a_namespace() {
        assert_eq!(split_name("a/b").unwrap(), ("a", "b"));
        for bad in ["a", "/b", "a/", "a/b/c"] {
            assert!(split_name(bad).unwrap_err().is_usage(), "{bad}");
        }
        assert!(matches!(only(maps().views(), "default/other"), Err(InspectError::NoSuchService(_))));
        assert_eq!(only(maps().views(), "default/web").unwrap().len(), 2);
    }
}
