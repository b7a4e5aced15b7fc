//! The objects of a directory of manifests: which file provides an object, which documents were refused, and the events
//! of a changed file.
//!
//! No I/O; `files` reads and watches.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet, btree_map::Entry},
    fmt, io,
    path::{Path, PathBuf},
    sync::Arc,
};

use super::event::Event;
use crate::{
    api::{self, FieldError, ItemError, Kind, Object, ObjectId},
    model::{EndpointSlice, ServiceKey},
    yaml_documents::{self, Place},
};

/// All files read so far.
#[derive(Debug, Default)]
pub struct Directory {
    files: BTreeMap<PathBuf, File>,
    /// The files that hold an object: the first by name is used.
    holders: HashMap<ObjectId, BTreeSet<PathBuf>>,
    /// Objects that more than one file holds.
    contested: BTreeSet<ObjectId>,
    /// Slices mirrored from Endpoints objects.
    mirrored: HashMap<ServiceKey, Vec<EndpointSlice>>,
}

/// What one file holds.
#[derive(Debug, Default)]
struct File {
    objects: BTreeMap<ObjectId, Held>,
    refused: Vec<Refused>,
    /// Kinds that a proxy does not use, and their numbers.
    ignored: BTreeMap<String, usize>,
}

#[derive(Debug)]
struct Held {
    object: Arc<Object>,
    document: Place,
}

/// A document, or an object in it, that was refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    pub file: PathBuf,
    /// `None` if the file could not be read.
    pub document: Option<Place>,
    pub object: Option<ObjectId>,
    pub error: RefusedWhy,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RefusedWhy {
    #[error("cannot be read: {0}")]
    Unreadable(String),
    #[error("not YAML: {0}")]
    Syntax(String),
    #[error("{0}")]
    Field(#[from] FieldError),
    #[error("already defined in {}", .0.display())]
    Duplicate(PathBuf),
}

/// Kinds in a file that a proxy does not use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ignored {
    pub file: PathBuf,
    pub kinds: BTreeMap<String, usize>,
}

impl Directory {
    /// Replaces a file's contents.
    ///
    /// An object whose document is refused keeps its last valid state. So does every object missing from a file with an
    /// unreadable document, which may be that object's.
    pub fn update(&mut self, path: &Path, text: io::Result<String>) -> Vec<Event> {
        let old = self.files.get(path);
        let (mut file, unclear) = match text {
            Ok(text) => read(path, &text),
            Err(error) => (unreadable(path, &error), true),
        };
        let refused: HashSet<&ObjectId> =
            file.refused.iter().filter_map(|refused| refused.object.as_ref()).collect();
        let kept = old
            .into_iter()
            .flat_map(|old| &old.objects)
            .filter(|(id, _)| !file.objects.contains_key(*id) && (unclear || refused.contains(*id)));
        let kept: Vec<_> = kept
            .map(|(id, held)| (id.clone(), Held { object: held.object.clone(), document: held.document }))
            .collect();
        file.objects.extend(kept);
        self.replace(path, Some(file))
    }

    /// The file was deleted, and its objects with it.
    pub fn remove(&mut self, path: &Path) -> Vec<Event> {
        self.replace(path, None)
    }

    /// The known files.
    pub fn paths(&self) -> impl Iterator<Item = &PathBuf> {
        self.files.keys()
    }

    /// All refused documents and objects, by file and document.
    pub fn refused(&self) -> Vec<Refused> {
        let mut all: Vec<Refused> = self.files.values().flat_map(|file| file.refused.clone()).collect();
        for id in &self.contested {
            let Some(holders) = self.holders.get(id) else { continue };
            let Some(first) = holders.first() else { continue };
            all.extend(holders.iter().skip(1).map(|file| Refused {
                file: file.clone(),
                document: self.files.get(file).and_then(|f| f.objects.get(id)).map(|held| held.document),
                object: Some(id.clone()),
                error: RefusedWhy::Duplicate(first.clone()),
            }));
        }
        all.sort_by(|a, b| (&a.file, a.document, &a.object).cmp(&(&b.file, b.document, &b.object)));
        all
    }

