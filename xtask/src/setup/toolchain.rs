//! The pinned toolchain itself: rustup installs it; where its server is out of reach, an installed toolchain
//! of the same version serves under the pinned name.

use std::{fs, os::unix::fs::symlink, path::PathBuf, time::Duration};

use anyhow::{Context as _, Result, bail};

use crate::{process, progress::say, workspace::Workspace};

pub fn install(workspace: &Workspace) -> Result<()> {
    let pinned = &workspace.toolchain;
    if let Ok(version) = process::output(workspace.command("rustc").arg("--version")) {
        // Without rustup RUSTUP_TOOLCHAIN means nothing and any rustc may answer.
        if version.split_whitespace().nth(1) != Some(pinned) {
            bail!(
                "rustc here is `{}`, this workspace needs {pinned}: install it with rustup",
                version.trim()
            );
        }
        say("toolchain", format_args!("{} is installed", version.trim()));
        return Ok(());
    }
    say("toolchain", format_args!("installing {pinned} with rustup"));
    let mut rustup = workspace.command("rustup");
    rustup.args(["toolchain", "install", pinned, "--profile", "minimal", "-c", "rustfmt", "-c", "clippy"]);
    let Err(refused) = process::run_for(&mut rustup, Duration::from_secs(300)) else { return Ok(()) };
    say("toolchain", format_args!("{refused:#}; looking for an installed {pinned}"));
    link_same_version(workspace).with_context(|| format!("rust {pinned} is needed: {refused:#}"))
}

/// Gives an installed toolchain of the same version (usually `stable`) the pinned name.
fn link_same_version(workspace: &Workspace) -> Result<()> {
    let home = process::output(workspace.command("rustup").args(["show", "home"]))?;
    let toolchains = PathBuf::from(home.trim()).join("toolchains");
    for entry in fs::read_dir(&toolchains).with_context(|| format!("reading {}", toolchains.display()))? {
        let dir = entry?.path();
        let version =
            process::output(workspace.command(dir.join("bin/rustc")).arg("-vV")).unwrap_or_default();
        let field = |name: &str| version.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
        if field("release:") == Some(&workspace.toolchain)
            && let Some(host) = field("host:")
        {
            let link = toolchains.join(format!("{}-{host}", workspace.toolchain));
            say("toolchain", format_args!("linking {} to {}", link.display(), dir.display()));
            symlink(&dir, &link)?;
            return Ok(());
        }
    }
    bail!("no toolchain below {} is of that version", toolchains.display());
}
