//! PORTS: for each port number, the kinds of entries that exist with it, so that the datapath can skip lookups; and for
//! each 16-bit number whether a backend's address or a ClusterIP ends in it.

use std::collections::HashMap;

use proxy_common::{Addr, FrontendKey, node::port_bits};

use super::desired::Tables;

/// The number of entries behind each bit.
#[derive(Debug, Default)]
pub struct PortBits {
    uses: HashMap<(u16, u32), u32>,
}

impl PortBits {
    /// `key` was added to FRONTENDS.
    pub fn add_frontend(&mut self, key: FrontendKey, tables: &mut Tables) {
        self.add(key.port.host(), frontend_bit(key), tables);
    }

    /// `key` was removed from FRONTENDS.
    pub fn remove_frontend(&mut self, key: FrontendKey, tables: &mut Tables) {
        self.remove(key.port.host(), frontend_bit(key), tables);
    }

    /// `key` was added to BACKEND_ADDRS.
    pub fn add_backend(&mut self, key: FrontendKey, tables: &mut Tables) {
        self.add(key.port.host(), port_bits::backend(key.proto), tables);
        self.add(key.addr.low16(), port_bits::BACKEND_ADDR, tables);
    }

    /// `key` was removed from BACKEND_ADDRS.
    pub fn remove_backend(&mut self, key: FrontendKey, tables: &mut Tables) {
        self.remove(key.port.host(), port_bits::backend(key.proto), tables);
        self.remove(key.addr.low16(), port_bits::BACKEND_ADDR, tables);
    }

    /// `addr` became a ClusterIP.
    pub fn add_cluster_ip(&mut self, addr: Addr, tables: &mut Tables) {
        self.add(addr.low16(), port_bits::CLUSTER_IP, tables);
    }

    /// `addr` is no longer a ClusterIP.
    pub fn remove_cluster_ip(&mut self, addr: Addr, tables: &mut Tables) {
        self.remove(addr.low16(), port_bits::CLUSTER_IP, tables);
    }

    /// `addr` became an address of the node.
    pub fn add_node_addr(&mut self, addr: Addr, tables: &mut Tables) {
        self.add(addr.low16(), port_bits::NODE_ADDR, tables);
    }

    /// `addr` is no address of the node any more.
    pub fn remove_node_addr(&mut self, addr: Addr, tables: &mut Tables) {
        self.remove(addr.low16(), port_bits::NODE_ADDR, tables);
    }

    fn add(&mut self, number: u16, bit: u32, tables: &mut Tables) {
        let uses = self.uses.entry((number, bit)).or_insert(0);
        *uses += 1;
        if *uses == 1 {
            let bits = tables.ports.get(&number.into()).copied().unwrap_or(0);
            tables.ports.set(number.into(), bits | bit);
        }
    }

    fn remove(&mut self, number: u16, bit: u32, tables: &mut Tables) {
        let Some(uses) = self.uses.get_mut(&(number, bit)) else { return };
        *uses -= 1;
        if *uses > 0 {
            return;
        }
        self.uses.remove(&(number, bit));
        let number = u32::from(number);
        match tables.ports.get(&number).copied().unwrap_or(0) & !bit {
            0 => tables.ports.remove(&number),
            bits => tables.ports.set(number, bits),
        }
    }
}

fn frontend_bit(key: FrontendKey) -> u32 {
    if key.addr.is_unspecified() { port_bits::nodeport(key.proto) } else { port_bits::frontend(key.proto) }
}

#[cfg(test)]
mod tests {
    use proxy_common::{Port, Proto};

    use super::*;

    #[test]
    fn a_bit_lasts_as_long_as_the_last_entry() {
        let (mut bits, mut tables) = (PortBits::default(), Tables::default());
        let addr = Addr::from("10.0.0.1".parse::<std::net::IpAddr>().unwrap());
        let vip = FrontendKey::new(addr, Port::new(80), Proto::TCP);
        let node_port = FrontendKey::new(Addr::UNSPECIFIED_V4, Port::new(80), Proto::TCP);
        bits.add_frontend(vip, &mut tables);
        bits.add_frontend(vip, &mut tables);
        bits.add_frontend(node_port, &mut tables);
        bits.add_backend(vip, &mut tables);
        // 10.0.0.1 ends in 1.
        assert_eq!(tables.ports.get(&1), Some(&port_bits::BACKEND_ADDR));
        let (f, n, b) = (
            port_bits::frontend(Proto::TCP),
            port_bits::nodeport(Proto::TCP),
            port_bits::backend(Proto::TCP),
        );
        assert_eq!(tables.ports.get(&80), Some(&(f | n | b)));
        bits.remove_frontend(vip, &mut tables);
        assert_eq!(tables.ports.get(&80), Some(&(f | n | b)));
        bits.remove_frontend(vip, &mut tables);
        assert_eq!(tables.ports.get(&80), Some(&(n | b)));
        bits.remove_frontend(node_port, &mut tables);
        bits.remove_backend(vip, &mut tables);
        assert!(tables.ports.is_empty());
    }
}
