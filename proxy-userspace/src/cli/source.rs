//! What is meant by `--manifests`, `--kubeconfig` and `--server`, and which cluster without any of them. Looks
//! whether files exist and reads none; called by [`super::resolve`].

use std::{fs, net::Ipv6Addr, path::PathBuf};

use super::{
    args::RunArgs,
    resolve::{Surroundings, UsageError},
};
use crate::config::{Cluster, Origin, Source};

/// The port of an API server that was named without one.
const API_PORT: u16 = 6443;

/// Manifests or an API server; without a word about either, whatever cluster there is.
pub fn source(args: &RunArgs, around: &Surroundings) -> Result<Source, UsageError> {
    if let Some(path) = &args.manifests {
        let reason = match fs::metadata(path) {
            Ok(found) if found.is_dir() => return Ok(Source::Manifests(path.clone())),
            Ok(_) => "is not a directory",
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => "does not exist",
            Err(_) => "cannot be read",
        };
        return Err(UsageError::Manifests { path: path.clone(), reason });
    }
    let origin = origin(args, around).ok_or(UsageError::NoSource)?;
    let paths = match &origin {
        Origin::Flag(path) | Origin::ConfigFile(path) | Origin::Home(path) => std::slice::from_ref(path),
        Origin::Environment(paths) => paths,
        Origin::InCluster => &[],
    };
    for path in paths {
        let reason = match fs::metadata(path) {
            Ok(found) if found.is_dir() => "is a directory".to_owned(),
            Ok(_) => continue,
            Err(error) => error.to_string(),
        };
        return Err(UsageError::Kubeconfig { path: path.clone(), origin, reason });
    }
    let named = args.servers.iter().map(|text| text.trim()).filter(|text| !text.is_empty());
    let servers = named.map(server).collect::<Result<Vec<_>, _>>()?;
    // kube-proxy's manifests may say `--master=` beside a kubeconfig, which has an address. In a pod there would be the
    // ClusterIP that this agent is to serve.
    if servers.is_empty() && !args.servers.is_empty() && origin == Origin::InCluster {
        return Err(UsageError::EmptyServer);
    }
    Ok(Source::Cluster(Cluster { origin, servers, watch_list: args.watch_list }))
}

/// A flag goes before the file of `--config`, and that before what lies about.
fn origin(args: &RunArgs, around: &Surroundings) -> Option<Origin> {
    if let Some(path) = &args.kubeconfig {
        return Some(Origin::Flag(path.to_owned()));
    }
    if let Some(path) = &args.configured_kubeconfig {
        return Some(Origin::ConfigFile(path.to_owned()));
    }
    if let Some(list) = &around.kubeconfig {
        let mut paths: Vec<PathBuf> =
            std::env::split_paths(list).filter(|path| !path.as_os_str().is_empty()).collect();
        // As kubectl does it: of several, those that are there count.
        if paths.iter().any(|path| path.exists()) {
            paths.retain(|path| path.exists());
        }
        return Some(Origin::Environment(paths));
    }
    let home = around.home_kubeconfig.clone().map(Origin::Home);
    home.or_else(|| around.has_service_account.then_some(Origin::InCluster))
}

