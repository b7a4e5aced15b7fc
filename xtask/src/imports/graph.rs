//! Which file of a crate imports which, and the circles among them.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::{
    modules::{Crate, Target},
    parse::{Brings, Import},
};

/// Where an import stands and what it says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cause {
    pub line: usize,
    pub path: String,
}

/// The imports between the files of a crate, by their places in [`Crate::files`]; of several the first.
pub type Edges = BTreeMap<(usize, usize), Cause>;

/// Every import of a crate.
pub fn edges(of: &Crate) -> Edges {
    let mut graph = Graph { of, words: words(of), edges: Edges::new() };
    for module in 0..of.modules.len() {
        for import in &of.modules[module].parsed.imports {
            graph.import(module, import);
        }
        for used in &of.modules[module].parsed.paths {
            let file = match of.resolve(module, &used.path) {
                Some(Target::Item(file)) => file,
                Some(Target::Module(target)) => of.modules[target].file,
                None => continue,
            };
            graph.add(module, file, used.line, &used.path);
        }
    }
    graph.edges
}

/// The words of each file's code.
fn words(of: &Crate) -> Vec<BTreeSet<&str>> {
    let mut words = vec![BTreeSet::new(); of.files.len()];
    for module in &of.modules {
        words[module.file].extend(module.parsed.words.iter().map(String::as_str));
    }
    words
}

struct Graph<'a> {
    of: &'a Crate,
    words: Vec<BTreeSet<&'a str>>,
    edges: Edges,
}

impl<'a> Graph<'a> {
    fn add(&mut self, module: usize, to: usize, line: usize, path: &[String]) {
        let from = self.of.modules[module].file;
        if from == to {
            return;
        }
        let cause = Cause { line, path: path.join("::") };
        let known = self.edges.entry((from, to)).or_insert_with(|| cause.clone());
        if line < known.line {
            *known = cause;
        }
    }

    fn import(&mut self, module: usize, import: &Import) {
        let file = self.of.modules[module].file;
        let uses = |graph: &Self, name: &str| graph.words[file].contains(name);
        match (&import.brings, self.of.resolve(module, &import.path)) {
            (_, None) => {}
            (Brings::Name(name), Some(Target::Item(to))) => {
                let below = self.of.is_within(self.of.module_of(to), module);
                if !(import.public && below) || uses(self, name) {
                    self.add(module, to, import.line, &import.path);
                }
            }
            // A module's name is a way to names: the paths that begin with it are the imports. Where it is passed on
            // or given to a macro there is no such path.
            (Brings::Name(name), Some(Target::Module(target))) => {
                let starts = |paths: &[String]| paths.first() == Some(name);
                let followed = self.of.modules.iter().filter(|it| it.file == file).any(|it| {
                    it.parsed.paths.iter().any(|used| starts(&used.path))
                        || it.parsed.imports.iter().any(|other| starts(&other.path))
                });
                let passed_on = import.public && !self.of.is_within(target, module);
                if passed_on || (uses(self, name) && !followed) {
                    self.add(module, self.of.modules[target].file, import.line, &import.path);
                }
            }
            (Brings::All, Some(Target::Item(to))) => self.add(module, to, import.line, &import.path),
            (Brings::All, Some(Target::Module(from))) => self.glob(module, import, from),
        }
    }

    /// `use from::*` imports those names of `from` that the file uses; a re-export of what lies elsewhere all of them.
    fn glob(&mut self, module: usize, import: &Import, from: usize) {
        let file = self.of.modules[module].file;
        let passed_on = import.public && !self.of.is_within(from, module);
        let of: &'a Crate = self.of;
        for name in names(of, from, &mut Vec::new()) {
            if !passed_on && !self.words[file].contains(name) {
                continue;
            }
            // Its own name comes before one that a glob brings.
            if of.modules[module].parsed.defined.contains(name) {
                continue;
            }
            if let Some(Target::Item(to)) = of.name(from, name, &mut Vec::new()) {
                self.add(module, to, import.line, &import.path);
            }
        }
    }
}

/// The names that a glob of a module brings.
fn names<'a>(of: &'a Crate, module: usize, seen: &mut Vec<usize>) -> BTreeSet<&'a str> {
    let mut found = BTreeSet::new();
    if seen.contains(&module) {
        return found;
    }
    seen.push(module);
    let parsed = &of.modules[module].parsed;
    found.extend(parsed.defined.iter().map(String::as_str));
    for import in &parsed.imports {
        match &import.brings {
            Brings::Name(name) => {
                found.insert(name);
            }
            Brings::All => {
                if let Some(Target::Module(from)) = of.resolve(module, &import.path) {
                    found.extend(names(of, from, seen));
                }
            }
        }
    }
    found
}

/// A set of nodes that all lead to each other.
#[derive(Debug, PartialEq, Eq)]
pub struct Circle {
    /// The shortest way round; the last leads to the first.
    pub round: Vec<usize>,
    pub members: Vec<usize>,
}

/// The circles of a graph of `count` nodes.
pub fn circles(count: usize, edges: impl Iterator<Item = (usize, usize)>) -> Vec<Circle> {
    let mut next = vec![BTreeSet::new(); count];
    for (from, to) in edges {
        next[from].insert(to);
    }
    let reach: Vec<BTreeSet<usize>> = (0..count).map(|start| reachable(&next, start)).collect();
    let mut done: BTreeSet<usize> = BTreeSet::new();
    let mut found = Vec::new();
    for node in 0..count {
        if done.contains(&node) || !reach[node].contains(&node) {
            continue;
        }
        let members: Vec<_> =
            (0..count).filter(|other| reach[node].contains(other) && reach[*other].contains(&node)).collect();
        done.extend(&members);
        let rounds = members.iter().filter_map(|start| round(&next, *start));
        if let Some(round) = rounds.min_by_key(Vec::len) {
            found.push(Circle { round, members });
        }
    }
    found
}

/// What can be reached from `start` in at least one step.
fn reachable(next: &[BTreeSet<usize>], start: usize) -> BTreeSet<usize> {
    let mut seen = BTreeSet::new();
    let mut open = vec![start];
    while let Some(node) = open.pop() {
        for to in &next[node] {
            if seen.insert(*to) {
                open.push(*to);
            }
        }
    }
    seen
}

/// The shortest way from `start` back to it.
fn round(next: &[BTreeSet<usize>], start: usize) -> Option<Vec<usize>> {
    let mut before = BTreeMap::new();
    let mut open = VecDeque::from([start]);
    while let Some(node) = open.pop_front() {
        for to in &next[node] {
            if *to == start {
                let mut way = vec![node];
                while let Some(previous) =
                    way.last().filter(|last| **last != start).and_then(|last| before.get(last))
                {
                    way.push(*previous);
                }
                way.reverse();
                return Some(way);
            }
            if *to != start && !before.contains_key(to) {
                before.insert(*to, node);
                open.push_back(*to);
            }
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_circle_is_found_once_with_its_shortest_round() {
        let edges = [(0, 1), (1, 2), (2, 3), (3, 1), (3, 2), (4, 4), (0, 4), (5, 0)];
        let found = circles(6, edges.into_iter());
        assert_eq!(
            found,
            [
                Circle { round: vec![2, 3], members: vec![1, 2, 3] },
                Circle { round: vec![4], members: vec![4] }
            ]
        );
        assert_eq!(circles(3, [(0, 1), (1, 2), (0, 2)].into_iter()), []);
    }
}
