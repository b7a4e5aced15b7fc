//! A private apt configuration: packages of suites that this machine does not use, from the mirror it does
//! use, without touching the system's sources, lists or packages.
//!
//! Debian is where rust-src comes from when rustup's server is out of reach, and where the kernels of the vm
//! tests and their qemu come from.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail, ensure};

use crate::process;

const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// apt with lists, cache and sources of its own.
#[derive(Debug)]
pub struct PrivateApt {
    dir: PathBuf,
}

/// The mirrors a machine's own apt sources name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mirrors {
    pub main: String,
    pub security: String,
}

/// A package that can be downloaded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate {
    pub package: String,
    pub version: String,
    pub suite: String,
}

impl PrivateApt {
    /// Writes the configuration under `dir` and fetches the package lists of `suites`.
    pub fn new(dir: &Path, mirrors: &Mirrors, suites: &[&str]) -> Result<Self> {
        for sub in ["lists/partial", "cache/archives/partial"] {
            fs::create_dir_all(dir.join(sub))
                .with_context(|| format!("creating {}", dir.join(sub).display()))?;
        }
        fs::write(dir.join("status"), "")?;
        fs::write(dir.join("sources.list"), sources(mirrors, suites, Path::new(KEYRING).exists()))?;
        let apt = Self { dir: dir.to_path_buf() };
        process::run(apt.command("apt-get").args(["-q", "-q", "update"])).with_context(|| {
            format!("fetching the package lists of {} from {}", suites.join(", "), mirrors.main)
        })?;
        Ok(apt)
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        let dir = self.dir.display();
        for option in [
            format!("Dir::Etc::sourcelist={dir}/sources.list"),
            "Dir::Etc::sourceparts=/dev/null".to_owned(),
            format!("Dir::State::lists={dir}/lists"),
            format!("Dir::State::status={dir}/status"),
            format!("Dir::Cache={dir}/cache"),
            // Suites that left support keep their last Release file, and mirrors may be frozen; the
            // signature is checked all the same.
            "Acquire::Check-Valid-Until=false".to_owned(),
            "Acquire::Languages=none".to_owned(),
            "Acquire::IndexTargets::deb::DEP-11::DefaultEnabled=false".to_owned(),
            "Acquire::Retries=3".to_owned(),
            "Acquire::http::Timeout=30".to_owned(),
            // The directory may lie where the user _apt cannot read.
            "APT::Sandbox::User=root".to_owned(),
        ] {
            command.args(["-o", &option]);
        }
        command.env("LC_ALL", "C");
        command
    }

    /// Every version of a package that the suites offer, best first.
    pub fn versions(&self, package: &str) -> Result<Vec<Candidate>> {
        Ok(madison(&process::output(self.command("apt-cache").args(["madison", package]))?))
    }

    /// The names of all packages that begin with `prefix`.
    pub fn names(&self, prefix: &str) -> Result<Vec<String>> {
        let text = process::output(self.command("apt-cache").args(["pkgnames", prefix]))?;
        Ok(text.lines().map(str::to_owned).collect())
    }

    /// Downloads one package and unpacks its files below `into`; nothing is installed.
    pub fn unpack(&self, candidate: &Candidate, into: &Path) -> Result<()> {
        let downloads = self.dir.join("download");
        // Left over from an interrupted run, if it exists.
        let _ = fs::remove_dir_all(&downloads);
        fs::create_dir_all(&downloads)?;
        let name = format!("{}={}", candidate.package, candidate.version);
        process::run(self.command("apt-get").args(["-q", "-q", "download", &name]).current_dir(&downloads))?;
        let deb =
            fs::read_dir(&downloads)?.next().with_context(|| format!("apt-get downloaded no {name}"))??;
        fs::create_dir_all(into)?;
        process::run(Command::new("dpkg-deb").arg("-x").arg(deb.path()).arg(into))?;
        fs::remove_dir_all(&downloads)?;
        Ok(())
    }

    /// Downloads a package with those of its dependencies that this machine lacks and unpacks all files below `into`;
    /// nothing is installed, and what would conflict with an installed package is no obstacle.
    pub fn unpack_with_dependencies(&self, package: &str, into: &Path) -> Result<()> {
        let archives = self.dir.join("cache/archives");
        fs::copy("/var/lib/dpkg/status", self.dir.join("status")).context("copying dpkg's status")?;
        let log = self.dir.join("apt.log");
        let mut command = self.command("apt-get");
        // It takes dpkg's lock, and so wants root, also where it installs nothing.
        command.args(["-o", "Debug::NoLocking=true", "-q", "-y", "--download-only"]);
        process::run_logged(command.args(["install", "--no-install-recommends", package]), &log)?;
        fs::create_dir_all(into)?;
        for entry in fs::read_dir(&archives)? {
            let file = entry?.path();
            if file.extension().is_some_and(|extension| extension == "deb") {
                process::run(Command::new("dpkg-deb").arg("-x").arg(&file).arg(into))?;
                fs::remove_file(&file)?;
            }
        }
        Ok(())
    }
}

