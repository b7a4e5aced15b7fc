//! `shunt-demo`: a two-node cluster of network namespaces with one real `shunt` per node. `cargo xtask demo` starts it.

use std::{path::PathBuf, process::ExitCode, thread, time::Duration};

use anyhow::Result;
use clap::Parser;
use tests::demo::{guide, interrupt, stage::Stage, walk};

/// A two-node cluster on this machine, to try shunt in. Needs root; touches nothing but namespaces of its own.
#[derive(Debug, Parser)]
#[command(name = "shunt-demo")]
struct Args {
    /// Walk through the steps, then take everything down; exit 0 when all was seen as expected, else 1.
    #[arg(long)]
    once: bool,
    /// Start from the manifests of this directory (a copy is used); default: manifests/examples.
    #[arg(long, value_name = "DIR", conflicts_with = "once")]
    manifests: Option<PathBuf>,
}

fn main() -> ExitCode {
    let args = Args::parse();
    match demo(&args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("shunt-demo: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn demo(args: &Args) -> Result<()> {
    interrupt::listen()?;
    let mut stage = Stage::set(args.manifests.as_deref())?;
    let result = if args.once { walk::all(&mut stage) } else { stay(&mut stage) };
    if result.is_err() {
        for node in stage.cluster.nodes() {
            eprintln!("---- shunt on {} wrote:\n{}----", node.name(), node.shunt_log());
        }
    }
    if args.once || result.is_err() {
        return result;
    }
    println!("taking everything down");
    Ok(())
}

/// Follows the manifests until Ctrl-C.
fn stay(stage: &mut Stage) -> Result<()> {
    guide::print(stage);
    while !interrupt::noted() {
        thread::sleep(Duration::from_millis(200));
        // A change that cannot be applied is for the user to fix; the rest of the cluster goes on.
        if let Err(error) = stage.follow() {
            eprintln!("{error:#}");
        }
        for node in stage.cluster.nodes() {
            if !interrupt::noted() {
                node.still_runs()?;
            }
        }
    }
    Ok(())
}
