//! `shunt backend list`: backends in use, with the Services that use them.

use std::{
    collections::BTreeSet,
    io::{self, Write},
};

use proxy_common::{Backend, FrontendKind};
use serde::Serialize;

use super::{
    services::ServiceMaps,
    table::print_table_into,
    text::{proto_name, yes_no},
};

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct BackendView {
    pub id: u32,
    pub address: String,
    pub port: u16,
    pub protocol: String,
    pub node: String,
    pub local: bool,
    pub ready: bool,
    pub terminating: bool,
    /// `NAMESPACE/NAME` of each Service that has this backend.
    pub services: BTreeSet<String>,
}

/// Backends in use, sorted by id. Retired backends, kept only for existing flows, are omitted.
pub fn views(maps: &ServiceMaps) -> Vec<BackendView> {
    let mut views: Vec<_> = maps
        .backends
        .iter()
        .filter(|(_, backend)| backend.has(Backend::ACTIVE))
        .map(|(id, backend)| BackendView {
            id: *id,
            address: backend.addr.to_string(),
            port: backend.port.host(),
            protocol: proto_name(backend.proto),
            node: maps.backend_meta.get(id).map(|meta| meta.node().to_owned()).unwrap_or_default(),
            local: backend.has(Backend::LOCAL),
            ready: backend.has(Backend::READY),
            terminating: backend.has(Backend::TERMINATING),
            services: BTreeSet::new(),
        })
        .collect();
    views.sort_by_key(|view| view.id);
    for (_, frontend) in &maps.frontends {
        let Some(meta) = maps.service_meta.get(&frontend.service) else { continue };
        if frontend.kind == FrontendKind::Ping as u32 {
            continue;
        }
        let name = format!("{}/{}", meta.namespace.as_str(), meta.name.as_str());
        let sets =
            [(frontend.cluster_base, frontend.cluster_count), (frontend.local_base, frontend.local_count)];
        for slot in sets.into_iter().flat_map(|(base, count)| base..base.saturating_add(count)) {
            let Some(id) = maps.slots.get(&slot) else { continue };
            if let Ok(at) = views.binary_search_by_key(id, |view| view.id) {
                views[at].services.insert(name.clone());
            }
        }
    }
    views
}

pub fn print_backends_into(out: &mut impl Write, views: &[BackendView], headers: bool) -> io::Result<()> {
    let header = ["ID", "ADDRESS", "PORT", "PROTOCOL", "NODE", "LOCAL", "READY", "TERMINATING", "SERVICES"];
    let rows = views.iter().map(|view| {
        vec![
            view.id.to_string(),
            view.address.clone(),
            view.port.to_string(),
            view.protocol.clone(),
            if view.node.is_empty() { "-".to_owned() } else { view.node.clone() },
            yes_no(view.local).to_owned(),
            yes_no(view.ready).to_owned(),
            yes_no(view.terminating).to_owned(),
            view.services.iter().map(String::as_str).collect::<Vec<_>>().join(","),
        ]
    });
    print_table_into(out, headers, &header, rows)
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use proxy_common::{Addr, BackendMeta, Frontend, FrontendKey, Name, Port, Proto, ServiceMeta};

    use super::*;

    #[test]
    fn backends_list_their_services() {
        let addr = |last| Addr::from(Ipv4Addr::new(10, 0, 0, last));
        let backend = |last, flags| Backend {
            addr: addr(last),
            port: Port::new(53),
            proto: Proto::UDP,
            flags,
            reserved: 0,
        };
        let meta = |name| ServiceMeta {
            namespace: Name::new("kube-system").unwrap(),
            name: Name::new(name).unwrap(),
            port_name: Name::EMPTY,
            port: Port::new(53),
            proto: Proto::UDP,
            family: 4,
            flags: 0,
        };
        let frontend = |service, base| Frontend {
            service,
            flags: Frontend::HAS_ENDPOINTS,
            cluster_base: base,
            cluster_count: 1,
            local_base: 0,
            local_count: 0,
            affinity_seconds: 0,
            kind: FrontendKind::ClusterIp as u32,
        };
        let key = |last| FrontendKey::new(addr(last), Port::new(53), Proto::UDP);
        let maps = ServiceMaps {
            frontends: vec![(key(100), frontend(1, 0)), (key(101), frontend(2, 1))],
            slots: [(0, 1), (1, 1)].into(),
            backends: [
                (1, backend(1, Backend::ACTIVE | Backend::READY | Backend::LOCAL)),
                (2, backend(2, Backend::READY)),
            ]
            .into(),
            service_meta: [(1, meta("dns")), (2, meta("other"))].into(),
            backend_meta: [(1, BackendMeta::new("n1"))].into(),
            ..ServiceMaps::default()
        };
        let mut out = Vec::new();
        print_backends_into(&mut out, &views(&maps), false).unwrap();
        assert_eq!(
            String::from_utf8(out).unwrap(),
            "1   10.0.0.1   53   UDP   n1   yes   yes   no   kube-system/dns,kube-system/other\n"
        );
        let json = serde_json::to_value(views(&maps)).unwrap();
        assert_eq!(json[0]["services"][1], "kube-system/other");
        assert_eq!(json.as_array().unwrap().len(), 1, "the retired backend is not listed");
    }
}
