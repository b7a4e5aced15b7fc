//! The tables as data: the output of `shunt compile`.

use proxy_common::{
    Addr, Backend, Frontend, FrontendKind, NodeConfig, Port, Prefix, Proto, ServiceMeta, SetMember,
    SourceRange,
    affinity::set_bits,
    node::{port_bits, role},
};
use serde::Serialize;

use crate::{
    health_checks::Listeners,
    tables::{Range, Tables},
};

/// All tables, each sorted by key.
#[derive(Clone, Debug, Serialize)]
pub struct TablesView {
    pub node_config: Option<NodeConfigView>,
    pub node_addrs: Vec<NodeAddrView>,
    pub services: Vec<ServiceView>,
    pub frontends: Vec<FrontendView>,
    pub slots: Vec<SlotView>,
    pub backends: Vec<BackendView>,
    pub set_members: Vec<SetMemberView>,
    pub source_ranges: Vec<SourceRangeView>,
    pub ports: Vec<PortView>,
    pub health_checks: Vec<HealthCheckView>,
}

/// NODE_CONFIG.
#[derive(Clone, Debug, Serialize)]
pub struct NodeConfigView {
    pub primary: Vec<String>,
    pub pod_prefixes: Vec<String>,
    pub service_prefixes: Vec<String>,
    pub flags: Vec<&'static str>,
}

/// An entry of NODE_ADDRS.
#[derive(Clone, Debug, Serialize)]
pub struct NodeAddrView {
    pub address: String,
    pub roles: Vec<&'static str>,
}

/// An entry of SERVICE_META.
#[derive(Clone, Debug, Serialize)]
pub struct ServiceView {
    pub id: u32,
    pub namespace: String,
    pub name: String,
    pub port_name: String,
    pub port: u16,
    pub protocol: &'static str,
    pub family: u8,
}

/// An entry of FRONTENDS.
#[derive(Clone, Debug, Serialize)]
pub struct FrontendView {
    /// `*` for every address of the node.
    pub address: String,
    pub family: u8,
    pub port: u16,
    pub protocol: &'static str,
    pub kind: &'static str,
    pub service_id: u32,
    pub service: String,
    pub flags: Vec<&'static str>,
    pub cluster: RangeView,
    pub local: RangeView,
    pub affinity_seconds: u32,
}

/// A range of SLOTS and its backends.
#[derive(Clone, Debug, Serialize)]
pub struct RangeView {
    pub base: u32,
    pub count: u32,
    pub backends: Vec<u32>,
}

/// An element of SLOTS.
#[derive(Clone, Debug, Serialize)]
pub struct SlotView {
    pub slot: u32,
    pub backend: u32,
    pub address: String,
}

/// An element of BACKENDS, with BACKEND_ADDRS and BACKEND_META.
#[derive(Clone, Debug, Serialize)]
pub struct BackendView {
    pub id: u32,
    pub address: String,
    pub port: u16,
    pub protocol: &'static str,
    pub node: String,
    pub flags: Vec<&'static str>,
}

/// An entry of SET_MEMBERS.
#[derive(Clone, Debug, Serialize)]
pub struct SetMemberView {
    pub service_id: u32,
    pub service: String,
    pub backend: u32,
    pub address: String,
    pub sets: Vec<&'static str>,
}

/// An entry of SOURCE_RANGES.
#[derive(Clone, Debug, Serialize)]
pub struct SourceRangeView {
    pub service_id: u32,
    pub service: String,
    /// The kind of the frontends that accept these clients.
    pub kind: &'static str,
    pub range: String,
}

/// An element of PORTS.
#[derive(Clone, Debug, Serialize)]
pub struct PortView {
    pub port: u32,
    pub bits: Vec<String>,
}

/// The response of a healthCheckNodePort. Not a map: a listener of the agent.
#[derive(Clone, Debug, Serialize)]
pub struct HealthCheckView {
    /// The unspecified address for every address of the node.
    pub address: String,
    pub port: u16,
    pub service: String,
    pub local_endpoints: usize,
}

