//! The command line, called by `main`: [`args`] parses, [`resolve`] turns flags into a configuration, and each command is
//! one call into the module that implements it. Nothing here reads maps or programs.

pub mod args;
pub mod compile;
mod durations;
mod environment;
mod failure;
mod output;
mod resolve;
mod run;
mod show;
mod top;
mod usage_error;

use std::{io::Write as _, path::Path};

use clap::CommandFactory as _;

use self::{
    args::{CheckArgs, CleanupArgs, Cli, Command},
    failure::Failure,
    output::Output,
};
use crate::{
    check::{self, Level},
    cleanup::{self, print_report_into},
    inspect::pins::Pins,
    kube_proxy,
};

/// Runs the command of one command line.
pub fn run(cli: Cli) -> Result<(), Failure> {
    let output = Output::new(&cli.global);
    let pins = Pins::new(&cli.global.bpffs);
    match run::standalone(cli.command) {
        Command::Run(args) => run::run(*args, &cli.global.bpffs),
        Command::Service(command) => show::service(&pins, &output, &command),
        Command::Backend(_) => show::backends(&pins, &output),
        Command::Conntrack(command) => show::conntrack(&pins, &output, &command),
        Command::Affinity(_) => show::affinity(&pins, &output),
        Command::Counter(_) => show::counters(&pins, &output),
        Command::Top(args) => top::run(&pins, &output, &args),
        Command::Explain(args) => show::explain(&pins, &output, &args),
        Command::Monitor(args) => show::monitor(&pins, &Output::of_stream(&cli.global), *args),
        Command::Prog(_) => show::programs(&pins, &output),
        Command::Link(_) => show::links(&pins, &output),
        Command::Map(command) => show::map(&pins, &output, &command),
        Command::Status => show::status(&pins, &output),
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "shunt", &mut script);
            output.print(|out| out.write_all(&script))
        }
        Command::Version => show::version(&output),
        Command::Check(args) => check(&cli.global.bpffs, &args, &output),
        Command::Cleanup(args) => cleanup(&cli.global.bpffs, &args, &output),
        Command::Compile(args) => compile::run(&args, &output),
    }
}

fn check(bpffs: &Path, args: &CheckArgs, output: &Output) -> Result<(), Failure> {
    let findings = check::examine(bpffs, args.cgroup.as_deref());
    output.print_view(&findings, |out| {
        check::print_findings_into(out, &findings, output::colour_on_stdout())
    })?;
    let failed = findings.iter().filter(|finding| finding.level == Level::Fail).count();
    if failed == 0 { Ok(()) } else { Err(Failure::Unfit { failed }) }
}

fn cleanup(bpffs: &Path, args: &CleanupArgs, output: &Output) -> Result<(), Failure> {
    if args.kube_proxy {
        let report = kube_proxy::cleanup(bpffs, args.force)?;
        return output.print_view(&[&report], |out| kube_proxy::print_report_into(out, &report));
    }
    let report = cleanup::cleanup(bpffs, args.force)?;
    output.print_view(&[&report], |out| print_report_into(out, &report))
}

#[cfg(test)]
mod tests {
    use clap::ValueEnum as _;

    use super::*;

    /// The names of `command`, its subcommands and all their flags.
    fn words(command: &clap::Command) -> Vec<String> {
        let mut found = vec![command.get_name().to_owned()];
        found.extend(command.get_arguments().filter_map(|arg| arg.get_long()).map(str::to_owned));
        found.extend(command.get_subcommands().flat_map(words));
        found
    }

    #[test]
    fn completions_contain_every_command_and_flag() {
        let words = words(&Cli::command());
        assert!(words.len() > 50, "{words:?}");
        for shell in clap_complete::Shell::value_variants() {
            let mut script = Vec::new();
            clap_complete::generate(*shell, &mut Cli::command(), "shunt", &mut script);
            let script = String::from_utf8(script).unwrap();
            let lacks: Vec<_> = words.iter().filter(|word| !script.contains(word.as_str())).collect();
            assert!(lacks.is_empty(), "{shell} lacks {lacks:?}");
        }
    }
}
