//! Where objects come from. A source turns what it reads into [`Event`]s; it decides nothing about Services.

pub mod directory;
pub(crate) mod documents;
pub mod files;
pub mod kube;

use std::{path::PathBuf, sync::Arc};

use tokio::sync::mpsc;

use self::{
    files::FilesError,
    kube::{AccessError, KubeSource},
};
use crate::{
    config,
    events::Recorder,
    model::{EndpointSlice, Node, ObjectKey, Service, ServiceCidr, ServiceKey},
};

/// One change of one object, or the end of a source's initial list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A Service was added or changed.
    Service(Service),
    ServiceGone(ServiceKey),
    /// An EndpointSlice was added or changed.
    Slice(EndpointSlice),
    SliceGone(ObjectKey),
    /// A Node was added or changed.
    Node(Node),
    NodeGone(Arc<str>),
    /// A ServiceCIDR was added or changed.
    ServiceCidr(ServiceCidr),
    ServiceCidrGone(Arc<str>),
    /// Every source has delivered its whole initial list: from here on the maps may be written.
    Synced,
}

/// Why objects cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    #[error(transparent)]
    Files(#[from] FilesError),
    #[error(transparent)]
    Access(#[from] AccessError),
}

/// A source that was found good and is not read yet.
#[derive(Debug)]
pub enum Source {
    Files(PathBuf),
    Kube(KubeSource),
}

impl Source {
    /// Finds out what can be wrong with it before anything else is begun. Within a runtime only.
    pub fn open(source: &config::Source, node_name: &str) -> Result<Self, SourceError> {
        Ok(match source {
            config::Source::Manifests(path) => Self::Files(path.clone()),
            config::Source::Cluster(cluster) => Self::Kube(KubeSource::open(cluster, node_name)?),
        })
    }

    /// Who is told of what happens to objects: nobody, where they are files. Within a runtime only.
    pub fn recorder(&self) -> Recorder {
        match self {
            Self::Files(_) => Recorder::default(),
            Self::Kube(source) => source.recorder(),
        }
    }

    /// Batches of changes. The first of files ends with [`Event::Synced`]; that of an API server comes when all
    /// its lists are complete. `populated`: an earlier run left Services in the maps.
    pub fn follow(self, populated: bool) -> Result<mpsc::Receiver<Vec<Event>>, SourceError> {
        Ok(match self {
            Self::Files(path) => files::follow(&path)?.events,
            Self::Kube(source) => source.follow(populated),
        })
    }
}
