//! Errors of requests to the API server, by remedy.

use std::{error::Error, fmt::Write as _, time::Duration};

/// A failed request, or a failed read of a response body.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RequestError {
    /// No connection, or it broke: another address may work.
    #[error("{0}")]
    Unreachable(String),
    /// Connected, but no response.
    #[error("no response within {0:?}")]
    Silent(Duration),
    /// The server returned an error.
    #[error("{code} {reason}: {message}")]
    Refused { code: u16, reason: String, message: String, retry_after: Option<Duration> },
    /// The response is not valid.
    #[error("{0}")]
    Malformed(String),
}

impl RequestError {
    /// The resourceVersion is too old: a complete list is needed (410 Gone).
    pub fn is_expired(&self) -> bool {
        self.code() == Some(410)
    }

    /// The server does not serve the resource.
    pub fn is_unknown(&self) -> bool {
        self.code() == Some(404)
    }

    /// The server does not support the field selector.
    pub fn is_about_fields(&self) -> bool {
        let says = |message: &str| message.contains("field selector") || message.contains("field label");
        matches!(self, Self::Refused { code: 400, message, .. } if says(message))
    }

    /// Whether another address of the API server may work.
    pub fn is_of_this_server(&self) -> bool {
        match self {
            Self::Unreachable(_) | Self::Silent(_) | Self::Malformed(_) => true,
            Self::Refused { code, .. } => *code >= 500,
        }
    }

    pub fn code(&self) -> Option<u16> {
        match self {
            Self::Refused { code, .. } => Some(*code),
            _ => None,
        }
    }

    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Refused { retry_after, .. } => *retry_after,
            _ => None,
        }
    }

    /// Whether new credentials may help: they may have been replaced on disk.
    pub fn is_about_credentials(&self) -> bool {
        match self {
            Self::Refused { code, .. } => *code == 401,
            Self::Unreachable(why) => why.contains("certificate"),
            _ => false,
        }
    }

    /// Advice for the operator, if there is any.
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            Self::Refused { code: 401, .. } => Some(
                "the server does not accept the credentials: renew the kubeconfig's token or certificate",
            ),
            Self::Refused { code: 403, .. } => Some(
                "grant list and watch of services, nodes, endpointslices.discovery.k8s.io and \
                 servicecidrs.networking.k8s.io in the whole cluster to the agent's user",
            ),
            Self::Unreachable(why) if why.contains("certificate") => {
                Some("compare the server's certificate with the kubeconfig's certificate-authority")
            }
            _ => None,
        }
    }
}

/// An error and its causes in one line, without repetitions.
pub fn causes(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            let _infallible = write!(text, ": {cause_text}");
        }
        source = cause.source();
    }
    text
}
