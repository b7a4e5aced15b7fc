//! Why `shunt run` ended.

use std::{io, net::SocketAddr};

use super::device_hooks::DeviceError;
use crate::{controller::SyncError, datapath::DatapathError, sources::SourceError};

/// Ends the process.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    #[error(transparent)]
    Datapath(#[from] DatapathError),
    #[error(transparent)]
    Source(#[from] SourceError),
    #[error(transparent)]
    Sync(#[from] SyncError),
    #[error(transparent)]
    Devices(#[from] DeviceError),
    #[error("the source of Services and endpoints has ended")]
    SourceEnded,
    #[error("the conntrack-gc and udp-flush threads have ended")]
    FlowsEnded,
    #[error("cannot listen for {what} at {addr} (--bind-address-hard-fail is set): {source}")]
    Listen { what: &'static str, addr: SocketAddr, source: io::Error },
    #[error("{action}: {source}")]
    Io { action: &'static str, source: io::Error },
}

/// For `map_err`.
pub(super) fn io_error(action: &'static str) -> impl FnOnce(io::Error) -> AgentError {
    move |source| AgentError::Io { action, source }
}
