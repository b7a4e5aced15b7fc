//! Durations of [`Config`](crate::config::Config): flow timeouts and sync intervals.

use std::time::Duration;

use crate::{
    cli::{
        args::{kube_proxy::KubeProxyArgs, run::TimeoutArgs},
        durations::{self, seconds},
        usage_error::UsageError,
    },
    config::Timeouts,
    kube_proxy_config::Mode,
};

/// Default of the minimum interval between two syncs.
const MIN_SYNC: Duration = Duration::from_millis(20);
/// Default of the interval between full resyncs.
const REPAIR: Duration = Duration::from_secs(60);

/// Flow timeouts.
pub(super) fn timeouts(args: &TimeoutArgs) -> Result<Timeouts, UsageError> {
    let default = Timeouts::default();
    let found = Timeouts {
        opening: seconds("--conntrack-tcp-timeout-syn", &args.conntrack_tcp_timeout_syn, default.opening)?,
        established: seconds(
            "--conntrack-tcp-timeout-established",
            &args.conntrack_tcp_timeout_established,
            default.established,
        )?,
        half_closed: seconds(
            "--conntrack-tcp-timeout-close-wait",
            &args.conntrack_tcp_timeout_close_wait,
            default.half_closed,
        )?,
        closed: seconds(
            "--conntrack-tcp-timeout-closed",
            &args.conntrack_tcp_timeout_closed,
            default.closed,
        )?,
        time_wait: seconds(
            "--conntrack-tcp-timeout-time-wait",
            &args.conntrack_tcp_timeout_time_wait,
            default.time_wait,
        )?,
        unreplied: seconds("--conntrack-udp-timeout", &args.conntrack_udp_timeout, default.unreplied)?,
        assured: seconds(
            "--conntrack-udp-timeout-stream",
            &args.conntrack_udp_timeout_stream,
            default.assured,
        )?,
    };
    if found.assured < found.unreplied {
        let given = args.conntrack_udp_timeout_stream.clone();
        return Err(UsageError::BadValue {
            flag: "--conntrack-udp-timeout-stream",
            value: given.unwrap_or_else(|| format!("{}s", default.assured)),
            expected: "at least as long as --conntrack-udp-timeout",
        });
    }
    Ok(found)
}

/// The intervals between full resyncs and between syncs; 0 is the default, as in kube-proxy's file.
pub(super) fn sync_periods(flags: &KubeProxyArgs, mode: Mode) -> Result<(Duration, Duration), UsageError> {
    let (sync, min_sync, names) = match mode {
        Mode::Ipvs => (
            &flags.ipvs_sync_period,
            &flags.ipvs_min_sync_period,
            ["--ipvs-sync-period", "--ipvs-min-sync-period"],
        ),
        _ => (
            &flags.iptables_sync_period,
            &flags.iptables_min_sync_period,
            ["--iptables-sync-period", "--iptables-min-sync-period"],
        ),
    };
    let period = |text: &Option<String>, name, default| {
        let given = text.as_deref().map(|text| durations::parse(name, text)).transpose()?;
        Ok::<_, UsageError>(given.filter(|period| !period.is_zero()).unwrap_or(default))
    };
    let min = period(min_sync, names[1], MIN_SYNC)?;
    // A file may set only one of the two: the default of the other adapts.
    let repair = period(sync, names[0], REPAIR.max(min))?;
    if min <= repair {
        return Ok((repair, min));
    }
    if min_sync.as_deref().is_none_or(|text| text == "0") {
        return Ok((repair, repair));
    }
    Err(UsageError::BadValue {
        flag: names[0],
        value: sync.clone().unwrap_or_default(),
        expected: "at least as long as the minimum interval (the flag with -min-)",
    })
}
