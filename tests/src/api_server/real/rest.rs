//! The administrator's requests to a real API server: a thread in the server's namespace that sends them.

use std::{
    sync::{Arc, mpsc},
    thread,
};

use anyhow::{Context as _, Result, bail};
use http::Request;
use kube::{Client, Config, config::Kubeconfig};
use serde_json::Value;
use tokio::{runtime::Builder, task::JoinSet};

use crate::net::Netns;

/// Concurrent requests of a large batch.
const AT_ONCE: usize = 16;

/// Requests to send, and the channel for the result.
type Job = (Vec<Request<Vec<u8>>>, mpsc::Sender<Result<Value>>);

#[derive(Debug)]
pub(super) struct Rest {
    jobs: mpsc::Sender<Job>,
}

impl Rest {
    /// Sends no request yet.
    pub(super) fn new(netns: Option<Arc<Netns>>, kubeconfig: &str) -> Result<Self> {
        let config = Config::try_from(Kubeconfig::from_yaml(kubeconfig)?)?;
        let (jobs, to_do) = mpsc::channel::<Job>();
        thread::spawn(move || -> Result<()> {
            if let Some(netns) = netns {
                netns.join()?;
            }
            let runtime = Builder::new_current_thread().enable_all().build()?;
            let client = {
                let _entered = runtime.enter();
                Client::try_from(config)?
            };
            while let Ok((requests, outcome)) = to_do.recv() {
                // The receiver may have given up.
                let _ = outcome.send(runtime.block_on(send(&client, requests)));
            }
            Ok(())
        });
        Ok(Self { jobs })
    }

    pub(super) fn ask(&self, method: &'static str, path: &str, body: Option<&Value>) -> Result<Value> {
        self.run(vec![request(method, path, body)?]).with_context(|| format!("{method} {path}"))
    }

    /// Adds objects to collections, several at a time.
    pub(super) fn add_all(&self, objects: Vec<(String, Value)>) -> Result<()> {
        let requests = objects.iter().map(|(path, object)| request("POST", path, Some(object)));
        self.run(requests.collect::<Result<_>>()?).map(drop)
    }

    fn run(&self, requests: Vec<Request<Vec<u8>>>) -> Result<Value> {
        let (outcome, done) = mpsc::channel();
        self.jobs.send((requests, outcome)).ok().context("the thread that sends has ended")?;
        done.recv().context("the thread that sends has ended")?
    }
}

fn request(method: &str, path: &str, body: Option<&Value>) -> Result<Request<Vec<u8>>> {
    let text = body.map(Value::to_string).unwrap_or_default();
    let request = Request::builder().method(method).uri(path).header("Content-Type", "application/json");
    Ok(request.body(text.into_bytes())?)
}

/// Sends the requests; returns the response to the last one.
async fn send(client: &Client, requests: Vec<Request<Vec<u8>>>) -> Result<Value> {
    let mut under_way = JoinSet::new();
    let mut last = Value::Null;
    for request in requests {
        if under_way.len() == AT_ONCE
            && let Some(answer) = under_way.join_next().await
        {
            last = read(answer?)?;
        }
        let client = client.clone();
        under_way.spawn(async move { client.request_text(request).await });
    }
    while let Some(answer) = under_way.join_next().await {
        last = read(answer?)?;
    }
    Ok(last)
}

/// A response's JSON; the response of `/readyz` is one word.
fn read(answer: kube::Result<String>) -> Result<Value> {
    let text = answer?;
    Ok(serde_json::from_str(&text).unwrap_or(Value::String(text)))
}

/// Whether the server has no such object.
pub(super) fn is_unknown(error: &anyhow::Error) -> bool {
    matches!(error.downcast_ref(), Some(kube::Error::Api(status)) if status.code == 404)
}

/// The collection path of objects of this kind; fills in the namespace.
pub(super) fn collection(object: &mut Value) -> Result<String> {
    let kind = object["kind"].as_str().context("an object without a kind")?.to_owned();
    let (prefix, resource, is_namespaced) = match kind.as_str() {
        "Service" => ("/api/v1", "services", true),
        "ServiceAccount" => ("/api/v1", "serviceaccounts", true),
        "EndpointSlice" => ("/apis/discovery.k8s.io/v1", "endpointslices", true),
        "Node" => ("/api/v1", "nodes", false),
        "Namespace" => ("/api/v1", "namespaces", false),
        "ServiceCIDR" => ("/apis/networking.k8s.io/v1", "servicecidrs", false),
        "ClusterRole" => ("/apis/rbac.authorization.k8s.io/v1", "clusterroles", false),
        "ClusterRoleBinding" => ("/apis/rbac.authorization.k8s.io/v1", "clusterrolebindings", false),
        other => bail!("the api suite makes no {other}"),
    };
    if !is_namespaced {
        return Ok(format!("{prefix}/{resource}"));
    }
    let meta = &mut object["metadata"];
    if meta.get("namespace").is_none() {
        meta["namespace"] = "default".into();
    }
    Ok(format!("{prefix}/namespaces/{}/{resource}", meta["namespace"].as_str().unwrap_or("default")))
}
