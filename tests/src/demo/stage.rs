//! The demo's complete cluster: the walk-through acts on it, and it stays up without the walk-through.

use std::{
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};

use super::{
    control::Control,
    entrances,
    objects::{Directory, Objects},
};
use crate::net::{Cluster, Plan, plan::Family, repository::repository};

/// The port of node-2's own plain HTTP server, the backend of `mysvc`.
pub const NODE_SERVER: u16 = 9999;

/// The demo's cluster.
#[derive(Debug)]
pub struct Stage {
    pub control: Control,
    directory: Directory,
    manifests: PathBuf,
    pub cluster: Cluster,
}

impl Stage {
    /// Builds the cluster, copies `examples` (or the repository's own) and starts shunt.
    pub fn set(examples: Option<&Path>) -> Result<Self> {
        let started = Instant::now();
        let plan = Plan { prefix: "shunt-demo", published: true, ..Plan::default() };
        let cluster = Cluster::new(plan)?;
        cluster.node(1).serve_tcp(Family::V4, NODE_SERVER, "the-server-of-node-2")?;
        let manifests = cluster.files().join("manifests");
        let examples = examples.map_or_else(|| repository().join("manifests/examples"), Path::to_owned);
        copy(&examples, &manifests)?;
        let mut stage =
            Self { control: Control::default(), directory: Directory::default(), manifests, cluster };
        stage.follow()?;
        println!("two nodes and their pods were made in {:?}", round(started.elapsed()));
        let started = Instant::now();
        stage.cluster.start(&[])?;
        println!("shunt was ready on both after {:?}", round(started.elapsed()));
        entrances::write(&stage.cluster, &stage.control)?;
        Ok(stage)
    }

    /// The directory for the user's edits.
    pub fn manifests(&self) -> &Path {
        &self.manifests
    }

    /// Applies changes in the directory of manifests; returns whether there were any.
    pub fn follow(&mut self) -> Result<bool> {
        let Some(objects) = self.directory.read(&self.manifests, |text| eprintln!("{text}"))? else {
            return Ok(false);
        };
        self.act_on(&objects)?;
        Ok(true)
    }

    fn act_on(&mut self, objects: &Objects) -> Result<()> {
        let result = self.control.reconcile(&self.cluster, objects, |text| println!("  {text}"));
        entrances::write(&self.cluster, &self.control)?;
        result
    }

    /// Replaces `from` by `to` in one of the files and applies the change.
    pub fn edit(&mut self, file: &str, from: &str, to: &str) -> Result<()> {
        let path = self.manifests.join(file);
        let text = fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
        if !text.contains(from) {
            bail!("{file} does not say {from:?}");
        }
        fs::write(&path, text.replacen(from, to, 1))?;
        self.follow()?;
        Ok(())
    }
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from).with_context(|| format!("reading {}", from.display()))? {
        let entry = entry?;
        if entry.file_type()?.is_file() {
            fs::copy(entry.path(), to.join(entry.file_name()))?;
        }
    }
    Ok(())
}

fn round(time: Duration) -> Duration {
    Duration::from_millis(time.as_millis() as u64)
}
