//! Kernel modules: found by name in a kernel's directory, decompressed, and ordered by their dependencies.

use std::{
    collections::HashMap,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};

/// A module ready to be loaded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Module {
    pub name: String,
    pub image: Vec<u8>,
}

/// The modules `wanted` and their dependencies, each after those it depends on. A name that is no module is assumed to
/// be built into the kernel image; the guest finds out whether the feature really exists.
pub fn collect(dir: &Path, wanted: &[&str]) -> Result<Vec<Module>> {
    let mut files = HashMap::new();
    index(&dir.join("kernel"), &mut files)?;
    let mut order = Vec::new();
    for name in wanted {
        add(&files, name, &mut order)?;
    }
    Ok(order)
}

fn index(dir: &Path, files: &mut HashMap<String, PathBuf>) -> Result<()> {
    for entry in fs::read_dir(dir).with_context(|| format!("reading {}", dir.display()))? {
        let path = entry?.path();
        if path.is_dir() {
            index(&path, files)?;
        } else if let Some((name, _)) = path.file_name().and_then(|name| name.to_str()?.split_once(".ko")) {
            files.insert(name.replace('-', "_"), path);
        }
    }
    Ok(())
}

fn add(files: &HashMap<String, PathBuf>, name: &str, order: &mut Vec<Module>) -> Result<()> {
    let name = name.replace('-', "_");
    let Some(path) = files.get(&name) else { return Ok(()) };
    if order.iter().any(|module| module.name == name) {
        return Ok(());
    }
    let image = decompressed(path)?;
    for need in needs(&image) {
        add(files, &need, order)?;
    }
    order.push(Module { name, image });
    Ok(())
}

fn decompressed(path: &Path) -> Result<Vec<u8>> {
    let program = match path.extension().and_then(|extension| extension.to_str()) {
        Some("ko") => return fs::read(path).with_context(|| format!("reading {}", path.display())),
        Some("xz") => "xz",
        Some("zst") => "zstd",
        _ => bail!("{}: compressed in an unknown way", path.display()),
    };
    let output = Command::new(program)
        .args(["-d", "-c"])
        .arg(path)
        .output()
        .with_context(|| format!("cannot run {program}: `cargo xtask test vm` installs it"))?;
    if !output.status.success() {
        bail!("{program} {}: {}", path.display(), String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(output.stdout)
}

/// The `depends=a,b` of a module's .modinfo section, which is a sequence of zero-terminated strings.
fn needs(image: &[u8]) -> Vec<String> {
    const KEY: &[u8] = b"\0depends=";
    let Some(at) = image.windows(KEY.len()).position(|window| window == KEY) else { return Vec::new() };
    let value = image[at + KEY.len()..].split(|byte| *byte == 0).next().unwrap_or_default();
    let value = String::from_utf8_lossy(value);
    value.split(',').filter(|name| !name.is_empty()).map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn needs_come_first_and_once() {
        let dir = std::env::temp_dir().join(format!("shunt-vm-modules-{}", std::process::id()));
        let kernel = dir.join("kernel/net");
        fs::create_dir_all(&kernel).unwrap();
        fs::write(kernel.join("bridge.ko"), b"ELF\0license=GPL\0depends=stp,llc\0").unwrap();
        fs::write(kernel.join("stp.ko"), b"ELF\0depends=llc\0").unwrap();
        fs::write(kernel.join("llc.ko"), b"ELF\0depends=\0").unwrap();
        fs::write(kernel.join("cls-bpf.ko"), b"ELF\0").unwrap();
        let found = collect(&dir, &["bridge", "cls_bpf", "llc", "built_in"]);
        fs::remove_dir_all(&dir).unwrap();
        let names: Vec<String> = found.unwrap().into_iter().map(|module| module.name).collect();
        assert_eq!(names, ["llc", "stp", "bridge", "cls_bpf"]);
    }
}
