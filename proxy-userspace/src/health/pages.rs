//! The responses of the health and metrics listeners, by path.

use std::{fmt, sync::Arc};

use jiff::Timestamp;

use super::{http::Response, state::Health};
use crate::{datapath::pins::Pins, metrics::METRICS};

/// What a listener serves.
#[derive(Clone, Debug)]
pub enum Page {
    /// `/healthz`, `/livez`, `/readyz` of the node.
    Health(Arc<Health>),
    /// `/metrics`, and kube-proxy's other pages on the same port.
    Metrics(Arc<MetricsPages>),
}

/// What the metrics listener needs.
pub struct MetricsPages {
    /// Where the maps are.
    pub pins: Pins,
    /// Maximum number of service ports with their own series.
    pub services_max: usize,
    /// The configuration in effect, as JSON.
    pub configz: Option<String>,
}

const JSON: &str = "application/json";
const TEXT: &str = "text/plain; charset=utf-8";
/// Prometheus' text format.
const EXPOSITION: &str = "text/plain; version=0.0.4; charset=utf-8";

/// The response of `/proxyMode`. kube-proxy returns iptables, ipvs or nftables, none of which applies; Kubernetes'
/// tests expect status 200 and look for iptables or ipvs by name.
const PROXY_MODE: &str = "ebpf";

impl Page {
    pub(super) fn answer(&self, path: &str) -> Response {
        let (status, content_type, body) = match self {
            Self::Health(health) => {
                let (status, body) = match path {
                    "/healthz" | "/livez" => {
                        let with_node = path == "/healthz";
                        let (status, body) = health.answer(with_node, Timestamp::now());
                        METRICS.proxy.answered(with_node, status);
                        (status, body)
                    }
                    "/readyz" => health.readiness(),
                    _ => (404, "{\"error\":\"not found\"}".to_owned()),
                };
                (status, JSON, body)
            }
            Self::Metrics(pages) => match path {
                // Reading maps blocks; the runtime's only thread must serve other connections.
                "/metrics" => (
                    200,
                    EXPOSITION,
                    tokio::task::block_in_place(|| METRICS.page(&pages.pins, pages.services_max)),
                ),
                "/proxyMode" => (200, TEXT, PROXY_MODE.to_owned()),
                // Only that this listener works; the node's health has its own listener.
                "/healthz" => (200, TEXT, "ok".to_owned()),
                "/configz" => match &pages.configz {
                    Some(configuration) => (200, JSON, configuration.clone()),
                    None => (404, TEXT, "not found\n".to_owned()),
                },
                _ => (404, TEXT, "not found\n".to_owned()),
            },
        };
        Response { status, content_type, header: None, body }
    }
}

impl fmt::Debug for MetricsPages {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MetricsPages").field("pins", &self.pins).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[tokio::test(flavor = "multi_thread", worker_threads = 1)]
    async fn the_paths_beside_metrics() {
        let pins = Pins::under(Path::new("/does/not/exist"));
        let pages = move |configz| {
            Page::Metrics(Arc::new(MetricsPages { pins: pins.clone(), services_max: 0, configz }))
        };
        let configz = Some("{\"kubeproxy.config.k8s.io\":{}}".to_owned());
        let ask = |path| {
            let Response { status, content_type, body, .. } = pages(configz.clone()).answer(path);
            (status, content_type, body)
        };
        assert_eq!(ask("/proxyMode"), (200, TEXT, "ebpf".to_owned()));
        assert_eq!(ask("/healthz"), (200, TEXT, "ok".to_owned()));
        assert_eq!(ask("/configz"), (200, JSON, "{\"kubeproxy.config.k8s.io\":{}}".to_owned()));
        assert_eq!(ask("/nothing").0, 404);
        assert_eq!(pages(None).answer("/configz").status, 404);
        let metrics = tokio::spawn(async move { pages(None).answer("/metrics") }).await.unwrap();
        assert_eq!((metrics.status, metrics.content_type), (200, EXPOSITION));
        assert!(metrics.body.contains("\nshunt_build_info{"), "{}", metrics.body);
    }
}
