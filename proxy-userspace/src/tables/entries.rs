//! Keys and values of map entries, derived from a compiled Service. Pure functions.

use proxy_common::{Addr, Frontend, FrontendKey, FrontendKind, Name, Port, ServiceMeta};

use super::{pings::Use, service_ids::PortKey, slot_sets::SetRanges};
use crate::{
    compile::{CompiledFrontend, CompiledPort, CompiledService},
    model::{Family, Protocol, ServiceKey},
};

pub(super) fn port_key(service: &ServiceKey, port: &CompiledPort) -> PortKey {
    PortKey {
        service: service.clone(),
        port_name: port.name.clone(),
        protocol: port.protocol,
        family: port.family,
    }
}

pub(super) fn backend_key(port: &CompiledPort, i: usize) -> FrontendKey {
    let backend = &port.backends[i];
    FrontendKey::new(backend.address.into(), Port::new(backend.port), port.protocol.number())
}

pub(super) fn backend_keys(port: &CompiledPort) -> impl Iterator<Item = FrontendKey> + '_ {
    (0..port.backends.len()).map(move |i| backend_key(port, i))
}

pub(super) fn frontend_key(port: &CompiledPort, frontend: &CompiledFrontend) -> FrontendKey {
    let addr = frontend.address.map_or(unspecified(port.family), Addr::from);
    FrontendKey::new(addr, Port::new(frontend.port), port.protocol.number())
}

pub(super) fn frontend_keys(compiled: &CompiledService) -> impl Iterator<Item = FrontendKey> + '_ {
    compiled
        .ports
        .iter()
        .flat_map(|port| port.frontends.iter().map(move |frontend| frontend_key(port, frontend)))
}

pub(super) fn vip_use(port: &CompiledPort, frontend: &CompiledFrontend) -> Use {
    Use { has_endpoints: port.has_endpoints, is_cluster_ip: frontend.kind == FrontendKind::ClusterIp }
}

pub(super) fn vips(compiled: &CompiledService) -> impl Iterator<Item = Addr> + '_ {
    let frontends = compiled.ports.iter().flat_map(|port| &port.frontends);
    frontends.filter_map(|frontend| frontend.address.map(Addr::from))
}

pub(super) fn unspecified(family: Family) -> Addr {
    match family {
        Family::V4 => Addr::UNSPECIFIED_V4,
        Family::V6 => Addr::UNSPECIFIED_V6,
    }
}

pub(super) fn service_meta(service: &ServiceKey, port: &CompiledPort) -> ServiceMeta {
    // API validation refuses longer names.
    let name = |text: &str| Name::new(text).unwrap_or(Name::EMPTY);
    ServiceMeta {
        namespace: name(&service.namespace),
        name: name(&service.name),
        port_name: name(&port.name),
        port: Port::new(port.port),
        proto: port.protocol.number(),
        family: port.family.number(),
        flags: 0,
    }
}

/// The port that a value of SERVICE_META names, if it is valid.
pub(super) fn port_key_of(meta: &ServiceMeta) -> Option<PortKey> {
    let family = match meta.family {
        4 => Family::V4,
        6 => Family::V6,
        _ => return None,
    };
    Some(PortKey {
        service: ServiceKey::new(meta.namespace.as_str(), meta.name.as_str()),
        port_name: meta.port_name.as_str().into(),
        protocol: Protocol::from_number(meta.proto)?,
        family,
    })
}

pub(super) fn frontend_value(
    service: u32,
    port: &CompiledPort,
    frontend: &CompiledFrontend,
    sets: SetRanges,
) -> Frontend {
    let ranges = match frontend.kind {
        FrontendKind::LoadBalancerIp => port.source_ranges.as_ref(),
        FrontendKind::NodePort => port.node_port_ranges.as_ref(),
        _ => None,
    };
    let flags = [
        (Frontend::EXTERNAL, frontend.kind != FrontendKind::ClusterIp),
        (Frontend::LOCAL, frontend.local),
        (Frontend::HAS_ENDPOINTS, port.has_endpoints && !frontend.refused),
        (Frontend::RANDOM, port.random),
        (Frontend::SOURCE_RANGES, ranges.is_some()),
    ];
    Frontend {
        service,
        flags: flags.into_iter().filter(|(_, set)| *set).fold(0, |all, (flag, _)| all | flag),
        cluster_base: sets.cluster.base,
        cluster_count: sets.cluster.len,
        local_base: sets.local.base,
        local_count: sets.local.len,
        affinity_seconds: port.affinity_seconds,
        kind: frontend.kind as u32,
    }
}
