//! `cargo xtask lint`'s check of imports: no circle between the files of a crate, none between the modules at the top
//! of proxy-userspace, and the datapath's floors (`proxy-ebpf/floors.txt`, see [`floors`]).
//!
//! What counts as an import of file B by file A:
//! - a `use` item, or a path in the code (a macro's body included), that leads to a name which B defines. A name that a
//!   module only passes on (`pub use`, or a private `use` that children reach by `super::`) leads on to the file that
//!   defines it, so a `mod.rs` that lists its folder's names ties no file to its neighbours;
//! - so a child that uses what its own `mod.rs` defines imports `mod.rs`, and `mod.rs` imports the child whose names
//!   its own code uses: both at once are a circle;
//! - a `pub use` of a name from below is no import unless the code beside it uses the name; one of a name from
//!   elsewhere is an import;
//! - `mod name;` declares and is no import; the name of a module imports nothing until a path goes through it;
//! - code for tests alone (`#[cfg(test)]`) does not count; a test target is a crate of its own.
//!
//! The reader works on words and marks, not on a syntax tree. It sees paths inside macros, where a parser sees only
//! tokens; it costs no dependency, and xtask is compiled before every other task. It does not see calls of methods:
//! what has a method is known by its type, which had to be imported.

mod floors;
mod graph;
mod modules;
mod parse;
mod token;

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail};

use self::{
    graph::{Cause, Edges},
    modules::Crate,
};
use crate::{progress::say, workspace::Workspace};

/// The crate that is built on floors.
const FLOORED: &str = "proxy-ebpf/src";
/// The crate whose modules at the top must form no circle either.
const LAYERED: &str = "proxy-userspace/src";

pub fn check(workspace: &Workspace) -> Result<()> {
    let report = examine(&workspace.root)?;
    for line in &report.floors {
        say("floor", line);
    }
    if !report.wrong.is_empty() {
        bail!("{}", report.wrong.join("\n"));
    }
    say("imports", format_args!("no circle ({} files of {} crates)", report.files, report.crates));
    Ok(())
}

#[derive(Debug, Default)]
struct Report {
    wrong: Vec<String>,
    floors: Vec<String>,
    files: usize,
    crates: usize,
}

/// Reads every crate of the workspace at `repository`.
fn examine(repository: &Path) -> Result<Report> {
    let mut report = Report::default();
    for root in roots(repository)? {
        let it = match Crate::read(repository, &root) {
            Ok(it) => it,
            // rustc will say so, too; the other crates are read all the same.
            Err(error) => {
                report.wrong.push(format!("{error:#}"));
                continue;
            }
        };
        let edges = graph::edges(&it);
        report.crates += 1;
        report.files += it.files.len();
        report.wrong.extend(file_circles(&it, &edges));
        if root == Path::new(LAYERED).join("lib.rs") {
            report.wrong.extend(module_circles(&it, &edges));
        }
        if root == Path::new(FLOORED).join("main.rs") {
            let src = Path::new(FLOORED);
            let mut on_disk = Vec::new();
            sources(repository, src, &mut on_disk)?;
            match floors::read(repository, src) {
                Ok(floors) => {
                    report.floors = floors.table(src, &on_disk);
                    report.wrong.extend(floors.violations(&it, &edges, src, &on_disk));
                }
                // The circles are found all the same.
                Err(error) => report.wrong.push(format!("{error:#}")),
            }
        }
    }
    Ok(report)
}

fn file_circles(of: &Crate, edges: &Edges) -> Vec<String> {
    let circles = graph::circles(of.files.len(), edges.keys().copied());
    let describe = |circle: graph::Circle| {
        let name = |file: usize| of.files[file].display().to_string();
        let step = |(from, to): (usize, usize)| step(&name(from), edges.get(&(from, to)));
        let mut text =
            format!("circle of files: {} -> {}", steps(&circle.round, step), name(circle.round[0]));
        if circle.members.len() > circle.round.len() {
            let members: Vec<_> = circle.members.iter().map(|file| name(*file)).collect();
            text += &format!("\n    {} files lead to each other: {}", members.len(), members.join(", "));
        }
        text
    };
    circles.into_iter().map(describe).collect()
}

