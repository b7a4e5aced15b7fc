//! An OCI image layout: a layer, a configuration, a manifest, an index, each named by what it holds.
//!
//! Four small documents of the image specification (v1.1), written here: the crates that know them bring thirty more
//! into every build of xtask. `skopeo inspect` and `umoci` read what comes of it.

use std::{
    fs::{self, Permissions},
    io::Write,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use flate2::{Compression, GzBuilder};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

/// What an image is made of.
pub struct Image {
    pub name: String,
    /// Unix seconds.
    pub created: u64,
    pub labels: Vec<(&'static str, String)>,
    /// In the order in which the layer shall have them.
    pub entries: Vec<Entry>,
}

/// A file of the layer.
pub struct Entry {
    path: &'static str,
    mode: u32,
    content: Vec<u8>,
}

impl Entry {
    pub fn file(path: &'static str, content: Vec<u8>) -> Self {
        Self { path, mode: 0o644, content }
    }

    pub fn program(path: &'static str, content: Vec<u8>) -> Self {
        Self { path, mode: 0o755, content }
    }
}

/// Writes the layer's files below `dir`, which begins anew: for engines that copy them.
pub fn unpack(image: &Image, dir: &Path) -> Result<()> {
    if dir.exists() {
        fs::remove_dir_all(dir)?;
    }
    for entry in &image.entries {
        let path = dir.join(entry.path);
        fs::create_dir_all(path.parent().context("a file lies in a directory")?)?;
        fs::write(&path, &entry.content).with_context(|| format!("writing {}", path.display()))?;
        fs::set_permissions(&path, Permissions::from_mode(entry.mode))?;
    }
    Ok(())
}

/// Writes the layout into a new directory; returns the manifest's digest, which is the image's.
pub fn write(image: &Image, dir: &Path) -> Result<String> {
    let blobs = dir.join("blobs/sha256");
    fs::create_dir_all(&blobs).with_context(|| format!("making {}", blobs.display()))?;
    let blob = |content: &[u8]| -> Result<String> {
        let hash = sha256(content);
        fs::write(blobs.join(&hash), content)?;
        Ok(format!("sha256:{hash}"))
    };
    let described = |media_type: &str, content: &[u8]| -> Result<Value> {
        Ok(json!({"mediaType": media_type, "digest": blob(content)?, "size": content.len()}))
    };
    let tar = layer(image)?;
    // No name and no time in the header of gzip.
    let mut gzip = GzBuilder::new().write(Vec::new(), Compression::best());
    gzip.write_all(&tar)?;
    let layer = described("application/vnd.oci.image.layer.v1.tar+gzip", &gzip.finish()?)?;

    let labels: Value = image.labels.iter().map(|(name, value)| ((*name).to_owned(), json!(value))).collect();
    let created = rfc3339(image.created);
    let config = json!({
        "created": created,
        "architecture": architecture(),
        "os": "linux",
        "config": {
            "User": "0:0",
            "Env": ["PATH=/"],
            "Entrypoint": ["/shunt"],
            "Labels": labels,
        },
        "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{}", sha256(&tar))]},
        "history": [{"created": created, "created_by": "cargo xtask image"}],
    });
    let config = described("application/vnd.oci.image.config.v1+json", config.to_string().as_bytes())?;
    let media_type = "application/vnd.oci.image.manifest.v1+json";
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": media_type,
        "config": config,
        "layers": [layer],
        "annotations": labels,
    });
    let mut manifest = described(media_type, manifest.to_string().as_bytes())?;
    let digest = manifest["digest"].as_str().unwrap_or_default().to_owned();
    let tag = image.name.rsplit_once(':').map_or("latest", |(_, tag)| tag);
    manifest["annotations"] =
        json!({"org.opencontainers.image.ref.name": tag, "io.containerd.image.name": image.name});
    manifest["platform"] = json!({"architecture": architecture(), "os": "linux"});
    let index = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": [manifest],
    });
    fs::write(dir.join("index.json"), index.to_string())?;
    fs::write(dir.join("oci-layout"), json!({"imageLayoutVersion": "1.0.0"}).to_string())?;
    Ok(digest)
}

/// The layout as one file.
pub fn archive(dir: &Path, created: u64, out: impl Write) -> Result<()> {
    let mut tar = tar::Builder::new(out);
    let mut names: Vec<PathBuf> = ["oci-layout", "index.json"].map(PathBuf::from).into();
    let mut blobs = fs::read_dir(dir.join("blobs/sha256"))?
        .map(|entry| Ok(Path::new("blobs/sha256").join(entry?.file_name())))
        .collect::<Result<Vec<_>>>()?;
    blobs.sort();
    names.extend(blobs);
    for name in names {
        append(&mut tar, &name, 0o644, created, &fs::read(dir.join(&name))?)?;
    }
    tar.finish()?;
    Ok(())
}

/// As Go, and so the image specification, calls them.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

fn layer(image: &Image) -> Result<Vec<u8>> {
    let mut tar = tar::Builder::new(Vec::new());
    let mut made: Vec<&Path> = Vec::new();
    for entry in &image.entries {
        let parents: Vec<&Path> = Path::new(entry.path).ancestors().skip(1).collect();
        for parent in parents.into_iter().rev().filter(|parent| !parent.as_os_str().is_empty()) {
            if !made.contains(&parent) {
                made.push(parent);
                let mut header = header(0o755, image.created, 0);
                header.set_entry_type(tar::EntryType::Directory);
                tar.append_data(&mut header, parent.join(""), std::io::empty())?;
            }
        }
        append(&mut tar, Path::new(entry.path), entry.mode, image.created, &entry.content)?;
    }
    Ok(tar.into_inner()?)
}

