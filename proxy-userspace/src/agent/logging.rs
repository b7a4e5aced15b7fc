//! The agent's log on stderr.

use std::io::{self, IsTerminal as _};

/// SHUNT_LOG takes tracing's filter syntax and takes precedence over klog's `--v`.
pub(super) fn start(verbosity: u8) {
    let default = match verbosity {
        0..4 => "info",
        4 => "info,shunt=debug",
        5.. => "info,shunt=trace",
    };
    let filter = tracing_subscriber::EnvFilter::try_from_env("SHUNT_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new(default));
    let colour = io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    // A process that embeds the agent may have a subscriber already.
    let _already = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr)
        .with_ansi(colour)
        .with_target(false)
        .try_init();
}
