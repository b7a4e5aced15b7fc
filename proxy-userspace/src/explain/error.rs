//! Errors of `shunt explain`.

use std::{io, net::IpAddr};

use super::{request::RequestError, sandbox::SandboxError};
use crate::{datapath::DatapathError, inspect::InspectError};

#[derive(Debug, thiserror::Error)]
pub enum ExplainError {
    #[error(transparent)]
    Request(#[from] RequestError),
    #[error(transparent)]
    Inspect(#[from] InspectError),
    #[error(transparent)]
    Datapath(#[from] DatapathError),
    #[error(transparent)]
    Sandbox(#[from] SandboxError),
    #[error("querying the kernel for {what}")]
    Netlink { what: &'static str, source: io::Error },
    #[error("reading the kernel's clock")]
    Clock(#[source] io::Error),
    #[error("no device {0:?} in this network namespace")]
    NoDevice(String),
    #[error(
        "the node has no route to {addr}, so the ingress device of its packets is unknown: name it with --from"
    )]
    NoRoute { addr: IpAddr, source: io::Error },
}

impl ExplainError {
    /// Whether the command line is wrong: exit code 2.
    pub fn is_usage(&self) -> bool {
        matches!(self, Self::Request(_))
    }
}
