//! What ends the agent from outside: signals, and a configuration file that says something else. And how unwilling
//! the kernel should be to end it.

use std::{fs, io};

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::kube_proxy_config::{ConfigFile, DryRun, Watcher};

pub struct Stop {
    term: Signal,
    int: Signal,
    file: Option<(String, Watcher)>,
}

impl Stop {
    /// Within a runtime only.
    pub fn new(file: Option<ConfigFile>, would_start: DryRun) -> io::Result<Self> {
        let file = match file {
            Some(file) => {
                let why = format!("--config {} has changed", file.path.display());
                Some((why, Watcher::start(file, would_start)?))
            }
            None => None,
        };
        Ok(Self { term: signal(SignalKind::terminate())?, int: signal(SignalKind::interrupt())?, file })
    }

    /// Returns why.
    pub async fn recv(&mut self) -> String {
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

/// As many open files as the machine allows: programs, maps and links of each device are files, and so are connections. Some
/// runtimes start processes with 1024.
pub fn raise_open_files() {
    let raised = getrlimit(Resource::RLIMIT_NOFILE)
        .and_then(|(_, most)| setrlimit(Resource::RLIMIT_NOFILE, most, most));
    if let Err(error) = raised {
        tracing::info!(%error, "the limit of open files stays as it is");
    }
}

/// Whoever may not lower it (CAP_SYS_RESOURCE) keeps what the kubelet gave: no reason to end.
pub fn set_oom_score(score: i32) {
    const PATH: &str = "/proc/self/oom_score_adj";
    if let Err(error) = fs::write(PATH, score.to_string()) {
        let now = fs::read_to_string(PATH).unwrap_or_default();
        tracing::info!("oom_score_adj stays {}: {score} cannot be set: {error}", now.trim());
    }
}
