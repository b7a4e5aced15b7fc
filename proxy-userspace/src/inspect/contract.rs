//! Every map of the contract in words: its layout, and what a key and a value of it mean. Read by the pins
//! (layout check) and by `shunt map dump|lookup`.

use proxy_common::{
    Addr, Affinity, AffinityKey, Agent, Backend, BackendMeta, Counter, CtEntry, CtKey, Device, DropKey,
    EventKind, Fragment, FragmentKey, Frontend, FrontendKey, FrontendKind, Held, Monitor, NodeConfig, Prefix,
    Service, ServiceMeta, ServiceStats, SetMember, SockKey, SockPeer, SourceAddrKey, SourceRange, map, node,
    observe::kinds, tcp,
};
use serde::{Serialize, Serializer, ser::SerializeMap as _};
use serde_json::{Value, json};

use super::{addr_port, proto_name};

/// Named values in the order they stand in the struct.
#[derive(Clone, Debug, PartialEq)]
pub struct Fields(pub Vec<(&'static str, Value)>);

impl Serialize for Fields {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.0.len()))?;
        for (name, value) in &self.0 {
            map.serialize_entry(name, value)?;
        }
        map.end()
    }
}

impl std::fmt::Display for Fields {
    /// `name=value name=value`; lists with commas, empty texts as `-`.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let text = |value: &Value| match value {
            Value::String(text) if text.is_empty() => "-".to_owned(),
            Value::String(text) => text.clone(),
            Value::Array(list) if list.is_empty() => "-".to_owned(),
            Value::Array(list) => list
                .iter()
                .map(|one| one.as_str().map_or_else(|| one.to_string(), str::to_owned))
                .collect::<Vec<_>>()
                .join(","),
            other => other.to_string(),
        };
        for (i, (name, value)) in self.0.iter().enumerate() {
            let space = if i == 0 { "" } else { " " };
            write!(f, "{space}{name}={}", text(value))?;
        }
        Ok(())
    }
}

macro_rules! fields {
    ($($name:literal: $value:expr),* $(,)?) => { Fields(vec![$(($name, json!($value))),*]) };
}

/// Sizes and meaning of one map's keys and values.
#[derive(Clone, Copy)]
pub struct Layout {
    pub name: &'static str,
    pub key_size: u32,
    pub value_size: u32,
    key: fn(&[u8]) -> Fields,
    value: fn(&[u8]) -> Fields,
}

impl Layout {
    /// What a key of `key_size` bytes means.
    pub fn key(&self, bytes: &[u8]) -> Fields {
        (self.key)(bytes)
    }

    /// What a value of `value_size` bytes means (of one CPU, in a per-CPU map).
    pub fn value(&self, bytes: &[u8]) -> Fields {
        (self.value)(bytes)
    }
}

/// Puts two typed readers behind untyped ones, with the sizes of the types they take.
macro_rules! layout {
    ($name:ident, $key_type:ty => $key:expr, $value_type:ty => $value:expr) => {
        Layout {
            name: map::$name,
            key_size: size_of::<$key_type>() as u32,
            value_size: size_of::<$value_type>() as u32,
            key: |bytes| $key(bytemuck::pod_read_unaligned::<$key_type>(bytes)),
            value: |bytes| $value(bytemuck::pod_read_unaligned::<$value_type>(bytes)),
        }
    };
}

/// Every map of the contract, in the order of [`map::ALL`].
pub const LAYOUTS: [Layout; map::ALL.len()] = [
    layout!(FRONTENDS, FrontendKey => frontend_key, Frontend => frontend),
    layout!(SLOTS, u32 => index, u32 => backend_id),
    layout!(BACKENDS, u32 => backend_id, Backend => backend),
    layout!(SERVICES, u32 => service_id, Service => service),
    layout!(CONNTRACK, CtKey => ct_key, CtEntry => ct_entry),
    layout!(BACKEND_ADDRS, FrontendKey => frontend_key, u32 => backend_id),
    layout!(AFFINITY, AffinityKey => affinity_key, Affinity => affinity),
    layout!(SET_MEMBERS, SetMember => set_member, u32 => sets),
    layout!(SOURCE_RANGES, SourceRange => source_range, u32 => allowed),
    layout!(PORTS, u32 => port, u32 => port_bits),
    layout!(NODE_ADDRS, Addr => address, u32 => roles),
    layout!(NODE_CONFIG, u32 => index, NodeConfig => node_config),
    layout!(DEVICES, u32 => ifindex, Device => device),
    layout!(SOURCE_ADDRS, SourceAddrKey => source_addr_key, Addr => source_addr),
    layout!(COUNTERS, u32 => counter, u64 => count),
    layout!(SOCK_REVNAT, SockKey => sock_key, SockPeer => sock_peer),
    layout!(SOCK_BACKEND, SockKey => sock_key, SockPeer => sock_peer),
    layout!(FRAGMENTS, FragmentKey => fragment_key, Fragment => fragment),
    layout!(HELD, u32 => index, Held => held),
    layout!(SERVICE_META, u32 => service_id, ServiceMeta => service_meta),
    layout!(BACKEND_META, u32 => backend_id, BackendMeta => backend_meta),
    layout!(AGENT, u32 => index, Agent => agent),
    layout!(SERVICE_STATS, u32 => service_id, ServiceStats => service_stats),
    layout!(DROPS, DropKey => drop_key, u64 => count),
    layout!(MONITOR, u32 => index, Monitor => monitor),
];

