//! One function per type of key or value: the fields to show, under the names of the map contract.

use proxy_common::{
    Addr, Affinity, AffinityKey, Agent, Backend, BackendMeta, Counter, CtEntry, CtKey, Device, DropKey,
    EventKind, Fragment, FragmentKey, Frontend, FrontendKey, FrontendKind, Held, Monitor, NodeConfig, Prefix,
    Service, ServiceMeta, ServiceStats, SetMember, SockKey, SockPeer, SourceAddrKey, SourceRange, node,
    observe::kinds, tcp,
};

use super::fields::{Fields, bits, fields};
use crate::inspect::text::{addr_port, proto_name};

pub(super) fn index(index: u32) -> Fields {
    fields! {"index": index}
}

pub(super) fn backend_id(id: u32) -> Fields {
    fields! {"backend": id}
}

pub(super) fn service_id(id: u32) -> Fields {
    fields! {"service": id}
}

pub(super) fn port(port: u32) -> Fields {
    fields! {"port": port}
}

pub(super) fn address(addr: Addr) -> Fields {
    fields! {"address": addr.to_string()}
}

pub(super) fn ifindex(ifindex: u32) -> Fields {
    fields! {"ifindex": ifindex}
}

pub(super) fn count(count: u64) -> Fields {
    fields! {"count": count}
}

pub(super) fn frontend_key(key: FrontendKey) -> Fields {
    fields! {"address": key.addr.to_string(), "port": key.port.host(), "protocol": proto_name(key.proto)}
}

pub(super) fn frontend(value: Frontend) -> Fields {
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

pub(super) fn backend(value: Backend) -> Fields {
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

pub(super) fn backend_meta(value: BackendMeta) -> Fields {
    fields! {"node": value.node()}
}

pub(super) fn service(value: Service) -> Fields {
    fields! {
        "cluster_next": value.cluster_next,
        "local_next": value.local_next,
        "refused": value.refused,
        "dropped": value.dropped,
    }
}

pub(super) fn service_meta(value: ServiceMeta) -> Fields {
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

pub(super) fn ct_key(key: CtKey) -> Fields {
    fields! {
        "protocol": proto_name(key.proto),
        "source": addr_port(key.src, key.sport),
        "destination": addr_port(key.dst, key.dport),
        "hook": if key.half == 0 { "ingress" } else { "egress" },
    }
}

pub(super) fn ct_entry(value: CtEntry) -> Fields {
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
            (CtEntry::NODE_FLOW, "node_flow"),
        ]),
        "state": bits(value.state & tcp::FLAGS, [
            (tcp::OPENED, "opened"),
            (tcp::REPLIED, "replied"),
            (tcp::FIN_CLIENT, "fin_client"),
            (tcp::FIN_BACKEND, "fin_backend"),
            (tcp::RESET, "reset"),
            (tcp::CONFIRMED, "confirmed"),
            (tcp::BACKEND_FIRST, "backend_first"),
            (tcp::PROVEN, "proven"),
            (tcp::DOUBTED, "doubted"),
            (tcp::CLIENT_ACKED, "client_acked"),
            (tcp::BACKEND_ACKED, "backend_acked"),
            (tcp::UNANSWERED, "unanswered"),
            (tcp::UNANSWERED_TWICE, "unanswered_twice"),
        ]),
        "next_seq": value.numbers().next,
        "service": value.service,
        "backend": value.backend,
        "created": value.created,
        "last_seen": value.last_seen,
    }
}

pub(super) fn affinity_key(key: AffinityKey) -> Fields {
    fields! {"client": key.client.to_string(), "service": key.service}
}

pub(super) fn affinity(value: Affinity) -> Fields {
    fields! {"backend": value.backend, "last_used": value.last_used}
}

pub(super) fn set_member(key: SetMember) -> Fields {
    fields! {"service": key.service, "backend": key.backend}
}

