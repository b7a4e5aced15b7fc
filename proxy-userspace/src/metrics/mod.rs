//! The process's metrics and the page `/metrics`: kube-proxy's names ([`proxy`]), client-go's ([`client`]) and shunt's
//! own ([`own`]), in Prometheus' text format 0.0.4.
//!
//! One registry per process: code records into [`METRICS`]. Values in maps are read from the pins for each scrape
//! ([`datapath`], [`services`]).

pub mod client;
pub mod datapath;
mod own;
mod proxy;
mod register;
mod services;

use std::sync::{LazyLock, Mutex, PoisonError, TryLockError};

use prometheus::{Registry, TextEncoder};

use self::{client::ClientMetrics, datapath::DatapathMetrics, register::Register, services::ServiceMetrics};
pub use self::{own::OwnMetrics, proxy::ProxyMetrics};
use crate::datapath::pins::Pins;

/// The process's metrics.
pub static METRICS: LazyLock<Metrics> = LazyLock::new(Metrics::new);

/// Everything that is exposed.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    pub proxy: ProxyMetrics,
    pub client: ClientMetrics,
    pub own: OwnMetrics,
    /// Filled for each scrape, one scrape at a time.
    maps: Mutex<Maps>,
}

/// Metrics read from the pins.
#[derive(Debug)]
struct Maps {
    datapath: DatapathMetrics,
    services: ServiceMetrics,
}

impl Metrics {
    fn new() -> Self {
        let registry = Registry::new();
        let known = registry.register(Box::new(prometheus::process_collector::ProcessCollector::for_self()));
        known.expect("process_* is registered once");
        let register = Register(&registry);
        Self {
            proxy: ProxyMetrics::new(&register),
            client: ClientMetrics::new(&register),
            own: OwnMetrics::new(&register),
            maps: Mutex::new(Maps {
                datapath: DatapathMetrics::new(&register),
                services: ServiceMetrics::default(),
            }),
            registry,
        }
    }

    /// The page. `services_max`: the number of service ports with their own series.
    pub fn page(&self, pins: &Pins, services_max: usize) -> String {
        // Concurrent scrapes must not see a half-filled counter.
        let mut maps = self.maps.lock().unwrap_or_else(PoisonError::into_inner);
        let pins = pins.clone().into();
        maps.datapath.fill(&pins, &self.own);
        let mut text = String::new();
        match TextEncoder::new().encode_utf8(&self.registry.gather(), &mut text) {
            Ok(()) => text + &maps.services.text(&pins, services_max),
            Err(error) => format!("# {error}\n"),
        }
    }

    /// Notes the counts of an earlier run, so that sums kept by this process start at 0.
    pub fn begin(&self, pins: &Pins) {
        let mut maps = self.maps.lock().unwrap_or_else(PoisonError::into_inner);
        let pins = pins.clone().into();
        maps.datapath.begin(&pins);
        maps.services.begin(&pins);
    }

