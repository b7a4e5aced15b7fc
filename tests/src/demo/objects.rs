//! The parts of the user's manifests that the demo acts on; everything else is passed on unchanged.

use std::{collections::BTreeMap, fs, path::Path};

use anyhow::{Context, Result};
use serde::Deserialize;
use serde_json::Value;

/// The contents of a directory of manifests.
#[derive(Clone, Debug, Default)]
pub struct Objects {
    pub deployments: Vec<Deployment>,
    /// Services as documents: the demo fills in missing fields and keeps all fields that it does not know.
    pub services: Vec<Value>,
    /// All other documents, passed to shunt.
    pub rest: Vec<Value>,
}

#[derive(Clone, Debug, Deserialize)]
pub struct Deployment {
    pub metadata: Metadata,
    pub spec: DeploymentSpec,
}

#[derive(Clone, Debug, Default, Deserialize)]
pub struct Metadata {
    #[serde(default)]
    pub name: String,
    #[serde(default = "default_namespace")]
    pub namespace: String,
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
}

#[derive(Clone, Debug, Deserialize)]
pub struct DeploymentSpec {
    #[serde(default = "one")]
    pub replicas: usize,
    pub template: Template,
}

#[derive(Clone, Debug, Deserialize)]
pub struct Template {
    #[serde(default)]
    pub metadata: Metadata,
    pub spec: PodSpec,
}

#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct PodSpec {
    /// The node the pod must run on; if absent, any node with room.
    pub node_name: Option<String>,
    #[serde(default)]
    pub containers: Vec<Container>,
}

#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
pub struct Container {
    #[serde(default)]
    pub ports: Vec<ContainerPort>,
}

#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct ContainerPort {
    #[serde(default)]
    pub name: String,
    pub container_port: u16,
    #[serde(default = "tcp")]
    pub protocol: String,
}

impl PodSpec {
    pub fn ports(&self) -> impl Iterator<Item = &ContainerPort> {
        self.containers.iter().flat_map(|container| &container.ports)
    }
}

impl Objects {
    fn add(&mut self, document: Value) -> Result<()> {
        match document["kind"].as_str() {
            Some("Deployment") => self.deployments.push(serde_json::from_value(document)?),
            Some("Service") => self.services.push(document),
            Some("List") => {
                let items = document["items"].as_array().cloned().unwrap_or_default();
                items.into_iter().try_for_each(|item| self.add(item))?;
            }
            // An empty document between two separator lines.
            None if document.is_null() => {}
            _ => self.rest.push(document),
        }
        Ok(())
    }

    fn extend(&mut self, other: Self) {
        self.deployments.extend(other.deployments);
        self.services.extend(other.services);
        self.rest.extend(other.rest);
    }
}

/// Parses one file's documents.
fn parse(text: &str) -> Result<Objects> {
    let mut objects = Objects::default();
    for (nth, document) in serde_saphyr::from_multiple::<Value>(text)?.into_iter().enumerate() {
        objects.add(document).with_context(|| format!("document {}", nth + 1))?;
    }
    Ok(objects)
}

/// A directory that is read repeatedly; a file that cannot be read keeps its previous contents.
#[derive(Debug, Default)]
pub struct Directory {
    files: BTreeMap<String, (String, Objects)>,
}

impl Directory {
    /// Reads `dir`; `None` if nothing changed. `complain` receives an error for each file that cannot be read.
    pub fn read(&mut self, dir: &Path, mut complain: impl FnMut(&str)) -> Result<Option<Objects>> {
        let mut changed = false;
        let mut present = Vec::new();
        for entry in fs::read_dir(dir).with_context(|| format!("reading {}", dir.display()))? {
            let path = entry?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let known = path.extension().is_some_and(|end| end == "yaml" || end == "yml" || end == "json");
            if !known || name.starts_with('.') {
                continue;
            }
            // An editor may have removed it between the two calls.
            let Ok(text) = fs::read_to_string(&path) else { continue };
            present.push(name.clone());
            let known = self.files.get(&name);
            if known.is_some_and(|(old, _)| *old == text) {
                continue;
            }
            let objects = match parse(&text) {
                Ok(objects) => objects,
                Err(error) => {
                    complain(&format!("{name}: {error:#}; it keeps what it said before"));
                    known.map(|(_, objects)| objects.clone()).unwrap_or_default()
                }
            };
            self.files.insert(name, (text, objects));
            changed = true;
        }
        let before = self.files.len();
        self.files.retain(|name, _| present.contains(name));
        if !changed && self.files.len() == before {
            return Ok(None);
        }
        let mut all = Objects::default();
        for (_, objects) in self.files.values() {
            all.extend(objects.clone());
        }
        Ok(Some(all))
    }
}

fn one() -> usize {
    1
}

fn tcp() -> String {
    "TCP".to_owned()
}

pub fn default_namespace() -> String {
    "default".to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::{repository::repository, scratch::Scratch};

    #[test]
    fn the_examples_are_understood() {
        let mut directory = Directory::default();
        let complain = |text: &str| panic!("{text}");
        let objects = directory.read(&repository().join("manifests/examples"), complain).unwrap().unwrap();
        let nginx = objects.deployments.iter().find(|item| item.metadata.name == "new-nginx").unwrap();
        assert_eq!((nginx.spec.replicas, nginx.spec.template.spec.ports().count()), (2, 1));
        assert_eq!(objects.services.len(), 3);
        assert_eq!(objects.rest.len(), 1, "the Endpoints of mysvc");
        let again = directory.read(&repository().join("manifests/examples"), complain).unwrap();
        assert!(again.is_none(), "nothing changed");
    }

    #[test]
    fn a_file_that_breaks_keeps_what_it_said() {
        let path = std::env::temp_dir().join(format!("shunt-demo-unit-{}", std::process::id()));
        let scratch = Scratch::new(path).unwrap();
        let file = scratch.path().join("a.yaml");
        let mut directory = Directory::default();
        fs::write(&file, "kind: Service\nmetadata: {name: a}\n").unwrap();
        let silent = |text: &str| panic!("{text}");
        assert_eq!(directory.read(scratch.path(), silent).unwrap().unwrap().services.len(), 1);
        fs::write(&file, "kind: [\n").unwrap();
        let mut complaints = Vec::new();
        let objects =
            directory.read(scratch.path(), |text| complaints.push(text.to_owned())).unwrap().unwrap();
        assert_eq!((objects.services.len(), complaints.len()), (1, 1), "{complaints:?}");
        fs::remove_file(&file).unwrap();
        assert!(directory.read(scratch.path(), silent).unwrap().unwrap().services.is_empty());
    }
}
