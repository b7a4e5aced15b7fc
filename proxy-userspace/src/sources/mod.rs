//! Where objects come from: manifest files or an API server. A source turns what it reads into [`Event`]s and makes no
//! decisions about Services. The agent opens a source and follows it.

pub mod directory;
mod event;
pub mod files;
pub mod kube;

use std::path::PathBuf;

use tokio::sync::mpsc;

pub use self::event::Event;
use self::{files::FilesError, kube::KubeSource};
use crate::{config, events::Recorder, kube_client::AccessError};

/// Why a source cannot be opened or followed.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    #[error(transparent)]
    Files(#[from] FilesError),
    #[error(transparent)]
    Access(#[from] AccessError),
}

/// A source that passed its checks and is not followed yet.
#[derive(Debug)]
pub enum Source {
    Files(PathBuf),
    Kube(KubeSource),
}

impl Source {
    /// Checks everything that can be checked without a request. Must be called within a runtime.
    pub fn open(source: &config::Source, node_name: &str) -> Result<Self, SourceError> {
        Ok(match source {
            config::Source::Manifests(path) => Self::Files(path.clone()),
            config::Source::Cluster(cluster) => Self::Kube(KubeSource::open(cluster, node_name)?),
        })
    }

    /// Records Events at the API server; with files, Events are discarded. Must be called within a runtime.
    pub fn recorder(&self) -> Recorder {
        match self {
            Self::Files(_) => Recorder::default(),
            Self::Kube(source) => source.recorder(),
        }
    }

    /// Batches of changes. Files: the first batch ends with [`Event::Synced`]. API server: `Synced` comes once all
    /// lists are complete. `populated`: an earlier run left Services in the maps.
    pub fn follow(self, populated: bool) -> Result<mpsc::Receiver<Vec<Event>>, SourceError> {
        Ok(match self {
            Self::Files(path) => files::follow(&path)?.events,
            Self::Kube(source) => source.follow(populated),
        })
    }
}
