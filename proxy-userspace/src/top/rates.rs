//! Rates between two samples. Pure, so that tests need neither maps nor time.

use std::collections::HashMap;

use proxy_common::{Counter, DropKey, ServiceMeta, counter::Kind};
use serde::Serialize;

use super::sample::Sample;
use crate::inspect::{
    InspectError,
    drops::device_text,
    services::split_name,
    statistics::{Figures, family_text, port_text, protocol_text},
};

/// Two samples compared.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Overview {
    /// Time between the samples.
    pub interval_seconds: f64,
    /// Whether flows, packets and bytes of Services are counted (`--service-stats-max`); if not, they are `null`.
    pub service_stats: bool,
    pub node: NodeRates,
    /// Refusals and drops by reason and device, highest rate first.
    pub drops: Vec<DropRow>,
    pub services: Vec<Row>,
}

/// A count and its rate; the rate is `null` before the second sample.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Rate {
    pub total: u64,
    pub per_second: Option<f64>,
}

/// Rates of the node, from COUNTERS: of all Services, and of packets that belong to none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct NodeRates {
    /// New flows to Services, seen as packets.
    pub flows: Rate,
    /// Connections and datagrams that were translated at the socket.
    pub sockets: Rate,
    pub refused: Rate,
    pub dropped: Rate,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct DropRow {
    pub reason: &'static str,
    pub device: String,
    /// A refusal: the sender got a reply.
    pub refused: bool,
    #[serde(flatten)]
    pub rate: Rate,
}

/// One service port of one family.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Row {
    pub namespace: String,
    pub name: String,
    pub port_name: String,
    pub port: u16,
    pub protocol: String,
    pub family: &'static str,
    pub id: u32,
    #[serde(rename = "total")]
    pub totals: Figures<u64>,
    #[serde(rename = "per_second")]
    pub rates: Figures<f64>,
    /// `NAMESPACE/NAME:PORT`.
    #[serde(skip)]
    pub title: String,
}

impl Overview {
    /// Compares two samples. Without time between them there are no rates.
    pub fn between(before: &Sample, now: &Sample) -> Self {
        let seconds = now.at.saturating_duration_since(before.at).as_secs_f64();
        Self {
            interval_seconds: seconds,
            service_stats: now.statistics.has_traffic,
            node: node(before, now, seconds),
            drops: drops(before, now, seconds),
            services: services(before, now, seconds),
        }
    }

    /// Keeps only the ports of one Service.
    pub fn only(&mut self, name: &str) -> Result<(), InspectError> {
        let (namespace, service) = split_name(name)?;
        self.services.retain(|row| row.namespace == namespace && row.name == service);
        if self.services.is_empty() { Err(InspectError::NoSuchService(name.to_owned())) } else { Ok(()) }
    }
}

/// A count that decreased was reset to 0 in between.
fn rate(before: u64, now: u64, seconds: f64) -> Rate {
    let grown = now.checked_sub(before).unwrap_or(now);
    Rate { total: now, per_second: (seconds > 0.0).then(|| grown as f64 / seconds) }
}

fn node(before: &Sample, now: &Sample, seconds: f64) -> NodeRates {
    let sum = |sample: &Sample, counts: &dyn Fn(Counter) -> bool| -> u64 {
        let counted = Counter::ALL.iter().filter(|counter| counts(**counter));
        counted.filter_map(|counter| sample.counters.get(*counter as usize)).sum()
    };
    let rate = |counts: &dyn Fn(Counter) -> bool| rate(sum(before, counts), sum(now, counts), seconds);
    NodeRates {
        flows: rate(&|counter| counter == Counter::FlowNew),
        sockets: rate(&|counter| counter == Counter::SocketTranslated),
        refused: rate(&|counter| counter.kind() == Kind::Refusal),
        dropped: rate(&|counter| counter.kind() == Kind::Drop),
    }
}

/// Sorted by rate, then by total.
fn drops(before: &Sample, now: &Sample, seconds: f64) -> Vec<DropRow> {
    let old: HashMap<_, _> =
        before.drops.iter().map(|entry| ((entry.ifindex, entry.reason), entry.packets)).collect();
    let mut rows: Vec<_> = now
        .drops
        .iter()
        .filter_map(|entry| {
            let reason = entry.reason()?;
            // The drops of a removed device are added to this entry at once; they are not recent.
            let before = match entry.ifindex {
                DropKey::GONE => entry.packets,
                ifindex => old.get(&(ifindex, entry.reason)).copied().unwrap_or(0),
            };
            Some(DropRow {
                reason: reason.name(),
                device: device_text(entry.ifindex),
                refused: reason.kind() == Kind::Refusal,
                rate: rate(before, entry.packets, seconds),
            })
        })
        .collect();
    rows.sort_by(|a, b| {
        let order = |row: &DropRow| (row.rate.per_second.unwrap_or(0.0), row.rate.total);
        order(b).partial_cmp(&order(a)).unwrap_or(std::cmp::Ordering::Equal)
    });
    rows
}

fn services(before: &Sample, now: &Sample, seconds: f64) -> Vec<Row> {
    let zero = Figures::zero(now.statistics.has_traffic);
    let old: HashMap<u32, _> = before.statistics.ports.iter().map(|port| (port.id, port)).collect();
    let row = |port: &crate::inspect::statistics::ServicePort| {
        // Ids are reused: the counts of another port under the same id do not belong to this one.
        let old = old.get(&port.id).filter(|old| is_same(&old.meta, &port.meta));
        let grown = port.totals.since(&old.map_or(zero, |old| old.totals));
        let meta = &port.meta;
        let (namespace, name) = (meta.namespace.as_str(), meta.name.as_str());
        Row {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            port_name: meta.port_name.as_str().to_owned(),
            port: meta.port.host(),
            protocol: protocol_text(meta),
            family: family_text(meta),
            id: port.id,
            totals: port.totals,
            rates: grown.per_second(seconds),
            title: format!("{namespace}/{name}:{}", port_text(meta)),
        }
    };
    now.statistics.ports.iter().map(row).collect()
}

