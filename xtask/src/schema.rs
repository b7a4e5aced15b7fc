//! The schema check: maps outlive the program that made them, so a change of their layout without a new `SCHEMA`
//! would make the next version misread the pins of the last.
//!
//! `proxy-common/schema.txt` holds the version and every `pod!` type as the source declares it. `cargo xtask schema`
//! writes it; `lint` compares.

use std::{fmt::Write as _, fs, path::PathBuf};

use anyhow::{Context as _, Result, bail, ensure};

use crate::{progress::say, workspace::Workspace};

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Accept changed layouts under an unchanged version: for a version that was never released.
    #[arg(long)]
    amend: bool,
}

/// A version and the layouts it stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Schema {
    version: u32,
    /// One line a type: `Backend 24: addr Addr, port Port, ...`, sorted.
    types: Vec<String>,
}

/// Writes the file anew.
pub fn write(workspace: &Workspace, args: &Args) -> Result<()> {
    let current = of_source(workspace)?;
    if let Ok(text) = fs::read_to_string(file(workspace)) {
        let recorded = parse(&text)?;
        if recorded.types != current.types && recorded.version == current.version && !args.amend {
            bail!("{}", complaint(&recorded, &current));
        }
    }
    fs::write(file(workspace), render(&current))?;
    say("schema", format_args!("version {}, {} types", current.version, current.types.len()));
    Ok(())
}

pub fn check(workspace: &Workspace) -> Result<()> {
    let path = file(workspace);
    let text = fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
    let (recorded, current) = (parse(&text)?, of_source(workspace)?);
    if recorded == current {
        return Ok(());
    }
    if recorded.version == current.version {
        bail!("{}", complaint(&recorded, &current));
    }
    bail!("SCHEMA is {} now: record its layouts with `cargo xtask schema`", current.version);
}

fn file(workspace: &Workspace) -> PathBuf {
    workspace.root.join("proxy-common/schema.txt")
}

fn complaint(recorded: &Schema, current: &Schema) -> String {
    let mut text = format!("the layout of map types changed, SCHEMA is still {}:\n", current.version);
    for line in recorded.types.iter().filter(|line| !current.types.contains(line)) {
        let _ = writeln!(text, "  - {line}");
    }
    for line in current.types.iter().filter(|line| !recorded.types.contains(line)) {
        let _ = writeln!(text, "  + {line}");
    }
    text + "raise SCHEMA in proxy-common/src/lib.rs and run `cargo xtask schema`; while this version was never released, \
            `cargo xtask schema --amend` is enough"
}

fn of_source(workspace: &Workspace) -> Result<Schema> {
    let dir = workspace.root.join("proxy-common/src");
    let (mut version, mut types) = (None, Vec::new());
    for entry in fs::read_dir(&dir).with_context(|| format!("reading {}", dir.display()))? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "rs") {
            let text = without_comments(&fs::read_to_string(&path)?);
            version = version.or(version_of(&text));
            types.extend(pod_types(&text).with_context(|| format!("reading {}", path.display()))?);
        }
    }
    types.sort();
    ensure!(!types.is_empty(), "no pod! type below {}", dir.display());
    Ok(Schema { version: version.context("proxy-common declares no SCHEMA")?, types })
}

fn without_comments(text: &str) -> String {
    text.lines()
        .map(|line| line.split_once("//").map_or(line, |(code, _)| code))
        .collect::<Vec<_>>()
        .join("\n")
}

fn version_of(text: &str) -> Option<u32> {
    let (_, rest) = text.split_once("pub const SCHEMA: u32 =")?;
    rest.split_once(';')?.0.trim().parse().ok()
}

/// The types inside `pod! { ... }` blocks: `pub struct NAME [SIZE] { FIELDS }`.
fn pod_types(text: &str) -> Result<Vec<String>> {
    let mut types = Vec::new();
    let mut rest = text;
    while let Some((_, after)) = rest.split_once("pod! {") {
        let (block, behind) = braced(after).context("a pod! block does not end")?;
        let mut block = block;
        while let Some((_, after)) = block.split_once("pub struct ") {
            let (head, after) = after.split_once('{').context("a pod! type without fields")?;
            let (name, size) =
                head.trim().trim_end_matches(']').split_once('[').context("a pod! type without size")?;
            let (fields, behind) = braced(after).context("a pod! type does not end")?;
            types.push(format!("{} {}: {}", name.trim(), size.trim(), fields_of(fields)));
            block = behind;
        }
        rest = behind;
    }
    Ok(types)
}

/// `name type, ...` in the order of declaration; attributes and visibility are no part of a layout.
fn fields_of(text: &str) -> String {
    let code: String =
        text.lines().filter(|line| !line.trim_start().starts_with('#')).collect::<Vec<_>>().join(" ");
    let fields =
        code.split(',').map(|field| field.split_whitespace().filter(|word| !word.starts_with("pub")));
    let fields = fields.map(|words| words.collect::<Vec<_>>().join(" ").replace(':', ""));
    fields.filter(|field| !field.is_empty()).collect::<Vec<_>>().join(", ")
}

/// The text up to the brace that closes an opened one, and what follows it.
fn braced(text: &str) -> Option<(&str, &str)> {
    let mut depth = 1;
    for (at, c) in text.char_indices() {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return Some((&text[..at], &text[at + 1..]));
        }
    }
    None
}

const HEAD: &str = "# Layout of every map type, by schema version; written by `cargo xtask schema`.";

fn render(schema: &Schema) -> String {
    format!("{HEAD}\nschema {}\n{}\n", schema.version, schema.types.join("\n"))
}

fn parse(text: &str) -> Result<Schema> {
    let mut lines = text.lines().filter(|line| !line.starts_with('#') && !line.is_empty());
    let version = lines.next().and_then(|line| line.strip_prefix("schema ")?.parse().ok());
    let version = version.context("schema.txt does not begin with `schema N`")?;
    Ok(Schema { version, types: lines.map(str::to_owned).collect() })
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOURCE: &str = "pub const SCHEMA: u32 = 3;\npod! {\n    /// Doc, with: a colon { and a brace\n    \
        pub struct Key [8] {\n        /// Which.\n        pub addr: [u8; 4],\n        port: Port, // why\n    }\n\n    \
        #[derive(Default)]\n    pub struct Value [4] {\n        pub id: u32,\n    }\n}\nimpl Key {}\n";

    #[test]
    fn types_are_read_from_the_source() {
        let text = without_comments(SOURCE);
        assert_eq!(version_of(&text), Some(3));
        assert_eq!(pod_types(&text).unwrap(), ["Key 8: addr [u8; 4], port Port", "Value 4: id u32"]);
    }

    #[test]
    fn a_schema_survives_its_file() {
        let schema = Schema { version: 3, types: vec!["Key 8: addr u64".into(), "Value 4: id u32".into()] };
        assert_eq!(parse(&render(&schema)).unwrap(), schema);
    }

    #[test]
    fn a_moved_field_is_a_changed_layout() {
        let moved = "pod! { pub struct Key [8] { pub port: u32, pub addr: u32 } }";
        let was = "pod! { pub struct Key [8] { pub addr: u32, pub port: u32 } }";
        let schema = |text| Schema { version: 1, types: pod_types(text).unwrap() };
        let text = complaint(&schema(was), &schema(moved));
        assert!(text.contains("- Key 8: addr u32, port u32") && text.contains("+ Key 8: port u32"), "{text}");
    }
}
