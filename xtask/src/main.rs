//! `cargo xtask`: everything a developer or CI does with this repository, as one program.
//!
//! It depends on none of the other crates, so it builds on a machine that cannot build them yet; `setup` is
//! what makes that machine able to.

mod advisories;
mod apt;
mod build;
mod image;
mod imports;
mod instruction;
mod kernels;
mod licences;
mod lint;
mod process;
mod progress;
mod qemu;
mod run;
mod schema;
mod setup;
mod stack;
mod test;
mod workspace;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::workspace::Workspace;

/// Development tasks of shunt.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", version)]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// Make this machine able to build and test: toolchain, rust-src, bpf-linker, system packages, bpffs.
    Setup(setup::Args),
    /// Build shunt (and the eBPF object it embeds), the demo and the bench.
    Build(build::Args),
    /// Build the container image, as an OCI layout; no engine is needed.
    Image(image::Args),
    /// Check format, imports, clippy (user space, then eBPF), licences, the map schema and the programs' stacks.
    Lint(lint::Args),
    /// Record the layout of the map types for the version in proxy-common's SCHEMA.
    Schema(schema::Args),
    /// Run the tests: every level, or those named.
    Test(test::Args),
    /// Build, then `shunt run ARGS` as root; without a cluster or `--manifests` start the demo.
    Run(run::RunArgs),
    /// Build, then start the demo: a cluster of network namespaces on this machine.
    Demo(run::DemoArgs),
    /// Build with optimisations, then measure.
    Bench(run::BenchArgs),
}

fn main() -> ExitCode {
    work().unwrap_or_else(|error| {
        // Without the backtrace that RUST_BACKTRACE, meant for the tests, would add.
        eprintln!("error: {error:#}");
        ExitCode::FAILURE
    })
}

fn work() -> anyhow::Result<ExitCode> {
    let workspace = Workspace::find()?;
    match Cli::parse().task {
        Task::Setup(args) => setup::run(&workspace, &args)?,
        Task::Build(args) => build::run(&workspace, &args)?,
        Task::Image(args) => image::run(&workspace, &args)?,
        Task::Lint(args) => lint::run(&workspace, &args)?,
        Task::Schema(args) => schema::write(&workspace, &args)?,
        Task::Test(args) => return test::run(&workspace, &args),
        Task::Run(args) => run::run(&workspace, args)?,
        Task::Demo(args) => run::demo(&workspace, args)?,
        Task::Bench(args) => run::bench(&workspace, args)?,
    }
    Ok(ExitCode::SUCCESS)
}
