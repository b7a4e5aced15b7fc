//! Errors of the command line that clap does not find by itself: exit code 2.

use std::path::PathBuf;

use crate::{config::Origin, kube_proxy_config::ConfigFileError};

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum UsageError {
    #[error(
        "no source of Services: give --kubeconfig FILE or --manifests DIR (there is no $KUBECONFIG, no ~/.kube/config and no \
         service account of a pod)"
    )]
    NoSource,
    #[error(
        "--server is empty, and the pod's service account would lead to the ClusterIP of default/kubernetes, which shunt itself \
         serves: give the address of an API server, such as https://192.168.8.201:6443 (`api-servers` in the ConfigMap of \
         shunt's manifests, apiServers in the values of its chart), or a kubeconfig that contains one"
    )]
    EmptyServer,
    #[error(transparent)]
    ConfigFile(#[from] ConfigFileError),
    #[error("{flag} is not built in this version; {instead}")]
    NotBuilt { flag: &'static str, instead: &'static str },
    #[error("{flag}: {value:?} is not {expected}")]
    BadValue { flag: &'static str, value: String, expected: &'static str },
    #[error("--manifests {}: {reason}; give a directory of *.yaml, *.yml or *.json files", path.display())]
    Manifests { path: PathBuf, reason: &'static str },
    #[error("{origin}: {}: {reason}; name a kubeconfig with --kubeconfig FILE", path.display())]
    Kubeconfig { origin: Origin, path: PathBuf, reason: String },
    #[error("--cluster-cidr takes at most one range of each family, got {0}")]
    ClusterCidrs(String),
    #[error("--detect-local-mode {mode} needs {flag}")]
    DetectLocal { mode: &'static str, flag: &'static str },
    #[error("--nodeport-addresses: `primary` cannot be combined with other values, got {0}")]
    PrimaryNotAlone(String),
    #[error(
        "no cgroup2 mount in /proc/self/mountinfo: mount one (mount -t cgroup2 none /sys/fs/cgroup/unified), name it with --cgroup, \
         or disable socket translation with --socket-lb off (processes of the node then cannot reach Services)"
    )]
    NoCgroup2,
    #[error("--write-config-to {}: {why}; name a file in a writable directory", path.display())]
    WriteConfigTo { path: PathBuf, why: String },
    #[error("`shunt top` needs a terminal; use --once to print one sample, also as JSON (-o json)")]
    NoTerminal,
    #[error("the host has no name: give --node-name NAME, the name of this node's Node object")]
    NoNodeName,
}