pub(super) fn sets(value: u32) -> Fields {
    use proxy_common::affinity::set_bits;
    fields! {"sets": bits(value, [(set_bits::CLUSTER, "cluster"), (set_bits::LOCAL, "local")])}
}

pub(super) fn source_range(key: SourceRange) -> Fields {
    fields! {"service": key.service_id(), "kind": key.kind().name(),
    "range": format!("{}/{}", key.addr, key.address_bits())}
}

pub(super) fn allowed(value: u32) -> Fields {
    fields! {"allowed": value}
}

pub(super) fn port_bits(value: u32) -> Fields {
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
        (ports::NODE_ADDR, "node-address"),
    ])}
}

pub(super) fn roles(value: u32) -> Fields {
    use node::role;
    fields! {"roles": bits(value, [(role::NODEPORT, "nodeport"), (role::OWN, "own"), (role::LOOPBACK, "loopback")])}
}

pub(super) fn node_config(value: NodeConfig) -> Fields {
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

pub(super) fn device(value: Device) -> Fields {
    fields! {
        "flags": bits(value.flags, [(Device::POD, "pod"), (Device::UPLINK, "uplink"), (Device::TUNNEL, "tunnel")]),
        "header_len": value.header_len,
        "source_v4": value.source_v4.to_string(),
        "source_v6": value.source_v6.to_string(),
    }
}

pub(super) fn source_addr_key(key: SourceAddrKey) -> Fields {
    let destinations = format!("{}/{}", key.destination, key.address_bits());
    fields! {"ifindex": key.ifindex, "destinations": destinations}
}

pub(super) fn source_addr(value: Addr) -> Fields {
    fields! {"source": value.to_string()}
}

pub(super) fn counter(number: u32) -> Fields {
    let name = Counter::from_number(number).map_or("unused", Counter::name);
    fields! {"counter": name, "number": number}
}

pub(super) fn sock_key(key: SockKey) -> Fields {
    fields! {"cookie": key.cookie, "address": key.addr.to_string(), "port": key.port.host(), "protocol": proto_name(key.proto)}
}

pub(super) fn sock_peer(value: SockPeer) -> Fields {
    fields! {"address": value.addr.to_string(), "port": value.port.host(), "backend": value.backend, "service": value.service}
}

pub(super) fn fragment_key(key: FragmentKey) -> Fields {
    // IPv4 has only 16 bits, in the first half of the word.
    let id = if key.src.is_v4() { u16::from_be(key.id as u16).into() } else { u32::from_be(key.id) };
    fields! {
        "protocol": proto_name(key.proto),
        "source": key.src.to_string(),
        "destination": key.dst.to_string(),
        "id": id,
        "hook": if key.half == 0 { "ingress" } else { "egress" },
    }
}

pub(super) fn fragment(value: Fragment) -> Fields {
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

/// Without the bytes of the frame, which are payload.
pub(super) fn held(value: Held) -> Fields {
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

pub(super) fn agent(value: Agent) -> Fields {
    fields! {
        "pid": value.pid,
        "ready": value.ready,
        "services": value.services,
        "started": value.started,
        "last_sync": value.last_sync,
        "heartbeat": value.heartbeat,
    }
}

pub(super) fn service_stats(value: ServiceStats) -> Fields {
    fields! {
        "flows": value.flows,
        "packets_in": value.packets_in,
        "bytes_in": value.bytes_in,
        "packets_out": value.packets_out,
        "bytes_out": value.bytes_out,
    }
}

pub(super) fn drop_key(key: DropKey) -> Fields {
    let reason = Counter::from_number(key.reason).map_or("unknown", Counter::name);
    fields! {"ifindex": key.ifindex, "reason": reason}
}

pub(super) fn monitor(value: Monitor) -> Fields {
    let kinds = EventKind::ALL.iter().map(|kind| (kinds::bit(*kind), kind.name()));
    fields! {
        "until": value.until,
        "kinds": bits(value.kinds, kinds),
        "one_in": value.one_in,
        "lost": value.lost,
    }
}
