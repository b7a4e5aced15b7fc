//! Contents of a datapath's maps: addresses, backends, Services and their frontends, written as the controller would.

use std::net::{IpAddr, SocketAddr};

use anyhow::Result;
use aya::maps::lpm_trie::Key;
use proxy_common::{
    Addr, Backend, Device, Frontend, FrontendKey, FrontendKind, NodeConfig, Port, Prefix, SetMember,
    SourceRange,
    affinity::set_bits,
    node::{port_bits, role},
};

pub use super::addresses::{FAR_POD, MACS, NARROW, NODE, OUTSIDE, POD, UNKNOWN, UPLINK, VIP, addr, at};
use super::{datapath::Datapath, frame::Ip};

/// A Service of one port and family.
#[derive(Clone, Copy, Debug)]
pub struct Service {
    pub id: u32,
    pub proto: u8,
    /// Base and count in SLOTS.
    cluster: (u32, u32),
    local: (u32, u32),
    has_endpoints: bool,
}

impl Datapath {
    /// Writes the basic configuration: the node's own addresses, its pods' ranges and its uplink.
    pub(super) fn furnish(&mut self) -> Result<()> {
        for ip in [Ip::V4, Ip::V6] {
            for host in [NODE, UPLINK] {
                let own = Addr::from(addr(ip, host));
                self.node_addrs.insert(own, role::NODEPORT | role::OWN, 0)?;
                self.allow(own.low16(), port_bits::NODE_ADDR)?;
            }
        }
        let device = Device {
            flags: Device::UPLINK,
            header_len: 14,
            source_v4: addr(Ip::V4, UPLINK).into(),
            source_v6: addr(Ip::V6, UPLINK).into(),
            mac: [0; 3],
            reserved: 0,
        };
        self.devices.insert(self.uplink, device, 0)?;
        self.devices.insert(self.pod, pod_device(), 0)?;
        self.configure(0)
    }

    /// Writes NODE_CONFIG with these flags.
    pub fn configure(&mut self, flags: u32) -> Result<()> {
        let nothing = Prefix::new(Addr::UNSPECIFIED_V6, 0);
        let mut config = NodeConfig {
            flags,
            pod_prefix_count: 2,
            primary_v4: addr(Ip::V4, NODE).into(),
            primary_v6: addr(Ip::V6, NODE).into(),
            service_prefix_count: 0,
            reserved: 0,
            pod_prefixes: [nothing; _],
            service_prefixes: [nothing; _],
        };
        config.pod_prefixes[0] = Prefix::new(addr(Ip::V4, 0x0100).into(), 120);
        config.pod_prefixes[1] = Prefix::new(addr(Ip::V6, 0x0100).into(), 120);
        Ok(self.node_config.set(0, config, 0)?)
    }

    /// A ready backend. Adding the same address, port and protocol twice gives two ids here.
    pub fn backend(&mut self, at: SocketAddr, proto: u8, local: bool) -> Result<u32> {
        self.last.backend += 1;
        let id = self.last.backend;
        let flags = Backend::READY | Backend::ACTIVE | if local { Backend::LOCAL } else { 0 };
        let (addr, port) = (Addr::from(at.ip()), Port::new(at.port()));
        self.backends.set(id, Backend { addr, port, proto, flags, reserved: 0 }, 0)?;
        self.backend_addrs.insert(FrontendKey::new(addr, port, proto), id, 0)?;
        self.allow(at.port(), port_bits::backend(proto))?;
        self.allow(addr.low16(), port_bits::BACKEND_ADDR)?;
        Ok(id)
    }

    /// Retires a backend that no Service uses any more.
    pub fn retire(&mut self, id: u32) -> Result<()> {
        let mut backend = self.backends.get(&id, 0)?;
        backend.flags &= !(Backend::ACTIVE | Backend::READY);
        Ok(self.backends.set(id, backend, 0)?)
    }

    /// A Service with these backends cluster-wide and on this node.
    pub fn service(&mut self, proto: u8, cluster: &[u32], local: &[u32]) -> Result<Service> {
        self.last.service += 1;
        let id = self.last.service;
        Ok(Service {
            id,
            proto,
            cluster: self.range(cluster)?,
            local: self.range(local)?,
            has_endpoints: !(cluster.is_empty() && local.is_empty()),
        })
    }

    fn range(&mut self, backends: &[u32]) -> Result<(u32, u32)> {
        let base = self.last.slot;
        for backend in backends {
            self.slots.set(self.last.slot, backend, 0)?;
            self.last.slot += 1;
        }
        Ok((base, backends.len() as u32))
    }

    /// Makes a Service reachable at an address; `flags` are those of its policy.
    pub fn frontend(
        &mut self,
        service: &Service,
        at: SocketAddr,
        kind: FrontendKind,
        flags: u32,
    ) -> Result<()> {
        let key = FrontendKey::new(at.ip().into(), Port::new(at.port()), service.proto);
        self.frontends.insert(key, value(service, kind, flags), 0)?;
        self.allow(at.port(), port_bits::frontend(service.proto))
    }

    pub fn cluster_ip(&mut self, service: &Service, at: SocketAddr) -> Result<()> {
        self.frontend(service, at, FrontendKind::ClusterIp, 0)
    }

    /// Makes a Service reachable at a NodePort; `flags` beside EXTERNAL are those of its policy.
    pub fn node_port(&mut self, service: &Service, ip: Ip, port: u16, flags: u32) -> Result<()> {
        let under = if ip.is_v4() { Addr::UNSPECIFIED_V4 } else { Addr::UNSPECIFIED_V6 };
        let key = FrontendKey::new(under, Port::new(port), service.proto);
        self.frontends.insert(key, value(service, FrontendKind::NodePort, flags | Frontend::EXTERNAL), 0)?;
        self.allow(port, port_bits::nodeport(service.proto))
    }

