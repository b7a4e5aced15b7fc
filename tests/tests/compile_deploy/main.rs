//! The objects that `manifests/` installs: every overlay as built by kustomize, the Helm chart, the dashboard and the
//! alerts.
//!
//! `tests/deploy/NAME.yaml` is the output of `kubectl kustomize manifests/overlays/NAME`, for human readers; after a
//! change regenerate it: `kubectl kustomize manifests/overlays/NAME > tests/deploy/NAME.yaml`.

mod chart;
mod kustomize;
mod monitoring;

use std::path::PathBuf;

use anyhow::{Context as _, Result};
use k8s_openapi::api::{
    apps::v1::DaemonSet,
    core::v1::{ConfigMap, Container, PodSpec, ServiceAccount},
    rbac::v1::{ClusterRole, ClusterRoleBinding},
};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Value, json};
use tests::net::repository::repository;

/// Every directory of `manifests/overlays`.
const OVERLAYS: [&str; 6] = ["cleanup", "dev", "kind", "kubeadm", "kubeadm-by-label", "privileged"];
/// The overlay without an agent.
const CLEANUP: &str = "cleanup";

fn manifests() -> PathBuf {
    repository().join("manifests")
}

pub fn overlay(name: &str) -> Result<Vec<Value>> {
    kustomize::build(&manifests().join("overlays").join(name))
}

/// All overlays and other builds, by name.
fn all() -> Result<Vec<(&'static str, Vec<Value>)>> {
    let overlays = OVERLAYS.into_iter().map(|name| Ok((name, overlay(name)?)));
    let base = kustomize::build(&manifests().join("base")).map(|objects| ("base", objects));
    overlays.chain([base]).collect()
}

/// The builds that install shunt: all except [`CLEANUP`].
fn agents() -> Result<Vec<(&'static str, Vec<Value>)>> {
    Ok(all()?.into_iter().filter(|(name, _)| *name != CLEANUP).collect())
}

/// Parses the object as the API's type, which must know every field: a misspelt one would be dropped silently.
fn typed<T: DeserializeOwned + Serialize>(object: &Value) -> Result<T> {
    let parsed: T = serde_json::from_value(object.clone())?;
    assert_eq!(&serde_json::to_value(&parsed)?, object, "a field the API does not know");
    Ok(parsed)
}

fn pod(objects: &[Value]) -> Result<(PodSpec, Container)> {
    pod_of(objects, "shunt")
}

fn pod_of(objects: &[Value], name: &str) -> Result<(PodSpec, Container)> {
    let daemon_set: DaemonSet = typed(&objects[kustomize::position(objects, "DaemonSet", name)?])?;
    let pod = daemon_set.spec.template.spec.context("a pod")?;
    let [container] = &pod.containers[..] else { panic!("one container") };
    let container = container.clone();
    Ok((pod, container))
}

#[test]
fn every_overlay_is_listed() -> Result<()> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(manifests().join("overlays"))? {
        found.push(entry?.file_name().to_string_lossy().into_owned());
    }
    found.sort();
    assert_eq!(found, OVERLAYS);
    Ok(())
}

#[test]
fn overlays_are_what_kubectl_made_of_them() -> Result<()> {
    for (name, mut ours) in all()? {
        let mut theirs = kustomize::documents(&repository().join(format!("tests/deploy/{name}.yaml")))?;
        // kustomize keeps empty maps after deletions.
        let sort = |objects: &mut Vec<Value>| {
            objects.sort_by_key(|it| (it["kind"].to_string(), it["metadata"].to_string()))
        };
        sort(&mut ours);
        sort(&mut theirs);
        assert_eq!(json!(ours), json!(theirs), "{name}: see the top of this file");
    }
    Ok(())
}

#[test]
fn every_object_is_one_the_api_knows() -> Result<()> {
    for (name, objects) in all()? {
        for object in &objects {
            match object["kind"].as_str().context("a kind")? {
                "DaemonSet" => drop(typed::<DaemonSet>(object)?),
                "ServiceAccount" => drop(typed::<ServiceAccount>(object)?),
                "ConfigMap" => drop(typed::<ConfigMap>(object)?),
                "ClusterRole" => drop(typed::<ClusterRole>(object)?),
                "ClusterRoleBinding" => drop(typed::<ClusterRoleBinding>(object)?),
                kind => panic!("{name}: a {kind}"),
            }
        }
    }
    Ok(())
}

