//! `cargo xtask image`: the container image, made without an engine: an OCI layout around a static binary.
//!
//! The same tree gives the same digest: no time but that of the commit (or SOURCE_DATE_EPOCH), no path of this machine,
//! no certificate of it either. What is in the image is decided in [`contents`], the format is [`layout`]'s.

mod layout;
mod sbom;

use std::{
    env,
    fs::{self, File},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, ensure};
use base64::{Engine as _, prelude::BASE64_STANDARD};
use object::read::elf::{ElfFile64, ProgramHeader as _};

use self::layout::{Entry, Image};
use crate::{build, process, progress::say, setup, workspace::Workspace};

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Directory for the layout (oci/), the same as one file (shunt.oci.tar), the files in it (root/, for the Containerfile)
    /// and the list of what is inside.
    #[arg(long, value_name = "DIR", default_value = "target/image")]
    output: PathBuf,
    /// What the image shall be called [default: localhost/shunt:VERSION]
    #[arg(long, value_name = "NAME:TAG")]
    name: Option<String>,
    /// Take this statically linked binary instead of building one.
    #[arg(long, value_name = "FILE")]
    binary: Option<PathBuf>,
}

pub fn run(workspace: &Workspace, args: &Args) -> Result<()> {
    let binary = match &args.binary {
        Some(path) => path.clone(),
        None => {
            setup::build(workspace)?;
            build::static_build(workspace, true, &["-p", build::SHUNT])?
        }
    };
    let platform = format!("{}-unknown-linux-gnu", env::consts::ARCH);
    let words = ["metadata", "--format-version=1", "--locked", "--filter-platform", &platform];
    let metadata = process::output(workspace.cargo().args(words))?;
    let version = env!("CARGO_PKG_VERSION");
    let name = args.name.clone().unwrap_or_else(|| format!("localhost/shunt:{version}"));
    let created = created(workspace)?;
    let bill = sbom::cyclone_dx(&serde_json::from_str(&metadata)?, version, created)?;
    let image = Image {
        name,
        created,
        labels: labels(workspace, version, created)?,
        entries: contents(workspace, &binary, &bill)?,
    };
    let output = workspace.root.join(&args.output);
    let oci = output.join("oci");
    if oci.exists() {
        // Blobs of earlier builds would stay.
        fs::remove_dir_all(&oci)?;
    }
    let digest = layout::write(&image, &oci)?;
    fs::write(output.join("shunt.cdx.json"), &bill)?;
    layout::unpack(&image, &output.join("root"))?;
    let archive = output.join("shunt.oci.tar");
    layout::archive(&oci, created, File::create(&archive)?)?;
    say("image", format_args!("{} {digest}", image.name));
    say(
        "image",
        format_args!(
            "{} ({} KiB); skopeo copy oci-archive:..., ctr images import, podman load",
            archive.display(),
            fs::metadata(&archive)?.len() / 1024
        ),
    );
    Ok(())
}

/// The binary, what it is made of, under which licences, and whom it may trust beside a kubeconfig's own authority.
fn contents(workspace: &Workspace, binary: &Path, bill: &[u8]) -> Result<Vec<Entry>> {
    let program = fs::read(binary).with_context(|| format!("reading {}", binary.display()))?;
    let elf = ElfFile64::<object::Endianness>::parse(&*program).context("the binary")?;
    let loader = elf.elf_program_headers().iter().any(|it| it.p_type(elf.endian()) == object::elf::PT_INTERP);
    ensure!(!loader, "{} is not linked statically", binary.display());
    let read = |name: &str| fs::read(workspace.root.join(name)).with_context(|| format!("reading {name}"));
    Ok(vec![
        Entry::file("etc/ssl/certs/ca-certificates.crt", authorities().into_bytes()),
        Entry::program("shunt", program),
        Entry::file("usr/share/doc/shunt/LICENSE-APACHE", read("LICENSE-APACHE")?),
        Entry::file("usr/share/doc/shunt/LICENSE-MIT", read("LICENSE-MIT")?),
        Entry::file("usr/share/doc/shunt/shunt.cdx.json", bill.to_vec()),
    ])
}

/// Mozilla's, as Cargo.lock pins them: for kubeconfigs that name no certificate authority.
fn authorities() -> String {
    let mut text = String::new();
    for certificate in webpki_root_certs::TLS_SERVER_ROOT_CERTS {
        text.push_str("-----BEGIN CERTIFICATE-----\n");
        let encoded = BASE64_STANDARD.encode(certificate);
        for line in encoded.as_bytes().chunks(64) {
            text.push_str(&String::from_utf8_lossy(line));
            text.push('\n');
        }
        text.push_str("-----END CERTIFICATE-----\n");
    }
    text
}

fn git(workspace: &Workspace, words: &[&str]) -> Result<String> {
    Ok(process::output(workspace.command("git").args(words))?.trim().to_owned())
}

/// Unix seconds: SOURCE_DATE_EPOCH, else when the commit was made, which stays the same when it is built again.
fn created(workspace: &Workspace) -> Result<u64> {
    let text = match env::var("SOURCE_DATE_EPOCH") {
        Ok(text) => text,
        Err(_) => git(workspace, &["log", "-1", "--format=%ct"])?,
    };
    text.parse().with_context(|| format!("SOURCE_DATE_EPOCH {text:?} is no number of seconds"))
}

/// The annotations of the image specification.
fn labels(workspace: &Workspace, version: &str, created: u64) -> Result<Vec<(&'static str, String)>> {
    let mut revision = git(workspace, &["rev-parse", "HEAD"])?;
    if !git(workspace, &["status", "--porcelain", "--untracked-files=no"])?.is_empty() {
        revision.push_str("-dirty");
    }
    Ok(vec![
        ("org.opencontainers.image.created", layout::rfc3339(created)),
        ("org.opencontainers.image.description", "A Kubernetes Service proxy on eBPF".into()),
        ("org.opencontainers.image.licenses", "MIT OR Apache-2.0".into()),
        ("org.opencontainers.image.revision", revision),
        ("org.opencontainers.image.title", "shunt".into()),
        ("org.opencontainers.image.version", version.into()),
    ])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn authorities_are_pem() {
        let text = authorities();
        assert!(text.starts_with("-----BEGIN CERTIFICATE-----\nMII"));
        assert!(text.matches("BEGIN").count() > 50);
        assert!(text.lines().all(|line| line.len() <= 64));
    }

    #[test]
    fn the_containerfile_takes_what_this_leaves() {
        let root = Workspace::find().unwrap().root;
        let read = |name: &str| fs::read_to_string(root.join(name)).unwrap();
        assert!(read("Containerfile").contains("\nCOPY target/image/root/ /\n"));
        assert_eq!(read(".containerignore"), "*\n!target/image/root\n");
    }

    #[test]
    fn a_binary_that_needs_a_loader_is_refused() {
        let workspace = Workspace::find().unwrap();
        let error = contents(&workspace, Path::new("/proc/self/exe"), b"").err().expect("refused");
        assert!(error.to_string().contains("not linked statically"), "{error:#}");
    }
}