/// The mirrors of this machine's Debian sources.
pub fn machine_mirrors() -> Result<Mirrors> {
    ensure!(
        process::which("apt-get").is_some() && process::which("dpkg-deb").is_some(),
        "this machine has no apt; only Debian and its derivatives do"
    );
    let mut lines = Vec::new();
    let mut files: Vec<PathBuf> = vec!["/etc/apt/sources.list".into()];
    if let Ok(parts) = fs::read_dir("/etc/apt/sources.list.d") {
        let mut parts: Vec<PathBuf> = parts.filter_map(|entry| Some(entry.ok()?.path())).collect();
        parts.sort();
        files.extend(parts);
    }
    for file in files {
        let Ok(text) = fs::read_to_string(&file) else { continue };
        match file.extension().and_then(|extension| extension.to_str()) {
            Some("list") => lines.extend(text.lines().filter_map(one_line)),
            Some("sources") => lines.extend(deb822(&text)),
            _ => {}
        }
    }
    mirrors(&lines).context("no apt source of this machine names a Debian suite")
}

/// One mirror and one of the suites it is used for.
type Source = (String, Vec<String>);

/// `deb [options] URI SUITE COMPONENT...`
fn one_line(line: &str) -> Option<Source> {
    let rest = line.trim().strip_prefix("deb ")?.trim_start();
    let rest = match rest.strip_prefix('[') {
        Some(options) => options.split_once(']')?.1,
        None => rest,
    };
    let mut words = rest.split_whitespace();
    Some((words.next()?.to_owned(), vec![words.next()?.to_owned()]))
}

/// The stanzas of a deb822 *.sources file.
fn deb822(text: &str) -> Vec<Source> {
    let mut found = Vec::new();
    for stanza in text.replace("\r\n", "\n").split("\n\n") {
        let field = |name: &str| {
            stanza.lines().filter(|line| !line.starts_with('#')).find_map(|line| {
                let (key, value) = line.split_once(':')?;
                key.eq_ignore_ascii_case(name).then(|| value.trim().to_owned())
            })
        };
        let enabled = field("Enabled").is_none_or(|value| value != "no");
        let binary = field("Types").is_some_and(|types| types.split_whitespace().any(|kind| kind == "deb"));
        if let (true, true, Some(uris), Some(suites)) = (enabled, binary, field("URIs"), field("Suites")) {
            let suites: Vec<String> = suites.split_whitespace().map(str::to_owned).collect();
            found.extend(uris.split_whitespace().map(|uri| (uri.to_owned(), suites.clone())));
        }
    }
    found
}

const CODENAMES: [&str; 9] =
    ["bullseye", "bookworm", "trixie", "forky", "sid", "stable", "oldstable", "testing", "unstable"];

fn mirrors(sources: &[Source]) -> Option<Mirrors> {
    let find = |want: fn(&str) -> bool| {
        sources.iter().find(|(_, suites)| suites.iter().any(|suite| want(suite))).map(|(uri, _)| uri.clone())
    };
    let main = find(|suite| {
        let base = suite.trim_end_matches("-updates").trim_end_matches("-backports");
        CODENAMES.contains(&base)
    })?;
    let security = find(|suite| {
        let base = suite.trim_end_matches("/updates");
        base.strip_suffix("-security").is_some_and(|base| CODENAMES.contains(&base))
    })
    // Mirrors that carry security updates keep them beside the archive.
    .unwrap_or_else(|| format!("{}-security", main.trim_end_matches('/')));
    Some(Mirrors { main, security })
}

fn sources(mirrors: &Mirrors, suites: &[&str], keyring: bool) -> String {
    let options = if keyring { format!("[signed-by={KEYRING}] ") } else { String::new() };
    let line = |suite: &&str| {
        let uri = if suite.ends_with("-security") { &mirrors.security } else { &mirrors.main };
        format!("deb {options}{uri} {suite} main\n")
    };
    suites.iter().map(line).collect()
}