#[test]
fn rbac_grants_what_is_asked_for_and_nothing_else() -> Result<()> {
    for (_, objects) in agents()? {
        let role = &objects[kustomize::position(&objects, "ClusterRole", "shunt")?];
        let read = json!(["list", "watch"]);
        assert_eq!(
            role["rules"],
            json!([
                {"apiGroups": [""], "resources": ["services", "nodes"], "verbs": read},
                {"apiGroups": ["discovery.k8s.io"], "resources": ["endpointslices"], "verbs": read},
                {"apiGroups": ["networking.k8s.io"], "resources": ["servicecidrs"], "verbs": read},
                {"apiGroups": ["events.k8s.io"], "resources": ["events"], "verbs": ["create", "patch"]},
            ])
        );
        let binding = &objects[kustomize::position(&objects, "ClusterRoleBinding", "shunt")?];
        assert_eq!(binding["roleRef"]["name"], "shunt");
        assert_eq!(
            binding["subjects"],
            json!([{"kind": "ServiceAccount", "name": "shunt", "namespace": "kube-system"}])
        );
        assert_eq!(pod(&objects)?.0.service_account_name.as_deref(), Some("shunt"));
    }
    Ok(())
}

#[test]
fn privileges_are_the_least_that_do() -> Result<()> {
    for (name, objects) in agents()? {
        let (pod, container) = pod(&objects)?;
        let context = serde_json::to_value(container.security_context)?;
        let of_pod = serde_json::to_value(pod.security_context)?;
        if ["privileged", "kind"].contains(&name) {
            let want = json!({"runAsUser": 0, "runAsGroup": 0, "readOnlyRootFilesystem": true, "privileged": true,
                    "appArmorProfile": {"type": "Unconfined"}});
            assert_eq!(context, want, "{name}");
            assert_eq!(of_pod, json!({}), "{name}");
        } else {
            let want = json!({
                "runAsUser": 0, "runAsGroup": 0, "readOnlyRootFilesystem": true, "allowPrivilegeEscalation": false,
                "capabilities": {"drop": ["ALL"], "add": ["BPF", "NET_ADMIN", "PERFMON"]},
                "appArmorProfile": {"type": "Unconfined"},
            });
            assert_eq!(context, want, "{name}");
            assert_eq!(of_pod, json!({"seccompProfile": {"type": "RuntimeDefault"}}), "{name}");
        }
        // For API servers before 1.30.
        let daemon_set = &objects[kustomize::position(&objects, "DaemonSet", "shunt")?];
        assert_eq!(daemon_set["spec"]["template"]["metadata"]["annotations"], annotation(), "{name}");
        assert!(pod.host_pid.is_none() && pod.host_ipc.is_none() && pod.init_containers.is_none(), "{name}");
    }
    Ok(())
}

