//! `shunt affinity list`: the backend that the next flow of a client to a Service goes to. Expired entries, and entries
//! whose backend has left the Service, have no effect and are not shown.

use std::{
    collections::HashMap,
    io::{self, Write},
};

use proxy_common::{
    Affinity, AffinityKey, Backend, Frontend, FrontendKey, ServiceMeta, SetMember, map, socket::netns_of,
};
use serde::Serialize;

use super::{InspectError, jiffies::Jiffies, pins::Pins, table::print_table_into, text::addr_port};

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct AffinityView {
    /// An address, or `netns:COOKIE` for sockets of the network namespace with that cookie (socket hooks).
    pub client: String,
    /// `NAMESPACE/NAME`, followed by the name of the port if it has one.
    pub service: String,
    pub backend: String,
    /// Seconds since the last new flow of the client.
    pub age_seconds: u64,
    /// Seconds until the entry expires.
    pub expires_in_seconds: u64,
}

/// The map entries behind the views.
#[derive(Debug, Default)]
pub struct AffinityMaps {
    pub affinity: Vec<(AffinityKey, Affinity)>,
    pub services: HashMap<u32, ServiceMeta>,
    pub backends: HashMap<u32, Backend>,
    pub members: HashMap<SetMember, u32>,
    pub frontends: Vec<(FrontendKey, Frontend)>,
}

impl AffinityMaps {
    pub fn read(pins: &Pins) -> Result<Self, InspectError> {
        Ok(Self {
            affinity: pins.read(map::AFFINITY)?,
            services: pins.read(map::SERVICE_META)?.into_iter().collect(),
            backends: pins.read(map::BACKENDS)?.into_iter().collect(),
            members: pins.read(map::SET_MEMBERS)?.into_iter().collect(),
            frontends: pins.read(map::FRONTENDS)?,
        })
    }

    /// Sorted by Service and client. An id without an entry is shown as `#id`.
    pub fn views(&self, clock: Jiffies) -> Vec<AffinityView> {
        let service = |id: u32| match self.services.get(&id) {
            None => format!("#{id}"),
            Some(meta) => {
                let port = meta.port_name.as_str();
                let colon = if port.is_empty() { "" } else { ":" };
                format!("{}/{}{colon}{port}", meta.namespace.as_str(), meta.name.as_str())
            }
        };
        let backend = |id: u32| {
            self.backends.get(&id).map_or_else(|| format!("#{id}"), |it| addr_port(it.addr, it.port))
        };
        let seconds: HashMap<u32, u32> =
            self.frontends.iter().map(|(_, it)| (it.service, it.affinity_seconds)).collect();
        let view = |(key, value): &(AffinityKey, Affinity)| {
            let seconds = seconds.get(&key.service).copied().unwrap_or(0);
            let member = SetMember { service: key.service, backend: value.backend };
            let counts =
                value.is_fresh(clock.now, seconds, clock.per_second) && self.members.contains_key(&member);
            let age_seconds = clock.seconds_since(value.last_used);
            (seconds != 0 && counts).then(|| AffinityView {
                client: client(key),
                service: service(key.service),
                backend: backend(value.backend),
                age_seconds,
                expires_in_seconds: u64::from(seconds).saturating_sub(age_seconds),
            })
        };
        let mut views: Vec<_> = self.affinity.iter().filter_map(view).collect();
        views.sort_by(|a, b| (&a.service, &a.client).cmp(&(&b.service, &b.client)));
        views
    }
}

fn client(key: &AffinityKey) -> String {
    netns_of(&key.client).map_or_else(|| key.client.to_string(), |cookie| format!("netns:{cookie}"))
}

pub fn print_affinity_into(out: &mut impl Write, views: &[AffinityView], headers: bool) -> io::Result<()> {
    let rows = views.iter().map(|view| {
        vec![
            view.client.clone(),
            view.service.clone(),
            view.backend.clone(),
            format!("{}s", view.age_seconds),
            format!("{}s", view.expires_in_seconds),
        ]
    });
    print_table_into(out, headers, &["CLIENT", "SERVICE", "BACKEND", "AGE", "EXPIRES"], rows)
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use proxy_common::{Name, Port, Proto, socket::netns_addr};

    use super::*;

    #[test]
    fn ids_become_names_and_only_what_counts_is_shown() {
        let addr = |last| Ipv4Addr::new(10, 0, 0, last).into();
        let meta = ServiceMeta {
            namespace: Name::new("default").unwrap(),
            name: Name::new("web").unwrap(),
            port_name: Name::new("http").unwrap(),
            port: Port::new(80),
            proto: Proto::TCP,
            family: 4,
            flags: 0,
        };
        let backend = Backend {
            addr: addr(3),
            port: Port::new(8080),
            proto: Proto::TCP,
            flags: Backend::ACTIVE,
            reserved: 0,
        };
        let entry = |client, service, backend, last_used| {
            (AffinityKey { client, service }, Affinity { backend, last_used })
        };
        let frontend = |service, affinity_seconds| Frontend {
            service,
            affinity_seconds,
            ..bytemuck::Zeroable::zeroed()
        };
        let key = |last| FrontendKey::new(addr(last), Port::new(80), Proto::TCP);
        let maps = AffinityMaps {
            affinity: vec![
                entry(addr(1), 1, 5, 700),
                entry(addr(2), 9, 6, 1000),
                entry(netns_addr(31), 1, 5, 1000),
                // Expired; of a backend that left; of a Service without affinity.
                entry(addr(3), 9, 6, 499),
                entry(addr(4), 1, 6, 1000),
                entry(addr(5), 2, 5, 1000),
            ],
            services: [(1, meta)].into(),
            backends: [(5, backend)].into(),
            members: [(1, 5), (9, 6), (2, 5)]
                .map(|(service, backend)| (SetMember { service, backend }, 1))
                .into(),
            frontends: vec![(key(1), frontend(1, 10)), (key(2), frontend(9, 5)), (key(3), frontend(2, 0))],
        };
        let mut out = Vec::new();
        let views = maps.views(Jiffies { now: 1000, per_second: 100 });
        print_affinity_into(&mut out, &views, false).unwrap();
        assert_eq!(
            String::from_utf8(out).unwrap(),
            "10.0.0.2   #9                 #6              0s   5s\n\
             10.0.0.1   default/web:http   10.0.0.3:8080   3s   7s\n\
             netns:31   default/web:http   10.0.0.3:8080   0s   10s\n"
        );
    }
}
