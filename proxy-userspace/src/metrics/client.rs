//! client-go's metrics of requests to the API server.

use std::time::Duration;

use prometheus::{HistogramVec, IntCounterVec};

use super::register::Register;

/// `rest_client_*`.
#[derive(Debug)]
pub struct ClientMetrics {
    requests: IntCounterVec,
    durations: HistogramVec,
}

/// client-go's.
const BUCKETS: [f64; 12] = [0.005, 0.025, 0.1, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 15.0, 30.0, 60.0];

impl ClientMetrics {
    pub(super) fn new(register: &Register<'_>) -> Self {
        Self {
            requests: register.counters(
                "rest_client_requests_total",
                "Requests to the API server, by status code.",
                &["code", "method", "host"],
            ),
            durations: register.histograms(
                "rest_client_request_duration_seconds",
                "Time from a request to the response header; watches are not counted.",
                BUCKETS.to_vec(),
                &["verb", "host"],
            ),
        }
    }

    /// A request was answered with this status, or failed.
    pub fn requested(&self, method: &str, host: &str, code: Option<u16>) {
        let code = code.map_or_else(|| "<error>".to_owned(), |code| code.to_string());
        self.requests.with_label_values(&[&*code, method, host]).inc();
    }

    /// The response header arrived after this time.
    pub fn took(&self, method: &str, host: &str, took: Duration) {
        self.durations.with_label_values(&[method, host]).observe(took.as_secs_f64());
    }
}
