//! cargo-deny and cargo-audit, which `cargo xtask lint` asks about advisories, installed for this repository alone.

use std::{fs, process::Command};

use anyhow::{Context as _, Result};

use crate::{process, progress::say, workspace::Workspace};

const PROGRAMS: [(&str, &str); 2] = [("cargo-deny", "0.20.2"), ("cargo-audit", "0.22.2")];

pub fn install(workspace: &Workspace) -> Result<()> {
    for (name, version) in PROGRAMS {
        let program = workspace.tools().join("bin").join(name);
        // `cargo-audit audit`, being called as cargo calls it.
        let word = name.trim_start_matches("cargo-");
        let found = process::output(Command::new(&program).args([word, "--version"]))
            .or_else(|_| process::output(Command::new(&program).arg("--version")));
        if found.is_ok_and(|text| text.split_whitespace().any(|it| it == version)) {
            say(name, format_args!("{version} is here"));
            continue;
        }
        say(name, format_args!("compiling {version}, some minutes"));
        let build = workspace.tools().join("build");
        let mut cargo = workspace.cargo();
        cargo.args(["install", name, "--version", version, "--locked", "--force", "--quiet"]);
        cargo.arg("--root").arg(workspace.tools()).arg("--target-dir").arg(&build);
        for name in ["RUSTFLAGS", "CARGO_ENCODED_RUSTFLAGS", "CARGO_BUILD_TARGET", "CARGO_TARGET_DIR"] {
            cargo.env_remove(name);
        }
        process::run(&mut cargo).with_context(|| format!("cargo could not install {name}"))?;
        fs::remove_dir_all(&build).with_context(|| format!("removing {}", build.display()))?;
    }
    Ok(())
}
