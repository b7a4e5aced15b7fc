//! A real Kubernetes API server with its etcd, started as envtest does: the programs of `KUBEBUILDER_ASSETS`, with
//! ports, certificates and data of their own. RBAC is on, so the agent has only the permissions of its own ClusterRole.
//!
//! While it is stopped ([`Api::stop`]), another kube-apiserver serves the same etcd at another port, through which
//! tests change objects, as in a cluster with several API servers.

mod process;
mod rest;

use std::{
    net::{SocketAddr, TcpListener},
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use serde_json::{Value, json};

use self::{
    process::Process,
    rest::{Rest, collection},
};
use super::{
    api::{Api, kubeconfig},
    certificates::Certificates,
    grants,
};
use crate::net::{
    Netns,
    plan::{SERVICES_V4, SERVICES_V6},
    scratch::Scratch,
};

/// Time limit for the programs to become ready on a machine with other load.
const READY_WITHIN: Duration = Duration::from_secs(180);
/// Token of the user that creates objects, a member of system:masters.
const ADMIN: &str = "administrator-of-the-harness";

static MADE: AtomicUsize = AtomicUsize::new(0);

/// A running kube-apiserver. Fields are dropped in this order.
#[derive(Debug)]
pub struct RealServer {
    serving: Mutex<Serving>,
    _etcd: Process,
    program: PathBuf,
    netns: Option<Arc<Netns>>,
    addr: SocketAddr,
    /// Address of the server that runs while this one is stopped.
    other: SocketAddr,
    etcd_url: String,
    certificates: Certificates,
    files: Scratch,
}

#[derive(Debug)]
struct Serving {
    rest: Rest,
    process: Process,
}

impl RealServer {
    /// Starts one on this machine's loopback address.
    pub fn local(assets: &Path) -> Result<Self> {
        let addr = SocketAddr::from(([127, 0, 0, 1], free_port()?));
        Self::start(assets, None, addr)
    }

    /// Starts one in a namespace.
    pub fn start_in(assets: &Path, netns: Arc<Netns>, addr: SocketAddr) -> Result<Self> {
        Self::start(assets, Some(netns), addr)
    }

    fn start(assets: &Path, netns: Option<Arc<Netns>>, addr: SocketAddr) -> Result<Self> {
        let program = |name: &str| {
            let path = assets.join(name);
            let found = path.is_file().then_some(path);
            found.with_context(|| format!("{}={} holds no {name}", super::api::ASSETS, assets.display()))
        };
        let (etcd, program) = (program("etcd")?, program("kube-apiserver")?);
        let id = format!("shunt-apiserver-{}-{}", std::process::id(), MADE.fetch_add(1, Ordering::Relaxed));
        let files = Scratch::new(std::env::temp_dir().join(id))?;
        let [client, peer] = [free_port()?, free_port()?].map(|port| format!("http://127.0.0.1:{port}"));
        let etcd = Process::start(
            &etcd,
            netns.as_deref(),
            &files.path().join("etcd.log"),
            &[
                format!("--data-dir={}", files.path().join("etcd").display()),
                format!("--listen-client-urls={client}"),
                format!("--advertise-client-urls={client}"),
                format!("--listen-peer-urls={peer}"),
                format!("--initial-advertise-peer-urls={peer}"),
                format!("--initial-cluster=default={peer}"),
                "--unsafe-no-fsync".to_owned(),
            ],
        )?;
        let certificates = Certificates::new()?;
        certificates.write(files.path())?;
        std::fs::write(
            files.path().join("tokens.csv"),
            format!("{ADMIN},administrator,administrator,system:masters\n"),
        )?;
        let other = SocketAddr::new(addr.ip(), free_port()?);
        let serving = Serving {
            rest: Rest::new(netns.clone(), &admin(addr, &certificates, files.path())?)?,
            process: serve(&program, netns.as_deref(), files.path(), &client, addr)?,
        };
        let (serving, etcd_url) = (Mutex::new(serving), client);
        let server =
            Self { serving, _etcd: etcd, program, netns, addr, other, etcd_url, certificates, files };
        server.wait()?;
        server.apply(grants::MANIFEST)?;
        Ok(server)
    }

    /// Stops the current server and starts another at `addr`.
    fn turn_to(&self, addr: SocketAddr) -> Result<()> {
        let rest = Rest::new(self.netns.clone(), &admin(addr, &self.certificates, self.files.path())?)?;
        {
            let mut serving = self.serving.lock().expect("no holder panics");
            // As in a power cut: no connection is closed cleanly and no request is completed.
            serving.process.kill();
            let process =
                serve(&self.program, self.netns.as_deref(), self.files.path(), &self.etcd_url, addr)?;
            *serving = Serving { rest, process };
        }
        self.wait()
    }

    /// Waits until it is ready and has created its default objects.
    fn wait(&self) -> Result<()> {
        let begun = Instant::now();
        let made = [
            "/readyz",
            "/api/v1/namespaces/kube-system",
            "/api/v1/namespaces/default/services/kubernetes",
            "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices/kubernetes",
        ];
        for path in made {
            while self.ask("GET", path, None).is_err() {
                let mut serving = self.serving.lock().expect("no holder panics");
                if serving.process.has_ended() || begun.elapsed() > READY_WITHIN {
                    let log = std::fs::read_to_string(self.files.path().join("kube-apiserver.log"))?;
                    let end: Vec<&str> = log.lines().rev().take(30).collect();
                    bail!("kube-apiserver does not answer {path}; it wrote last (newest first): {end:#?}");
                }
                drop(serving);
                thread::sleep(Duration::from_millis(50));
            }
        }
        Ok(())
    }

    fn ask(&self, method: &'static str, path: &str, body: Option<&Value>) -> Result<Value> {
        self.serving.lock().expect("no holder panics").rest.ask(method, path, body)
    }
}

impl Api for RealServer {
    fn url(&self) -> String {
        format!("https://{}", self.addr)
    }

    fn certificates(&self) -> Option<&Certificates> {
        Some(&self.certificates)
    }

    fn token(&self) -> Result<String> {
        let (namespace, name) = grants::service_account()?;
        let path = format!("/api/v1/namespaces/{namespace}/serviceaccounts/{name}/token");
        let request = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {}});
        let answer = self.ask("POST", &path, Some(&request))?;
        Ok(answer["status"]["token"].as_str().context("a TokenRequest's answer has a token")?.to_owned())
    }

    fn apply_object(&self, mut object: Value) -> Result<()> {
        let all = collection(&mut object)?;
        let path = format!("{all}/{}", object["metadata"]["name"].as_str().context("an object's name")?);
        let stored = match self.ask("POST", &all, Some(&object)) {
            Ok(stored) => stored,
            // The object may exist already. Then its ClusterIP is taken, which some versions report first.
            Err(refused) => {
                let Ok(there) = self.ask("GET", &path, None) else { return Err(refused) };
                object["metadata"]["resourceVersion"] = there["metadata"]["resourceVersion"].clone();
                self.ask("PUT", &path, Some(&object))?
            }
        };
        // The server ignores the status when an object is written.
        if object.get("status").is_some() {
            object["metadata"]["resourceVersion"] = stored["metadata"]["resourceVersion"].clone();
            self.ask("PUT", &format!("{path}/status"), Some(&object))?;
        }
        Ok(())
    }

    fn add_all(&self, objects: Vec<Value>) -> Result<()> {
        let requests = objects.into_iter().map(|mut object| Ok((collection(&mut object)?, object)));
        let requests = requests.collect::<Result<Vec<_>>>()?;
        self.serving.lock().expect("no holder panics").rest.add_all(requests)
    }

    fn delete(&self, resource: &str, name: &str) -> Result<()> {
        let path = match (resource, name.split_once('/')) {
            ("services", Some((namespace, name))) => {
                format!("/api/v1/namespaces/{namespace}/services/{name}")
            }
            ("endpointslices", Some((namespace, name))) => {
                format!("/apis/discovery.k8s.io/v1/namespaces/{namespace}/endpointslices/{name}")
            }
            ("nodes", None) => format!("/api/v1/nodes/{name}"),
            ("servicecidrs", None) => format!("/apis/networking.k8s.io/v1/servicecidrs/{name}"),
            _ => bail!("no {resource} is called {name}"),
        };
        self.ask("DELETE", &path, None).map(drop)
    }

    fn stop(&self) -> Result<()> {
        self.turn_to(self.other)
    }

    fn start(&self) -> Result<()> {
        self.turn_to(self.addr)
    }

    fn forget(&self) {
        // A newly started process knows no earlier changes.
    }

    fn makes_kubernetes(&self) -> bool {
        true
    }

    fn serves_ranges(&self) -> Result<bool> {
        match self.ask("GET", "/apis/networking.k8s.io/v1/servicecidrs", None) {
            Ok(_) => Ok(true),
            Err(error) if rest::is_unknown(&error) => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn complaints(&self) -> Vec<String> {
        // RBAC rejects requests without permission, and then the scenario fails.
        Vec::new()
    }

    fn requests(&self) -> Vec<String> {
        vec![format!("(see the log of the real server in {})", self.files.path().display())]
    }
}

/// A kubeconfig for the user that creates objects.
fn admin(addr: SocketAddr, certificates: &Certificates, files: &Path) -> Result<String> {
    let ca = files.join("ca.pem");
    std::fs::write(&ca, certificates.authority())?;
    let ca = format!(", certificate-authority: {}", ca.display());
    Ok(kubeconfig(&format!("https://{addr}"), &ca, &format!("token: {ADMIN}")))
}

/// Starts a kube-apiserver.
fn serve(
    program: &Path,
    netns: Option<&Netns>,
    files: &Path,
    etcd_url: &str,
    addr: SocketAddr,
) -> Result<Process> {
    let file = |name: &str| files.join(name).display().to_string();
    // The endpoint address of default/kubernetes. It must not be a loopback address.
    let advertised = if addr.ip().is_loopback() { "172.20.0.1".to_owned() } else { addr.ip().to_string() };
    Process::start(
        program,
        netns,
        &files.join("kube-apiserver.log"),
        &[
            format!("--etcd-servers={etcd_url}"),
            format!("--bind-address={}", addr.ip()),
            format!("--secure-port={}", addr.port()),
            format!("--advertise-address={advertised}"),
            format!("--cert-dir={}", file("certs")),
            format!("--tls-cert-file={}", file("server.pem")),
            format!("--tls-private-key-file={}", file("server.key")),
            format!("--client-ca-file={}", file("ca.pem")),
            format!("--token-auth-file={}", file("tokens.csv")),
            "--service-account-issuer=https://kubernetes.default.svc".to_owned(),
            // Only the public key of the certificate is used.
            format!("--service-account-key-file={}", file("server.pem")),
            format!("--service-account-signing-key-file={}", file("server.key")),
            format!("--service-cluster-ip-range={SERVICES_V4},{SERVICES_V6}"),
            "--authorization-mode=RBAC".to_owned(),
            // It makes Pods wait for their service account; there are no Pods.
            "--disable-admission-plugins=ServiceAccount".to_owned(),
        ],
    )
}

/// A port that is free on this machine and, being one of many, in a namespace of the harness.
fn free_port() -> Result<u16> {
    Ok(TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port())
}
