//! Errors of `shunt monitor`.

use std::{io, path::PathBuf};

use proxy_common::FlowEvent;

use crate::inspect::InspectError;

#[derive(Debug, thiserror::Error)]
pub enum MonitorError {
    #[error(transparent)]
    Inspect(#[from] InspectError),
    #[error(
        "another `shunt monitor` is running (it holds the lock on {}): events have only one reader", .0.display()
    )]
    AlreadyRunning(PathBuf),
    #[error(
        "{} is gone: `shunt cleanup` has removed the datapath, or it was recreated; start again when shunt is running",
        .0.display()
    )]
    Gone(PathBuf),
    #[error("opening the ring buffer {} failed", path.display())]
    Ring { path: PathBuf, source: io::Error },
    #[error(
        "{} contains an event of {found} bytes, but this shunt expects {}: the running programs are of another version; \
         use the shunt binary that is running",
        path.display(), size_of::<FlowEvent>()
    )]
    Foreign { path: PathBuf, found: usize },
    #[error("{action} failed")]
    Io { action: &'static str, source: io::Error },
    #[error("writing the output failed")]
    Output(#[source] io::Error),
}
