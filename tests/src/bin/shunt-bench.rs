//! `shunt-bench`, started by `cargo xtask bench`: measures, and prints a table next to the goals of PERFORMANCE.md.
//!
//! It has no pass or fail. Needs root.

use anyhow::Result;
use clap::{Parser, ValueEnum};
use tests::bench::{
    connect,
    paths::{self, Calls, Figure, Figures, NEW_FLOW},
    xdp,
};

/// Measures shunt's datapath and prints the figures beside their goals.
#[derive(Debug, Parser)]
#[command(name = "shunt-bench")]
struct Args {
    /// What to measure; all of it without.
    #[arg(value_enum)]
    parts: Vec<Part>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Part {
    /// The datapath's paths, by BPF_PROG_TEST_RUN.
    Paths,
    /// The XDP lane's paths, likewise.
    Xdp,
    /// connect() through a cluster of network namespaces.
    Connect,
}

fn main() -> Result<()> {
    let args = Args::parse();
    let wants = |part| args.parts.is_empty() || args.parts.contains(&part);
    if wants(Part::Paths) {
        print_paths(&paths::measure()?);
    }
    if wants(Part::Xdp) {
        let (empty, figures) = xdp::measure()?;
        println!("BPF_PROG_TEST_RUN of xdp_native, ns net of an empty XDP program ({empty:.0} ns)\n");
        println!("{:<44} {:>5} {:>9} {:>9}  goal", "path", "ns", "lookups", "helpers");
        for Figure { name, ns, calls: Calls { lookups, helpers } } in figures {
            let goal = if name.contains("not ours") { "<= 60 ns" } else { "<= 75 ns" };
            println!("{name:<44} {ns:>5.0} {lookups:>9} {helpers:>9}  {goal}");
        }
        println!();
    }
    if wants(Part::Connect) {
        println!("{:<44} {:>9} {:>11}", "connect() p50, us", "measured", "to direct");
        for figure in connect::measure()? {
            let to_direct = figure.to_direct.map(|ratio| format!("{ratio:.2}x")).unwrap_or_default();
            println!("{:<44} {:>9.1} {to_direct:>11}", figure.name, figure.p50);
        }
        println!("goals: ClusterIP by tc <= 1.06x, by socket hook <= 1.02x");
    }
    Ok(())
}

fn print_paths(figures: &Figures) {
    println!(
        "BPF_PROG_TEST_RUN, ns net of an empty program ({:.0} ns); a hash lookup {:.0} ns, an LRU hit {:.0} ns\n",
        figures.empty, figures.hash, figures.lru
    );
    println!("{:<44} {:>5} {:>9} {:>9} {:>9}  goal", "path", "ns", "LRU hits", "lookups", "helpers");
    for figure in &figures.paths {
        let goal = if figure.name.starts_with("established") {
            "<= 90 ns, <= 3.3 LRU hits, <= 2 lookups, <= 3 helpers"
        } else if figure.name.contains("egress") {
            "<= 60 ns, <= 1 lookup"
        } else {
            "<= 60 ns, <= 2 lookups"
        };
        let (hits, Calls { lookups, helpers }) = (figure.ns / figures.lru, figure.calls);
        println!("{:<44} {:>5.0} {hits:>9.1} {lookups:>9} {helpers:>9}  {goal}", figure.name, figure.ns);
    }
    println!(
        "(lookups: of hash maps; helpers: calls, lookups included; both counted by hand in the source)\n"
    );

    let ratio = figures.new_flow.median / figures.inserts.median;
    println!(
        "new flow at ingress, IPv4, single runs: median {:.0} ns, least {:.0} ns; its two inserts alone: median {:.0} ns, least {:.0} ns",
        figures.new_flow.median, figures.new_flow.least, figures.inserts.median, figures.inserts.least
    );
    println!(
        "  {ratio:.2}x its inserts, {} lookups, {} helper calls; goals: <= 1600 ns, <= 1.3x its inserts\n",
        NEW_FLOW.lookups, NEW_FLOW.helpers
    );

    println!("{:<20} {:>22}", "program", "verified instructions");
    for (name, walked) in &figures.programs {
        println!("{name:<20} {walked:>22}");
    }
    println!();
}
