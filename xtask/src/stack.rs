//! The stack that each program of the eBPF object needs with all it calls, as kernel 6.1 counts it: frames in steps of
//! 32 bytes along the deepest chain of calls, at most 512 bytes and 8 frames. A program above that loads on newer
//! kernels (which count in steps of 16) and is refused by older ones, with a number and no names.
//!
//! Read from the object, not from the verifier: an upper bound, because code that the verifier never reaches counts.
//! Who calls it: `cargo xtask lint`, with the object that proxy-userspace's build script has made.

use std::{collections::HashMap, fmt, fs, path::PathBuf};

use anyhow::{Context as _, Result, bail, ensure};
use object::{
    Object as _, ObjectSection as _, ObjectSymbol as _, RelocationTarget, SectionIndex, SymbolKind,
};
use serde_json::Value;

use crate::{
    instruction::{self, Instruction, Names},
    process,
    progress::say,
    workspace::Workspace,
};

/// `MAX_BPF_STACK`.
const MOST_BYTES: u32 = 512;
/// `MAX_CALL_FRAMES`.
const MOST_FRAMES: usize = 8;
/// What kernel 6.1 rounds a frame up to; an empty one counts as one step.
const STEP: u32 = 32;

pub fn check(workspace: &Workspace) -> Result<()> {
    let path = object_file(workspace)?;
    let bytes = fs::read(&path).with_context(|| format!("reading {}", path.display()))?;
    let functions = functions(&bytes).with_context(|| format!("reading {}", path.display()))?;
    let chains = chains(&functions)?;
    let deepest = chains.iter().max_by_key(|chain| chain.bytes).context("the object has no program")?;
    let refused: Vec<_> = chains.iter().filter_map(Chain::complaint).collect();
    if !refused.is_empty() {
        bail!("{}", refused.join("\n"));
    }
    say("stack", format_args!("deepest: {deepest}"));
    Ok(())
}

/// Where the build script of proxy-userspace left the object. What lint has built is taken as it is.
fn object_file(workspace: &Workspace) -> Result<PathBuf> {
    let mut cargo = workspace.cargo();
    // The very selection of the check of user space: whatever that has built is fresh.
    cargo.args(["clippy", "--quiet", "--all-targets", "--message-format", "json-render-diagnostics"]);
    cargo.args(["--", "-D", "warnings"]);
    let messages = process::output(&mut cargo)?;
    let dir =
        messages.lines().filter_map(|line| serde_json::from_str(line).ok()).find_map(|line| out_dir(&line));
    Ok(dir.context("cargo names no OUT_DIR of proxy-userspace")?.join("shunt-ebpf"))
}

fn out_dir(message: &Value) -> Option<PathBuf> {
    let word = |name: &str| message.get(name).and_then(Value::as_str);
    let ours =
        word("reason")? == "build-script-executed" && word("package_id")?.contains("/proxy-userspace#");
    ours.then(|| word("out_dir").map(PathBuf::from)).flatten()
}

/// A program or a function that programs call.
#[derive(Debug)]
struct Function {
    name: String,
    is_program: bool,
    /// Bytes of its own frame.
    frame: u32,
    /// Indices of the functions it calls or hands to helpers.
    calls: Vec<usize>,
}

/// Functions from a program down to the last one called.
#[derive(Clone, Debug, Default)]
struct Chain {
    bytes: u32,
    frames: Vec<(String, u32)>,
}

impl Chain {
    fn complaint(&self) -> Option<String> {
        if self.bytes > MOST_BYTES {
            return Some(format!("more than {MOST_BYTES} bytes of stack: {self}"));
        }
        (self.frames.len() > MOST_FRAMES).then(|| format!("more than {MOST_FRAMES} frames: {self}"))
    }
}

impl fmt::Display for Chain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes: ", self.bytes)?;
        for (index, (name, frame)) in self.frames.iter().enumerate() {
            let arrow = if index == 0 { "" } else { " -> " };
            write!(f, "{arrow}{name} ({frame})")?;
        }
        Ok(())
    }
}

/// The deepest chain below each program, and the longest where that is another and too long.
fn chains(functions: &[Function]) -> Result<Vec<Chain>> {
    let mut all = Vec::new();
    for (index, function) in functions.iter().enumerate().filter(|(_, function)| function.is_program) {
        let mut known = vec![State::Unknown; functions.len()];
        let deepest = below(functions, index, &|chain| u64::from(chain.bytes), &mut known)
            .with_context(|| function.name.clone())?;
        let mut known = vec![State::Unknown; functions.len()];
        let longest = below(functions, index, &|chain| chain.frames.len() as u64, &mut known)?;
        all.push(deepest);
        if longest.frames.len() > MOST_FRAMES {
            all.push(longest);
        }
    }
    Ok(all)
}

#[derive(Clone, Debug)]
enum State {
    Unknown,
    /// On the way down to where we are.
    Open,
    Done(Chain),
}

/// The chain from a function down that is greatest in `measure`.
fn below(
    functions: &[Function],
    index: usize,
    measure: &dyn Fn(&Chain) -> u64,
    known: &mut [State],
) -> Result<Chain> {
    let function = &functions[index];
    match &known[index] {
        State::Done(chain) => return Ok(chain.clone()),
        State::Open => bail!("{} calls itself", function.name),
        State::Unknown => known[index] = State::Open,
    }
    let mut greatest = Chain::default();
    for callee in &function.calls {
        let chain = below(functions, *callee, measure, known)?;
        if measure(&chain) > measure(&greatest) {
            greatest = chain;
        }
    }
    let own = function.frame.max(1).next_multiple_of(STEP);
    let mut frames = vec![(function.name.clone(), function.frame)];
    frames.extend(greatest.frames);
    let chain = Chain { bytes: own + greatest.bytes, frames };
    known[index] = State::Done(chain.clone());
    Ok(chain)
}

