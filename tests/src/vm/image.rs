//! The initramfs: init, shunt and the few programs that init calls, each with its shared libraries at the same paths as
//! on the host, and the modules in load order.

use std::{
    collections::BTreeSet,
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};

use super::{cpio::Archive, modules};

/// The guest's directory of modules, named NUMBER-NAME.
pub const MODULES: &str = "/modules";
pub const SHUNT: &str = "/bin/shunt";

/// The initramfs for the kernel in `kernel` (a directory made by `cargo xtask test vm`) with the modules `wanted`.
pub fn build(kernel: &Path, wanted: &[&str], init: &Path, shunt: &Path) -> Result<Vec<u8>> {
    let mut archive = Archive::default();
    for dir in ["/proc", "/sys", "/dev", "/run", "/tmp", "/etc"] {
        archive.directory(dir);
    }
    archive.device("/dev/console", 5, 1);
    let mut libraries = BTreeSet::new();
    let programs = [
        ("/init", init.to_path_buf()),
        (SHUNT, shunt.to_path_buf()),
        ("/bin/ip", find("ip")?),
        ("/bin/tc", find("tc")?),
    ];
    for (at, program) in programs {
        let bytes = fs::read(&program).with_context(|| format!("reading {}", program.display()))?;
        archive.file(at, &bytes);
        libraries.extend(linked(&program)?);
    }
    for library in libraries {
        let bytes = fs::read(&library).with_context(|| format!("reading {library}"))?;
        archive.file(&library, &bytes);
    }
    for (number, module) in modules::collect(&kernel.join("modules"), wanted)?.iter().enumerate() {
        archive.file(&format!("{MODULES}/{number:02}-{}", module.name), &module.image);
    }
    Ok(archive.finish())
}

fn find(program: &str) -> Result<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let dirs: Vec<PathBuf> = env::split_paths(&path).chain(["/usr/sbin".into(), "/sbin".into()]).collect();
    let mut candidates = dirs.iter().map(|dir| dir.join(program));
    candidates
        .find(|file| file.is_file())
        .with_context(|| format!("there is no {program}: `cargo xtask setup` installs it"))
}

/// The libraries and the program interpreter listed by `ldd`.
fn linked(program: &Path) -> Result<Vec<String>> {
    let output = Command::new("ldd").arg(program).output().context("cannot run ldd, a part of glibc")?;
    if !output.status.success() {
        bail!("ldd {}: {}", program.display(), String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(paths(&String::from_utf8_lossy(&output.stdout)))
}

/// `libc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x...)` and `/lib64/ld-linux-x86-64.so.2 (0x...)`.
fn paths(text: &str) -> Vec<String> {
    text.lines()
        .filter_map(|line| line.split_whitespace().find(|word| word.starts_with('/')))
        .map(str::to_owned)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_are_read_from_ldd() {
        let text = "\tlinux-vdso.so.1 (0x00007f)\n\tlibc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x00007f)\n\
                    \t/lib64/ld-linux-x86-64.so.2 (0x00007f)\n";
        assert_eq!(paths(text), ["/lib/x86_64-linux-gnu/libc.so.6", "/lib64/ld-linux-x86-64.so.2"]);
    }
}
