//! The qemu of the vm tests. Where the machine has none it is unpacked below target/tools, like the kernels, and not
//! installed: Debian's qemu packages of different suites exclude each other, and an installation would have to remove
//! what is there (seen: qemu-system-x86 of bookworm removes qemu-utils of bookworm-backports). It needs no root either.

use std::{fs, os::unix::fs::PermissionsExt as _, process::Command};

use anyhow::{Context as _, Result, ensure};

use crate::{
    apt::{self, PrivateApt},
    process,
    progress::say,
    workspace::Workspace,
};

const PROGRAM: &str = "qemu-system-x86_64";
const PACKAGE: &str = "qemu-system-x86";

/// Makes [`PROGRAM`] callable from [`Workspace::path`].
pub fn fetch(workspace: &Workspace) -> Result<()> {
    let (root, wrapper) = (workspace.tools().join("qemu"), workspace.tools().join("bin").join(PROGRAM));
    // The wrapper is written last.
    if process::which(PROGRAM).is_some() || wrapper.is_file() {
        return Ok(());
    }
    let missing = || format!("the vm tests boot kernels under {PROGRAM}, Debian's package {PACKAGE}");
    let mirrors = apt::machine_mirrors().with_context(missing)?;
    let release =
        fs::read_to_string("/etc/os-release").context("reading /etc/os-release").with_context(missing)?;
    let codename =
        codename(&release).context("/etc/os-release has no VERSION_CODENAME").with_context(missing)?;
    say("qemu", format_args!("unpacking {PACKAGE} of {codename} in {}", root.display()));
    let suites = [codename.to_owned(), format!("{codename}-security")];
    let suites: Vec<&str> = suites.iter().map(String::as_str).collect();
    let apt =
        PrivateApt::new(&workspace.tools().join("qemu-apt"), &mirrors, &suites).with_context(missing)?;
    // Left over from an interrupted run, if it exists.
    let _ = fs::remove_dir_all(&root);
    apt.unpack_with_dependencies(PACKAGE, &root).with_context(missing)?;
    if let Some(bin) = wrapper.parent() {
        fs::create_dir_all(bin)?;
    }
    let unfinished = wrapper.with_extension("new");
    fs::write(&unfinished, script())?;
    fs::set_permissions(&unfinished, fs::Permissions::from_mode(0o755))?;
    let version = process::output(Command::new(&unfinished).arg("--version"))
        .with_context(|| format!("{PACKAGE} was unpacked in {}, but does not run", root.display()))?;
    ensure!(version.contains("QEMU"), "{} is no qemu: {version}", unfinished.display());
    fs::rename(&unfinished, &wrapper)?;
    Ok(())
}

/// Starts the unpacked program with the libraries and the firmware that were unpacked beside it.
fn script() -> String {
    let arch = std::env::consts::ARCH;
    format!(
        "#!/bin/sh\n\
         root=$(dirname \"$0\")/../qemu\n\
         LD_LIBRARY_PATH=$root/usr/lib/{arch}-linux-gnu:$root/lib/{arch}-linux-gnu\n\
         export LD_LIBRARY_PATH\n\
         exec \"$root/usr/bin/{PROGRAM}\" -L \"$root/usr/share/qemu\" -L \"$root/usr/share/seabios\" \"$@\"\n"
    )
}

/// `VERSION_CODENAME=bookworm`, with or without quotes.
fn codename(os_release: &str) -> Option<&str> {
    let value = os_release.lines().find_map(|line| line.strip_prefix("VERSION_CODENAME="))?;
    Some(value.trim().trim_matches('"')).filter(|value| !value.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_release_is_read_in_both_spellings() {
        assert_eq!(codename("ID=debian\nVERSION_CODENAME=bookworm\n"), Some("bookworm"));
        assert_eq!(codename("VERSION_CODENAME=\"trixie\"\n"), Some("trixie"));
        assert_eq!((codename("ID=debian\n"), codename("VERSION_CODENAME=\n")), (None, None));
    }
}
