//! The counts of one service port, as `shunt service` shows them: the same at all of its frontends.

use proxy_common::ServiceStats;
use serde::Serialize;

use super::ServiceMaps;

/// What SERVICES counts for one service port, all its frontends together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Statistics {
    /// New flows to the cluster-wide set, but for those of clients that stayed with their backend: also the round-robin
    /// position.
    pub cluster_flows: u64,
    pub local_flows: u64,
    pub refused: u64,
    pub dropped: u64,
    /// SERVICE_STATS' counts; `None` where they are off.
    #[serde(flatten)]
    pub traffic: Traffic,
}

/// Flows that began, packets and bytes, to and fro.
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

impl ServiceMaps {
    pub(super) fn statistics_of(&self, service: u32) -> Statistics {
        let counts = self.services.get(&service).copied().unwrap_or_else(bytemuck::Zeroable::zeroed);
        let traffic = self.traffic.as_ref().and_then(|all| all.get(service as usize)).copied();
        Statistics {
            cluster_flows: counts.cluster_next,
            local_flows: counts.local_next,
            refused: counts.refused,
            dropped: counts.dropped,
            traffic: traffic.map(Traffic::from).unwrap_or_default(),
        }
    }
}