    /// The kinds in each file that a proxy does not use.
    pub fn ignored(&self) -> Vec<Ignored> {
        let files = self.files.iter().filter(|(_, file)| !file.ignored.is_empty());
        files.map(|(path, file)| Ignored { file: path.clone(), kinds: file.ignored.clone() }).collect()
    }

    fn replace(&mut self, path: &Path, new: Option<File>) -> Vec<Event> {
        let ids = |file: Option<&File>| -> BTreeSet<ObjectId> {
            file.into_iter().flat_map(|file| file.objects.keys().cloned()).collect()
        };
        let (old_ids, new_ids) = (ids(self.files.get(path)), ids(new.as_ref()));
        let affected: BTreeSet<&ObjectId> = old_ids.union(&new_ids).collect();
        let before: Vec<_> = affected.iter().map(|id| self.object(id).cloned()).collect();

        match new {
            None => drop(self.files.remove(path)),
            Some(file) => drop(self.files.insert(path.into(), file)),
        }
        for id in &old_ids {
            if let Some(holders) = self.holders.get_mut(id) {
                holders.remove(path);
            }
        }
        for id in &new_ids {
            self.holders.entry(id.clone()).or_default().insert(path.into());
        }
        for id in &affected {
            match self.holders.get(*id).map_or(0, BTreeSet::len) {
                0 => drop(self.holders.remove(*id)),
                1 => drop(self.contested.remove(*id)),
                _ => drop(self.contested.insert((*id).clone())),
            }
            if !self.holders.contains_key(*id) {
                self.contested.remove(*id);
            }
        }

        let mut events = Vec::new();
        for (id, before) in affected.iter().zip(before) {
            let now = self.object(id);
            if now != before.as_ref() {
                events.extend(event(id, now.map(Arc::as_ref)));
            }
        }
        let named = affected.iter().filter(|id| matches!(id.kind, Kind::Service | Kind::Endpoints));
        let named: BTreeSet<ServiceKey> = named.map(|id| id.key.clone()).collect();
        named.into_iter().for_each(|key| self.mirror(key, &mut events));
        events
    }

    /// The object in effect: from the first file that holds it.
    fn object(&self, id: &ObjectId) -> Option<&Arc<Object>> {
        let file = self.files.get(self.holders.get(id)?.first()?)?;
        file.objects.get(id).map(|held| &held.object)
    }

    /// Updates the slices mirrored from an Endpoints object.
    fn mirror(&mut self, key: ServiceKey, events: &mut Vec<Event>) {
        let id = |kind| ObjectId { kind, key: key.clone() };
        let service = match self.object(&id(Kind::Service)).map(Arc::as_ref) {
            Some(Object::Service(service)) => Some(service),
            _ => None,
        };
        let now = match self.object(&id(Kind::Endpoints)).map(Arc::as_ref) {
            Some(Object::Endpoints(endpoints)) => endpoints.mirror(service),
            _ => Vec::new(),
        };
        let before = self.mirrored.remove(&key).unwrap_or_default();
        let gone = before.iter().filter(|old| now.iter().all(|new| new.key != old.key));
        events.extend(gone.map(|old| Event::SliceGone(old.key.clone())));
        events.extend(now.iter().filter(|new| !before.contains(new)).cloned().map(Event::Slice));
        if !now.is_empty() {
            self.mirrored.insert(key, now);
        }
    }
}

