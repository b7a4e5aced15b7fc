//! `shunt compile`: tables on stdout, what is wrong with the manifests on stderr.

use std::io::{self, Write};

use super::{
    args::CompileArgs,
    failure::Failure,
    output::Output,
    resolve::{Surroundings, UsageError, compile_config},
};
use crate::{
    config::CompileConfig,
    offline::{Offline, print_tables_into},
};

/// Prints the tables; fails when some document was refused, after printing all the same.
pub fn run(args: &CompileArgs, output: &Output) -> Result<(), Failure> {
    let node_name = Surroundings::of_this_machine().node_name(args.node_name.as_deref())?;
    let offline = Offline::compile(&args.filename, &node_name, config_of(args)?)?;
    complain_into(&mut io::stderr().lock(), &offline, &node_name)?;
    let view = offline.view();
    output.print_view(&view, |out| print_tables_into(out, &view, output.headers))?;
    match offline.refused().len() {
        0 => Ok(()),
        documents => Err(Failure::Refused { documents }),
    }
}

/// What the flags mean that decide what the maps hold.
pub fn config_of(args: &CompileArgs) -> Result<CompileConfig, UsageError> {
    compile_config(&args.policy)
}

/// One line for each thing that was refused, ignored or is not served as it asks.
pub fn complain_into(out: &mut impl Write, offline: &Offline, node_name: &str) -> io::Result<()> {
    for refused in offline.refused() {
        writeln!(out, "error: {refused}")?;
    }
    for problem in offline.problems() {
        writeln!(out, "warning: {problem}")?;
    }
    for ignored in offline.ignored() {
        writeln!(out, "note: {ignored}")?;
    }
    if !offline.controller.knows_node() {
        writeln!(
            out,
            "note: no Node object named {node_name}: its addresses, zone and pod ranges are unknown"
        )?;
    }
    Ok(())
}