/// Where a function lies.
struct Place {
    section: SectionIndex,
    /// Bytes from the section's begin.
    begin: u64,
    end: u64,
}

/// The functions of an object.
fn functions(bytes: &[u8]) -> Result<Vec<Function>> {
    let file = object::File::parse(bytes)?;
    let (mut places, mut functions) = (Vec::new(), Vec::new());
    for symbol in file.symbols().filter(|symbol| symbol.kind() == SymbolKind::Text && symbol.size() > 0) {
        let section = symbol.section_index().context("a function without a section")?;
        places.push(Place { section, begin: symbol.address(), end: symbol.address() + symbol.size() });
        // Programs have sections of their own, by whose names loaders know their types.
        let is_program = file.section_by_index(section)?.name()? != ".text";
        let name = short(&format!("{:#}", rustc_demangle::demangle(symbol.name()?)));
        functions.push(Function { name, is_program, frame: 0, calls: Vec::new() });
    }
    let is_code = |section: SectionIndex| places.iter().any(|place| place.section == section);
    let find = |section: SectionIndex, at: i64| {
        let here = |place: &Place| place.section == section && i64::try_from(place.begin) == Ok(at);
        places.iter().position(here)
    };
    for (place, function) in places.iter().zip(&mut functions) {
        let section = file.section_by_index(place.section)?;
        let data =
            section.data_range(place.begin, place.end - place.begin)?.context("a function without code")?;
        let code = Instruction::read(data);
        function.frame = instruction::frame(&code);
        let relocations: HashMap<_, _> = section.relocations().collect();
        for (index, instruction) in code.iter().enumerate() {
            let at = place.begin + 8 * index as u64;
            let symbol = match relocations.get(&at).map(|relocation| relocation.target()) {
                Some(RelocationTarget::Symbol(symbol)) => Some(file.symbol_by_index(symbol)?),
                _ => None,
            };
            let to_code = symbol.as_ref().is_some_and(|symbol| symbol.section_index().is_some_and(is_code));
            let to = match (instruction.names(), &symbol) {
                (Names::Nothing, _) => continue,
                // A map, or constants.
                (Names::Pointer(_), _) if !to_code => continue,
                (Names::Call(bytes), None) => find(place.section, i64::try_from(at)? + bytes),
                (Names::Call(bytes) | Names::Pointer(bytes), Some(symbol)) => {
                    let section = symbol.section_index().context("a call of what is not in the object")?;
                    find(section, i64::try_from(symbol.address())? + bytes)
                }
                (Names::Pointer(_), None) => continue,
            };
            let Some(to) = to else {
                bail!("{}, instruction {index}: a call to what is no function", function.name);
            };
            function.calls.push(to);
        }
    }
    ensure!(functions.iter().any(|function| function.is_program), "there is no program in it");
    Ok(functions)
}

/// Without the crate's name.
fn short(name: &str) -> String {
    name.replace("shunt_ebpf::", "")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn function(name: &str, frame: u32, calls: &[usize]) -> Function {
        Function { name: name.to_owned(), is_program: name == "hook", frame, calls: calls.to_vec() }
    }

    #[test]
    fn the_deepest_chain_is_named_with_its_frames() {
        let functions = [
            function("hook", 200, &[1, 2]),
            function("wide", 250, &[]),
            function("narrow", 8, &[3, 1]),
            function("leaf", 0, &[]),
        ];
        let chains = chains(&functions).unwrap();
        assert_eq!(chains.len(), 1);
        assert_eq!(chains[0].to_string(), "512 bytes: hook (200) -> narrow (8) -> wide (250)");
        assert_eq!(chains[0].complaint(), None);
    }

    #[test]
    fn one_byte_more_is_too_deep() {
        let functions = [function("hook", 225, &[1]), function("wide", 256, &[])];
        assert_eq!(chains(&functions).unwrap()[0].complaint(), None);
        let functions = [function("hook", 225, &[1]), function("wide", 257, &[])];
        let complaint = chains(&functions).unwrap()[0].complaint().unwrap();
        assert_eq!(complaint, "more than 512 bytes of stack: 544 bytes: hook (225) -> wide (257)");
    }

    #[test]
    fn nine_frames_are_too_many_also_where_another_chain_is_deeper() {
        let mut functions = vec![function("hook", 0, &[1, 9])];
        functions.extend((2..=8).map(|next| function("step", 0, &[next])));
        functions.push(function("last", 0, &[]));
        functions.push(function("wide", 400, &[]));
        let complaints: Vec<_> = chains(&functions).unwrap().iter().filter_map(Chain::complaint).collect();
        assert_eq!(complaints.len(), 1);
        assert!(
            complaints[0].starts_with("more than 8 frames: 288 bytes: hook (0) -> step (0)"),
            "{complaints:?}"
        );
    }

    #[test]
    fn recursion_is_an_error() {
        let functions = [function("hook", 0, &[1]), function("again", 0, &[1])];
        assert!(format!("{:#}", chains(&functions).unwrap_err()).contains("again calls itself"));
    }

    #[test]
    fn cargo_says_where_a_build_script_wrote() {
        let message = serde_json::json!({
            "reason": "build-script-executed",
            "package_id": "path+file:///shunt/proxy-userspace#0.1.0",
            "out_dir": "/shunt/target/debug/build/proxy-userspace-1/out",
        });
        let dir = "/shunt/target/debug/build/proxy-userspace-1/out";
        assert_eq!(out_dir(&message), Some(PathBuf::from(dir)));
        assert_eq!(out_dir(&serde_json::json!({ "reason": "build-finished" })), None);
    }
}
