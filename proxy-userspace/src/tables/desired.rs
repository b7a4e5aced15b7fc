//! The desired contents of every map that the controller writes, and the order in which differences are written.

use std::{collections::BTreeSet, sync::Arc};

use proxy_common::{
    Addr, Backend, BackendMeta, Frontend, FrontendKey, NodeConfig, Service, ServiceMeta, SetMember,
    SourceRange, map,
};

use super::table::{Record, Table};
use crate::maps::{MapError, MapStore, Op};

/// One table per map that the controller writes.
#[derive(Debug)]
pub struct Tables {
    pub frontends: Table<FrontendKey, Frontend>,
    /// Slot to backend id.
    pub slots: Table<u32, u32>,
    pub backends: Table<u32, Backend>,
    /// Address, port and protocol to backend id.
    pub backend_addrs: Table<FrontendKey, u32>,
    pub backend_meta: Table<u32, NodeName>,
    pub service_meta: Table<u32, ServiceMeta>,
    /// To bits of `proxy_common::affinity::set_bits`.
    pub set_members: Table<SetMember, u32>,
    pub source_ranges: Table<SourceRange, u32>,
    /// Port to bits of `proxy_common::node::port_bits`.
    pub ports: Table<u32, u32>,
    /// Address to bits of `proxy_common::node::role`.
    pub node_addrs: Table<Addr, u32>,
    pub node_config: Table<u32, NodeConfig>,
    /// Service ids whose element of SERVICES must be cleared before a frontend names them; the datapath writes it from then
    /// on.
    clear: BTreeSet<u32>,
    /// The same of SERVICE_STATS.
    clear_stats: BTreeSet<u32>,
}

/// Value of BACKEND_META; kept short in memory, because there is one per backend.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeName(pub Arc<str>);

impl Record for NodeName {
    fn to_bytes(&self) -> Vec<u8> {
        BackendMeta::new(&self.0).to_bytes()
    }

    fn from_bytes(bytes: &[u8]) -> Option<Self> {
        Some(Self(BackendMeta::from_bytes(bytes)?.node().into()))
    }
}

/// Evaluates an expression for every table; they have different types.
macro_rules! each {
    ($tables:expr, $table:ident => $body:expr) => {{
        let tables = $tables;
        let $table = &mut tables.frontends;
        $body;
        let $table = &mut tables.slots;
        $body;
        let $table = &mut tables.backends;
        $body;
        let $table = &mut tables.backend_addrs;
        $body;
        let $table = &mut tables.backend_meta;
        $body;
        let $table = &mut tables.service_meta;
        $body;
        let $table = &mut tables.set_members;
        $body;
        let $table = &mut tables.source_ranges;
        $body;
        let $table = &mut tables.ports;
        $body;
        let $table = &mut tables.node_addrs;
        $body;
        let $table = &mut tables.node_config;
        $body;
    }};
}

impl Default for Tables {
    fn default() -> Self {
        Self {
            frontends: Table::hash(map::FRONTENDS),
            slots: Table::array(map::SLOTS),
            backends: Table::array(map::BACKENDS),
            backend_addrs: Table::hash(map::BACKEND_ADDRS),
            backend_meta: Table::hash(map::BACKEND_META),
            service_meta: Table::hash(map::SERVICE_META),
            set_members: Table::hash(map::SET_MEMBERS),
            source_ranges: Table::hash(map::SOURCE_RANGES),
            ports: Table::array(map::PORTS),
            node_addrs: Table::hash(map::NODE_ADDRS),
            node_config: Table::array(map::NODE_CONFIG),
            clear: BTreeSet::new(),
            clear_stats: BTreeSet::new(),
        }
    }
}

impl Tables {
    /// Reads the store: from here on only what differs from it is written.
    pub fn load(&mut self, store: &mut dyn MapStore) -> Result<(), MapError> {
        each!(self, table => table.load(store.read(table.map())?));
        Ok(())
    }

    /// The number of desired entries of each map that counts its entries.
    pub fn fill(&self) -> Vec<(&'static str, usize)> {
        vec![
            (self.frontends.map(), self.frontends.len()),
            (self.slots.map(), self.slots.len()),
            (self.backends.map(), self.backends.len()),
            (self.backend_addrs.map(), self.backend_addrs.len()),
            (self.backend_meta.map(), self.backend_meta.len()),
            (self.service_meta.map(), self.service_meta.len()),
            // One element for each id in SERVICE_META.
            (map::SERVICES, self.service_meta.len()),
            (self.set_members.map(), self.set_members.len()),
            (self.source_ranges.map(), self.source_ranges.len()),
            (self.node_addrs.map(), self.node_addrs.len()),
        ]
    }

