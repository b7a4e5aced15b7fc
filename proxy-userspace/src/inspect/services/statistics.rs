//! The counts of one service port in `shunt service`. All frontends of the port show the same counts.

use proxy_common::{Service, ServiceStats};
use serde::Serialize;

/// Counts from SERVICES and SERVICE_STATS.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Statistics {
    /// New flows to the cluster-wide set, without those that session affinity decided. Also the round-robin position.
    pub cluster_flows: u64,
    pub local_flows: u64,
    pub refused: u64,
    pub dropped: u64,
    /// Counts from SERVICE_STATS; `None` if disabled.
    #[serde(flatten)]
    pub traffic: Traffic,
}

/// New flows, and packets and bytes in both directions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Traffic {
    pub flows: Option<u64>,
    pub packets_in: Option<u64>,
    pub bytes_in: Option<u64>,
    pub packets_out: Option<u64>,
    pub bytes_out: Option<u64>,
}

impl From<ServiceStats> for Traffic {
    fn from(stats: ServiceStats) -> Self {
        let ServiceStats { flows, packets_in, bytes_in, packets_out, bytes_out } = stats;
        Self {
            flows: Some(flows),
            packets_in: Some(packets_in),
            bytes_in: Some(bytes_in),
            packets_out: Some(packets_out),
            bytes_out: Some(bytes_out),
        }
    }
}

impl Statistics {
    pub(super) fn new(counts: Service, traffic: Option<ServiceStats>) -> Self {
        Self {
            cluster_flows: counts.cluster_next,
            local_flows: counts.local_next,
            refused: counts.refused,
            dropped: counts.dropped,
            traffic: traffic.map(Traffic::from).unwrap_or_default(),
        }
    }
}
