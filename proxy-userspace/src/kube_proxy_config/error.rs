//! Errors of a configuration file. Each names the file or the field, and says what to change.

use std::{fmt, path::PathBuf};

use super::types::{API_VERSION, KIND};

/// A file that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("--config {}: {reason}", path.display())]
pub struct ConfigFileError {
    pub path: PathBuf,
    pub reason: Reason,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Reason {
    #[error("cannot be read: {0}; name a file that contains a {KIND}")]
    Unreadable(String),
    #[error("is neither YAML nor JSON: {0}")]
    Syntax(String),
    #[error("is empty; it must contain one {KIND} of {API_VERSION}")]
    Empty,
    #[error("contains {0} documents; keep only the {KIND}")]
    Several(usize),
    #[error(
        "is a ConfigMap, not the {KIND} in it; name the file that it is mounted as, or extract it: kubectl -n kube-system get \
         configmap kube-proxy -o jsonpath='{{.data.config\\.conf}}'"
    )]
    ConfigMap,
    #[error("kind {0:?} is not {KIND}")]
    Kind(String),
    #[error("apiVersion {0:?} is not supported; this version reads {API_VERSION}")]
    ApiVersion(String),
    #[error("{0}")]
    Fields(FieldErrors),
}

/// All invalid fields of a document; at least one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FieldErrors(pub Vec<FieldError>);

/// One invalid field: the problem and what to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FieldError {
    /// For example `iptables.syncPeriod`; empty for the document itself.
    pub path: String,
    pub message: String,
}

impl fmt::Display for FieldErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, FieldError { path, message }) in self.0.iter().enumerate() {
            let before = if i == 0 { "" } else { "; " };
            let colon = if path.is_empty() { "" } else { ": " };
            write!(f, "{before}{path}{colon}{message}")?;
        }
        Ok(())
    }
}
