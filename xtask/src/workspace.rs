//! Where things are in this repository, and how its cargo is called.

use std::{
    env,
    ffi::OsString,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result};

/// The repository this xtask was started in.
#[derive(Clone, Debug)]
pub struct Workspace {
    pub root: PathBuf,
    /// The channel of rust-toolchain.toml, e.g. `1.95.0`: one toolchain builds everything.
    pub toolchain: String,
}

impl Workspace {
    pub fn find() -> Result<Self> {
        // Set by `cargo run`; the path at compile time serves a binary started by hand.
        let manifest_dir = env::var_os("CARGO_MANIFEST_DIR")
            .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")), PathBuf::from);
        let root = manifest_dir.parent().context("xtask's directory has no parent")?.to_path_buf();
        let file = root.join("rust-toolchain.toml");
        let text = fs::read_to_string(&file).with_context(|| format!("reading {}", file.display()))?;
        let toolchain =
            channel(&text).with_context(|| format!("{} names no channel", file.display()))?.to_owned();
        Ok(Self { root, toolchain })
    }

    /// Cargo's target directory.
    pub fn target(&self) -> PathBuf {
        env::var_os("CARGO_TARGET_DIR").map_or_else(|| self.root.join("target"), |dir| self.root.join(dir))
    }

    /// The tools that setup installs. proxy-userspace's build script looks for bpf-linker in its bin/, so it
    /// does not move with CARGO_TARGET_DIR.
    pub fn tools(&self) -> PathBuf {
        self.root.join("target/tools")
    }

    /// PATH with the programs of the system's administrator, which a user's may lack, and those below target/tools.
    pub fn path(&self) -> Result<OsString> {
        let given = env::var_os("PATH").unwrap_or_default();
        let more = ["/usr/local/sbin", "/usr/sbin", "/sbin"].map(PathBuf::from);
        let all = env::split_paths(&given).chain(more).chain([self.tools().join("bin")]);
        env::join_paths(all).context("a directory of PATH has a colon in its name")
    }

    /// A program of a profile's output directory.
    pub fn binary(&self, profile: &str, name: &str) -> PathBuf {
        self.target().join(profile).join(name)
    }

    /// A command that runs in the repository with the pinned toolchain.
    pub fn command(&self, program: impl AsRef<Path>) -> Command {
        let mut command = Command::new(program.as_ref());
        command.current_dir(&self.root).env("RUSTUP_TOOLCHAIN", &self.toolchain);
        // `cargo run` sets these for xtask itself; a nested cargo must not take them for its own.
        for name in ["CARGO_MANIFEST_DIR", "CARGO_PKG_NAME", "CARGO_PKG_VERSION", "RUSTC_BOOTSTRAP"] {
            command.env_remove(name);
        }
        command
    }

    pub fn cargo(&self) -> Command {
        self.command("cargo")
    }
}

/// `channel = "X"` of a rust-toolchain.toml.
fn channel(text: &str) -> Option<&str> {
    text.lines()
        .filter_map(|line| line.trim().strip_prefix("channel"))
        .filter_map(|rest| rest.trim_start().strip_prefix('='))
        .map(|value| value.trim().trim_matches('"'))
        .next()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn channel_is_read_from_the_toolchain_file() {
        assert_eq!(
            channel("# why\n[toolchain]\nchannel = \"1.95.0\"\nprofile = \"minimal\"\n"),
            Some("1.95.0")
        );
        assert_eq!(channel("[toolchain]\nprofile = \"minimal\"\n"), None);
    }

    #[test]
    fn this_repository_names_its_toolchain() {
        let workspace = Workspace::find().unwrap();
        assert!(workspace.root.join("proxy-common").is_dir());
        assert!(!workspace.toolchain.is_empty());
    }
}