impl TablesView {
    pub fn new(tables: &Tables, listeners: &Listeners) -> Self {
        Self {
            node_config: tables.node_config.get(&0).map(NodeConfigView::new),
            node_addrs: by_address(tables.node_addrs.entries(), |addr| **addr)
                .into_iter()
                .map(|(addr, roles)| NodeAddrView { address: addr.to_string(), roles: role_names(*roles) })
                .collect(),
            services: tables
                .service_meta
                .entries()
                .into_iter()
                .map(|(id, meta)| service(*id, meta))
                .collect(),
            frontends: frontends(tables),
            slots: tables
                .slots
                .entries()
                .into_iter()
                .map(|(slot, id)| slot_view(tables, *slot, *id))
                .collect(),
            backends: tables.backends.entries().into_iter().map(|(id, b)| backend(tables, *id, b)).collect(),
            set_members: set_members(tables),
            source_ranges: source_ranges(tables),
            ports: ports(tables),
            health_checks: listeners
                .iter()
                .map(|(at, answer)| HealthCheckView {
                    address: at.ip().to_string(),
                    port: at.port(),
                    service: answer.service.to_string(),
                    local_endpoints: answer.count,
                })
                .collect(),
        }
    }
}

/// Sorts by numeric address, IPv4 first.
fn by_address<K, V>(mut entries: Vec<(K, V)>, addr: impl Fn(&K) -> Addr) -> Vec<(K, V)> {
    entries.sort_by_key(|(key, _)| addr(key).to_ip());
    entries
}

fn frontends(tables: &Tables) -> Vec<FrontendView> {
    let mut entries = tables.frontends.entries();
    entries.sort_by_key(|(key, _)| {
        let ip = key.addr.to_ip();
        (ip.is_ipv6(), key.addr.is_unspecified(), ip, key.port.host(), key.proto)
    });
    let view = |(key, value): (&proxy_common::FrontendKey, &Frontend)| FrontendView {
        address: if key.addr.is_unspecified() { "*".into() } else { key.addr.to_string() },
        family: if key.addr.is_v4() { 4 } else { 6 },
        port: key.port.host(),
        protocol: protocol(key.proto),
        kind: FrontendKind::from_number(value.kind).map_or("?", FrontendKind::name),
        service_id: value.service,
        service: name_of(tables, value.service),
        flags: names(&[
            (value.has(Frontend::HAS_ENDPOINTS), "has-endpoints"),
            (value.has(Frontend::EXTERNAL), "external"),
            (value.has(Frontend::LOCAL), "local"),
            (value.has(Frontend::RANDOM), "random"),
            (value.has(Frontend::SOURCE_RANGES), "source-ranges"),
        ]),
        cluster: range(tables, value.cluster_base, value.cluster_count),
        local: range(tables, value.local_base, value.local_count),
        affinity_seconds: value.affinity_seconds,
    };
    entries.into_iter().map(view).collect()
}

fn range(tables: &Tables, base: u32, count: u32) -> RangeView {
    let slots = Range { base, len: count }.indices();
    RangeView {
        base,
        count,
        backends: slots.map(|slot| tables.slots.get(&slot).copied().unwrap_or(0)).collect(),
    }
}

fn slot_view(tables: &Tables, slot: u32, id: u32) -> SlotView {
    let address = tables.backends.get(&id).map(|b| socket(b.addr, b.port)).unwrap_or_default();
    SlotView { slot, backend: id, address }
}

/// `10.0.0.1:80`, `[fd00::1]:80`.
fn socket(addr: Addr, port: Port) -> String {
    std::net::SocketAddr::new(addr.to_ip(), port.host()).to_string()
}

fn backend(tables: &Tables, id: u32, value: &Backend) -> BackendView {
    BackendView {
        id,
        address: value.addr.to_string(),
        port: value.port.host(),
        protocol: protocol(value.proto),
        node: tables.backend_meta.get(&id).map(|name| name.0.to_string()).unwrap_or_default(),
        flags: names(&[
            (value.has(Backend::ACTIVE), "active"),
            (value.has(Backend::LOCAL), "local"),
            (value.has(Backend::READY), "ready"),
            (value.has(Backend::TERMINATING), "terminating"),
        ]),
    }
}

fn service(id: u32, meta: &ServiceMeta) -> ServiceView {
    ServiceView {
        id,
        namespace: meta.namespace.as_str().into(),
        name: meta.name.as_str().into(),
        port_name: meta.port_name.as_str().into(),
        port: meta.port.host(),
        protocol: protocol(meta.proto),
        family: meta.family,
    }
}

