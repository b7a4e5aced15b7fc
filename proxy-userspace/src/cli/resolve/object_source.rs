//! The source of objects: `--manifests`, `--kubeconfig` and `--server`, and the defaults without them. Checks that files
//! exist and reads none.

use std::{fs, net::Ipv6Addr, path::PathBuf};

use crate::{
    cli::{args::run::RunArgs, environment::Environment, usage_error::UsageError},
    config::{Cluster, Origin, Source},
};

/// Default port of an API server.
const API_PORT: u16 = 6443;

/// Manifests if they are given, else an API server.
pub(super) fn source(args: &RunArgs, environment: &Environment) -> Result<Source, UsageError> {
    if let Some(path) = &args.manifests {
        let reason = match fs::metadata(path) {
            Ok(found) if found.is_dir() => return Ok(Source::Manifests(path.clone())),
            Ok(_) => "is not a directory",
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => "does not exist",
            Err(_) => "cannot be read",
        };
        return Err(UsageError::Manifests { path: path.clone(), reason });
    }
    let origin = origin(args, environment).ok_or(UsageError::NoSource)?;
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
    // kube-proxy's manifests may pass `--master=` together with a kubeconfig, which contains an address. The service account
    // of a pod instead leads to the ClusterIP that this agent itself serves.
    if servers.is_empty() && !args.servers.is_empty() && origin == Origin::InCluster {
        return Err(UsageError::EmptyServer);
    }
    Ok(Source::Cluster(Cluster { origin, servers, watch_list: args.watch_list }))
}

/// In order of precedence: flag, file of `--config`, `$KUBECONFIG`, `~/.kube/config`, service account.
fn origin(args: &RunArgs, environment: &Environment) -> Option<Origin> {
    if let Some(path) = &args.kubeconfig {
        return Some(Origin::Flag(path.to_owned()));
    }
    if let Some(path) = &args.configured_kubeconfig {
        return Some(Origin::ConfigFile(path.to_owned()));
    }
    if let Some(list) = &environment.kubeconfig {
        let mut paths: Vec<PathBuf> =
            std::env::split_paths(list).filter(|path| !path.as_os_str().is_empty()).collect();
        // Like kubectl: files that do not exist are skipped, unless none exists.
        if paths.iter().any(|path| path.exists()) {
            paths.retain(|path| path.exists());
        }
        return Some(Origin::Environment(paths));
    }
    let home = environment.home_kubeconfig.clone().map(Origin::Home);
    home.or_else(|| environment.has_service_account.then_some(Origin::InCluster))
}

