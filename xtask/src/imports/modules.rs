//! The modules of one crate, read from its root file, and the file that a path leads to.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail};

use super::parse::{Brings, Import, Parsed, parse};

/// One crate of cargo's: a library, a program, a test target, a build script.
#[derive(Debug)]
pub struct Crate {
    /// The first is the root.
    pub modules: Vec<Module>,
    /// Relative to the repository.
    pub files: Vec<PathBuf>,
}

#[derive(Debug)]
pub struct Module {
    pub parent: Option<usize>,
    pub children: Vec<(String, usize)>,
    /// Its place in [`Crate::files`]; modules in braces share their parent's.
    pub file: usize,
    pub parsed: Parsed,
}

/// What a path leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    Module(usize),
    /// Something that this file defines.
    Item(usize),
}

/// Names that were asked for on the way: two globs may lead to each other.
type Asked = Vec<(usize, String)>;

impl Crate {
    /// Reads the root and every module that it leads to; `root` is relative to `repository`.
    pub fn read(repository: &Path, root: &Path) -> Result<Self> {
        let mut it = Self { modules: Vec::new(), files: vec![root.to_path_buf()] };
        let text = read(&repository.join(root))?;
        let dir = root.parent().context("a crate's root lies in a directory")?;
        it.add(repository, parse(&text), 0, None, dir)?;
        Ok(it)
    }

    /// Adds a module and those below it, whose files lie in `dir`.
    fn add(
        &mut self,
        repository: &Path,
        mut parsed: Parsed,
        file: usize,
        parent: Option<usize>,
        dir: &Path,
    ) -> Result<usize> {
        let (declared, inline) = (std::mem::take(&mut parsed.declared), std::mem::take(&mut parsed.inline));
        let this = self.modules.len();
        self.modules.push(Module { parent, children: Vec::new(), file, parsed });
        for (name, inner) in inline {
            let child = self.add(repository, inner, file, Some(this), &dir.join(&name))?;
            self.modules[this].children.push((name, child));
        }
        for name in declared {
            let candidates = [dir.join(format!("{name}.rs")), dir.join(&name).join("mod.rs")];
            let Some(path) = candidates.into_iter().find(|path| repository.join(path).is_file()) else {
                bail!("{}: no file of `mod {name}` in {}", self.files[file].display(), dir.display());
            };
            let text = read(&repository.join(&path))?;
            self.files.push(path);
            let child =
                self.add(repository, parse(&text), self.files.len() - 1, Some(this), &dir.join(&name))?;
            self.modules[this].children.push((name, child));
        }
        Ok(this)
    }

    /// What `path` means inside a module; none for what is another crate's.
    pub fn resolve(&self, inside: usize, path: &[String]) -> Option<Target> {
        self.walk(inside, path, &mut Vec::new())
    }

    fn walk(&self, inside: usize, path: &[String], asked: &mut Asked) -> Option<Target> {
        let (first, rest) = path.split_first()?;
        let mut at = match first.as_str() {
            "crate" => Target::Module(0),
            "self" => Target::Module(inside),
            "super" => Target::Module(self.modules[inside].parent?),
            name => self.name(inside, name, asked)?,
        };
        for segment in rest {
            let Target::Module(module) = at else { break };
            at = if segment == "super" {
                Target::Module(self.modules[module].parent?)
            } else {
                // A name that no text defines is a macro's, written where the module is.
                self.name(module, segment, asked).unwrap_or(Target::Item(self.modules[module].file))
            };
        }
        Some(at)
    }

    /// What a name of a module means: its own, an imported or a re-exported one.
    pub fn name(&self, module: usize, name: &str, asked: &mut Asked) -> Option<Target> {
        let key = (module, name.to_owned());
        if asked.contains(&key) {
            return None;
        }
        asked.push(key);
        let it = &self.modules[module];
        if let Some((_, child)) = it.children.iter().find(|(child, _)| child == name) {
            return Some(Target::Module(*child));
        }
        if it.parsed.defined.contains(name) {
            return Some(Target::Item(it.file));
        }
        let named = |import: &&Import| import.brings == Brings::Name(name.to_owned());
        // The same name may stand for a type here and for a function there.
        for import in it.parsed.imports.iter().filter(named) {
            if let Some(target) = self.walk(module, &import.path, asked) {
                return Some(target);
            }
        }
        let globs = it.parsed.imports.iter().filter(|import| import.brings == Brings::All);
        globs.into_iter().find_map(|import| match self.walk(module, &import.path, asked)? {
            Target::Module(from) => self.name(from, name, asked),
            Target::Item(_) => None,
        })
    }

    /// Whether `module` is `ancestor` or lies below it.
    pub fn is_within(&self, module: usize, ancestor: usize) -> bool {
        let mut at = Some(module);
        while let Some(module) = at {
            if module == ancestor {
                return true;
            }
            at = self.modules[module].parent;
        }
        false
    }

    /// The module that a file begins with.
    pub fn module_of(&self, file: usize) -> usize {
        self.modules.iter().position(|module| module.file == file).unwrap_or(0)
    }

    /// The module below the root that a file belongs to; none for the root's own file.
    pub fn top_level(&self, file: usize) -> Option<&str> {
        let mut at = self.module_of(file);
        let mut below = None;
        while let Some(parent) = self.modules[at].parent {
            below = Some(at);
            at = parent;
        }
        let children = &self.modules[0].children;
        children.iter().find(|(_, child)| Some(*child) == below).map(|(name, _)| name.as_str())
    }
}

fn read(path: &Path) -> Result<String> {
    fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))
}