fn set_members(tables: &Tables) -> Vec<SetMemberView> {
    let view = |(member, sets): (&SetMember, &u32)| SetMemberView {
        service_id: member.service,
        service: name_of(tables, member.service),
        backend: member.backend,
        address: tables.backends.get(&member.backend).map(|b| socket(b.addr, b.port)).unwrap_or_default(),
        sets: names(&[(sets & set_bits::CLUSTER != 0, "cluster"), (sets & set_bits::LOCAL != 0, "local")]),
    };
    tables.set_members.entries().into_iter().map(view).collect()
}

fn source_ranges(tables: &Tables) -> Vec<SourceRangeView> {
    let mut ranges: Vec<_> = tables.source_ranges.entries().into_iter().map(|(range, _)| range).collect();
    ranges.sort_by_key(|range| (range.service_id(), range.service, range.addr.to_ip(), range.prefix_len));
    let view = |range: &SourceRange| SourceRangeView {
        service_id: range.service_id(),
        service: name_of(tables, range.service_id()),
        kind: range.kind().name(),
        range: format!("{}/{}", range.addr, range.address_bits()),
    };
    ranges.into_iter().map(view).collect()
}

fn name_of(tables: &Tables, service: u32) -> String {
    tables.service_meta.get(&service).map(service_name).unwrap_or_default()
}

/// `default/web:http`; `default/web` if the port has no name.
fn service_name(meta: &ServiceMeta) -> String {
    let name = format!("{}/{}", meta.namespace.as_str(), meta.name.as_str());
    match meta.port_name.as_str() {
        "" => name,
        port => format!("{name}:{port}"),
    }
}

/// The elements that have port bits. Elements with only address bits add no information to BACKENDS.
fn ports(tables: &Tables) -> Vec<PortView> {
    let rows = tables.ports.entries().into_iter().map(|(port, bits)| port_view(*port, *bits));
    rows.filter(|row| !row.bits.is_empty()).collect()
}

fn port_view(port: u32, bits: u32) -> PortView {
    let mut found = Vec::new();
    for (of, name) in [
        (port_bits::frontend as fn(u8) -> u32, "frontend"),
        (port_bits::nodeport, "nodeport"),
        (port_bits::backend, "backend"),
    ] {
        let protocols =
            [Proto::TCP, Proto::UDP, Proto::SCTP].into_iter().filter(|proto| bits & of(*proto) != 0);
        found.extend(protocols.map(|proto| format!("{name}/{}", protocol(proto))));
    }
    PortView { port, bits: found }
}

fn role_names(roles: u32) -> Vec<&'static str> {
    names(&[
        (roles & role::OWN != 0, "own"),
        (roles & role::NODEPORT != 0, "nodeport"),
        (roles & role::LOOPBACK != 0, "loopback"),
    ])
}

fn names(set: &[(bool, &'static str)]) -> Vec<&'static str> {
    set.iter().filter(|(is_set, _)| *is_set).map(|(_, name)| *name).collect()
}

fn protocol(number: u8) -> &'static str {
    Proto::name(number).unwrap_or("?")
}

impl NodeConfigView {
    fn new(value: &NodeConfig) -> Self {
        let primary = [value.primary_v4, value.primary_v6];
        let used = |prefixes: &[Prefix], count: u32| -> Vec<String> {
            prefixes.iter().take(count as usize).map(Prefix::to_string).collect()
        };
        Self {
            primary: primary.iter().filter(|a| !a.is_unspecified()).map(Addr::to_string).collect(),
            pod_prefixes: used(&value.pod_prefixes, value.pod_prefix_count),
            service_prefixes: used(&value.service_prefixes, value.service_prefix_count),
            flags: names(&[
                (value.flags & NodeConfig::LOCAL_BY_DEVICE_V4 != 0, "local-by-device/IPv4"),
                (value.flags & NodeConfig::LOCAL_BY_DEVICE_V6 != 0, "local-by-device/IPv6"),
                (value.flags & NodeConfig::CLUSTER_PREFIXES != 0, "cluster-prefixes"),
                (value.flags & NodeConfig::MASQUERADE_ALL != 0, "masquerade-all"),
            ]),
        }
    }
}
