//! `shunt compile`: prints the tables on stdout and problems with the manifests on stderr.

use std::io::{self, Write};

use super::{
    args::CompileArgs, environment::Environment, failure::Failure, output::Output, resolve::compile_config,
    usage_error::UsageError,
};
use crate::{
    config::CompileConfig,
    offline::{Offline, print_tables_into},
};

/// Prints the tables. Fails afterwards if a document was rejected.
pub fn run(args: &CompileArgs, output: &Output) -> Result<(), Failure> {
    let node_name = Environment::detect().node_name(args.node_name.as_deref())?;
    let offline = Offline::compile(&args.filename, &node_name, config_of(args)?)?;
    print_problems_into(&mut io::stderr().lock(), &offline, &node_name)?;
    let view = offline.view();
    output.print_view(&view, |out| print_tables_into(out, &view, output.headers))?;
    match offline.refused().len() {
        0 => Ok(()),
        documents => Err(Failure::Refused { documents }),
    }
}

/// The configuration that the flags select.
pub fn config_of(args: &CompileArgs) -> Result<CompileConfig, UsageError> {
    compile_config(&args.policy)
}

/// One line for each rejected document, ignored object and Service that is not served as specified.
pub fn print_problems_into(out: &mut impl Write, offline: &Offline, node_name: &str) -> io::Result<()> {
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
