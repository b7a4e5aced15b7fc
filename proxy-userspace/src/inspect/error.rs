//! Errors of the read commands.

use std::{io, path::PathBuf};

use proxy_common::SCHEMA;

use super::map_args::MapArgsError;

#[derive(Debug, thiserror::Error)]
pub enum InspectError {
    #[error(
        "no pinned maps in {}: --bpffs differs from that of `shunt run`, or shunt has not run since this node booted, or no \
         bpffs is mounted there",
        .0.display()
    )]
    NoPins(PathBuf),
    #[error("nothing is pinned at {}; see `shunt map list`", .0.display())]
    NoSuchPin(PathBuf),
    #[error(
        "{} has keys of {} and values of {} bytes, but this shunt (map contract v{SCHEMA}) expects {} and {}: the map belongs to \
         another program or another version; inspect it with the shunt that created it, or remove it with that version's \
         `shunt cleanup`",
        path.display(), found.0, found.1, expected.0, expected.1
    )]
    Foreign { path: PathBuf, found: (u32, u32), expected: (u32, u32) },
    #[error("{action} {} was denied: it needs root, or CAP_BPF and read access to the directory", path.display())]
    Denied { action: &'static str, path: PathBuf, source: io::Error },
    #[error("{action} {} failed", path.display())]
    Io { action: &'static str, path: PathBuf, source: io::Error },
    #[error("{map} has no such key")]
    NoSuchKey { map: String },
    #[error("no Service {0:?} in the maps; see `shunt service list`")]
    NoSuchService(String),
    #[error("{0:?} is not of the form NAMESPACE/NAME")]
    BadServiceName(String),
    #[error(transparent)]
    MapArgs(#[from] MapArgsError),
    #[error("reading the kernel's jiffies failed")]
    Clock(#[source] io::Error),
    #[error("listing {what} through netlink failed")]
    Netlink { what: &'static str, source: io::Error },
}

impl InspectError {
    pub(crate) fn io(action: &'static str, path: impl Into<PathBuf>, source: io::Error) -> Self {
        let path = path.into();
        match source.kind() {
            io::ErrorKind::PermissionDenied => Self::Denied { action, path, source },
            _ => Self::Io { action, path, source },
        }
    }

    /// Whether the command line is wrong: exit code 2.
    pub fn is_usage(&self) -> bool {
        matches!(self, Self::BadServiceName(_) | Self::MapArgs(_))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_permission_is_not_a_failure() {
        let denied = InspectError::io("opening", "/p", io::ErrorKind::PermissionDenied.into());
        assert!(denied.to_string().contains("CAP_BPF"), "{denied}");
        assert!(
            !InspectError::io("opening", "/p", io::ErrorKind::OutOfMemory.into())
                .to_string()
                .contains("CAP_BPF")
        );
    }
}
