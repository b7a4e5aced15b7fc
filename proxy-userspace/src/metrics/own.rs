//! shunt's own metrics of the process: syncs, hooks, watches, and flows as of the last conntrack-gc pass.

use std::{collections::HashMap, time::Duration};

use prometheus::{
    GaugeVec, Histogram, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, core::Collector as _,
};

use super::register::{Register, doubling, now};

/// `shunt_*`, except those read from maps.
#[derive(Debug)]
pub struct OwnMetrics {
    pub ready: IntGauge,
    pub services: IntGauge,
    pub problems: IntGauge,
    pub devices: IntGauge,
    /// Flows removed by conntrack-gc.
    pub flows_expired: IntCounter,
    /// `sent`, `failed` or `dropped`.
    pub events: IntCounterVec,
    pub watch_failures: IntCounterVec,
    hook_latency: Histogram,
    watching: IntGaugeVec,
    failures: IntCounterVec,
    last_failure: GaugeVec,
    conntrack: IntGaugeVec,
    map_entries: IntGaugeVec,
}

/// Components whose failures are counted.
const COMPONENTS: [&str; 3] = ["sync", "devices", "flows"];

/// Flows by protocol and state.
pub type Flows = HashMap<(&'static str, &'static str), i64>;

impl OwnMetrics {
    pub(super) fn new(register: &Register<'_>) -> Self {
        let build = register.int_gauges(
            "shunt_build_info",
            "1, labelled with the version of the binary and of the map contract.",
            &["version", "schema"],
        );
        build.with_label_values(&[env!("CARGO_PKG_VERSION"), &*proxy_common::SCHEMA.to_string()]).set(1);
        let metrics = Self {
            ready: register
                .int_gauge("shunt_ready", "1 once the maps are complete and the programs attached."),
            services: register.int_gauge("shunt_services", "Services that are known."),
            problems: register
                .int_gauge("shunt_problems", "Problems that keep Services from being served as specified."),
            devices: register.int_gauge("shunt_devices", "Devices with our programs attached."),
            flows_expired: register
                .counter("shunt_flows_expired_total", "Flows removed after their idle timeout."),
            events: register.counters(
                "shunt_events_total",
                "Events for the API server: sent, failed, or dropped because the queue was full.",
                &["result"],
            ),
            watch_failures: register.counters(
                "shunt_watch_failures_total",
                "Lists and watches of the API server that failed.",
                &["resource"],
            ),
            hook_latency: register.histogram(
                "shunt_device_hook_duration_seconds",
                "Time from a device event to the attached programs.",
                doubling(0.001, 14),
            ),
            watching: register.int_gauges(
                "shunt_watch_up",
                "1 while the resource is followed, 0 while the API server cannot be reached or refuses.",
                &["resource"],
            ),
            failures: register.counters(
                "shunt_errors_total",
                "Failures by component; each is retried.",
                &["component"],
            ),
            last_failure: register.gauges(
                "shunt_last_error_timestamp_seconds",
                "Time of the last failure; 0: never.",
                &["component"],
            ),
            conntrack: register.int_gauges(
                "shunt_conntrack_flows",
                "Flows by protocol and state, as of the last conntrack-gc pass.",
                &["protocol", "state"],
            ),
            map_entries: register.int_gauges("shunt_map_entries", "Entries in use.", &["map"]),
        };
        for component in COMPONENTS {
            metrics.failures.with_label_values(&[component]);
            metrics.last_failure.with_label_values(&[component]);
        }
        for result in ["sent", "failed", "dropped"] {
            metrics.events.with_label_values(&[result]);
        }
        metrics
    }

    /// One of [`COMPONENTS`] failed.
    pub fn failed(&self, component: &'static str) {
        self.failures.with_label_values(&[component]).inc();
        self.last_failure.with_label_values(&[component]).set(now());
    }

    /// The time from a device event to the attached programs.
    pub fn hooked(&self, took: Duration) {
        self.hook_latency.observe(took.as_secs_f64());
    }

    pub fn watching(&self, resource: &str, is_up: bool) {
        self.watching.with_label_values(&[resource]).set(is_up.into());
    }

    /// The current number of flows; states without flows become 0.
    pub fn conntrack(&self, flows: &Flows) {
        for family in self.conntrack.collect() {
            for metric in family.get_metric() {
                let labels: Vec<&str> = metric.get_label().iter().map(|label| label.value()).collect();
                if let [protocol, state] = labels[..]
                    && !flows.keys().any(|key| *key == (protocol, state))
                {
                    self.conntrack.with_label_values(&[protocol, state]).set(0);
                }
            }
        }
        for ((protocol, state), count) in flows {
            self.conntrack.with_label_values(&[*protocol, *state]).set(*count);
        }
    }

    pub fn map_fill(&self, map: &str, entries: usize) {
        self.map_entries.with_label_values(&[map]).set(entries as i64);
    }
}