/// The layout of the map with this name, if it is one of the contract's.
pub fn layout(name: &str) -> Option<&'static Layout> {
    static ALL: [Layout; map::ALL.len()] = LAYOUTS;
    ALL.iter().find(|layout| layout.name == name)
}

/// The names of the bits that are set; what has no name is shown as a number.
fn bits<T: Into<u64> + Copy>(value: T, names: impl IntoIterator<Item = (T, &'static str)>) -> Value {
    let mut left = value.into();
    let mut set: Vec<String> = Vec::new();
    for (bit, name) in names {
        if left & bit.into() != 0 {
            set.push(name.to_owned());
        }
        left &= !bit.into();
    }
    if left != 0 {
        set.push(format!("{left:#x}"));
    }
    json!(set)
}

fn index(index: u32) -> Fields {
    fields! {"index": index}
}

fn backend_id(id: u32) -> Fields {
    fields! {"backend": id}
}

fn service_id(id: u32) -> Fields {
    fields! {"service": id}
}

fn port(port: u32) -> Fields {
    fields! {"port": port}
}

fn address(addr: Addr) -> Fields {
    fields! {"address": addr.to_string()}
}

fn ifindex(ifindex: u32) -> Fields {
    fields! {"ifindex": ifindex}
}

fn count(count: u64) -> Fields {
    fields! {"count": count}
}

fn frontend_key(key: FrontendKey) -> Fields {
    fields! {"address": key.addr.to_string(), "port": key.port.host(), "protocol": proto_name(key.proto)}
}

fn frontend(value: Frontend) -> Fields {
    let kind = FrontendKind::from_number(value.kind).map_or("unknown", FrontendKind::name);
    fields! {
        "service": value.service,
        "kind": kind,
        "flags": bits(value.flags, [
            (Frontend::EXTERNAL, "external"),
            (Frontend::LOCAL, "local"),
            (Frontend::HAS_ENDPOINTS, "has_endpoints"),
            (Frontend::RANDOM, "random"),
            (Frontend::SOURCE_RANGES, "source_ranges"),
            (Frontend::CLUSTER_IP, "cluster_ip"),
        ]),
        "cluster_base": value.cluster_base,
        "cluster_count": value.cluster_count,
        "local_base": value.local_base,
        "local_count": value.local_count,
        "affinity_seconds": value.affinity_seconds,
    }
}

fn backend(value: Backend) -> Fields {
    fields! {
        "address": value.addr.to_string(),
        "port": value.port.host(),
        "protocol": proto_name(value.proto),
        "flags": bits(value.flags, [
            (Backend::LOCAL, "local"),
            (Backend::READY, "ready"),
            (Backend::TERMINATING, "terminating"),
            (Backend::ACTIVE, "active"),
        ]),
    }
}

fn backend_meta(value: BackendMeta) -> Fields {
    fields! {"node": value.node()}
}

fn service(value: Service) -> Fields {
    fields! {
        "cluster_next": value.cluster_next,
        "local_next": value.local_next,
        "refused": value.refused,
        "dropped": value.dropped,
    }
}

fn service_meta(value: ServiceMeta) -> Fields {
    fields! {
        "namespace": value.namespace.as_str(),
        "name": value.name.as_str(),
        "port_name": value.port_name.as_str(),
        "port": value.port.host(),
        "protocol": proto_name(value.proto),
        "family": value.family,
        "flags": value.flags,
    }
}

fn ct_key(key: CtKey) -> Fields {
    fields! {
        "protocol": proto_name(key.proto),
        "source": addr_port(key.src, key.sport),
        "destination": addr_port(key.dst, key.dport),
        "hook": if key.half == 0 { "ingress" } else { "egress" },
    }
}

fn ct_entry(value: CtEntry) -> Fields {
    fields! {
        "rewrite": addr_port(value.addr, value.port()),
        "peer_port": value.peer_port.host(),
        "flags": bits(value.flags, [
            (CtEntry::SERVICE, "service"),
            (CtEntry::REQUEST, "request"),
            (CtEntry::REPLY, "reply"),
            (CtEntry::MASQUERADED, "masqueraded"),
            (CtEntry::MASQUERADE, "masquerade"),
            (CtEntry::UNMASQUERADE, "unmasquerade"),
            (CtEntry::IDENTITY, "identity"),
            (CtEntry::XDP, "xdp"),
        ]),
        "state": bits(value.state, [
            (tcp::OPENED, "opened"),
            (tcp::REPLIED, "replied"),
            (tcp::FIN_CLIENT, "fin_client"),
            (tcp::FIN_BACKEND, "fin_backend"),
            (tcp::RESET, "reset"),
            (tcp::CONFIRMED, "confirmed"),
        ]),
        "service": value.service,
        "backend": value.backend,
        "created": value.created,
        "last_seen": value.last_seen,
    }
}

fn affinity_key(key: AffinityKey) -> Fields {
    fields! {"client": key.client.to_string(), "service": key.service}
}

fn affinity(value: Affinity) -> Fields {
    fields! {"backend": value.backend, "last_used": value.last_used}
}

fn set_member(key: SetMember) -> Fields {
    fields! {"service": key.service, "backend": key.backend}
}

fn sets(value: u32) -> Fields {
    use proxy_common::affinity::set_bits;
    fields! {"sets": bits(value, [(set_bits::CLUSTER, "cluster"), (set_bits::LOCAL, "local")])}
}

fn source_range(key: SourceRange) -> Fields {
    fields! {"service": key.service, "range": format!("{}/{}", key.addr, key.address_bits())}
}

fn allowed(value: u32) -> Fields {
    fields! {"allowed": value}
}

fn port_bits(value: u32) -> Fields {
    use proxy_common::{Proto, node::port_bits as ports};
    fields! {"bits": bits(value, [
        (ports::frontend(Proto::TCP), "frontend/TCP"),
        (ports::frontend(Proto::UDP), "frontend/UDP"),
        (ports::frontend(Proto::SCTP), "frontend/SCTP"),
        (ports::nodeport(Proto::TCP), "nodeport/TCP"),
        (ports::nodeport(Proto::UDP), "nodeport/UDP"),
        (ports::nodeport(Proto::SCTP), "nodeport/SCTP"),
        (ports::backend(Proto::TCP), "backend/TCP"),
        (ports::backend(Proto::UDP), "backend/UDP"),
        (ports::backend(Proto::SCTP), "backend/SCTP"),
        (ports::BACKEND_ADDR, "backend-address"),
        (ports::CLUSTER_IP, "cluster-ip"),
    ])}
}

fn roles(value: u32) -> Fields {
    use node::role;
    fields! {"roles": bits(value, [(role::NODEPORT, "nodeport"), (role::OWN, "own"), (role::LOOPBACK, "loopback")])}
}

fn node_config(value: NodeConfig) -> Fields {
    let used = |prefixes: &[Prefix], count: u32| -> Vec<String> {
        prefixes.iter().take(count as usize).map(Prefix::to_string).collect()
    };
    fields! {
        "flags": bits(value.flags, [
            (NodeConfig::MASQUERADE_ALL, "masquerade_all"),
            (NodeConfig::LOCAL_BY_DEVICE_V4, "local_by_device_v4"),
            (NodeConfig::LOCAL_BY_DEVICE_V6, "local_by_device_v6"),
            (NodeConfig::CLUSTER_PREFIXES, "cluster_prefixes"),
            (NodeConfig::TAKING_OVER, "taking_over"),
        ]),
        "primary_v4": value.primary_v4.to_string(),
        "primary_v6": value.primary_v6.to_string(),
        "pod_prefixes": used(&value.pod_prefixes, value.pod_prefix_count),
        "service_prefixes": used(&value.service_prefixes, value.service_prefix_count),
    }
}

fn device(value: Device) -> Fields {
    fields! {
        "flags": bits(value.flags, [(Device::POD, "pod"), (Device::UPLINK, "uplink"), (Device::TUNNEL, "tunnel")]),
        "header_len": value.header_len,
        "source_v4": value.source_v4.to_string(),
        "source_v6": value.source_v6.to_string(),
    }
}

fn source_addr_key(key: SourceAddrKey) -> Fields {
    let destinations = format!("{}/{}", key.destination, key.address_bits());
    fields! {"ifindex": key.ifindex, "destinations": destinations}
}

fn source_addr(value: Addr) -> Fields {
    fields! {"source": value.to_string()}
}

fn counter(number: u32) -> Fields {
    let name = Counter::from_number(number).map_or("unused", Counter::name);
    fields! {"counter": name, "number": number}
}

fn sock_key(key: SockKey) -> Fields {
    fields! {"cookie": key.cookie, "address": key.addr.to_string(), "port": key.port.host(), "protocol": proto_name(key.proto)}
}

fn sock_peer(value: SockPeer) -> Fields {
    fields! {"address": value.addr.to_string(), "port": value.port.host(), "backend": value.backend, "service": value.service}
}

fn fragment_key(key: FragmentKey) -> Fields {
    // IPv4's 16 bits stand alone in the first half of the word.
    let id = if key.src.is_v4() { u16::from_be(key.id as u16).into() } else { u32::from_be(key.id) };
    fields! {
        "protocol": proto_name(key.proto),
        "source": key.src.to_string(),
        "destination": key.dst.to_string(),
        "id": id,
        "hook": if key.half == 0 { "ingress" } else { "egress" },
    }
}

fn fragment(value: Fragment) -> Fields {
    let state = match value.state {
        Fragment::UNDECIDED => "undecided",
        Fragment::PASS => "pass",
        Fragment::TRANSLATE => "translate",
        Fragment::DROP => "drop",
        _ => "awaited",
    };
    let held = if value.state < Fragment::UNDECIDED { value.state } else { 0 };
    fields! {"state": state, "rewrite": value.addr.to_string(), "held": held, "since": value.since}
}

/// Without the frame's bytes: they are somebody's payload.
fn held(value: Held) -> Fields {
    let mut fields = fragment_key(value.key);
    fields.0.extend(
        fields! {
            "ticket": value.ticket,
            "next": value.next,
            "ifindex": value.ifindex,
            "length": value.len,
            "since": value.since,
        }
        .0,
    );
    fields
}

fn agent(value: Agent) -> Fields {
    fields! {
        "pid": value.pid,
        "ready": value.ready,
        "services": value.services,
        "started": value.started,
        "last_sync": value.last_sync,
        "heartbeat": value.heartbeat,
    }
}

fn service_stats(value: ServiceStats) -> Fields {
    fields! {
        "flows": value.flows,
        "packets_in": value.packets_in,
        "bytes_in": value.bytes_in,
        "packets_out": value.packets_out,
        "bytes_out": value.bytes_out,
    }
}

fn drop_key(key: DropKey) -> Fields {
    let reason = Counter::from_number(key.reason).map_or("unknown", Counter::name);
    fields! {"ifindex": key.ifindex, "reason": reason}
}

fn monitor(value: Monitor) -> Fields {
    let kinds = EventKind::ALL.iter().map(|kind| (kinds::bit(*kind), kind.name()));
    fields! {
        "until": value.until,
        "kinds": bits(value.kinds, kinds),
        "one_in": value.one_in,
        "lost": value.lost,
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use proxy_common::{Half, Port};

    use super::*;

    #[test]
    fn every_map_of_the_contract_has_a_layout() {
        for (layout, name) in LAYOUTS.iter().zip(map::ALL) {
            assert_eq!(layout.name, name);
            let key = vec![0; layout.key_size as usize];
            let value = vec![0; layout.value_size as usize];
            assert!(!layout.key(&key).0.is_empty() && !layout.value(&value).0.is_empty(), "{name}");
        }
        assert!(layout("SOMEONE_ELSES").is_none());
    }

    #[test]
    fn a_flow_in_words() {
        let (client, vip) = (Ipv4Addr::new(10, 0, 0, 1).into(), Ipv4Addr::new(10, 68, 0, 1).into());
        let key = CtKey::new(client, Port::new(1000), vip, Port::new(80), 6, Half::Ingress);
        let text = layout(map::CONNTRACK).unwrap().key(bytemuck::bytes_of(&key)).to_string();
        assert_eq!(text, "protocol=TCP source=10.0.0.1:1000 destination=10.68.0.1:80 hook=ingress");
    }

    #[test]
    fn bits_have_names_and_strangers_are_shown() {
        assert_eq!(bits(5u32, [(1, "a"), (2, "b")]), json!(["a", "0x4"]));
        let fields = fields! {"list": bits(0u32, [(1, "a")]), "text": ""};
        assert_eq!(fields.to_string(), "list=- text=-");
        assert_eq!(serde_json::to_string(&fields).unwrap(), r#"{"list":[],"text":""}"#);
    }

    #[test]
    fn prefixes_read_as_written() {
        let v4 = Prefix::new(Ipv4Addr::new(172, 20, 0, 0).into(), 112);
        assert_eq!(v4.to_string(), "172.20.0.0/16");
        let v6 = Prefix::new("fd00::".parse::<std::net::Ipv6Addr>().unwrap().into(), 64);
        assert_eq!(v6.to_string(), "fd00::/64");
    }
}
