//! The agent in a pod: the service account mounted by the kubelet, and an API server at a Service's address, which no
//! proxy serves yet when the agent starts.

use std::{
    fs,
    path::PathBuf,
    process::{Child, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use tests::{
    api_server::{Api, of_environment_in},
    manifest::{self, Endpoint, Service},
    net::{
        Cluster, Plan,
        plan::{OUTSIDE, vip},
        shunt,
    },
};

const SECOND: Duration = Duration::from_secs(1);
const ACCOUNT: &str = "/run/secrets/kubernetes.io/serviceaccount";

/// A cluster of one node, its API server, and the files the kubelet would mount.
struct Pod {
    cluster: Cluster,
    server: Box<dyn Api>,
    account: PathBuf,
}

/// A `shunt run` with a pod's mounts; killed when dropped.
struct Agent {
    child: Child,
    log: PathBuf,
}

impl Pod {
    fn new() -> Result<Self> {
        let cluster = Cluster::new(Plan::default().nodes(1))?;
        let server = of_environment_in(cluster.outside().shared_netns())?;
        server.apply(&manifest::node(cluster.node(0)))?;
        if !server.makes_kubernetes() {
            let kubernetes = Service::new("kubernetes", vip(1)).tcp(443, 6443);
            server.apply(&kubernetes.endpoints([Endpoint::at(OUTSIDE)]).yaml())?;
        }
        let account = cluster.files().join("account");
        fs::create_dir(&account)?;
        fs::write(account.join("namespace"), "kube-system")?;
        fs::write(account.join("ca.crt"), server.certificates().context("it speaks TLS")?.authority())?;
        // As written by the kubelet, except for the newline that other tools add.
        fs::write(account.join("token"), format!("{}\n", server.token()?))?;
        Ok(Self { cluster, server, account })
    }

    fn start(&self, more: &str) -> Result<Agent> {
        let node = self.cluster.node(0);
        let log = self.cluster.files().join("agent.log");
        let script = format!(
            "set -e; echo $$ > {cgroup}/cgroup.procs; mount -t tmpfs none /run; mkdir -p {ACCOUNT}; \
             mount --bind {account} {ACCOUNT}; exec {shunt} run --node-name {name} --bpffs {bpffs} --cgroup {cgroup} \
             --healthz-bind-address 127.0.0.1:10256 {more}",
            cgroup = node.cgroup().display(),
            account = self.account.display(),
            shunt = shunt::binary()?.display(),
            name = node.name(),
            bpffs = node.bpffs().display(),
        );
        let child = node
            .netns()
            .command("unshare")
            .args(["--mount", "sh", "-c", &script])
            .env_remove("KUBECONFIG")
            .env("HOME", self.cluster.files())
            .env("NO_COLOR", "1")
            .env("KUBERNETES_SERVICE_HOST", vip(1).v4.to_string())
            .env("KUBERNETES_SERVICE_PORT", "443")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(fs::File::create(&log)?)
            .spawn()
            .context("unshare, of util-linux")?;
        Ok(Agent { child, log })
    }

    fn is_ready(&self) -> bool {
        self.cluster.node(0).health("/readyz").is_ok_and(|status| status == 200)
    }
}

impl Agent {
    fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Waits until `wanted` holds, or the agent exits.
    fn until(&mut self, within: Duration, wanted: impl Fn(&str) -> bool) -> Result<Duration> {
        let begun = Instant::now();
        while !wanted(&self.log()) {
            ensure!(self.child.try_wait()?.is_none(), "the agent has ended; it wrote:\n{}", self.log());
            ensure!(begun.elapsed() < within, "not so within {within:?}; the agent wrote:\n{}", self.log());
            thread::sleep(Duration::from_millis(50));
        }
        Ok(begun.elapsed())
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The Service's address does not work before the agent has run; the agent reports what to do. With the server's own
/// address it starts. Once the maps exist, a restarted agent reaches the server through the Service it serves itself.
#[test]
fn a_pod_starts_by_the_servers_own_address() -> Result<()> {
    let pod = Pod::new()?;
    let mut lost = pod.start("")?;
    lost.until(SECOND * 60, |log| log.contains("give the API server's own address with --server"))?;
    ensure!(!pod.is_ready());
    drop(lost);
    // The first address belongs to a server that is down.
    let mut agent = pod.start("--server https://192.168.8.100:7443 --server https://192.168.8.100:6443")?;
    let took = agent.until(SECOND * 120, |_| pod.is_ready())?;
    eprintln!("ready by the second --server after {took:?}");
    ensure!(agent.log().contains("next API server: https://192.168.8.100:6443"), "{}", agent.log());
    drop(agent);
    let mut again = pod.start("")?;
    let took = again.until(SECOND * 120, |_| pod.is_ready())?;
    eprintln!("ready by the Service that it serves itself after {took:?}");
    ensure!(pod.server.complaints().is_empty(), "{:?}", pod.server.complaints());
    Ok(())
}

/// The kubelet has replaced an expired token.
#[test]
fn a_pods_token_is_read_again() -> Result<()> {
    let pod = Pod::new()?;
    fs::write(pod.account.join("token"), "expired\n")?;
    let mut agent = pod.start("--server https://192.168.8.100:6443")?;
    agent.until(SECOND * 60, |log| log.contains("401") && log.contains("renew"))?;
    ensure!(!pod.is_ready());
    fs::write(pod.account.join("token"), format!("{}\n", pod.server.token()?))?;
    let took = agent.until(SECOND * 60, |_| pod.is_ready())?;
    eprintln!("ready with the new token after {took:?}");
    ensure!(pod.server.complaints().is_empty(), "{:?}", pod.server.complaints());
    Ok(())
}
