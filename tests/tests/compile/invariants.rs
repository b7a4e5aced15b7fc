//! Invariants of all manifests: the tables mean the same in whatever order the objects arrived, removed objects leave
//! nothing behind, and a restart writes nothing.

use std::{
    collections::{BTreeMap, HashSet},
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use serde_json::{Value, json};
use shunt::{
    config::MapSizes,
    controller::{Controller, InUse, NodeAddress, SyncReport},
    maps::memory::MemoryStore,
    model::ObjectKey,
    offline::{Offline, TablesView},
    sources::{Event, files},
};

use super::scenario::Scenario;

/// Checks all invariants below with one compiled scenario.
pub fn check(scenario: &Scenario, offline: &Offline) -> Result<()> {
    let want = meaning(&offline.view());
    let (_, events) = files::read(&scenario.manifests)?;
    let addresses = addresses(offline);

    let mut reversed: Vec<Event> = events.iter().filter(|event| **event != Event::Synced).cloned().collect();
    reversed.reverse();
    for (order, events) in [("as read", &events), ("backwards", &reversed)] {
        let mut world = World::new(scenario, &addresses);
        world.apply(Event::Synced);
        // A sync after each event, so that all intermediate states occur.
        for event in events {
            world.apply(event.clone());
            world.sync()?;
        }
        world.settle()?;
        ensure!(world.meaning() == want, "arrival {order} gives other tables: {}", world.meaning());
        world.vanish_and_return(events, &want)?;
        world.restart_writes_nothing(scenario, &addresses, events)?;
    }
    Ok(())
}

/// A controller and its store.
struct World {
    controller: Controller,
    store: MemoryStore,
}

impl World {
    fn new(scenario: &Scenario, addresses: &[NodeAddress]) -> Self {
        let controller = Controller::new(&scenario.node, scenario.config.clone(), MapSizes::default())
            .with_grace(Duration::ZERO);
        let mut world = Self { controller, store: MemoryStore::default() };
        world.controller.set_node_addresses(addresses.to_vec(), &[]);
        world
    }

    fn apply(&mut self, event: Event) {
        self.controller.apply(event);
    }

    fn sync(&mut self) -> Result<SyncReport> {
        let report = self.controller.sync(&mut self.store)?;
        self.store_is_as_desired()?;
        Ok(report)
    }

    /// No flow refers to a retired backend any more: retired entries are removed.
    fn settle(&mut self) -> Result<()> {
        for _ in 0..2 {
            self.controller.release(Instant::now(), &InUse::default());
            self.sync()?;
        }
        ensure!(!self.controller.has_retired(), "ids stay retired for ever");
        Ok(())
    }

    /// The store's contents need no further writes.
    fn store_is_as_desired(&mut self) -> Result<()> {
        self.controller.reload(&mut self.store)?;
        let ops = self.controller.tables().ops();
        ensure!(ops.is_empty(), "the store differs from the tables: {ops:?}");
        Ok(())
    }

    fn meaning(&self) -> Value {
        meaning(&TablesView::new(self.controller.tables(), self.controller.listeners()))
    }

    /// Scale to zero and back, delete and add again: the same result, and nothing left in between.
    fn vanish_and_return(&mut self, events: &[Event], want: &Value) -> Result<()> {
        let slices: HashSet<ObjectKey> = keys(events, |event| match event {
            Event::Slice(slice) => Some(slice.key.clone()),
            _ => None,
        });
        slices.iter().for_each(|key| self.apply(Event::SliceGone(key.clone())));
        self.sync()?;
        let served = TablesView::new(self.controller.tables(), self.controller.listeners());
        ensure!(
            served
                .frontends
                .iter()
                .all(|frontend| frontend.flags.iter().all(|flag| *flag != "has-endpoints")),
            "a frontend has endpoints without slices"
        );
        events.iter().for_each(|event| self.apply(event.clone()));
        self.sync()?;
        self.settle()?;
        ensure!(self.meaning() == *want, "scaled to zero and back: {}", self.meaning());

        let services = keys(events, |event| match event {
            Event::Service(service) => Some(service.key.clone()),
            _ => None,
        });
        services.iter().for_each(|key| self.apply(Event::ServiceGone(key.clone())));
        self.sync()?;
        self.settle()?;
        let left = TablesView::new(self.controller.tables(), self.controller.listeners());
        let counts = [
            left.services.len(),
            left.frontends.len(),
            left.slots.len(),
            left.backends.len(),
            left.ports.len(),
            left.set_members.len(),
            left.source_ranges.len(),
        ];
        ensure!(counts == [0; 7], "deleted Services leave something behind: {counts:?}");
        events.iter().for_each(|event| self.apply(event.clone()));
        self.sync()?;
        self.settle()?;
        ensure!(self.meaning() == *want, "deleted and added again: {}", self.meaning());
        Ok(())
    }

    /// A new controller on the same store, given the same objects in one batch.
    fn restart_writes_nothing(
        &mut self,
        scenario: &Scenario,
        addresses: &[NodeAddress],
        events: &[Event],
    ) -> Result<()> {
        let mut next = World::new(scenario, addresses);
        next.store = self.store.clone();
        next.controller.restore(&mut next.store)?;
        events.iter().for_each(|event| next.apply(event.clone()));
        next.apply(Event::Synced);
        let report = next.controller.sync(&mut next.store)?;
        ensure!(report.complete && report.ops == 0, "a restart wrote {:?}", next.store.take_log());
        ensure!(next.controller.problems() == self.controller.problems(), "a restart finds other problems");
        Ok(())
    }
}

fn keys(events: &[Event], key: impl Fn(&Event) -> Option<ObjectKey>) -> HashSet<ObjectKey> {
    events.iter().filter_map(key).collect()
}

/// The node addresses assumed by the offline compilation.
fn addresses(offline: &Offline) -> Vec<NodeAddress> {
    let view = offline.view();
    let address =
        |text: &str| NodeAddress { addr: text.parse().expect("a printed address"), device: "lo".into() };
    view.node_addrs.iter().map(|row| address(&row.address)).collect()
}

/// The tables without the numbers that depend on history: backends by address instead of id, without positions.
pub fn meaning(view: &TablesView) -> Value {
    let backends: BTreeMap<u32, String> =
        view.backends.iter().map(|b| (b.id, format!("{} {} {}", b.address, b.port, b.protocol))).collect();
    let named = |ids: &[u32]| -> Vec<String> { ids.iter().map(|id| backends[id].clone()).collect() };
    let frontends: Vec<Value> = view
        .frontends
        .iter()
        .map(|f| {
            json!([
                f.address,
                f.family,
                f.port,
                f.protocol,
                f.kind,
                f.service,
                f.flags,
                f.affinity_seconds,
                named(&f.cluster.backends),
                named(&f.local.backends)
            ])
        })
        .collect();
    let mut rows: Vec<String> = view
        .backends
        .iter()
        .map(|b| format!("{} {} {} {} {:?}", b.address, b.port, b.protocol, b.node, b.flags))
        .collect();
    rows.sort();
    let mut services: Vec<String> = view
        .services
        .iter()
        .map(|s| format!("{}/{} {} {} {} {}", s.namespace, s.name, s.port_name, s.port, s.protocol, s.family))
        .collect();
    services.sort();
    let mut clients: Vec<String> = view
        .set_members
        .iter()
        .map(|m| format!("{} {} {:?}", m.service, m.address, m.sets))
        .chain(view.source_ranges.iter().map(|r| format!("{} {} {}", r.service, r.kind, r.range)))
        .collect();
    clients.sort();
    json!({"clients": clients, "frontends": frontends, "backends": rows, "services": services, "ports": view.ports,
        "node_addrs": view.node_addrs, "node_config": view.node_config})
}