/// Whether both are the same service port. Its number may change.
fn is_same(a: &ServiceMeta, b: &ServiceMeta) -> bool {
    (a.namespace, a.name, a.port_name, a.proto, a.family)
        == (b.namespace, b.name, b.port_name, b.proto, b.family)
}

#[cfg(test)]
pub(super) mod tests {
    use std::time::{Duration, Instant};

    use super::*;
    use crate::inspect::{
        drops::DeviceDrops,
        statistics::{
            Count, ServicePort, Statistics,
            tests::{figures, meta},
        },
    };

    fn port(id: u32, name: &str, counts: [u64; 7]) -> ServicePort {
        ServicePort { id, meta: meta(name, "http", 4), totals: figures(counts) }
    }

    fn sample(at: Instant, ports: Vec<ServicePort>) -> Sample {
        let statistics = Statistics { has_traffic: true, ports };
        let mut counters = vec![0; Counter::ALL.len()];
        counters[Counter::FlowNew as usize] = 7;
        Sample { at, statistics, counters, drops: Vec::new() }
    }

    /// Two seconds with traffic of `api` and `web`, and none of `idle`.
    pub fn overview() -> Overview {
        let begin = Instant::now();
        let mut before =
            sample(begin, vec![port(1, "web", [10, 100, 90, 1000, 9000, 0, 0]), port(2, "idle", [0; 7])]);
        let mut now = sample(
            begin + Duration::from_secs(2),
            vec![
                port(1, "web", [30, 300, 290, 3_000_000, 9000, 4, 6]),
                port(2, "idle", [0; 7]),
                port(3, "api", [50, 1, 1, 1, 1, 0, 0]),
            ],
        );
        let drops =
            |ifindex, reason: Counter, packets| DeviceDrops { ifindex, reason: reason as u32, packets };
        before.drops = vec![drops(0, Counter::NoBackend, 1000)];
        now.drops = vec![drops(0, Counter::NoBackend, 1000), drops(1, Counter::NoLocalEndpoints, 6)];
        now.counters[Counter::FlowNew as usize] = 77;
        now.counters[Counter::NoLocalEndpoints as usize] = 6;
        Overview::between(&before, &now)
    }

    fn rate_of(overview: &Overview, name: &str, count: Count) -> Option<f64> {
        overview.services.iter().find(|row| row.name == name).and_then(|row| row.rates.get(count))
    }

    #[test]
    fn rates_are_per_second() {
        let overview = overview();
        assert_eq!(rate_of(&overview, "web", Count::Flows), Some(10.0));
        assert_eq!(rate_of(&overview, "web", Count::BytesOut), Some(0.0));
        assert_eq!(rate_of(&overview, "web", Count::Dropped), Some(3.0));
        assert_eq!(rate_of(&overview, "api", Count::Flows), Some(25.0), "new since");
        assert_eq!(overview.node.flows, Rate { total: 77, per_second: Some(35.0) });
        assert_eq!(overview.node.dropped.per_second, Some(3.0));
    }

    #[test]
    fn current_drops_come_first() {
        let overview = overview();
        let drops: Vec<_> =
            overview.drops.iter().map(|row| (row.reason, &*row.device, row.refused)).collect();
        assert_eq!(drops, [("no_local_endpoints", "lo", false), ("no_backend", "(sockets)", true)]);
    }

    #[test]
    fn reused_ids_and_reset_counts_cause_no_spike() {
        let begin = Instant::now();
        let before = sample(begin, vec![port(1, "web", [100; 7]), port(2, "old", [100; 7])]);
        let later = begin + Duration::from_secs(1);
        let now = sample(later, vec![port(1, "web", [2; 7]), port(2, "new", [103; 7])]);
        let overview = Overview::between(&before, &now);
        assert_eq!(rate_of(&overview, "web", Count::BytesIn), Some(2.0));
        assert_eq!(rate_of(&overview, "new", Count::BytesIn), Some(103.0));
    }

    #[test]
    fn one_sample_has_no_rates() {
        let sample = sample(Instant::now(), vec![port(1, "web", [1; 7])]);
        let overview = Overview::between(&sample, &sample);
        assert_eq!(overview.node.flows, Rate { total: 7, per_second: None });
        assert_eq!(rate_of(&overview, "web", Count::Flows), None);
    }

    #[test]
    fn without_statistics_there_are_no_flows() {
        let begin = Instant::now();
        let counts = proxy_common::Service { cluster_next: 5, local_next: 5, refused: 8, dropped: 0 };
        let mut before = sample(begin, vec![port(1, "web", [1; 7])]);
        let mut now = sample(begin + Duration::from_secs(1), vec![port(1, "web", [0; 7])]);
        now.statistics.has_traffic = false;
        now.statistics.ports[0].totals = Figures::new(counts, None);
        let turned_off = Overview::between(&before, &now);
        assert_eq!(rate_of(&turned_off, "web", Count::Flows), None);
        assert_eq!(rate_of(&turned_off, "web", Count::Refused), Some(7.0));
        before.statistics = now.statistics.clone();
        assert_eq!(rate_of(&Overview::between(&before, &now), "web", Count::Refused), Some(0.0));
    }

    #[test]
    fn only_one_services_ports() {
        let mut overview = overview();
        overview.only("default/web").unwrap();
        assert_eq!(overview.services.len(), 1);
        assert!(matches!(overview.only("default/none"), Err(InspectError::NoSuchService(_))));
    }
}