#[test]
fn every_node_has_one_and_loses_one_at_a_time() -> Result<()> {
    for (name, objects) in agents()? {
        let (pod, container) = pod(&objects)?;
        assert_eq!(pod.host_network, Some(true), "{name}");
        assert_eq!(pod.priority_class_name.as_deref(), Some("system-node-critical"), "{name}");
        assert_eq!(serde_json::to_value(&pod.tolerations)?, json!([{"operator": "Exists"}]), "{name}");
        let daemon_set = &objects[kustomize::position(&objects, "DaemonSet", "shunt")?];
        let strategy = json!({"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 1}});
        assert_eq!(daemon_set["spec"]["updateStrategy"], strategy, "{name}");
        assert_eq!(daemon_set["metadata"]["namespace"], "kube-system", "{name}");

        let probe = |probe: Option<k8s_openapi::api::core::v1::Probe>| {
            serde_json::to_value(probe.and_then(|it| it.http_get))
        };
        assert_eq!(probe(container.liveness_probe)?, json!({"path": "/livez", "port": 10256}), "{name}");
        assert_eq!(probe(container.readiness_probe)?, json!({"path": "/readyz", "port": 10256}), "{name}");
        let env = serde_json::to_value(&container.env)?;
        let node_name =
            json!({"name": "NODE_NAME", "valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}});
        assert!(env.as_array().is_some_and(|list| list.contains(&node_name)), "{name}: {env}");
    }
    Ok(())
}

#[test]
fn only_bpffs_can_be_written_to() -> Result<()> {
    for (name, objects) in agents()? {
        let (pod, container) = pod(&objects)?;
        let volumes = serde_json::to_value(pod.volumes)?;
        for (volume, path) in [("bpffs", "/sys/fs/bpf"), ("cgroup", "/sys/fs/cgroup")] {
            let want = json!({"name": volume, "hostPath": {"path": path, "type": "Directory"}});
            assert!(volumes.as_array().is_some_and(|list| list.contains(&want)), "{name}: {volumes}");
        }
        for mount in container.volume_mounts.context("mounts")? {
            let written = mount.name == "bpffs";
            assert_eq!(mount.read_only, (!written).then_some(true), "{name}: {}", mount.name);
            assert_eq!(mount.mount_propagation, None, "{name}: {}", mount.name);
            let known = volumes
                .as_array()
                .is_some_and(|list| list.iter().any(|it| it["name"] == mount.name.as_str()));
            assert!(known, "{name}: {} is no volume", mount.name);
        }
    }
    Ok(())
}

/// The command line is accepted by the real parser, and refers to a mounted file.
#[test]
fn arguments_are_shunts_own() -> Result<()> {
    use clap::Parser as _;
    for (name, objects) in agents()? {
        let (_, container) = pod(&objects)?;
        assert_eq!(container.command, None, "{name}: the image's entry point");
        let args = container.args.context("arguments")?;
        let plain = args.iter().map(|arg| arg.replace("$(SHUNT_API_SERVERS)", "https://192.168.8.201:6443"));
        let plain = plain.map(|arg| arg.replace("$(HOST_IP)", "192.168.8.201"));
        let words = ["shunt".to_owned()].into_iter().chain(plain);
        let cli = shunt::cli::args::Cli::try_parse_from(words)
            .map_err(|error| anyhow::anyhow!("{name}: {error}"))?;
        let shunt::cli::args::Command::Run(run) = cli.command else { panic!("{name}: {args:?}") };
        let config = run.config.context("--config")?;
        let mounts = container.volume_mounts.context("mounts")?;
        assert!(
            mounts.iter().any(|mount| config.parent() == Some(mount.mount_path.as_ref())),
            "{name}: {config:?}"
        );
        for word in args.iter().filter_map(|arg| Some(arg.split_once("$(")?.1.split_once(')')?.0)) {
            let env = container.env.as_deref().unwrap_or_default();
            assert!(env.iter().any(|var| var.name == word), "{name}: ${word} is not set");
        }
    }
    Ok(())
}

fn annotation() -> Value {
    json!({"container.apparmor.security.beta.kubernetes.io/shunt": "unconfined"})
}

/// An overlay with a component, as in `components:` of a user's own overlay.
pub fn with(mut objects: Vec<Value>, component: &str) -> Result<Vec<Value>> {
    kustomize::extend(&mut objects, &manifests().join("components").join(component))?;
    Ok(objects)
}

#[test]
fn older_api_servers_get_no_field_they_do_not_know() -> Result<()> {
    for (name, objects) in all()? {
        let objects = with(objects, "before-1.30")?;
        let text = serde_json::to_string(&objects)?;
        assert!(!text.contains("appArmorProfile"), "{name}: {text}");
        let daemon_set = objects.iter().find(|it| it["kind"] == "DaemonSet").context("a DaemonSet")?;
        assert_eq!(daemon_set["spec"]["template"]["metadata"]["annotations"], annotation(), "{name}");
    }
    Ok(())
}

/// Cleanup runs as soon as a node has the label and no agent, with no more permissions than the agent.
#[test]
fn cleanup_cleans_up_where_a_label_says_so() -> Result<()> {
    use clap::Parser as _;
    let objects = overlay(CLEANUP)?;
    assert_eq!(objects.len(), 1);
    let (pod, container) = pod_of(&objects, "shunt-cleanup")?;
    assert_eq!(
        serde_json::to_value(&pod.node_selector)?,
        json!({"kubernetes.io/os": "linux", "shunt-cleanup": "true"})
    );
    assert_eq!(serde_json::to_value(&pod.tolerations)?, json!([{"operator": "Exists"}]));
    assert_eq!((pod.host_network, pod.automount_service_account_token), (Some(true), Some(false)));
    let args = container.args.clone().context("arguments")?;
    let cli = shunt::cli::args::Cli::try_parse_from(["shunt".to_owned()].into_iter().chain(args))?;
    let shunt::cli::args::Command::Cleanup(cleanup) = cli.command else { panic!("no cleanup") };
    assert!(!cleanup.force && !cleanup.kube_proxy);

    let (base_pod, base) = self::pod(&kustomize::build(&manifests().join("base"))?)?;
    assert_eq!(container.image, base.image);
    assert_eq!(container.security_context, base.security_context);
    assert_eq!(pod.security_context, base_pod.security_context);
    for mount in container.volume_mounts.context("mounts")? {
        assert!(base.volume_mounts.as_ref().is_some_and(|list| list.contains(&mount)), "{mount:?}");
    }
    for volume in pod.volumes.context("volumes")? {
        assert!(base_pod.volumes.as_ref().is_some_and(|list| list.contains(&volume)), "{volume:?}");
    }
    // Its pods are distinct from the agent's.
    let daemon_set = &objects[0]["spec"];
    assert_eq!(daemon_set["selector"]["matchLabels"], json!({"app.kubernetes.io/name": "shunt-cleanup"}));

    let (_, privileged) = pod_of(&with(objects, "privileged")?, "shunt-cleanup")?;
    assert_eq!(privileged.security_context.and_then(|it| it.privileged), Some(true));
    Ok(())
}

/// Node by node: shunt where the label selects shunt; otherwise the same as the plain overlay.
#[test]
fn by_label_only_the_selector_differs() -> Result<()> {
    let mut objects = overlay("kubeadm-by-label")?;
    let at = kustomize::position(&objects, "DaemonSet", "shunt")?;
    let selector = &mut objects[at]["spec"]["template"]["spec"]["nodeSelector"];
    assert_eq!(*selector, json!({"kubernetes.io/os": "linux", "service-proxy": "shunt"}));
    *selector = json!({"kubernetes.io/os": "linux"});
    assert_eq!(objects, overlay("kubeadm")?);
    Ok(())
}

/// Files, overlays, components and values that the documentation refers to exist.
#[test]
fn what_the_pages_name_exists() -> Result<()> {
    let root = repository();
    let mut pages = vec![root.join("README.md"), root.join("manifests/README.md")];
    for folder in ["docs", "docs/design", "docs/decisions"] {
        for entry in std::fs::read_dir(root.join(folder))? {
            let path = entry?.path();
            pages.extend(path.is_file().then_some(path));
        }
    }
    let values = kustomize::documents(&root.join("manifests/helm/shunt/values.yaml"))?;
    let mut seen = 0;
    for page in pages {
        let text = std::fs::read_to_string(&page)?;
        let page = page.display();
        for word in text.split(|c: char| !(c.is_ascii_alphanumeric() || "/.-_".contains(c))) {
            let path = word.trim_end_matches(['.', '/']);
            let inside = ["manifests/", "overlays/", "components/", "monitoring/"]
                .iter()
                .filter_map(|part| path.find(part).map(|at| &path[at..]))
                .max_by_key(|rest| rest.len());
            let Some(rest) = inside else { continue };
            let path = root.join("manifests").join(rest.trim_start_matches("manifests/"));
            assert!(path.exists(), "{page}: {word}");
            seen += 1;
        }
        let words: Vec<&str> = text.split([' ', '`', '\n', ',']).collect();
        for pair in words.windows(2).filter(|pair| pair[0] == "--set" && pair[1].contains('=')) {
            let name = pair[1].split('=').next().unwrap_or_default();
            let pointer = format!("/{}", name.replace('.', "/"));
            assert!(values[0].pointer(&pointer).is_some(), "{page}: no value {name}");
            seen += 1;
        }
    }
    assert!(seen > 20, "{seen}");
    Ok(())
}

/// kind's nodes resolve each other by name, and `kind load` provides the image.
#[test]
fn kind_asks_its_control_plane() -> Result<()> {
    let objects = overlay("kind")?;
    let config = &objects[kustomize::position(&objects, "ConfigMap", "shunt")?];
    assert_eq!(config["data"]["api-servers"], "https://kind-control-plane:6443");
    let (_, container) = pod(&objects)?;
    assert_eq!(container.image.as_deref(), Some("localhost/shunt:dev"));
    assert_eq!(container.image_pull_policy.as_deref(), Some("Never"));
    Ok(())
}
