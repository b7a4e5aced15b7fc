//! Entries of the maps, including kube-proxy's way to size conntrack by the number of CPUs.

use crate::{
    cli::args::{kube_proxy::KubeProxyArgs, run::SizeArgs},
    config::MapSizes,
};

/// kube-proxy's defaults.
const CONNTRACK_PER_CPU: i32 = 32 * 1024;
const CONNTRACK_MIN: i32 = 128 * 1024;
/// kube-proxy's upper bound for a size that is derived from the number of CPUs.
const CONNTRACK_SCALED_MAX: u32 = 1 << 20;

/// kube-proxy counts flows; CONNTRACK has at least two entries per flow.
pub(super) fn map_sizes(sizes: &SizeArgs, flags: &KubeProxyArgs, cpus: u32) -> MapSizes {
    let default = MapSizes::default();
    let scaled = match (flags.conntrack_max_per_core, flags.conntrack_min) {
        // As in kube-proxy, 0 per core disables scaling, whatever the minimum.
        (None, None) | (Some(0), _) => None,
        (per_core, min) => {
            let per_core = per_core.unwrap_or(CONNTRACK_PER_CPU).unsigned_abs();
            let flows = per_core.saturating_mul(cpus).min(CONNTRACK_SCALED_MAX);
            let flows = flows.max(min.unwrap_or(CONNTRACK_MIN).unsigned_abs());
            Some(flows.saturating_mul(2).clamp(1024, 1 << 26))
        }
    };
    MapSizes {
        conntrack: sizes.conntrack_max.or(scaled).unwrap_or(default.conntrack),
        conntrack_is_scaled: sizes.conntrack_max.is_none() && scaled.is_some(),
        frontends: sizes.frontends_max,
        backends: sizes.backends_max,
        slots: sizes.slots_max,
        services: sizes.services_max,
        stats: sizes.service_stats_max.min(sizes.services_max),
        affinity: sizes.affinity_max,
        source_ranges: sizes.source_ranges_max,
    }
}
