//! Scheduler and kubelet: create pods for Deployments. [`super::endpoints`] makes them endpoints.

use std::{collections::BTreeMap, thread, time::Duration};

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::{
    allocate::{Allocator, Key, key},
    endpoints::{self, Candidate},
    objects::{Deployment, Objects, PodSpec},
};
use crate::net::{Cluster, Pod};

/// How long a leaving pod still answers after its endpoint is removed, as under a kubelet.
const GRACE: Duration = Duration::from_millis(500);

/// The demo's control plane.
#[derive(Debug, Default)]
pub struct Control {
    pods: Vec<RunningPod>,
    started: BTreeMap<Key, usize>,
    allocator: Allocator,
    services: Vec<Value>,
}

#[derive(Clone, Debug)]
struct RunningPod {
    owner: Key,
    labels: BTreeMap<String, String>,
    spec: PodSpec,
    pod: Pod,
}

impl RunningPod {
    fn candidate(&self) -> Candidate<'_> {
        Candidate {
            namespace: &self.owner.0,
            name: self.pod.name(),
            labels: &self.labels,
            spec: &self.spec,
            addr: self.pod.addr(),
            node: format!("node-{}", self.pod.node() + 1),
        }
    }
}

impl Control {
    /// Changes the cluster to match `objects`; reports its actions to `say`.
    pub fn reconcile(
        &mut self,
        cluster: &Cluster,
        objects: &Objects,
        mut say: impl FnMut(&str),
    ) -> Result<()> {
        let leaving = self.leaving(objects);
        for deployment in &objects.deployments {
            self.start_missing(cluster, deployment, &leaving, &mut say)?;
        }
        self.services = objects.services.clone();
        for service in &mut self.services {
            let what = key(service);
            self.allocator
                .complete(service, &objects.services)
                .with_context(|| format!("Service {}/{}", what.0, what.1))?;
        }
        let staying: Vec<_> = self
            .pods
            .iter()
            .filter(|pod| !leaving.iter().any(|name| name == pod.pod.name()))
            .map(RunningPod::candidate)
            .collect();
        let mut items = self.services.clone();
        for service in &self.services {
            items.extend(endpoints::slices(service, &staying));
        }
        items.extend(objects.rest.clone());
        let list = json!({"apiVersion": "v1", "kind": "List", "items": items});
        cluster.apply("cluster.json", &serde_json::to_string_pretty(&list)?)?;
        if !leaving.is_empty() {
            thread::sleep(GRACE);
        }
        for name in leaving {
            if let Some(at) = self.pods.iter().position(|pod| pod.pod.name() == name) {
                let gone = self.pods.remove(at);
                cluster.remove_pod(&gone.pod)?;
                say(&format!("pod {name} is gone"));
            }
        }
        Ok(())
    }

    /// The pods of a Deployment in namespace `default`.
    pub fn pods_of<'a>(&'a self, deployment: &'a str) -> impl Iterator<Item = &'a Pod> {
        self.pods.iter().filter(move |pod| pod.owner.1 == deployment).map(|pod| &pod.pod)
    }

    /// All pods.
    pub fn pods(&self) -> impl Iterator<Item = &Pod> {
        self.pods.iter().map(|pod| &pod.pod)
    }

    /// The first clusterIP of a Service.
    pub fn cluster_ip(&self, service: &str) -> Option<&str> {
        self.services.iter().find(|item| key(item).1 == service)?["spec"]["clusterIP"].as_str()
    }

    /// All clusterIPs of a Service.
    pub fn cluster_ips(&self, service: &str) -> Vec<&str> {
        let found = self.services.iter().find(|item| key(item).1 == service);
        let ips = found.and_then(|item| item["spec"]["clusterIPs"].as_array());
        ips.into_iter().flatten().filter_map(Value::as_str).collect()
    }

    /// Pods that no Deployment needs any more, or needs in another form.
    fn leaving(&self, objects: &Objects) -> Vec<String> {
        let mut wanted: BTreeMap<Key, (usize, &Deployment)> = objects
            .deployments
            .iter()
            .map(|deployment| (owner(deployment), (deployment.spec.replicas, deployment)))
            .collect();
        let mut leaving = Vec::new();
        for running in &self.pods {
            let stays = wanted.get_mut(&running.owner).is_some_and(|(left, deployment)| {
                let template = &deployment.spec.template;
                let same = template.spec == running.spec && template.metadata.labels == running.labels;
                let stays = same && *left > 0;
                *left -= usize::from(stays);
                stays
            });
            if !stays {
                leaving.push(running.pod.name().to_owned());
            }
        }
        leaving
    }

    fn start_missing(
        &mut self,
        cluster: &Cluster,
        deployment: &Deployment,
        leaving: &[String],
        say: &mut impl FnMut(&str),
    ) -> Result<()> {
        let owner = owner(deployment);
        let template = &deployment.spec.template;
        loop {
            let mine = self
                .pods
                .iter()
                .filter(|pod| pod.owner == owner && !leaving.iter().any(|name| name == pod.pod.name()));
            let mine: Vec<_> = mine.map(|pod| pod.pod.node()).collect();
            if mine.len() >= deployment.spec.replicas {
                return Ok(());
            }
            let node = match &template.spec.node_name {
                Some(name) => cluster
                    .nodes()
                    .iter()
                    .position(|node| node.name() == name)
                    .with_context(|| format!("Deployment {}: there is no node {name}", owner.1))?,
                // The node with the fewest pods of the same Deployment.
                None => (0..cluster.nodes().len())
                    .min_by_key(|node| mine.iter().filter(|taken| *taken == node).count())
                    .context("a cluster without nodes")?,
            };
            let nth = self.started.entry(owner.clone()).or_default();
            *nth += 1;
            let pod = cluster.add_pod(node, &format!("{}-{nth}", owner.1))?;
            for port in template.spec.ports() {
                match port.protocol.as_str() {
                    "UDP" => pod.serve_udp(port.container_port)?,
                    _ => pod.serve_tcp(port.container_port)?,
                }
            }
            say(&format!("pod {} runs on {} at {}", pod.name(), cluster.node(node).name(), pod.addr().v4));
            let (labels, spec) = (template.metadata.labels.clone(), template.spec.clone());
            self.pods.push(RunningPod { owner: owner.clone(), labels, spec, pod });
        }
    }
}

fn owner(deployment: &Deployment) -> Key {
    (deployment.metadata.namespace.clone(), deployment.metadata.name.clone())
}
