//! What the defaults of the command line depend on: environment variables, the host name, mounts and CPUs. The only place
//! of the command line that reads them, so that tests resolve flags against an environment of their own.

use std::{
    ffi::OsString,
    fs,
    path::{Path, PathBuf},
};

use super::usage_error::UsageError;
use crate::mountinfo::mount_of;

/// Where the kubelet mounts a pod's token.
const SERVICE_ACCOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount/token";

#[derive(Clone, Debug, Default)]
pub struct Environment {
    /// `$NODE_NAME`.
    pub node_name: Option<String>,
    pub hostname: String,
    /// The cgroup2 mount point.
    pub cgroup2: Option<PathBuf>,
    /// `$KUBECONFIG`, unless empty.
    pub kubeconfig: Option<OsString>,
    /// `~/.kube/config`, if it exists.
    pub home_kubeconfig: Option<PathBuf>,
    /// The process runs in a pod with a service account.
    pub has_service_account: bool,
    /// Number of CPUs that the process may run on.
    pub cpus: u32,
}

impl Environment {
    /// Reads the environment of this process.
    pub fn detect() -> Self {
        let hostname = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        let mountinfo = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let home = std::env::home_dir().map(|home| home.join(".kube/config"));
        Self {
            node_name: std::env::var("NODE_NAME").ok(),
            hostname,
            cgroup2: mount_of(&mountinfo, "cgroup2"),
            kubeconfig: std::env::var_os("KUBECONFIG").filter(|value| !value.is_empty()),
            home_kubeconfig: home.filter(|path| path.exists()),
            has_service_account: std::env::var_os("KUBERNETES_SERVICE_HOST").is_some()
                && Path::new(SERVICE_ACCOUNT).exists(),
            cpus: cpus(),
        }
    }

    /// The node name: the flag, else `$NODE_NAME`, else the host name; in lower case, as the kubelet registers it.
    pub fn node_name(&self, flag: Option<&str>) -> Result<String, UsageError> {
        let flag = flag.filter(|name| !name.trim().is_empty());
        let name = flag.or(self.node_name.as_deref()).unwrap_or(&self.hostname).trim().to_lowercase();
        if name.is_empty() { Err(UsageError::NoNodeName) } else { Ok(name) }
    }
}

/// CPUs in the affinity mask, as Go counts them. A CPU quota does not change the result.
fn cpus() -> u32 {
    let mine = nix::sched::sched_getaffinity(nix::unistd::Pid::from_raw(0));
    let count = mine
        .map(|set| (0..nix::sched::CpuSet::count()).filter(|cpu| set.is_set(*cpu).unwrap_or(false)).count());
    count.unwrap_or(1).max(1) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn node_name_prefers_the_flag_then_the_environment() {
        let environment = Environment {
            node_name: Some("env".into()),
            hostname: "Node-1".into(),
            ..Environment::default()
        };
        assert_eq!(environment.node_name(Some("flag")), Ok("flag".into()));
        assert_eq!(environment.node_name(None), Ok("env".into()));
        assert_eq!(Environment::default().node_name(None), Err(UsageError::NoNodeName));
    }
}