fn append(
    tar: &mut tar::Builder<impl Write>,
    path: &Path,
    mode: u32,
    time: u64,
    content: &[u8],
) -> Result<()> {
    Ok(tar.append_data(&mut header(mode, time, content.len()), path, content)?)
}

/// Root's, and of this time.
fn header(mode: u32, time: u64, size: usize) -> tar::Header {
    let mut header = tar::Header::new_ustar();
    header.set_mode(mode);
    header.set_mtime(time);
    header.set_size(size as u64);
    header.set_uid(0);
    header.set_gid(0);
    header
}

fn sha256(content: &[u8]) -> String {
    Sha256::digest(content).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// `2026-11-24T03:00:00Z`; days to a date after the proleptic Gregorian calendar, whose years begin in March here.
pub fn rfc3339(seconds: u64) -> String {
    let (days, rest) = (seconds / 86_400, seconds % 86_400);
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    format!("{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}Z", rest / 3600, rest / 60 % 60, rest % 60)
}

#[cfg(test)]
mod tests {
    use std::{env, io::Read as _};

    use super::*;

    fn image() -> Image {
        Image {
            name: "registry.example/shunt:1".into(),
            created: 1_700_000_000,
            labels: vec![("org.opencontainers.image.title", "shunt".into())],
            entries: vec![
                Entry::file("etc/ssl/cert", b"a".to_vec()),
                Entry::file("etc/ssl/more", b"b".to_vec()),
                Entry::program("shunt", vec![7; 3000]),
            ],
        }
    }

    fn written<T>(look: impl FnOnce(&Path, &str) -> T) -> T {
        let dir = env::temp_dir().join(format!(
            "xtask-image-{}-{:?}",
            std::process::id(),
            std::thread::current().id()
        ));
        let _ = fs::remove_dir_all(&dir);
        let digest = write(&image(), &dir).unwrap();
        let result = look(&dir, &digest);
        fs::remove_dir_all(&dir).unwrap();
        result
    }

    fn read(dir: &Path, described: &Value) -> Vec<u8> {
        let digest = described["digest"].as_str().unwrap().strip_prefix("sha256:").unwrap();
        let content = fs::read(dir.join("blobs/sha256").join(digest)).unwrap();
        assert_eq!(sha256(&content), digest);
        assert_eq!(described["size"], content.len());
        content
    }

    #[test]
    fn everything_leads_from_the_index_to_the_files() {
        written(|dir, digest| {
            let index: Value = serde_json::from_slice(&fs::read(dir.join("index.json")).unwrap()).unwrap();
            let described = &index["manifests"][0];
            assert_eq!(described["digest"], digest);
            assert_eq!(described["annotations"]["org.opencontainers.image.ref.name"], "1");
            let manifest: Value = serde_json::from_slice(&read(dir, described)).unwrap();
            let config: Value = serde_json::from_slice(&read(dir, &manifest["config"])).unwrap();
            assert_eq!(config["config"]["Entrypoint"], json!(["/shunt"]));
            assert_eq!(config["config"]["Labels"]["org.opencontainers.image.title"], "shunt");
            let mut layer = Vec::new();
            flate2::read::GzDecoder::new(&*read(dir, &manifest["layers"][0]))
                .read_to_end(&mut layer)
                .unwrap();
            assert_eq!(config["rootfs"]["diff_ids"][0], format!("sha256:{}", sha256(&layer)));
            let mut archive = tar::Archive::new(&*layer);
            let files: Vec<_> = archive
                .entries()
                .unwrap()
                .map(|entry| {
                    let entry = entry.unwrap();
                    let header = entry.header();
                    assert_eq!((header.uid().unwrap(), header.mtime().unwrap()), (0, 1_700_000_000));
                    (entry.path().unwrap().display().to_string(), header.mode().unwrap(), entry.size())
                })
                .collect();
            let want = [
                ("etc/", 0o755, 0),
                ("etc/ssl/", 0o755, 0),
                ("etc/ssl/cert", 0o644, 1),
                ("etc/ssl/more", 0o644, 1),
                ("shunt", 0o755, 3000),
            ];
            assert_eq!(files, want.map(|(path, mode, size)| (path.to_owned(), mode, size)));
        });
    }

    #[test]
    fn the_same_again_is_the_same() {
        let once = || {
            written(|dir, digest| {
                let mut out = Vec::new();
                archive(dir, 5, &mut out).unwrap();
                (digest.to_owned(), sha256(&out))
            })
        };
        assert_eq!(once(), once());
    }

    #[test]
    fn dates_are_gregorian() {
        assert_eq!(rfc3339(0), "1970-01-01T00:00:00Z");
        assert_eq!(rfc3339(951_782_399), "2000-02-28T23:59:59Z");
        assert_eq!(rfc3339(951_782_400), "2000-02-29T00:00:00Z");
        assert_eq!(rfc3339(1_700_000_000), "2023-11-14T22:13:20Z");
    }
}
