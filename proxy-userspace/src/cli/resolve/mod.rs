//! Turns the command line of `shunt run` ([`super::args`]) and the [`Environment`] into a [`Config`]. Reads the file of
//! `--config` and checks that named files exist; otherwise pure. Called by [`super::run`].
//!
//! [`merge`] first puts the settings of the file into the flags, so that everything behind it handles flags only.

mod compile_config;
mod effective;
mod listeners;
mod map_sizes;
mod merge;
mod object_source;
#[cfg(test)]
mod tests;
mod timeouts;

use std::path::{Path, PathBuf};

pub use self::compile_config::compile_config;
use self::{
    compile_config::run_compile_config,
    effective::effective,
    map_sizes::map_sizes,
    merge::{Merged, merge},
    object_source::source,
    timeouts::{sync_periods, timeouts},
};
use super::{
    args::{
        kube_proxy::KubeProxyArgs,
        run::{RoutingArg, RunArgs, SocketLbArg, XdpArg},
        values::is_device_glob,
    },
    environment::Environment,
    usage_error::UsageError,
};
use crate::{
    config::{Cluster, Config, Origin, SocketLb, Source, Xdp},
    kube_proxy_config::Mode,
};

/// kube-proxy's default.
const OOM_SCORE_ADJ: i32 = -999;
/// The usual cgroup2 mount point, for a configuration that needs none or is meant for another machine.
const CGROUP2: &str = "/sys/fs/cgroup";

/// The configuration of `shunt run`.
pub fn run_config(args: &RunArgs, bpffs: &Path, environment: &Environment) -> Result<Config, UsageError> {
    reject_unbuilt(args)?;
    let merged = merge(args)?;
    let source = source(&merged.args, environment)?;
    config_of(merged, source, bpffs, environment)
}

/// The configuration for `--write-config-to`, which may run on another machine than the node: it needs neither a cluster
/// nor a cgroup2 mount.
pub fn written_config(args: &RunArgs, bpffs: &Path, environment: &Environment) -> Result<Config, UsageError> {
    reject_unbuilt(args)?;
    let merged = merge(args)?;
    let args = &merged.args;
    let flag = args.kubeconfig.clone().map(Origin::Flag);
    let origin = flag.or_else(|| args.configured_kubeconfig.clone().map(Origin::ConfigFile));
    // InCluster writes an empty kubeconfig: the reader of the file then looks for one by itself.
    let origin = origin.unwrap_or(Origin::InCluster);
    let source = Source::Cluster(Cluster { origin, servers: Vec::new(), watch_list: false });
    let cgroup2 = environment.cgroup2.clone().or(Some(CGROUP2.into()));
    config_of(merged, source, bpffs, &Environment { cgroup2, ..environment.clone() })
}

fn config_of(
    merged: Merged,
    source: Source,
    bpffs: &Path,
    environment: &Environment,
) -> Result<Config, UsageError> {
    let Merged { args, mut given, file, notes } = merged;
    let flags = &args.kube_proxy;
    let mode = mode(flags);
    let socket_lb = match args.socket_lb {
        SocketLbArg::Off => SocketLb::Off,
        SocketLbArg::Host => SocketLb::Host,
        SocketLbArg::All => SocketLb::All,
    };
    let (repair, min_sync) = sync_periods(flags, mode)?;
    let mut config = Config {
        source,
        node_name: environment.node_name(args.node_name.as_deref())?,
        devices: globs("--device", &args.devices)?,
        exclude_devices: globs("--exclude-device", &args.exclude_devices)?,
        cgroup: cgroup(&args, socket_lb, environment)?,
        bpffs: std::path::absolute(bpffs).unwrap_or_else(|_| bpffs.to_owned()),
        socket_lb,
        xdp: match args.xdp {
            XdpArg::Off => Xdp::Off,
            XdpArg::Native => Xdp::Native,
            XdpArg::Generic => Xdp::Generic,
        },
        compile: run_compile_config(&args.policy, flags, mode)?,
        sizes: map_sizes(&args.sizes, flags, environment.cpus),
        timeouts: timeouts(&args.timeouts)?,
        healthz_bind_address: listeners::healthz(&args, flags)?,
        metrics_bind_address: listeners::metrics(&args, flags)?,
        service_metrics_max: args.service_metrics_max,
        bind_address_hard_fail: flags.bind_address_hard_fail == Some(true),
        min_sync,
        repair,
        oom_score_adj: flags.oom_score_adj.unwrap_or(OOM_SCORE_ADJ),
        verbosity: flags.verbosity.unwrap_or(0),
        symmetric_replies: args.symmetric_replies,
        trace: args.trace,
        notes,
        file,
        kube_proxy: Default::default(),
    };
    // Only a name from a flag or the file: $NODE_NAME and the host name belong to this machine.
    given.hostname_override = args.node_name.filter(|name| !name.trim().is_empty()).unwrap_or_default();
    config.kube_proxy = effective(&given, &config);
    Ok(config)
}

/// `--proxy-mode`, which selects the flags and defaults that take effect.
fn mode(flags: &KubeProxyArgs) -> Mode {
    Mode::of(flags.proxy_mode.as_deref().unwrap_or_default()).unwrap_or(Mode::IpTables)
}

fn cgroup(args: &RunArgs, socket_lb: SocketLb, environment: &Environment) -> Result<PathBuf, UsageError> {
    match args.cgroup.as_ref().or(environment.cgroup2.as_ref()) {
        Some(dir) => Ok(dir.clone()),
        None if socket_lb == SocketLb::Off => Ok(PathBuf::from(CGROUP2)),
        None => Err(UsageError::NoCgroup2),
    }
}

/// Rejects values that the command line reserves for a later version.
fn reject_unbuilt(args: &RunArgs) -> Result<(), UsageError> {
    match args.routing {
        RoutingArg::Stack => Ok(()),
        RoutingArg::Bpf => {
            Err(UsageError::NotBuilt { flag: "--routing bpf", instead: "use --routing stack" })
        }
    }
}

fn globs(flag: &'static str, given: &[String]) -> Result<Vec<String>, UsageError> {
    match given.iter().find(|glob| !is_device_glob(glob)) {
        Some(value) => Err(UsageError::BadValue {
            flag,
            value: value.clone(),
            expected: "a glob of device names such as eth* or veth?",
        }),
        None => Ok(given.to_vec()),
    }
}
