//! Errors of a command, and their exit codes: 1 for a failure, 2 for wrong usage.

use std::{error::Error, fmt::Write as _, io, process::ExitCode};

use super::usage_error::UsageError;
use crate::{
    agent::AgentError, cleanup::CleanupError, explain::ExplainError, inspect::InspectError,
    kube_proxy::KubeProxyError, monitor::MonitorError, top::TopError,
};

#[derive(Debug, thiserror::Error)]
pub enum Failure {
    #[error(transparent)]
    Usage(#[from] UsageError),
    #[error(transparent)]
    Inspect(#[from] InspectError),
    #[error(transparent)]
    Explain(#[from] ExplainError),
    #[error(transparent)]
    Monitor(#[from] MonitorError),
    #[error(transparent)]
    Top(TopError),
    #[error(transparent)]
    Cleanup(#[from] CleanupError),
    #[error(transparent)]
    KubeProxy(#[from] KubeProxyError),
    #[error("{failed} of the checks above failed: shunt cannot work here until they are fixed")]
    Unfit { failed: usize },
    #[error(transparent)]
    Offline(#[from] crate::offline::OfflineError),
    #[error("rejected documents (see above): {documents}")]
    Refused { documents: usize },
    #[error("writing the output failed")]
    Output(#[from] io::Error),
    #[error(transparent)]
    Agent(#[from] AgentError),
}

impl Failure {
    /// Prints the failure and its causes on stderr. A closed output (`shunt ... | head`) is not a failure and prints
    /// nothing.
    pub fn report(self) -> ExitCode {
        match self {
            Self::Output(error) if error.kind() == io::ErrorKind::BrokenPipe => ExitCode::SUCCESS,
            Self::Monitor(MonitorError::Output(error)) if error.kind() == io::ErrorKind::BrokenPipe => {
                ExitCode::SUCCESS
            }
            Self::Usage(error) => usage(&error),
            Self::Inspect(error) if error.is_usage() => usage(&error),
            Self::Explain(error) if error.is_usage() => usage(&error),
            failure => {
                eprintln!("error: {}", chain(&failure));
                ExitCode::FAILURE
            }
        }
    }
}

fn usage(error: &dyn Error) -> ExitCode {
    eprintln!("error: {error}\n\nFor more information, try 'shunt --help'.");
    ExitCode::from(2)
}

/// An error and its causes in one line. A cause that the line already contains is skipped.
fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            let _ = write!(text, ": {cause_text}");
        }
        source = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cause_is_not_repeated() {
        let failure = Failure::Output(io::Error::other("disk on fire"));
        assert_eq!(chain(&failure), "writing the output failed: disk on fire");
        assert_eq!(chain(&Failure::Usage(UsageError::NoNodeName)), UsageError::NoNodeName.to_string());
    }
}
