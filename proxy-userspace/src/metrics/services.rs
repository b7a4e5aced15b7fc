//! `shunt_service_*`: traffic, refusals and drops of each service port, read from the pins for each scrape.
//!
//! Written as text, not kept in the registry: maintaining thousands of series that come and go with their Services
//! would cost more. `--service-metrics-max` limits their number: the service ports with the lowest ids have their own
//! series; all others share `service="_other"`, which is not a valid Service name.

use std::{collections::HashMap, fmt::Write as _};

use proxy_common::ServiceMeta;

use crate::inspect::{
    pins::Pins,
    statistics::{Count, Figures, Statistics, family_text, port_text, protocol_text},
};

/// A metric's name, its HELP text, and its counts by `direction`.
type Metric = (&'static str, &'static str, &'static [(&'static str, Count)]);

const METRICS: [Metric; 5] = [
    ("shunt_service_flows_total", "New flows to a service port.", &[("", Count::Flows)]),
    (
        "shunt_service_packets_total",
        "Packets of a service port's flows; those of the node's own sockets are not seen.",
        &[("in", Count::PacketsIn), ("out", Count::PacketsOut)],
    ),
    (
        "shunt_service_bytes_total",
        "Bytes of these packets, with their link-layer headers.",
        &[("in", Count::BytesIn), ("out", Count::BytesOut)],
    ),
    (
        "shunt_service_refused_total",
        "New flows to a service port that were refused: it has no endpoint.",
        &[("", Count::Refused)],
    ),
    (
        "shunt_service_dropped_total",
        "New flows to a service port that were dropped: policy Local, and no endpoint on this node.",
        &[("", Count::Dropped)],
    ),
];

/// State kept from one scrape to the next.
#[derive(Debug, Default)]
pub struct ServiceMetrics {
    /// The last counts by id: which ids have their own series changes as others come and go.
    last: HashMap<u32, Figures<u64>>,
    /// The sum counted without own series since this process started. A plain sum over the others would decrease
    /// whenever one is removed or gets its own series.
    other: Option<Figures<u64>>,
}

impl ServiceMetrics {
    /// Counts from before this process started are not part of the sum, which starts at 0.
    pub(super) fn begin(&mut self, pins: &Pins) {
        if let Ok(statistics) = Statistics::read(pins) {
            self.last = statistics.ports.iter().map(|port| (port.id, port.totals)).collect();
        }
    }

    /// The text; without series if the maps cannot be read, as before they are pinned.
    pub(super) fn text(&mut self, pins: &Pins, max: usize) -> String {
        if max == 0 {
            return String::new();
        }
        match Statistics::read(pins) {
            Ok(statistics) => self.written(&statistics, max),
            Err(error) => {
                tracing::debug!(%error, "cannot read the statistics of Services");
                written(&[])
            }
        }
    }

    fn written(&mut self, statistics: &Statistics, max: usize) -> String {
        let own = &statistics.ports[..max.min(statistics.ports.len())];
        self.take(statistics, own.len());
        let mut series: Vec<_> = own.iter().map(|port| (Labels::of(&port.meta), port.totals)).collect();
        series.extend(self.other.map(|figures| (Labels::other(), figures)));
        written(&series)
    }

    /// Adds the increments of all ids behind the first `own`.
    fn take(&mut self, statistics: &Statistics, own: usize) {
        let zero = Figures::zero(statistics.has_traffic);
        let mut seen = HashMap::with_capacity(statistics.ports.len());
        for (nth, port) in statistics.ports.iter().enumerate() {
            seen.insert(port.id, port.totals);
            if nth >= own {
                let before = self.last.get(&port.id).unwrap_or(&zero);
                self.other = Some(self.other.unwrap_or(zero).plus(&port.totals.since(before)));
            }
        }
        self.last = seen;
    }
}

fn written(series: &[(Labels, Figures<u64>)]) -> String {
    let mut text = String::new();
    for (name, help, counts) in METRICS {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} counter");
        for (labels, figures) in series {
            for (direction, count) in counts {
                if let Some(value) = figures.get(*count) {
                    let _ = writeln!(text, "{name}{{{}}} {value}", labels.text(direction));
                }
            }
        }
    }
    text
}

/// Labels of one series. Kubernetes' validation ensures that nothing needs escaping.
struct Labels {
    namespace: String,
    service: String,
    port: String,
    protocol: String,
    family: &'static str,
}