    /// Zeroes SERVICES[id] with the next ops, and SERVICE_STATS[id] if there is such an element.
    pub fn clear_service(&mut self, id: u32, has_stats: bool) {
        self.clear.insert(id);
        if has_stats {
            self.clear_stats.insert(id);
        }
    }

    /// The writes, in an order in which no packet meets an incomplete Service: first what frontends name, then frontends,
    /// then the removal of what they no longer name.
    pub fn ops(&self) -> Vec<Op> {
        let mut ops = Vec::new();
        let zero = <Service as bytemuck::Zeroable>::zeroed().to_bytes();
        let cleared = self.clear.iter();
        ops.extend(cleared.map(|id| Op::Put { map: map::SERVICES, key: id.to_bytes(), value: zero.clone() }));
        let cleared = self.clear_stats.iter();
        ops.extend(cleared.map(|id| Op::Delete { map: map::SERVICE_STATS, key: id.to_bytes() }));
        self.service_meta.puts(&mut ops);
        self.backends.puts_where(&mut ops, |backend, _| backend.has(Backend::ACTIVE));
        self.backend_meta.puts(&mut ops);
        self.backend_addrs.puts(&mut ops);
        self.slots.puts(&mut ops);
        // A port's bits must be a superset of its entries: added before the entries and cleared after them. So must a
        // backend's set bits: it is in both sets of a frontend until the frontend's new value is written.
        let widened = |bits: &u32, applied: Option<&u32>| {
            let applied = applied.copied().unwrap_or(0);
            (bits & !applied != 0).then_some(bits | applied)
        };
        self.ports.puts_as(&mut ops, widened);
        self.set_members.puts_as(&mut ops, widened);
        self.source_ranges.puts(&mut ops);
        self.node_addrs.puts(&mut ops);
        self.node_config.puts(&mut ops);

        self.frontends.puts(&mut ops);
        self.frontends.deletes(&mut ops);

        // Bits that no entry needs any more.
        let too_wide =
            |bits: &u32, applied: Option<&u32>| applied.is_some_and(|applied| applied & !bits != 0);
        self.ports.puts_where(&mut ops, too_wide);
        self.ports.deletes(&mut ops);
        self.set_members.puts_where(&mut ops, too_wide);
        self.set_members.deletes(&mut ops);
        self.source_ranges.deletes(&mut ops);
        self.backends.puts_where(&mut ops, |backend, _| !backend.has(Backend::ACTIVE));
        self.backend_addrs.deletes(&mut ops);
        self.backend_meta.deletes(&mut ops);
        self.backends.deletes(&mut ops);
        self.service_meta.deletes(&mut ops);
        self.slots.deletes(&mut ops);
        self.node_addrs.deletes(&mut ops);
        self.node_config.deletes(&mut ops);
        ops
    }

    /// The store carried out `done`.
    pub fn commit(&mut self, done: &[Op]) {
        for op in done {
            let name = op.map();
            let cleared = match name {
                map::SERVICES => Some(&mut self.clear),
                map::SERVICE_STATS => Some(&mut self.clear_stats),
                _ => None,
            };
            if let Some(cleared) = cleared {
                if let Some(id) = <u32 as Record>::from_bytes(op.key()) {
                    cleared.remove(&id);
                }
                continue;
            }
            each!(&mut *self, table => if table.map() == name { table.commit(op); continue });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn port_bits_widen_before_frontends_and_narrow_after() {
        let mut tables = Tables::default();
        tables.ports.set(80, 0b011);
        let first = tables.ops();
        tables.commit(&first);
        tables.ports.set(80, 0b110);
        let value = |op: &Op| match op {
            Op::Put { value, .. } => <u32 as Record>::from_bytes(value),
            Op::Delete { .. } => None,
        };
        let ops = tables.ops();
        assert_eq!(ops.iter().map(value).collect::<Vec<_>>(), [Some(0b111), Some(0b110)]);
        tables.commit(&ops);
        assert!(tables.ops().is_empty());
    }

    #[test]
    fn cleared_services_are_written_once() {
        let mut tables = Tables::default();
        tables.clear_service(3, false);
        tables.clear_service(4, true);
        let ops = tables.ops();
        let maps: Vec<_> = ops.iter().map(Op::map).collect();
        assert_eq!(maps, [map::SERVICES, map::SERVICES, map::SERVICE_STATS]);
        tables.commit(&ops);
        assert!(tables.ops().is_empty());
    }

    #[test]
    fn node_names_go_through_bytes() {
        let name = NodeName("node-1.example".into());
        assert_eq!(NodeName::from_bytes(&name.to_bytes()), Some(name));
    }
}
