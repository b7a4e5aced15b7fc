//! The layout of every map of the contract, and the format of its keys and values. Used by [`super::pins`] (layout check) and
//! by `shunt map dump|lookup`.

mod entries;
mod fields;

use proxy_common::{
    Addr, Affinity, AffinityKey, Agent, Backend, BackendMeta, CtEntry, CtKey, Device, DropKey, Fragment,
    FragmentKey, Frontend, FrontendKey, Held, Monitor, NodeConfig, Service, ServiceMeta, ServiceStats,
    SetMember, SockKey, SockPeer, SourceAddrKey, SourceRange, map,
};

use self::entries::{
    address, affinity, affinity_key, agent, allowed, backend, backend_id, backend_meta, count, counter,
    ct_entry, ct_key, device, drop_key, fragment, fragment_key, frontend, frontend_key, held, ifindex, index,
    monitor, node_config, port, port_bits, roles, service, service_id, service_meta, service_stats,
    set_member, sets, sock_key, sock_peer, source_addr, source_addr_key, source_range,
};
pub use self::fields::Fields;

/// Sizes and format of the keys and values of one map.
#[derive(Clone, Copy)]
pub struct Layout {
    pub name: &'static str,
    pub key_size: u32,
    pub value_size: u32,
    key: fn(&[u8]) -> Fields,
    value: fn(&[u8]) -> Fields,
}

impl Layout {
    /// Formats a key of `key_size` bytes.
    pub fn key(&self, bytes: &[u8]) -> Fields {
        (self.key)(bytes)
    }

    /// Formats a value of `value_size` bytes; in a per-CPU map, that of one CPU.
    pub fn value(&self, bytes: &[u8]) -> Fields {
        (self.value)(bytes)
    }
}

/// A layout from two typed formatters; the sizes are those of their types.
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
    layout!(SOURCE_CURSORS, u32 => index, u64 => count),
];

/// The layout of the map with this name, if the contract contains it.
pub fn layout(name: &str) -> Option<&'static Layout> {
    static ALL: [Layout; map::ALL.len()] = LAYOUTS;
    ALL.iter().find(|layout| layout.name == name)
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use proxy_common::{Half, Port, Prefix};

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
    fn a_conntrack_key_as_text() {
        let (client, vip) = (Ipv4Addr::new(10, 0, 0, 1).into(), Ipv4Addr::new(10, 68, 0, 1).into());
        let key = CtKey::new(client, Port::new(1000), vip, Port::new(80), 6, Half::Ingress);
        let text = layout(map::CONNTRACK).unwrap().key(bytemuck::bytes_of(&key)).to_string();
        assert_eq!(text, "protocol=TCP source=10.0.0.1:1000 destination=10.68.0.1:80 hook=ingress");
    }

    #[test]
    fn prefixes_read_as_written() {
        let v4 = Prefix::new(Ipv4Addr::new(172, 20, 0, 0).into(), 112);
        assert_eq!(v4.to_string(), "172.20.0.0/16");
        let v6 = Prefix::new("fd00::".parse::<std::net::Ipv6Addr>().unwrap().into(), 64);
        assert_eq!(v6.to_string(), "fd00::/64");
    }
}
