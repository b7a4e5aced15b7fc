//! Makes metrics and registers them; what all groups of metrics share.

use prometheus::{
    GaugeVec, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts,
    Registry, core::Collector,
};

/// Creates and registers metrics. Their names are constants: an invalid one fails in every test.
pub struct Register<'a>(pub &'a Registry);

impl Register<'_> {
    fn known<M: Collector + Clone + 'static>(&self, metric: prometheus::Result<M>) -> M {
        let metric = metric.expect("a valid name and valid labels");
        self.0.register(Box::new(metric.clone())).expect("each name is registered once");
        metric
    }

    pub fn counter(&self, name: &str, help: &str) -> IntCounter {
        self.known(IntCounter::new(name, help))
    }

    pub fn counters(&self, name: &str, help: &str, labels: &[&str]) -> IntCounterVec {
        self.known(IntCounterVec::new(Opts::new(name, help), labels))
    }

    pub fn int_gauge(&self, name: &str, help: &str) -> IntGauge {
        self.known(IntGauge::new(name, help))
    }

    pub fn int_gauges(&self, name: &str, help: &str, labels: &[&str]) -> IntGaugeVec {
        self.known(IntGaugeVec::new(Opts::new(name, help), labels))
    }

    pub fn gauges(&self, name: &str, help: &str, labels: &[&str]) -> GaugeVec {
        self.known(GaugeVec::new(Opts::new(name, help), labels))
    }

    pub fn histogram(&self, name: &str, help: &str, buckets: Vec<f64>) -> Histogram {
        self.known(Histogram::with_opts(HistogramOpts::new(name, help).buckets(buckets)))
    }

    pub fn histograms(&self, name: &str, help: &str, buckets: Vec<f64>, labels: &[&str]) -> HistogramVec {
        self.known(HistogramVec::new(HistogramOpts::new(name, help).buckets(buckets), labels))
    }
}

/// `count` bounds, each twice the one before.
pub fn doubling(first: f64, count: usize) -> Vec<f64> {
    prometheus::exponential_buckets(first, 2.0, count).expect("positive numbers")
}

/// Seconds since 1970, with their fraction.
pub fn now() -> f64 {
    jiff::Timestamp::now().as_nanosecond() as f64 / 1e9
}