/// Circles between the modules that the root declares, whatever the files inside them do.
fn module_circles(of: &Crate, edges: &Edges) -> Vec<String> {
    let mut names: Vec<&str> = of.modules[0].children.iter().map(|(name, _)| name.as_str()).collect();
    names.push("(root)");
    let node = |file: usize| {
        let name = of.top_level(file).unwrap_or("(root)");
        names.iter().position(|it| *it == name).unwrap_or(names.len() - 1)
    };
    let mut between: BTreeMap<(usize, usize), (usize, Cause)> = BTreeMap::new();
    for ((from, to), cause) in edges {
        if node(*from) != node(*to) {
            between.entry((node(*from), node(*to))).or_insert((*from, cause.clone()));
        }
    }
    let describe = |circle: graph::Circle| {
        let step = |edge: (usize, usize)| {
            let cause = between
                .get(&edge)
                .map(|(file, cause)| step(&of.files[*file].display().to_string(), Some(cause)));
            format!("{} ({})", names[edge.0], cause.unwrap_or_default())
        };
        let mut text =
            format!("circle of modules: {} -> {}", steps(&circle.round, step), names[circle.round[0]]);
        if circle.members.len() > circle.round.len() {
            let members: Vec<_> = circle.members.iter().map(|it| names[*it]).collect();
            text += &format!("\n    {} modules lead to each other: {}", members.len(), members.join(", "));
        }
        text
    };
    graph::circles(names.len(), between.keys().copied()).into_iter().map(describe).collect()
}

fn step(file: &str, cause: Option<&Cause>) -> String {
    cause.map_or_else(|| file.to_owned(), |cause| format!("{file}:{} `{}`", cause.line, cause.path))
}

fn steps(round: &[usize], step: impl Fn((usize, usize)) -> String) -> String {
    let edges = round.iter().copied().zip(round.iter().copied().cycle().skip(1));
    edges.map(step).collect::<Vec<_>>().join(" -> ")
}

/// The root file of every crate of the workspace, where cargo looks for them.
fn roots(repository: &Path) -> Result<Vec<PathBuf>> {
    let manifest =
        fs::read_to_string(repository.join("Cargo.toml")).context("reading the workspace's Cargo.toml")?;
    let mut roots = Vec::new();
    for member in members(&manifest) {
        let fixed = ["build.rs", "src/lib.rs", "src/main.rs"].map(|file| Path::new(member).join(file));
        roots.extend(fixed.into_iter().filter(|file| repository.join(file).is_file()));
        for dir in ["src/bin", "tests", "examples", "benches"] {
            for entry in entries(repository, &Path::new(member).join(dir))? {
                let main = entry.join("main.rs");
                if entry.extension().is_some_and(|extension| extension == "rs") {
                    roots.push(entry);
                } else if repository.join(&main).is_file() {
                    roots.push(main);
                }
            }
        }
    }
    Ok(roots)
}

/// `members = ["a", "b"]`
fn members(manifest: &str) -> Vec<&str> {
    let list = manifest.split_once("\nmembers = [").and_then(|(_, rest)| rest.split_once(']'));
    let names = list.map_or("", |(names, _)| names).split(',').map(|name| name.trim().trim_matches('"'));
    names.filter(|name| !name.is_empty()).collect()
}

/// What a directory holds, sorted; nothing where there is none.
fn entries(repository: &Path, dir: &Path) -> Result<Vec<PathBuf>> {
    let Ok(list) = fs::read_dir(repository.join(dir)) else { return Ok(Vec::new()) };
    let mut entries = list.map(|entry| Ok(dir.join(entry?.file_name()))).collect::<Result<Vec<_>>>()?;
    entries.sort();
    Ok(entries)
}

/// All Rust files below a directory.
fn sources(repository: &Path, dir: &Path, out: &mut Vec<PathBuf>) -> Result<()> {
    for entry in entries(repository, dir)? {
        if repository.join(&entry).is_dir() {
            sources(repository, &entry, out)?;
        } else if entry.extension().is_some_and(|extension| extension == "rs") {
            out.push(entry);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