/// The contents of a file's text, and whether some document could not be read.
fn read(path: &Path, text: &str) -> (File, bool) {
    let mut file = File::default();
    let mut unclear = false;
    let mut found: Vec<(Place, api::Item)> = Vec::new();
    for document in yaml_documents::parse(text) {
        match document.value {
            Ok(value) => found.extend(api::decode(value).into_iter().map(|item| (document.place, item))),
            Err(message) => {
                unclear = true;
                file.refuse(path, document.place, None, RefusedWhy::Syntax(message));
            }
        }
    }
    for (document, item) in found {
        match item.result {
            Ok(object) => {
                let id = object.id();
                match file.objects.entry(id) {
                    Entry::Vacant(place) => {
                        place.insert(Held { object: Arc::new(object), document });
                    }
                    Entry::Occupied(first) => {
                        let id = first.key().clone();
                        file.refuse(path, document, Some(id), RefusedWhy::Duplicate(path.into()));
                    }
                }
            }
            Err(ItemError::Refused(error)) => {
                unclear |= item.id.is_none();
                file.refuse(path, document, item.id, error.into());
            }
            Err(ItemError::Ignored(kind)) => *file.ignored.entry(kind).or_default() += 1,
        }
    }
    (file, unclear)
}

fn unreadable(path: &Path, error: &io::Error) -> File {
    let error = RefusedWhy::Unreadable(error.to_string());
    File {
        refused: vec![Refused { file: path.into(), document: None, object: None, error }],
        ..File::default()
    }
}

fn event(id: &ObjectId, now: Option<&Object>) -> Option<Event> {
    Some(match (now, id.kind) {
        (Some(Object::Service(service)), _) => Event::Service(service.clone()),
        (Some(Object::Slice(slice)), _) => Event::Slice(slice.clone()),
        (Some(Object::Node(node)), _) => Event::Node(node.clone()),
        (Some(Object::ServiceCidr(range)), _) => Event::ServiceCidr(range.clone()),
        (None, Kind::Service) => Event::ServiceGone(id.key.clone()),
        (None, Kind::EndpointSlice) => Event::SliceGone(id.key.clone()),
        (None, Kind::Node) => Event::NodeGone(id.key.name.clone()),
        (None, Kind::ServiceCidr) => Event::ServiceCidrGone(id.key.name.clone()),
        (_, Kind::Endpoints) | (Some(Object::Endpoints(_)), _) => return None,
    })
}

impl File {
    fn refuse(&mut self, path: &Path, document: Place, object: Option<ObjectId>, error: RefusedWhy) {
        self.refused.push(Refused { file: path.into(), document: Some(document), object, error });
    }
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.file.display())?;
        if let Some(document) = self.document {
            write!(f, "{document}: ")?;
        }
        if let Some(object) = &self.object {
            write!(f, "{object}: ")?;
        }
        write!(f, "{}", self.error)
    }
}

