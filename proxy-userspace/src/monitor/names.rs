//! Resolves the numbers of an event to names. Services are resolved by id, or by destination if the packet was refused or
//! dropped before the Service lookup; devices by index. Results are cached until [`Names::clear`], because ids are reused and
//! devices are renamed.

use std::{collections::HashMap, rc::Rc};

use proxy_common::{
    Addr, FlowEvent, Frontend, FrontendKey, FrontendKind, Port, Proto, ServiceMeta, map, node::role,
};

use crate::{
    bpf::map::RawMap,
    inspect::{InspectError, drops::device_text, pins::Pins},
};

/// A Service, and its port if the event identifies it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceName {
    /// Id of the service port; 0 if only the Service is known.
    pub id: u32,
    /// `NAMESPACE/NAME`.
    pub name: String,
    /// Empty if the port has no name.
    pub port_name: String,
}

type Found = Option<Rc<ServiceName>>;

/// Lookups with a cache.
pub struct Names {
    pins: Pins,
    frontends: RawMap,
    node_addrs: RawMap,
    services: RawMap,
    by_id: HashMap<u32, Found>,
    by_destination: HashMap<FrontendKey, Found>,
    /// The service ports of each VIP; read on first use.
    by_address: Option<HashMap<Addr, Vec<u32>>>,
    devices: HashMap<u32, Rc<str>>,
}

impl Names {
    pub fn open(pins: &Pins) -> Result<Self, InspectError> {
        Ok(Self {
            frontends: pins.map(map::FRONTENDS)?,
            node_addrs: pins.map(map::NODE_ADDRS)?,
            services: pins.map(map::SERVICE_META)?,
            pins: pins.clone(),
            by_id: HashMap::new(),
            by_destination: HashMap::new(),
            by_address: None,
            devices: HashMap::new(),
        })
    }

    /// Clears the cache.
    pub fn clear(&mut self) {
        self.by_id.clear();
        self.by_destination.clear();
        self.by_address = None;
        self.devices.clear();
    }

    /// Whether the Service exists.
    pub fn has_service(&self, service: &str) -> Result<bool, InspectError> {
        let all = self.pins.read::<u32, ServiceMeta>(map::SERVICE_META)?;
        Ok(all.iter().any(|(_, meta)| name_of(meta) == service))
    }

    /// The Service of the event.
    pub fn service(&mut self, event: &FlowEvent) -> Result<Found, InspectError> {
        if event.service != 0 {
            return self.by_id(event.service);
        }
        let key = FrontendKey::new(event.dst, event.dport, event.proto);
        if let Some(known) = self.by_destination.get(&key) {
            return Ok(known.clone());
        }
        let found = self.by_destination(key)?;
        self.by_destination.insert(key, found.clone());
        Ok(found)
    }

    fn by_id(&mut self, id: u32) -> Result<Found, InspectError> {
        if let Some(known) = self.by_id.get(&id) {
            return Ok(known.clone());
        }
        let meta: Option<ServiceMeta> = self.lookup(&self.services, map::SERVICE_META, &id)?;
        let found = meta.map(|meta| {
            Rc::new(ServiceName { id, name: name_of(&meta), port_name: meta.port_name.as_str().to_owned() })
        });
        self.by_id.insert(id, found.clone());
        Ok(found)
    }

    /// The service port of a destination, looked up like the programs do; else the Service that has the address.
    fn by_destination(&mut self, key: FrontendKey) -> Result<Found, InspectError> {
        if matches!(key.proto, Proto::ICMP | Proto::ICMPV6) {
            return self.by_address(key.addr);
        }
        if let Some(frontend) = self.frontend(&key)? {
            return self.by_id(frontend.service);
        }
        let roles: u32 = self.lookup(&self.node_addrs, map::NODE_ADDRS, &key.addr)?.unwrap_or(0);
        if roles & (role::NODEPORT | role::LOOPBACK) != 0 {
            let under = FrontendKey::new(key.addr.unspecified_alike(), key.port, key.proto);
            return match self.frontend(&under)? {
                Some(frontend) => self.by_id(frontend.service),
                None => Ok(None),
            };
        }
        self.by_address(key.addr)
    }

    /// The Service that has this address; `None` if several Services share it, as external addresses may be.
    fn by_address(&mut self, addr: Addr) -> Result<Found, InspectError> {
        let proto = if addr.is_v4() { Proto::ICMP } else { Proto::ICMPV6 };
        if self.frontend(&FrontendKey::new(addr, Port::ZERO, proto))?.is_none() {
            return Ok(None);
        }
        if self.by_address.is_none() {
            let mut all: HashMap<Addr, Vec<u32>> = HashMap::new();
            for (key, frontend) in self.pins.read::<FrontendKey, Frontend>(map::FRONTENDS)? {
                if frontend.kind != FrontendKind::Ping as u32 {
                    all.entry(key.addr).or_default().push(frontend.service);
                }
            }
            self.by_address = Some(all);
        }
        let ids = self.by_address.as_ref().and_then(|all| all.get(&addr)).cloned().unwrap_or_default();
        let mut name: Option<String> = None;
        for id in ids {
            let Some(port) = self.by_id(id)? else { continue };
            if name.as_ref().is_some_and(|name| *name != port.name) {
                return Ok(None);
            }
            name.get_or_insert_with(|| port.name.clone());
        }
        Ok(name.map(|name| Rc::new(ServiceName { id: 0, name, port_name: String::new() })))
    }

    fn frontend(&self, key: &FrontendKey) -> Result<Option<Frontend>, InspectError> {
        self.lookup(&self.frontends, map::FRONTENDS, key)
    }

    fn lookup<K: bytemuck::Pod, V: bytemuck::Pod>(
        &self,
        map: &RawMap,
        name: &'static str,
        key: &K,
    ) -> Result<Option<V>, InspectError> {
        let value = map
            .lookup(bytemuck::bytes_of(key))
            .map_err(|error| InspectError::io("reading the map", self.pins.maps().join(name), error))?;
        Ok(value.map(|bytes| bytemuck::pod_read_unaligned(&bytes)))
    }

    /// The device with this index; `#7` if it does not exist in this network namespace. Index 0 is no device.
    pub fn device(&mut self, ifindex: u32) -> Option<Rc<str>> {
        if ifindex == 0 {
            return None;
        }
        let name = self.devices.entry(ifindex).or_insert_with(|| device_text(ifindex).into());
        Some(name.clone())
    }
}

fn name_of(meta: &ServiceMeta) -> String {
    format!("{}/{}", meta.namespace.as_str(), meta.name.as_str())
}
