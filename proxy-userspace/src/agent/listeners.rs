//! Opens the listeners for health and metrics.

use std::sync::Arc;

use super::error::AgentError;
use crate::{
    config::Config,
    datapath::pins::Pins,
    events::Recorder,
    health::{self, Health, MetricsPages, Page},
    kube_proxy_config,
};

/// Opens those that are configured.
pub(super) async fn open(
    config: &Config,
    health: &Arc<Health>,
    pins: &Pins,
    recorder: &Recorder,
) -> Result<(), AgentError> {
    let configz = kube_proxy_config::configz(&config.kube_proxy, &config.node_name).to_string();
    let metrics = MetricsPages {
        pins: pins.clone(),
        services_max: config.service_metrics_max as usize,
        configz: Some(configz),
    };
    let pages = [
        (
            config.healthz_bind_address,
            "health",
            "FailedToStartProxierHealthcheck",
            Page::Health(health.clone()),
        ),
        (
            config.metrics_bind_address,
            "metrics",
            "FailedToStartMetricServer",
            Page::Metrics(Arc::new(metrics)),
        ),
    ];
    for (addr, what, reason, page) in pages {
        let Some(addr) = addr else { continue };
        if config.bind_address_hard_fail {
            let listening = health::listen(addr, page).await;
            listening.map_err(|source| AgentError::Listen { what, addr, source })?;
        } else if let Err(error) = health::keep_listening(addr, what, page).await {
            recorder.node(
                true,
                reason,
                format_args!("cannot listen for {what} at {addr}: {error}; trying again"),
            );
        }
    }
    Ok(())
}