impl fmt::Display for Ignored {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kinds: Vec<String> = self.kinds.iter().map(|(kind, n)| format!("{kind} ({n})")).collect();
        write!(f, "{}: not for a Service proxy, ignored: {}", self.file.display(), kinds.join(", "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn service(name: &str, ip: &str) -> String {
        format!(
            "---\napiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\n\
             spec: {{clusterIP: {ip}, ports: [{{port: 80}}]}}\n"
        )
    }

    fn short(events: &[Event]) -> Vec<String> {
        let one = |event: &Event| match event {
            Event::Service(service) => format!("+{}={}", service.key.name, service.cluster_ips[0]),
            Event::ServiceGone(key) => format!("-{}", key.name),
            Event::Slice(slice) => format!("+slice {}", slice.key.name),
            Event::SliceGone(key) => format!("-slice {}", key.name),
            other => format!("{other:?}"),
        };
        events.iter().map(one).collect()
    }

    fn update(directory: &mut Directory, name: &str, text: &str) -> Vec<String> {
        short(&directory.update(Path::new(name), Ok(text.to_owned())))
    }

    fn refused(directory: &Directory) -> Vec<String> {
        directory.refused().iter().map(Refused::to_string).collect()
    }

    #[test]
    fn a_file_is_taken_as_a_whole() {
        let mut directory = Directory::default();
        let both = service("a", "10.68.0.1") + &service("b", "10.68.0.2");
        assert_eq!(update(&mut directory, "x.yaml", &both), ["+a=10.68.0.1", "+b=10.68.0.2"]);
        assert!(update(&mut directory, "x.yaml", &both).is_empty());
        assert_eq!(update(&mut directory, "x.yaml", &service("b", "10.68.0.3")), ["-a", "+b=10.68.0.3"]);
        assert_eq!(short(&directory.remove(Path::new("x.yaml"))), ["-b"]);
    }

    #[test]
    fn a_bad_edit_keeps_the_last_good_state_and_the_rest_works() {
        let mut directory = Directory::default();
        update(&mut directory, "x.yaml", &(service("a", "10.68.0.1") + &service("b", "10.68.0.2")));
        let bad = service("a", "10.68.0") + &service("b", "10.68.0.9");
        assert_eq!(update(&mut directory, "x.yaml", &bad), ["+b=10.68.0.9"]);
        let want = "x.yaml: document 1 (line 1): Service default/a: spec.clusterIP: \"10.68.0\" is not an IP address";
        assert_eq!(refused(&directory), [want]);
        // Not YAML: no object of the file counts as deleted.
        let broken = String::from("--- [\n") + &service("b", "10.68.0.7");
        assert_eq!(update(&mut directory, "x.yaml", &broken), ["+b=10.68.0.7"]);
        assert!(
            refused(&directory)[0].starts_with("x.yaml: document 1 (line 1): not YAML: "),
            "{:?}",
            refused(&directory)
        );
        // Valid again, without the object: now it is deleted.
        assert_eq!(update(&mut directory, "x.yaml", &service("b", "10.68.0.7")), ["-a"]);
        assert!(refused(&directory).is_empty());
    }

    #[test]
    fn of_two_files_the_first_by_name_counts() {
        let mut directory = Directory::default();
        update(&mut directory, "b.yaml", &service("a", "10.68.0.2"));
        assert_eq!(update(&mut directory, "a.yaml", &service("a", "10.68.0.1")), ["+a=10.68.0.1"]);
        assert_eq!(
            refused(&directory),
            ["b.yaml: document 1 (line 1): Service default/a: already defined in a.yaml"]
        );
        assert!(update(&mut directory, "b.yaml", &service("a", "10.68.0.3")).is_empty());
        assert_eq!(short(&directory.remove(Path::new("a.yaml"))), ["+a=10.68.0.3"]);
        assert!(refused(&directory).is_empty());
        let twice = service("c", "10.68.0.5") + &service("c", "10.68.0.6");
        assert_eq!(update(&mut directory, "c.yaml", &twice), ["+c=10.68.0.5"]);
        assert_eq!(
            refused(&directory),
            ["c.yaml: document 2 (line 6): Service default/c: already defined in c.yaml"]
        );
    }

    #[test]
    fn endpoints_follow_their_service() {
        let endpoints = "apiVersion: v1\nkind: Endpoints\nmetadata: {name: a}\n\
                         subsets: [{addresses: [{ip: 192.168.8.202}], ports: [{port: 9999}]}]\n";
        let mut directory = Directory::default();
        assert!(update(&mut directory, "e.yaml", endpoints).is_empty());
        let mirrored = "+slice endpoints/a/0/IPv4";
        assert_eq!(update(&mut directory, "s.yaml", &service("a", "10.68.0.1")), ["+a=10.68.0.1", mirrored]);
        let with_selector = service("a", "10.68.0.1").replace("spec: {", "spec: {selector: {x: y}, ");
        assert_eq!(
            update(&mut directory, "s.yaml", &with_selector),
            ["+a=10.68.0.1", "-slice endpoints/a/0/IPv4"]
        );
    }

    #[test]
    fn other_kinds_are_counted_once_a_file() {
        let mut directory = Directory::default();
        let text = "kind: Pod\napiVersion: v1\n---\nkind: Pod\napiVersion: v1\n---\nkind: Deployment\napiVersion: apps/v1\n";
        update(&mut directory, "x.yaml", text);
        assert!(directory.refused().is_empty());
        assert_eq!(
            directory.ignored()[0].to_string(),
            "x.yaml: not for a Service proxy, ignored: apps/v1 Deployment (1), v1 Pod (2)"
        );
    }
}
