//! The standard library's source, which `-Z build-std=core` compiles for the eBPF target: from rustup, else
//! from Debian's package of exactly the same compiler version.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, Result, bail};

use crate::{
    apt::{self, PrivateApt},
    process,
    progress::say,
    workspace::Workspace,
};

/// Asked in this order: most versions are found in the first group, and the lists of the last are large.
const SUITES: [&[&str]; 2] = [&["trixie-backports", "trixie", "bookworm-backports"], &["forky", "sid"]];

/// `<sysroot>/lib/rustlib/src/rust/library`, where cargo looks.
fn library(workspace: &Workspace) -> Result<PathBuf> {
    let sysroot = process::output(workspace.command("rustc").args(["--print", "sysroot"]))?;
    Ok(Path::new(sysroot.trim()).join("lib/rustlib/src/rust/library"))
}

fn complete(library: &Path) -> bool {
    library.join("Cargo.lock").is_file() && library.join("core/src/lib.rs").is_file()
}

/// Whether the source is there; a link whose target went away is not.
pub fn present(workspace: &Workspace) -> Result<bool> {
    // No rustc is toolchain::install's to mend.
    Ok(library(workspace).is_ok_and(|library| complete(&library)))
}

pub fn install(workspace: &Workspace) -> Result<()> {
    let library = library(workspace)?;
    if complete(&library) {
        say("rust-src", format_args!("{} is complete", library.display()));
        return Ok(());
    }
    remove_remains(&library)?;
    let refused = match from_rustup(workspace) {
        Ok(()) if complete(&library) => return Ok(()),
        // Its list of components says so although the files were deleted; it adds and removes nothing then.
        Ok(()) => {
            anyhow::anyhow!("rustup takes rust-src for installed, but {} is not there", library.display())
        }
        Err(error) => error,
    };
    say("rust-src", format_args!("{refused:#}; asking Debian's mirror"));
    from_debian(workspace, &library).with_context(|| {
        format!(
            "rust-src is neither to be had from rustup ({refused:#}) nor from apt; with a connection to rustup's \
             server, `rustup component add rust-src --toolchain {}` installs it",
            workspace.toolchain
        )
    })?;
    if !complete(&library) {
        bail!("{} is still incomplete", library.display());
    }
    Ok(())
}

/// A link into a directory that was deleted, or half a copy: rustup refuses to install over either.
fn remove_remains(library: &Path) -> Result<()> {
    match fs::symlink_metadata(library) {
        Ok(meta) if meta.is_symlink() => {
            say("rust-src", format_args!("removing {}, a link to nowhere", library.display()));
            fs::remove_file(library)?;
        }
        Ok(_) => {
            say("rust-src", format_args!("removing the incomplete {}", library.display()));
            fs::remove_dir_all(library)?;
        }
        Err(_) => {}
    }
    Ok(())
}

fn from_rustup(workspace: &Workspace) -> Result<()> {
    say("rust-src", format_args!("rustup component add rust-src --toolchain {}", workspace.toolchain));
    let mut rustup = workspace.command("rustup");
    rustup.args(["component", "add", "rust-src", "--toolchain", &workspace.toolchain]);
    process::run_for(&mut rustup, Duration::from_secs(180))
}

fn from_debian(workspace: &Workspace, library: &Path) -> Result<()> {
    let mirrors = apt::machine_mirrors()?;
    let dir = workspace.tools().join("apt");
    let mut last = None;
    for suites in SUITES {
        // A suite that this mirror does not carry must not hide the others.
        let found = PrivateApt::new(&dir, &mirrors, suites).and_then(|apt| {
            let candidate = apt::exactly(apt.versions("rust-src")?, &workspace.toolchain)?;
            Ok((apt, candidate))
        });
        match found {
            Ok((apt, candidate)) => return unpack(&apt, &candidate, workspace, library),
            Err(error) => {
                say("rust-src", format_args!("not in {}: {error:#}", suites.join(", ")));
                last = Some(error);
            }
        }
    }
    Err(last.context("no suite was asked")?)
}

/// Only the library's directory is kept, as a real directory inside the toolchain: it lives as long as the
/// toolchain does, whichever clone of this repository fetched it.
fn unpack(apt: &PrivateApt, candidate: &apt::Candidate, workspace: &Workspace, library: &Path) -> Result<()> {
    say(
        "rust-src",
        format_args!("unpacking {} {} of {}", candidate.package, candidate.version, candidate.suite),
    );
    let parent = library.parent().context("the library has no parent directory")?;
    fs::create_dir_all(parent).with_context(|| format!("creating {}", parent.display()))?;
    let unpacked = parent.join(format!("unpacking-{}", std::process::id()));
    let moved = apt.unpack(candidate, &unpacked).and_then(|()| {
        let source = unpacked.join(format!("usr/src/rustc-{}/library", workspace.toolchain));
        fs::rename(&source, library)
            .with_context(|| format!("moving {} to {}", source.display(), library.display()))
    });
    fs::remove_dir_all(&unpacked).with_context(|| format!("removing {}", unpacked.display()))?;
    moved
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn a_dangling_link_and_half_a_copy_are_removed() {
        let dir = std::env::temp_dir().join(format!("shunt-xtask-rust-src-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        let library = dir.join("library");
        symlink(dir.join("gone"), &library).unwrap();
        assert!(!complete(&library));
        remove_remains(&library).unwrap();
        assert!(fs::symlink_metadata(&library).is_err());

        fs::create_dir_all(library.join("core/src")).unwrap();
        fs::write(library.join("core/src/lib.rs"), "").unwrap();
        assert!(!complete(&library), "no Cargo.lock");
        fs::write(library.join("Cargo.lock"), "").unwrap();
        assert!(complete(&library));
        remove_remains(&library).unwrap();
        assert!(!library.exists());
        fs::remove_dir_all(&dir).unwrap();
    }
}