/// Lines of `apt-cache madison`: ` rust-src | 1.95.0+dfsg1-2 | http://mirror suite/main amd64 Packages`.
fn madison(text: &str) -> Vec<Candidate> {
    let line = |line: &str| {
        let mut fields = line.split('|').map(str::trim);
        let (package, version, source) = (fields.next()?, fields.next()?, fields.next()?);
        let suite = source.split_whitespace().nth(1)?.split('/').next()?;
        source.ends_with("Packages").then(|| Candidate {
            package: package.to_owned(),
            version: version.to_owned(),
            suite: suite.to_owned(),
        })
    };
    text.lines().filter_map(line).collect()
}

/// The upstream part of a Debian version: `1:1.95.0+dfsg1-2~bpo13+1` is a packaging of `1.95.0`.
pub fn upstream(version: &str) -> &str {
    let version = version.split_once(':').map_or(version, |(_, rest)| rest);
    let version = version.rsplit_once('-').map_or(version, |(upstream, _)| upstream);
    version.split("+dfsg").next().unwrap_or(version).split("+ds").next().unwrap_or(version)
}

/// Picks the packaging of exactly this upstream version.
pub fn exactly(candidates: Vec<Candidate>, wanted: &str) -> Result<Candidate> {
    let offered: Vec<String> = candidates.iter().map(|c| format!("{} ({})", c.version, c.suite)).collect();
    match candidates.into_iter().find(|candidate| upstream(&candidate.version) == wanted) {
        Some(candidate) => Ok(candidate),
        None if offered.is_empty() => bail!("the suites offer no such package"),
        None => bail!("no package of version {wanted}; there are {}", offered.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_of_sources_name_the_mirrors() {
        let text = "Types: deb\n# http://snapshot/\nURIs: http://m.example/debian\nSuites: bookworm bookworm-updates\n\n\
                    Types: deb\nURIs: http://s.example/debian-security\nSuites: bookworm-security\n\n\
                    Types: deb-src\nURIs: http://src.example/debian\nSuites: sid\n";
        let want = Mirrors {
            main: "http://m.example/debian".into(),
            security: "http://s.example/debian-security".into(),
        };
        assert_eq!(mirrors(&deb822(text)), Some(want.clone()));
        let list = "# deb http://old/ bookworm main\n\
                    deb https://packages.example.com/apt cloud-sdk-bookworm main\n\
                    deb [arch=amd64 signed-by=/k.gpg] http://m.example/debian trixie main contrib\n\
                    deb http://s.example/debian-security trixie-security main\n";
        let lines: Vec<Source> = list.lines().filter_map(one_line).collect();
        assert_eq!(mirrors(&lines), Some(want));
    }

    #[test]
    fn security_is_guessed_beside_the_archive_and_foreign_sources_are_none() {
        let lines = vec![("http://m.example/debian/".to_owned(), vec!["trixie".to_owned()])];
        assert_eq!(mirrors(&lines).unwrap().security, "http://m.example/debian-security");
        let foreign = vec![("https://node.example/".to_owned(), vec!["nodistro".to_owned()])];
        assert_eq!(mirrors(&foreign), None);
    }

    #[test]
    fn security_suites_get_the_security_mirror() {
        let mirrors = Mirrors { main: "http://m/debian".into(), security: "http://s/sec".into() };
        let text = sources(&mirrors, &["trixie-backports", "trixie-security"], false);
        assert_eq!(
            text,
            "deb http://m/debian trixie-backports main\ndeb http://s/sec trixie-security main\n"
        );
    }

    #[test]
    fn a_version_is_picked_by_its_upstream_part() {
        let text = " rust-src | 1.96.1+dfsg1-2~bpo13+1 | http://m/debian trixie-backports/main amd64 Packages\n \
                    rust-src | 1.95.0+dfsg1-2~bpo13+1 | http://m/debian trixie-backports/main amd64 Packages\n \
                    rustc | 1.95.0+dfsg1-2 | http://m/debian trixie-backports/main Sources\n";
        let found = madison(text);
        assert_eq!(found.len(), 2);
        let picked = exactly(found.clone(), "1.95.0").unwrap();
        assert_eq!(
            (picked.version.as_str(), picked.suite.as_str()),
            ("1.95.0+dfsg1-2~bpo13+1", "trixie-backports")
        );
        let error = exactly(found, "1.94.0").unwrap_err().to_string();
        assert!(error.contains("1.96.1"), "{error}");
        assert_eq!(upstream("2:7.0.4-1"), "7.0.4");
    }
}