    /// Sets client affinity for the Service at all its frontends, with this timeout in seconds.
    pub fn stay(&mut self, service: &Service, seconds: u32) -> Result<()> {
        for ((base, count), set) in [(service.cluster, set_bits::CLUSTER), (service.local, set_bits::LOCAL)] {
            for slot in base..base + count {
                let member = SetMember { service: service.id, backend: self.slots.get(&slot, 0)? };
                let sets = self.set_members.get(&member, 0).unwrap_or(0);
                self.set_members.insert(member, sets | set, 0)?;
            }
        }
        self.change_frontends(service, |frontend| frontend.affinity_seconds = seconds)
    }

    /// Allows only clients in these ranges (address and prefix length) to open flows to the Service, at all its current
    /// frontends.
    pub fn let_in(&mut self, service: &Service, ranges: &[(IpAddr, u32)]) -> Result<()> {
        for (ip, bits) in ranges {
            let len = bits + if ip.is_ipv4() { 96 } else { 0 };
            let range = SourceRange::new(service.id, Addr::from(*ip), len);
            let [a, b, c, d] = range.addr.words();
            self.source_ranges.insert(&Key::new(range.prefix_len, [service.id, a, b, c, d]), 1, 0)?;
        }
        self.change_frontends(service, |frontend| frontend.flags |= Frontend::SOURCE_RANGES)
    }

    /// The same for the Service's NodePorts only.
    pub fn let_into_node_ports(&mut self, service: &Service, ranges: &[(IpAddr, u32)]) -> Result<()> {
        let owner = SourceRange::owner(service.id, FrontendKind::NodePort as u32);
        for (ip, bits) in ranges {
            let len = bits + if ip.is_ipv4() { 96 } else { 0 };
            let range = SourceRange::new(owner, Addr::from(*ip), len);
            let [a, b, c, d] = range.addr.words();
            self.source_ranges.insert(&Key::new(range.prefix_len, [owner, a, b, c, d]), 1, 0)?;
        }
        self.change_frontends(service, |frontend| {
            if frontend.kind == FrontendKind::NodePort as u32 {
                frontend.flags |= Frontend::SOURCE_RANGES;
            }
        })
    }

    /// Empties SOURCE_RANGES.
    pub fn let_nobody_in(&mut self) -> Result<()> {
        let keys: Vec<_> = self.source_ranges.keys().collect::<Result<_, _>>()?;
        Ok(keys.iter().try_for_each(|key| self.source_ranges.remove(key))?)
    }

    fn change_frontends(&mut self, service: &Service, change: impl Fn(&mut Frontend)) -> Result<()> {
        let all: Vec<(FrontendKey, Frontend)> = self.frontends.iter().collect::<Result<_, _>>()?;
        for (key, mut frontend) in all.into_iter().filter(|(_, frontend)| frontend.service == service.id) {
            change(&mut frontend);
            self.frontends.insert(key, frontend, 0)?;
        }
        Ok(())
    }

    /// Makes a VIP answer ping.
    pub fn ping(&mut self, vip: IpAddr, has_endpoints: bool) -> Result<()> {
        let proto = if vip.is_ipv4() { 1 } else { 58 };
        let service = Service { id: 0, proto, cluster: (0, 0), local: (0, 0), has_endpoints };
        let key = FrontendKey::new(vip.into(), Port::ZERO, proto);
        Ok(self.frontends.insert(key, value(&service, FrontendKind::Ping, 0), 0)?)
    }

    /// Registers a VIP as ClusterIP: it answers ping and rejects packets to ports that are no service port.
    pub fn cluster_address(&mut self, vip: IpAddr) -> Result<()> {
        let proto = if vip.is_ipv4() { 1 } else { 58 };
        let service = Service { id: 0, proto, cluster: (0, 0), local: (0, 0), has_endpoints: true };
        let key = FrontendKey::new(vip.into(), Port::ZERO, proto);
        self.frontends.insert(key, value(&service, FrontendKind::Ping, Frontend::CLUSTER_IP), 0)?;
        self.allow(Addr::from(vip).low16(), port_bits::CLUSTER_IP)
    }

    /// Registers the 256 addresses around the first VIP, of each family, as a ServiceCIDR.
    pub fn service_cidr(&mut self) -> Result<()> {
        let mut config = self.node_config.get(&0, 0)?;
        for (i, ip) in [Ip::V4, Ip::V6].into_iter().enumerate() {
            config.service_prefixes[i] = Prefix::new(addr(ip, VIP & 0xff00).into(), 120);
        }
        config.service_prefix_count = 2;
        Ok(self.node_config.set(0, config, 0)?)
    }

    fn allow(&mut self, port: u16, bits: u32) -> Result<()> {
        let index = u32::from(port);
        let have = self.ports.get(&index, 0)?;
        self.marked.push(port);
        Ok(self.ports.set(index, have | bits, 0)?)
    }
}

/// A pod's device as an entry of DEVICES.
pub fn pod_device() -> Device {
    Device {
        flags: Device::POD,
        header_len: 14,
        source_v4: Addr::UNSPECIFIED_V4,
        source_v6: Addr::UNSPECIFIED_V6,
        mac: [0; 3],
        reserved: 0,
    }
}

fn value(service: &Service, kind: FrontendKind, flags: u32) -> Frontend {
    Frontend {
        service: service.id,
        flags: flags | if service.has_endpoints { Frontend::HAS_ENDPOINTS } else { 0 },
        cluster_base: service.cluster.0,
        cluster_count: service.cluster.1,
        local_base: service.local.0,
        local_count: service.local.1,
        affinity_seconds: 0,
        kind: kind as u32,
    }
}