impl Labels {
    fn of(meta: &ServiceMeta) -> Self {
        Self {
            namespace: meta.namespace.as_str().to_owned(),
            service: meta.name.as_str().to_owned(),
            port: port_text(meta),
            protocol: protocol_text(meta),
            family: family_text(meta),
        }
    }

    /// To Prometheus an empty label is no label.
    fn other() -> Self {
        let (namespace, port, protocol) = Default::default();
        Self { namespace, service: "_other".to_owned(), port, protocol, family: "" }
    }

    fn text(&self, direction: &str) -> String {
        let Self { namespace, service, port, protocol, family } = self;
        let direction =
            if direction.is_empty() { String::new() } else { format!("direction=\"{direction}\",") };
        format!(
            "{direction}ip_family=\"{family}\",namespace=\"{namespace}\",port=\"{port}\",protocol=\"{protocol}\",\
             service=\"{service}\""
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inspect::statistics::{
        ServicePort,
        tests::{figures, meta},
    };

    fn port(id: u32, name: &str, n: u64) -> ServicePort {
        ServicePort {
            id,
            meta: meta(name, "", 4),
            totals: figures([n, 2 * n, 3 * n, 4 * n, 5 * n, 6 * n, 7 * n]),
        }
    }

    fn statistics(ports: &[ServicePort]) -> Statistics {
        Statistics { has_traffic: true, ports: ports.to_vec() }
    }

    fn value(text: &str, series: &str) -> Option<u64> {
        text.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' ')?.parse().ok())
    }

    const OTHER: &str =
        "shunt_service_flows_total{ip_family=\"\",namespace=\"\",port=\"\",protocol=\"\",service=\"_other\"}";

    #[test]
    fn each_has_series_of_its_own() {
        let text = ServiceMetrics::default().written(&statistics(&[port(3, "web", 10)]), 1000);
        let of = |what: &str, direction: &str| {
            let series = format!(
                "shunt_service_{what}_total{{{direction}ip_family=\"IPv4\",namespace=\"default\",port=\"80\",\
                 protocol=\"TCP\",service=\"web\"}}"
            );
            value(&text, &series)
        };
        assert_eq!(of("flows", ""), Some(10));
        assert_eq!(
            (of("packets", "direction=\"in\","), of("packets", "direction=\"out\",")),
            (Some(20), Some(30))
        );
        assert_eq!(
            (of("bytes", "direction=\"in\","), of("bytes", "direction=\"out\",")),
            (Some(40), Some(50))
        );
        assert_eq!((of("refused", ""), of("dropped", "")), (Some(60), Some(70)));
        assert!(!text.contains("_other"), "{text}");
    }

    #[test]
    fn others_are_one_that_never_goes_back() {
        let mut metrics = ServiceMetrics::default();
        let mut see = |ports: &[ServicePort]| value(&metrics.written(&statistics(ports), 1), OTHER);
        assert_eq!(see(&[port(1, "a", 1), port(2, "b", 20), port(3, "c", 300)]), Some(320));
        assert_eq!(see(&[port(1, "a", 1), port(2, "b", 21), port(3, "c", 300)]), Some(321));
        // The second now has its own series.
        assert_eq!(see(&[port(2, "b", 25), port(3, "c", 302)]), Some(323));
        // The third id belongs to another port now, which starts at zero.
        assert_eq!(see(&[port(2, "b", 25), port(3, "d", 4)]), Some(327));
        assert_eq!(see(&[port(2, "b", 25)]), Some(327));
        // The second no longer has its own series: what it counted there is not added to the sum.
        assert_eq!(see(&[port(1, "e", 0), port(2, "b", 26)]), Some(328));
    }

    #[test]
    fn without_statistics_refusals_and_drops_alone_are_known() {
        let counts = proxy_common::Service { cluster_next: 1, local_next: 1, refused: 2, dropped: 3 };
        let bare = ServicePort { id: 1, meta: meta("web", "http", 6), totals: Figures::new(counts, None) };
        let bare = Statistics { has_traffic: false, ports: vec![bare] };
        let text = ServiceMetrics::default().written(&bare, 1000);
        let series: Vec<_> = text.lines().filter(|line| !line.starts_with('#')).collect();
        let labels =
            "{ip_family=\"IPv6\",namespace=\"default\",port=\"http\",protocol=\"TCP\",service=\"web\"}";
        let want = [("refused", 2), ("dropped", 3)];
        assert_eq!(series, want.map(|(what, n)| format!("shunt_service_{what}_total{labels} {n}")));
    }
}
