//! kube-proxy's metrics, with its names, labels and buckets, so that its dashboards, alerts and performance tests keep
//! working.
//!
//! kube-proxy runs one proxier per family; here one sync writes both families and counts for both.

use std::time::Duration;

use prometheus::{GaugeVec, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec};

use super::register::{Register, doubling, now};
use crate::model::Family;

/// `kubeproxy_*`.
#[derive(Debug)]
pub struct ProxyMetrics {
    sync: HistogramVec,
    full_sync: HistogramVec,
    partial_sync: HistogramVec,
    programming: HistogramVec,
    last_sync: GaugeVec,
    last_queued: GaugeVec,
    endpoint_changes_pending: IntGauge,
    endpoint_changes: IntCounter,
    service_changes_pending: IntGauge,
    service_changes: IntCounter,
    no_local_endpoints: IntGaugeVec,
    healthz: IntCounterVec,
    livez: IntCounterVec,
    reconciler: HistogramVec,
    reconciler_deleted: IntCounterVec,
}

const FAMILY: &str = "ip_family";

/// As the API spells it.
const fn name(family: Family) -> &'static str {
    match family {
        Family::V4 => "IPv4",
        Family::V6 => "IPv6",
    }
}

impl ProxyMetrics {
    pub(super) fn new(register: &Register<'_>) -> Self {
        let sync = |name, help| {
            register.histograms(
                &format!("kubeproxy_sync_{name}proxy_rules_duration_seconds"),
                help,
                doubling(0.001, 15),
                &[FAMILY],
            )
        };
        let stamp = |name, help| register.gauges(name, help, &[FAMILY]);
        let metrics = Self {
            sync: sync("", "Time to bring the maps up to date."),
            full_sync: sync("full_", "The same for syncs that compiled every Service."),
            partial_sync: sync("partial_", "The same for syncs of changes."),
            programming: register.histograms(
                "kubeproxy_network_programming_duration_seconds",
                "From the change of a Service or a pod (the slice's last-change-trigger-time) to the maps.",
                programming_buckets(),
                &[FAMILY],
            ),
            last_sync: stamp(
                "kubeproxy_sync_proxy_rules_last_timestamp_seconds",
                "Time at which the maps were last brought up to date.",
            ),
            last_queued: stamp(
                "kubeproxy_sync_proxy_rules_last_queued_timestamp_seconds",
                "Time at which a sync was last queued.",
            ),
            endpoint_changes_pending: register.int_gauge(
                "kubeproxy_sync_proxy_rules_endpoint_changes_pending",
                "Changes of EndpointSlices that are not in the maps yet.",
            ),
            endpoint_changes: register
                .counter("kubeproxy_sync_proxy_rules_endpoint_changes_total", "Changes of EndpointSlices."),
            service_changes_pending: register.int_gauge(
                "kubeproxy_sync_proxy_rules_service_changes_pending",
                "Changes of Services that are not in the maps yet.",
            ),
            service_changes: register
                .counter("kubeproxy_sync_proxy_rules_service_changes_total", "Changes of Services."),
            no_local_endpoints: register.int_gauges(
                "kubeproxy_sync_proxy_rules_no_local_endpoints_total",
                "Services with traffic policy Local that have endpoints, but none on this node.",
                &[FAMILY, "traffic_policy"],
            ),
            healthz: register.counters("kubeproxy_proxy_healthz_total", "Answers of /healthz.", &["code"]),
            livez: register.counters("kubeproxy_proxy_livez_total", "Answers of /livez.", &["code"]),
            reconciler: register.histograms(
                "kubeproxy_conntrack_reconciler_sync_duration_seconds",
                "Time to find and delete UDP flows of removed endpoints.",
                doubling(0.001, 15),
                &[FAMILY],
            ),
            reconciler_deleted: register.counters(
                "kubeproxy_conntrack_reconciler_deleted_entries_total",
                "UDP flows deleted because their endpoint was removed.",
                &[FAMILY],
            ),
        };
        // Series that dashboards query exist from the start.
        for family in Family::BOTH {
            for vec in [&metrics.sync, &metrics.programming, &metrics.reconciler] {
                vec.with_label_values(&[name(family)]);
            }
            metrics.reconciler_deleted.with_label_values(&[name(family)]);
            for internal in [true, false] {
                metrics.no_local_endpoints(family, internal, 0);
            }
        }
        for code in ["200", "503"] {
            metrics.healthz.with_label_values(&[code]);
            metrics.livez.with_label_values(&[code]);
        }
        metrics
    }

    /// A sync was queued.
    pub fn queued(&self) {
        for family in Family::BOTH {
            self.last_queued.with_label_values(&[name(family)]).set(now());
        }
    }

    /// A Service, or an EndpointSlice, changed.
    pub fn changed(&self, slice: bool) {
        let (total, pending) = if slice {
            (&self.endpoint_changes, &self.endpoint_changes_pending)
        } else {
            (&self.service_changes, &self.service_changes_pending)
        };
        total.inc();
        pending.inc();
    }

    /// A sync is complete.
    pub fn synced(&self, took: Duration, full: bool) {
        self.endpoint_changes_pending.set(0);
        self.service_changes_pending.set(0);
        let kind = if full { &self.full_sync } else { &self.partial_sync };
        for family in Family::BOTH {
            let label = [name(family)];
            self.sync.with_label_values(&label).observe(took.as_secs_f64());
            kind.with_label_values(&label).observe(took.as_secs_f64());
            self.last_sync.with_label_values(&label).set(now());
        }
    }

    /// The time from the cause of an endpoint change to the maps.
    pub fn programmed(&self, family: Family, seconds: f64) {
        self.programming.with_label_values(&[name(family)]).observe(seconds.max(0.0));
    }

    /// The number of Services of this family with policy Local and no local endpoint.
    pub fn no_local_endpoints(&self, family: Family, internal: bool, services: i64) {
        let policy = if internal { "internal" } else { "external" };
        self.no_local_endpoints.with_label_values(&[name(family), policy]).set(services);
    }

    /// `/healthz` (`with_node`) or `/livez` was requested.
    pub fn answered(&self, with_node: bool, code: u16) {
        let vec = if with_node { &self.healthz } else { &self.livez };
        vec.with_label_values(&[if code == 200 { "200" } else { "503" }]).inc();
    }

    /// UDP flows were checked, and this many of each family flushed.
    pub fn reconciled(&self, took: Duration, deleted: [u64; 2]) {
        for (family, deleted) in Family::BOTH.into_iter().zip(deleted) {
            self.reconciler.with_label_values(&[name(family)]).observe(took.as_secs_f64());
            self.reconciler_deleted.with_label_values(&[name(family)]).inc_by(deleted);
        }
    }
}

/// kube-proxy's buckets: fine up to a minute, coarser up to five.
fn programming_buckets() -> Vec<f64> {
    let seconds = (1..60).chain((60..120).step_by(5)).chain((120..=300).step_by(30));
    [0.25, 0.5].into_iter().chain(seconds.map(f64::from)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_are_kube_proxys() {
        let buckets = programming_buckets();
        assert_eq!(buckets[..4], [0.25, 0.5, 1.0, 2.0]);
        assert_eq!(buckets[60..64], [59.0, 60.0, 65.0, 70.0]);
        assert_eq!(buckets[72..], [115.0, 120.0, 150.0, 180.0, 210.0, 240.0, 270.0, 300.0][..]);
        let sync = doubling(0.001, 15);
        assert!((sync.len(), sync[0]) == (15, 0.001) && (sync[14] - 16.384).abs() < 1e-9);
    }
}
