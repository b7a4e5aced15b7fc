//! `shunt affinity list`: which backend a client's next flow to a Service goes to.

use std::{
    collections::HashMap,
    io::{self, Write},
};

use proxy_common::{Affinity, AffinityKey, Backend, ServiceMeta, map};
use serde::Serialize;

use super::{InspectError, addr_port, jiffies::Jiffies, pins::Pins, table::print_table_into};

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct AffinityView {
    pub client: String,
    /// `NAMESPACE/NAME`, with the port's name where it has one.
    pub service: String,
    pub backend: String,
    /// Seconds since the client's last new flow.
    pub age_seconds: u64,
}

/// The entries that affinity views are made of.
#[derive(Debug, Default)]
pub struct AffinityMaps {
    pub affinity: Vec<(AffinityKey, Affinity)>,
    pub services: HashMap<u32, ServiceMeta>,
    pub backends: HashMap<u32, Backend>,
}

impl AffinityMaps {
    pub fn read(pins: &Pins) -> Result<Self, InspectError> {
        Ok(Self {
            affinity: pins.read(map::AFFINITY)?,
            services: pins.read(map::SERVICE_META)?.into_iter().collect(),
            backends: pins.read(map::BACKENDS)?.into_iter().collect(),
        })
    }

    /// By Service and client. An id that no longer means anything is shown as `#id`.
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
        let mut views: Vec<_> = self
            .affinity
            .iter()
            .map(|(key, value)| AffinityView {
                client: key.client.to_string(),
                service: service(key.service),
                backend: backend(value.backend),
                age_seconds: clock.seconds_since(value.last_used),
            })
            .collect();
        views.sort_by(|a, b| (&a.service, &a.client).cmp(&(&b.service, &b.client)));
        views
    }
}

pub fn print_affinity_into(out: &mut impl Write, views: &[AffinityView], headers: bool) -> io::Result<()> {
    let rows = views.iter().map(|view| {
        vec![
            view.client.clone(),
            view.service.clone(),
            view.backend.clone(),
            format!("{}s", view.age_seconds),
        ]
    });
    print_table_into(out, headers, &["CLIENT", "SERVICE", "BACKEND", "AGE"], rows)
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use proxy_common::{Name, Port, Proto};

    use super::*;

    #[test]
    fn ids_become_names() {
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
        let maps = AffinityMaps {
            affinity: vec![
                (AffinityKey { client: addr(1), service: 1 }, Affinity { backend: 5, last_used: 700 }),
                (AffinityKey { client: addr(2), service: 9 }, Affinity { backend: 6, last_used: 1000 }),
            ],
            services: [(1, meta)].into(),
            backends: [(5, backend)].into(),
        };
        let mut out = Vec::new();
        let views = maps.views(Jiffies { now: 1000, per_second: 100 });
        print_affinity_into(&mut out, &views, false).unwrap();
        assert_eq!(
            String::from_utf8(out).unwrap(),
            "10.0.0.2   #9                 #6              0s\n10.0.0.1   default/web:http   10.0.0.3:8080   3s\n"
        );
    }
}
