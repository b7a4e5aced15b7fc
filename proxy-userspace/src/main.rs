//! The `shunt` binary: parses the command line, runs the command and reports a failure. Everything else is in the library.

use std::process::ExitCode;

use clap::Parser as _;
use shunt::cli::{self, args::Cli};

fn main() -> ExitCode {
    let cli = Cli::parse();
    match cli::run(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(),
    }
}