/// Completes the address of an API server to `https://HOST:PORT`, with a path if one is given (Rancher).
fn server(given: &str) -> Result<String, UsageError> {
    let bad = |expected| UsageError::BadValue { flag: "--server", value: given.to_owned(), expected };
    let no_address = || bad("the address of an API server, such as https://192.168.8.201:6443");
    let (scheme, rest) = given.split_once("://").unwrap_or(("https", given));
    let (host, path) = rest.find('/').map_or((rest, ""), |at| rest.split_at(at));
    let path = path.trim_end_matches('/');
    let has_scheme = given.contains("://");
    let is_bare = host.matches(':').nth(1).is_some() && !host.starts_with('[');
    // The last group may be meant as a port, so IPv6 without brackets is accepted only as a plain address.
    if is_bare && (has_scheme || !path.is_empty() || host.parse::<Ipv6Addr>().is_err()) {
        return Err(bad("unambiguous: write IPv6 in brackets, as in https://[fd00::1]:6443"));
    }
    let host = if is_bare { format!("[{host}]") } else { host.to_owned() };
    let has_port = host.rsplit_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_ok());
    let has_port = has_port && !host.ends_with(']');
    let authority: http::uri::Authority =
        if has_port || has_scheme { host } else { format!("{host}:{API_PORT}") }
            .parse()
            .map_err(|_| no_address())?;
    if !matches!(scheme, "http" | "https") || authority.host().is_empty() {
        return Err(no_address());
    }
    if rest.contains(['?', '#', '@']) || !path.is_empty() && path.parse::<http::uri::PathAndQuery>().is_err()
    {
        return Err(bad("the address of an API server: it consists of a host, a port and an optional path"));
    }
    Ok(format!("{scheme}://{authority}{path}"))
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::cli::args::{Cli, Command};

    fn resolve(line: &str, environment: &Environment) -> Result<Source, UsageError> {
        let cli = Cli::try_parse_from(["shunt", "run"].into_iter().chain(line.split_whitespace()));
        let Command::Run(args) = cli.expect("the line is well-formed").command else { panic!("not run") };
        source(&args, environment)
    }

    fn origin_of(line: &str, environment: &Environment) -> Origin {
        match resolve(line, environment).unwrap() {
            Source::Cluster(cluster) => cluster.origin,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn precedence_is_flag_then_environment_then_home_then_pod() {
        let (a, b, c) = ("/proc/self/status", "/proc/self/stat", "/proc/self/maps");
        let mut environment = Environment {
            kubeconfig: Some(format!("{a}:{b}").into()),
            home_kubeconfig: Some(c.into()),
            has_service_account: true,
            ..Environment::default()
        };
        assert_eq!(origin_of(&format!("--kubeconfig {b}"), &environment), Origin::Flag(b.into()));
        assert_eq!(origin_of("", &environment), Origin::Environment(vec![a.into(), b.into()]));
        environment.kubeconfig = None;
        assert_eq!(origin_of("", &environment), Origin::Home(c.into()));
        environment.home_kubeconfig = None;
        assert_eq!(origin_of("", &environment), Origin::InCluster);
        assert!(matches!(resolve("--manifests /", &environment), Ok(Source::Manifests(_))));
        environment.has_service_account = false;
        assert_eq!(resolve("", &environment), Err(UsageError::NoSource));
    }

    #[test]
    fn a_missing_kubeconfig_is_named() {
        let environment = Environment::default();
        let error =
            |line: &str, environment: &Environment| resolve(line, environment).unwrap_err().to_string();
        let text = error("--kubeconfig /does/not/exist", &environment);
        assert!(
            text.starts_with("--kubeconfig /does/not/exist: ") && text.contains("No such file"),
            "{text}"
        );
        assert!(error("--kubeconfig /proc", &environment).contains("/proc: is a directory"));
        let environment = Environment { kubeconfig: Some("/does/not/exist".into()), ..environment };
        assert!(error("", &environment).starts_with("KUBECONFIG=/does/not/exist: "));
    }

    #[test]
    fn an_empty_server_is_rejected_with_a_service_account() {
        let mut environment = Environment { has_service_account: true, ..Environment::default() };
        for line in ["--server=", "--master=", "--server=, --server="] {
            assert_eq!(resolve(line, &environment), Err(UsageError::EmptyServer), "{line}");
        }
        let error = UsageError::EmptyServer.to_string();
        assert!(error.contains("https://192.168.8.201:6443") && error.contains("api-servers"), "{error}");
        // Without --server, the pod's API server is used.
        assert_eq!(origin_of("", &environment), Origin::InCluster);
        assert_eq!(origin_of("--server=,https://a", &environment), Origin::InCluster);
        let file = "/proc/self/status";
        assert_eq!(
            origin_of(&format!("--master= --kubeconfig {file}"), &environment),
            Origin::Flag(file.into())
        );
        environment.kubeconfig = Some(file.into());
        assert_eq!(origin_of("--server=", &environment), Origin::Environment(vec![file.into()]));
        environment.kubeconfig = None;
        environment.has_service_account = false;
        assert_eq!(resolve("--server=", &environment), Err(UsageError::NoSource));
    }

    #[test]
    fn server_addresses_are_completed() {
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
