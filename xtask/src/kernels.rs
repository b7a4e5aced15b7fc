//! The kernels that the vm tests boot: Debian's cloud kernels, unpacked below target/vm/kernels and never
//! installed. The tests read that directory alone; only this file knows where kernels come from.

use std::{fs, path::Path};

use anyhow::{Context as _, Result, ensure};

use crate::{
    apt::{self, PrivateApt},
    progress::say,
    workspace::Workspace,
};

const SUITES: [&str; 4] = ["bullseye-security", "bookworm-security", "trixie-security", "trixie-backports"];
/// Of each series the newest version that the suites offer; a bare major number is its newest series.
pub const SERIES: [&str; 5] = ["5.10", "6.1", "6.12", "6.18", "7"];
const FLAVOUR: &str = "-cloud-amd64";

/// Makes `target/vm/kernels/SERIES/{release,vmlinuz,modules/}` for every series. What is there is kept:
/// deleting the directory fetches the newest again.
pub fn fetch_all(workspace: &Workspace) -> Result<()> {
    let dir = workspace.target().join("vm/kernels");
    let missing: Vec<&str> = SERIES.into_iter().filter(|series| !complete(&dir.join(series))).collect();
    if missing.is_empty() {
        say("kernels", format_args!("{} are in {}", SERIES.join(", "), dir.display()));
        return Ok(());
    }
    let mirrors = apt::machine_mirrors().context("the vm tests boot Debian's kernels")?;
    say("kernels", format_args!("looking for {}", missing.join(", ")));
    let apt = PrivateApt::new(&workspace.target().join("vm/apt"), &mirrors, &SUITES)?;
    for series in missing {
        fetch(&apt, &dir.join(series), series).with_context(|| format!("fetching kernel {series}"))?;
    }
    Ok(())
}

fn complete(kernel: &Path) -> bool {
    // Written last.
    kernel.join("release").is_file()
}

fn fetch(apt: &PrivateApt, kernel: &Path, series: &str) -> Result<()> {
    let release = newest(&apt.names(&format!("linux-image-{series}."))?)
        .with_context(|| format!("no linux-image-{series}.*{FLAVOUR} in {}", SUITES.join(", ")))?;
    say("kernels", format_args!("unpacking {release}"));
    // Left over from an interrupted run, if it exists.
    let _ = fs::remove_dir_all(kernel);
    let unpacked = kernel.join("unpacked");
    // Since 7.2 Debian splits an image into two packages; the one of the old name holds neither part.
    let split = [format!("linux-binary-{release}"), format!("linux-modules-{release}")];
    let whole = [format!("linux-image-{release}")];
    let is_split = apt.names(&split[0])?.contains(&split[0]);
    for package in if is_split { &split[..] } else { &whole[..] } {
        let candidate = apt.versions(package)?.into_iter().next();
        apt.unpack(&candidate.with_context(|| format!("no version of {package}"))?, &unpacked)?;
    }
    let modules = ["lib/modules", "usr/lib/modules"]
        .map(|dir| unpacked.join(dir).join(&release))
        .into_iter()
        .find(|dir| dir.is_dir())
        .with_context(|| format!("the packages of {release} hold no modules"))?;
    // A split image lies beside its modules.
    let image = [unpacked.join(format!("boot/vmlinuz-{release}")), modules.join("vmlinuz")]
        .into_iter()
        .find(|image| image.is_file())
        .with_context(|| format!("the packages of {release} hold no vmlinuz"))?;
    fs::rename(&image, kernel.join("vmlinuz"))?;
    fs::rename(modules, kernel.join("modules"))?;
    fs::remove_dir_all(&unpacked)?;
    ensure!(kernel.join("modules/kernel").is_dir(), "{} has no modules", kernel.display());
    fs::write(kernel.join("release"), &release)?;
    Ok(())
}

/// The release of the newest image among package names, e.g. `6.12.117+deb13-cloud-amd64`.
fn newest(names: &[String]) -> Option<String> {
    let releases = names.iter().filter_map(|name| name.strip_prefix("linux-image-"));
    releases
        .filter(|release| release.ends_with(FLAVOUR))
        .max_by_key(|release| numbers(release))
        .map(str::to_owned)
}

/// The numbers in a release, to be compared one by one.
fn numbers(release: &str) -> Vec<u64> {
    release
        .trim_end_matches(FLAVOUR)
        .split(|c: char| !c.is_ascii_digit())
        .filter_map(|n| n.parse().ok())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_image_is_found_by_number() {
        let names: Vec<String> = [
            "linux-image-6.12.9+deb13-cloud-amd64",
            "linux-image-6.12.117+deb12-cloud-amd64",
            "linux-image-6.12.117+deb13-cloud-amd64",
            "linux-image-6.12.117+deb13-cloud-amd64-unsigned",
            "linux-image-6.12.200+deb13-rt-amd64",
        ]
        .map(str::to_owned)
        .to_vec();
        assert_eq!(newest(&names).as_deref(), Some("6.12.117+deb13-cloud-amd64"));
        assert!(numbers("6.1.0-56-cloud-amd64") > numbers("6.1.0-9-cloud-amd64"));
        assert_eq!(newest(&[]), None);
    }
}
