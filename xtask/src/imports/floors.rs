//! The floors of a crate: a list of its files and folders from the top, where each may import only from below.
//!
//! The list has one floor a line. Its members are separated by spaces: `name/` is a folder with all below it, `name.rs`
//! a file; `#` begins a comment. A file may import from the floors below its own and from its own folder. Members of
//! one floor do not import each other.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};

use super::{graph::Edges, modules::Crate};

/// The floors, the top one first.
#[derive(Debug, PartialEq, Eq)]
pub struct Floors(Vec<Vec<String>>);

/// Where a file stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Place<'a> {
    /// From 1, the top.
    floor: usize,
    member: &'a str,
}

impl std::fmt::Display for Place<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "floor {} `{}`", self.floor, self.member)
    }
}

impl Floors {
    pub fn parse(text: &str) -> Result<Self> {
        let lines = text.lines().map(|line| line.split('#').next().unwrap_or_default());
        let floors: Vec<Vec<String>> = lines
            .map(|line| line.split_whitespace().map(str::to_owned).collect())
            .filter(|members: &Vec<String>| !members.is_empty())
            .collect();
        ensure!(!floors.is_empty(), "it names no floor");
        let mut seen = Vec::new();
        for member in floors.iter().flatten() {
            ensure!(
                member.ends_with('/') || member.ends_with(".rs"),
                "`{member}` is neither a folder (`{member}/`) nor a file (`{member}.rs`)"
            );
            ensure!(!seen.contains(&member), "`{member}` is named twice");
            seen.push(member);
        }
        Ok(Self(floors))
    }

    /// The place of a file, given below the crate's src/; the longest member that covers it decides.
    fn place(&self, file: &str) -> Option<Place<'_>> {
        let covers =
            |member: &str| if member.ends_with('/') { file.starts_with(member) } else { file == member };
        let numbered = self.0.iter().enumerate().map(|(at, members)| (at + 1, members));
        let places =
            numbered.flat_map(|(floor, members)| members.iter().map(move |member| Place { floor, member }));
        places.filter(|place| covers(place.member)).max_by_key(|place| place.member.len())
    }

    /// What breaks the rule, a line each: imports, files on no floor, members without a file.
    pub fn violations(&self, of: &Crate, edges: &Edges, src: &Path, on_disk: &[PathBuf]) -> Vec<String> {
        let name = |file: &Path| file.strip_prefix(src).unwrap_or(file).display().to_string();
        let mut wrong = Vec::new();
        for ((from, to), cause) in edges {
            let (from, to) = (&of.files[*from], &of.files[*to]);
            let (Some(own), Some(other)) = (self.place(&name(from)), self.place(&name(to))) else { continue };
            let direction = match other.floor.cmp(&own.floor) {
                _ if own == other => continue,
                std::cmp::Ordering::Greater => continue,
                std::cmp::Ordering::Equal => "sideways",
                std::cmp::Ordering::Less => "upward",
            };
            wrong.push(format!(
                "{}:{}: {direction} import of {} (`{}`), from {own} to {other}",
                from.display(),
                cause.line,
                name(to),
                cause.path
            ));
        }
        let files: Vec<_> = on_disk.iter().map(|file| name(file)).collect();
        for (file, path) in files.iter().zip(on_disk) {
            if self.place(file).is_none() {
                wrong.push(format!("{}: is on no floor", path.display()));
            }
        }
        for member in self.0.iter().flatten() {
            if !files.iter().any(|file| self.place(file).is_some_and(|place| place.member == member)) {
                wrong.push(format!("`{member}` of the list is no file and no folder with files"));
            }
        }
        wrong
    }

    /// A line for each floor with the number of its files.
    pub fn table(&self, src: &Path, on_disk: &[PathBuf]) -> Vec<String> {
        let name = |file: &PathBuf| file.strip_prefix(src).unwrap_or(file).display().to_string();
        let places: Vec<_> = on_disk.iter().map(name).collect();
        let on = |floor: usize| {
            places.iter().filter(|file| self.place(file).is_some_and(|place| place.floor == floor)).count()
        };
        let rows = self.0.iter().enumerate();
        rows.map(|(at, members)| format!("{:>2}  {:<48} {:>2} files", at + 1, members.join(" "), on(at + 1)))
            .collect()
    }
}

/// The floors of the crate whose sources lie in `src`: `floors.txt` beside it.
pub fn read(repository: &Path, src: &Path) -> Result<Floors> {
    let file = src.with_file_name("floors.txt");
    let text = std::fs::read_to_string(repository.join(&file))
        .with_context(|| format!("reading {}, the list of the datapath's floors", file.display()))?;
    Floors::parse(&text).with_context(|| file.display().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_is_read_from_the_top() {
        let floors =
            Floors::parse("# top\nmain.rs\n\nhooks/ extra/  # two\nground.rs hooks/deep/\n").unwrap();
        assert_eq!(floors.place("main.rs"), Some(Place { floor: 1, member: "main.rs" }));
        assert_eq!(floors.place("hooks/xdp/mod.rs"), Some(Place { floor: 2, member: "hooks/" }));
        assert_eq!(floors.place("hooks/deep/a.rs"), Some(Place { floor: 3, member: "hooks/deep/" }));
        assert_eq!((floors.place("hooks.rs"), floors.place("deep/main.rs")), (None, None));
        for wrong in ["", "# nothing\n", "main\n", "a/\nb.rs a/\n"] {
            assert!(Floors::parse(wrong).is_err(), "{wrong:?}");
        }
    }
}
