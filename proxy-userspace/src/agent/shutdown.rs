//! What stops the agent from outside: signals, and a changed configuration file.

use std::io;

use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::kube_proxy_config::{ConfigFile, DryRun, Watcher};

/// Waits for a reason to stop.
pub(super) struct Shutdown {
    term: Signal,
    int: Signal,
    file: Option<(String, Watcher)>,
}

impl Shutdown {
    /// Must be called within a runtime.
    pub(super) fn new(file: Option<ConfigFile>, would_start: DryRun) -> io::Result<Self> {
        let file = match file {
            Some(file) => {
                let why = format!("--config {} has changed", file.path.display());
                Some((why, Watcher::start(file, would_start)?))
            }
            None => None,
        };
        Ok(Self { term: signal(SignalKind::terminate())?, int: signal(SignalKind::interrupt())?, file })
    }

    /// Returns the reason.
    pub(super) async fn requested(&mut self) -> String {
        let changed = async {
            match &mut self.file {
                Some((why, watcher)) => {
                    watcher.changed().await;
                    why.clone()
                }
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            _ = self.term.recv() => "SIGTERM".to_owned(),
            _ = self.int.recv() => "SIGINT".to_owned(),
            why = changed => why,
        }
    }
}
