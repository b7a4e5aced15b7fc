//! The command line: `main` hands over what was typed; each command is carried out here by one call into the
//! module that knows how. Not here: what `run` and `compile` do, and everything that reads the kernel.

pub mod args;
mod failure;
mod output;
mod resolve;

use std::io::Write as _;

use clap::CommandFactory as _;

use self::{
    args::{Cli, Command},
    failure::Failure,
    output::Output,
    resolve::{Surroundings, run_config},
};

/// Carries out one command line.
pub fn run(cli: Cli) -> Result<(), Failure> {
    let output = Output::new(&cli.global);
    match cli.command {
        Command::Run(args) => {
            let config = run_config(&args, &cli.global.bpffs, &Surroundings::of_this_machine())?;
            Err(Failure::Missing { what: "run", config: Some(Box::new(config)) })
        }
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "shunt", &mut script);
            output.print(|out| out.write_all(&script))
        }
        Command::Version => output.print(|out| {
            writeln!(out, "shunt {} (map contract v{})", env!("CARGO_PKG_VERSION"), proxy_common::SCHEMA)
        }),
        _ => Err(Failure::Missing { what: "this command", config: None }),
    }
}