/// `https://HOST:PORT`, with a path where there is one (Rancher's), or as much of it as was typed.
fn server(given: &str) -> Result<String, UsageError> {
    let bad = |expected| UsageError::BadValue { flag: "--server", value: given.to_owned(), expected };
    let no_address = || bad("the address of an API server, as in https://192.168.8.201:6443");
    let (scheme, rest) = given.split_once("://").unwrap_or(("https", given));
    let (host, path) = rest.find('/').map_or((rest, ""), |at| rest.split_at(at));
    let path = path.trim_end_matches('/');
    let is_typed_whole = given.contains("://");
    let is_bare = host.matches(':').nth(1).is_some() && !host.starts_with('[');
    // Its last part may be meant for the port; alone, the whole is an address.
    if is_bare && (is_typed_whole || !path.is_empty() || host.parse::<Ipv6Addr>().is_err()) {
        return Err(bad("clear about the port: write IPv6 in brackets, as in https://[fd00::1]:6443"));
    }
    let host = if is_bare { format!("[{host}]") } else { host.to_owned() };
    let has_port = host.rsplit_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_ok());
    let has_port = has_port && !host.ends_with(']');
    let authority: http::uri::Authority =
        if has_port || is_typed_whole { host } else { format!("{host}:{API_PORT}") }
            .parse()
            .map_err(|_| no_address())?;
    if !matches!(scheme, "http" | "https") || authority.host().is_empty() {
        return Err(no_address());
    }
    if rest.contains(['?', '#', '@']) || !path.is_empty() && path.parse::<http::uri::PathAndQuery>().is_err()
    {
        return Err(bad(
            "the address of an API server: it has a host, a port and perhaps a path, nothing else",
        ));
    }
    Ok(format!("{scheme}://{authority}{path}"))
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::cli::args::{Cli, Command};

    fn resolve(line: &str, around: &Surroundings) -> Result<Source, UsageError> {
        let cli = Cli::try_parse_from(["shunt", "run"].into_iter().chain(line.split_whitespace()));
        let Command::Run(args) = cli.expect("the line is well-formed").command else { panic!("not run") };
        source(&args, around)
    }

    fn origin_of(line: &str, around: &Surroundings) -> Origin {
        match resolve(line, around).unwrap() {
            Source::Cluster(cluster) => cluster.origin,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_flag_goes_before_the_environment_before_the_home_before_the_pod() {
        let (a, b, c) = ("/proc/self/status", "/proc/self/stat", "/proc/self/maps");
        let mut around = Surroundings {
            kubeconfig: Some(format!("{a}:{b}").into()),
            home_kubeconfig: Some(c.into()),
            has_service_account: true,
            ..Surroundings::default()
        };
        assert_eq!(origin_of(&format!("--kubeconfig {b}"), &around), Origin::Flag(b.into()));
        assert_eq!(origin_of("", &around), Origin::Environment(vec![a.into(), b.into()]));
        around.kubeconfig = None;
        assert_eq!(origin_of("", &around), Origin::Home(c.into()));
        around.home_kubeconfig = None;
        assert_eq!(origin_of("", &around), Origin::InCluster);
        assert!(matches!(resolve("--manifests /", &around), Ok(Source::Manifests(_))));
        around.has_service_account = false;
        assert_eq!(resolve("", &around), Err(UsageError::NoSource));
    }

    #[test]
    fn a_kubeconfig_that_is_no_file_is_named() {
        let around = Surroundings::default();
        let error = |line: &str, around: &Surroundings| resolve(line, around).unwrap_err().to_string();
        let text = error("--kubeconfig /does/not/exist", &around);
        assert!(
            text.starts_with("--kubeconfig /does/not/exist: ") && text.contains("No such file"),
            "{text}"
        );
        assert!(error("--kubeconfig /proc", &around).contains("/proc: is a directory"));
        let around = Surroundings { kubeconfig: Some("/does/not/exist".into()), ..around };
        assert!(error("", &around).starts_with("KUBECONFIG=/does/not/exist: "));
    }

    #[test]
    fn an_empty_server_is_refused_where_only_the_pod_would_say_one() {
        let mut around = Surroundings { has_service_account: true, ..Surroundings::default() };
        for line in ["--server=", "--master=", "--server=, --server="] {
            assert_eq!(resolve(line, &around), Err(UsageError::EmptyServer), "{line}");
        }
        let error = UsageError::EmptyServer.to_string();
        assert!(error.contains("https://192.168.8.201:6443") && error.contains("api-servers"), "{error}");
        // Nobody spoke of a server: the pod's is meant.
        assert_eq!(origin_of("", &around), Origin::InCluster);
        assert_eq!(origin_of("--server=,https://a", &around), Origin::InCluster);
        let file = "/proc/self/status";
        assert_eq!(origin_of(&format!("--master= --kubeconfig {file}"), &around), Origin::Flag(file.into()));
        around.kubeconfig = Some(file.into());
        assert_eq!(origin_of("--server=", &around), Origin::Environment(vec![file.into()]));
        around.kubeconfig = None;
        around.has_service_account = false;
        assert_eq!(resolve("--server=", &around), Err(UsageError::NoSource));
    }

    #[test]
    fn servers_may_be_typed_short() {
        for (given, want) in [
            ("192.168.8.201", "https://192.168.8.201:6443"),
            ("192.168.8.201:443", "https://192.168.8.201:443"),
            ("https://api.example", "https://api.example"),
            ("https://api.example:6443/", "https://api.example:6443"),
            ("fd00::1", "https://[fd00::1]:6443"),
            ("[fd00::1]:7", "https://[fd00::1]:7"),
            ("https://[fd00::1]/", "https://[fd00::1]"),
            ("http://127.0.0.1:8001", "http://127.0.0.1:8001"),
            ("https://rancher/k8s/clusters/c-m-1/", "https://rancher/k8s/clusters/c-m-1"),
            ("https://rancher:8443/k8s/clusters/c", "https://rancher:8443/k8s/clusters/c"),
            ("rancher/k8s/clusters/c", "https://rancher:6443/k8s/clusters/c"),
            ("[fd00::1]/a", "https://[fd00::1]:6443/a"),
        ] {
            assert_eq!(server(given).as_deref(), Ok(want), "{given}");
        }
        for bad in [
            "",
            "ftp://a",
            "https://",
            "a b",
            "https://a/b c",
            "https://a/b?c",
            "https://a#b",
            "https://u@a",
            "/a",
        ] {
            assert!(server(bad).is_err(), "{bad}: {:?}", server(bad));
        }
        for bad in [
            "https://fd00::1:6443",
            "https://fd00::1",
            "http://fd00::1/a",
            "fd00::1/a",
            "a:b:c",
            "1:2:3:4:5:6:7:8:6443",
        ] {
            let error = server(bad).unwrap_err().to_string();
            assert!(error.contains("write IPv6 in brackets"), "{bad}: {error}");
        }
    }
}