    /// Runs `f`, whose intermediate states a scrape must not see; `None` while a scrape is in progress.
    pub fn unless_scraped<T>(&self, f: impl FnOnce() -> T) -> Option<T> {
        match self.maps.try_lock() {
            Ok(_held) => Some(f()),
            Err(TryLockError::Poisoned(_held)) => Some(f()),
            Err(TryLockError::WouldBlock) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        collections::{BTreeMap, BTreeSet},
        path::Path,
        time::Duration,
    };

    use super::*;

    /// kube-proxy's own names, which lint would refuse: a gauge that ends in `_total`.
    const KUBES: [&str; 1] = ["kubeproxy_sync_proxy_rules_no_local_endpoints_total"];

    /// A page on which every metric has a value.
    fn page() -> String {
        let metrics = Metrics::new();
        metrics.proxy.synced(Duration::from_millis(3), true);
        metrics.proxy.synced(Duration::from_millis(3), false);
        metrics.proxy.queued();
        metrics.proxy.programmed(crate::model::Family::V4, 0.3);
        metrics.proxy.no_local_endpoints(crate::model::Family::V6, true, 2);
        metrics.proxy.answered(true, 503);
        metrics.proxy.answered(false, 200);
        metrics.proxy.reconciled(Duration::from_millis(1), [1, 0]);
        metrics.client.requested("GET", "192.168.8.201:6443", Some(200));
        metrics.client.took("GET", "192.168.8.201:6443", Duration::from_millis(7));
        metrics.own.failed("sync");
        metrics.own.watching("services", true);
        metrics.own.watch_failures.with_label_values(&["services"]).inc();
        metrics.own.map_fill("FRONTENDS", 5);
        metrics.own.conntrack(&[(("TCP", "ESTABLISHED"), 4)].into());
        metrics.own.events.with_label_values(&["sent"]).inc();
        metrics.page(&Pins::under(Path::new("/does/not/exist")), 1000)
    }

    /// promtool's lint rules, and that every line parses.
    #[test]
    fn the_page_is_as_prometheus_wants_it() {
        let text = page();
        let (mut types, mut helps) = (BTreeMap::new(), BTreeSet::new());
        let mut series = BTreeSet::new();
        for line in text.lines() {
            if let Some(rest) = line.strip_prefix("# HELP ") {
                let (name, help) = rest.split_once(' ').expect("a HELP text");
                assert!(!help.is_empty() && helps.insert(name), "{line}");
            } else if let Some(rest) = line.strip_prefix("# TYPE ") {
                let (name, kind) = rest.split_once(' ').expect("a type");
                assert!(types.insert(name, kind).is_none(), "{line}");
            } else {
                let (what, value) = line.rsplit_once(' ').expect("a value");
                assert!(value.parse::<f64>().is_ok(), "{line}");
                assert!(series.insert(what), "twice: {line}");
                let name = what.split('{').next().unwrap();
                let of_histogram =
                    ["_bucket", "_sum", "_count"].iter().find_map(|end| name.strip_suffix(end));
                let known = of_histogram.filter(|name| types.get(name) == Some(&"histogram"));
                assert!(types.contains_key(known.unwrap_or(name)), "no TYPE: {line}");
            }
        }
        assert_eq!(types.keys().copied().collect::<BTreeSet<_>>(), helps);
        for (name, kind) in types {
            assert!(name.chars().all(|c| c.is_ascii_lowercase() || c == '_'), "{name}");
            if !KUBES.contains(&name) {
                assert_eq!(name.ends_with("_total"), kind == "counter", "{name} {kind}");
            }
            for bad in ["_milliseconds", "_ms", "_kilobytes", "_minutes", "_count", "_sum", "_bucket"] {
                assert!(!name.ends_with(bad), "{name}");
            }
            assert!(!name.contains(kind), "{name} names its type");
        }
    }

    #[test]
    fn dashboards_find_kube_proxys_names() {
        let text = page();
        for want in [
            "kubeproxy_sync_proxy_rules_duration_seconds_bucket{ip_family=\"IPv4\",le=\"0.001\"} 0",
            "kubeproxy_sync_proxy_rules_duration_seconds_bucket{ip_family=\"IPv6\",le=\"16.384\"} 2",
            "kubeproxy_sync_proxy_rules_duration_seconds_count{ip_family=\"IPv4\"} 2",
            "kubeproxy_sync_full_proxy_rules_duration_seconds_count{ip_family=\"IPv4\"} 1",
            "kubeproxy_sync_partial_proxy_rules_duration_seconds_count{ip_family=\"IPv6\"} 1",
            "kubeproxy_network_programming_duration_seconds_bucket{ip_family=\"IPv4\",le=\"0.25\"} 0",
            "kubeproxy_network_programming_duration_seconds_bucket{ip_family=\"IPv4\",le=\"0.5\"} 1",
            "kubeproxy_network_programming_duration_seconds_bucket{ip_family=\"IPv4\",le=\"59\"} 1",
            "kubeproxy_network_programming_duration_seconds_bucket{ip_family=\"IPv4\",le=\"115\"} 1",
            "kubeproxy_network_programming_duration_seconds_bucket{ip_family=\"IPv4\",le=\"300\"} 1",
            "kubeproxy_sync_proxy_rules_last_timestamp_seconds{ip_family=\"IPv4\"} 1",
            "kubeproxy_sync_proxy_rules_last_queued_timestamp_seconds{ip_family=\"IPv6\"} 1",
            "kubeproxy_sync_proxy_rules_endpoint_changes_pending 0",
            "kubeproxy_sync_proxy_rules_endpoint_changes_total 0",
            "kubeproxy_sync_proxy_rules_service_changes_pending 0",
            "kubeproxy_sync_proxy_rules_service_changes_total 0",
            "kubeproxy_sync_proxy_rules_no_local_endpoints_total{ip_family=\"IPv6\",traffic_policy=\"internal\"} 2",
            "kubeproxy_proxy_healthz_total{code=\"503\"} 1",
            "kubeproxy_proxy_livez_total{code=\"200\"} 1",
            "kubeproxy_conntrack_reconciler_sync_duration_seconds_count{ip_family=\"IPv4\"} 1",
            "kubeproxy_conntrack_reconciler_deleted_entries_total{ip_family=\"IPv4\"} 1",
            "rest_client_requests_total{code=\"200\",host=\"192.168.8.201:6443\",method=\"GET\"} 1",
            "rest_client_request_duration_seconds_count{host=\"192.168.8.201:6443\",verb=\"GET\"} 1",
            "process_cpu_seconds_total ",
            "process_resident_memory_bytes ",
            "process_start_time_seconds ",
            "process_open_fds ",
        ] {
            assert!(text.lines().any(|line| line.starts_with(want)), "{want} is not in\n{text}");
        }
    }

    /// The metrics named in a text; histograms without the suffix of their series.
    fn named<'a>(text: &'a str, known: &BTreeSet<&str>) -> BTreeSet<&'a str> {
        let words = text.split(|c: char| !c.is_ascii_lowercase() && c != '_');
        let ours = words.filter(|word| {
            ["kubeproxy_", "shunt_", "rest_client_", "process_"].iter().any(|start| word.starts_with(start))
        });
        let of_histogram = |word: &'a str| {
            ["_bucket", "_sum", "_count"]
                .iter()
                .find_map(|end| word.strip_suffix(end))
                .filter(|it| known.contains(it))
        };
        ours.map(|word| of_histogram(word).unwrap_or(word)).collect()
    }

    #[test]
    fn documentation_dashboard_and_alerts_name_what_there_is() {
        let text = page();
        // Without maps there are no map sizes.
        let known: BTreeSet<&str> = text
            .lines()
            .filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next())
            .chain(["shunt_map_max_entries"])
            .collect();
        let documented = named(include_str!("../../../docs/metrics.md"), &known);
        assert_eq!(documented, known);
        for used in [
            include_str!("../../../manifests/monitoring/dashboard.json"),
            include_str!("../../../manifests/monitoring/rules.yaml"),
        ] {
            let unknown: Vec<_> = named(used, &known).difference(&known).copied().collect();
            assert_eq!(unknown, Vec::<&str>::new());
        }
    }
}
