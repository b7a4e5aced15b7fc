//! Limits of the agent's own process: open files and the OOM score.

use std::fs;

use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// Raises the limit of open files to the hard limit: programs, maps, links and connections are files. Some runtimes start
/// processes with 1024.
pub(super) fn raise_open_files() {
    let raised = getrlimit(Resource::RLIMIT_NOFILE)
        .and_then(|(_, hard)| setrlimit(Resource::RLIMIT_NOFILE, hard, hard));
    if let Err(error) = raised {
        tracing::info!(%error, "the limit of open files is unchanged");
    }
}

/// Sets the OOM score. Without CAP_SYS_RESOURCE it cannot be lowered: the kubelet's value stays, which is not fatal.
pub(super) fn set_oom_score(score: i32) {
    const PATH: &str = "/proc/self/oom_score_adj";
    if let Err(error) = fs::write(PATH, score.to_string()) {
        let now = fs::read_to_string(PATH).unwrap_or_default();
        tracing::info!("oom_score_adj stays {}: {score} cannot be set: {error}", now.trim());
    }
}
