//! Addresses and credentials of the API server: a kubeconfig or the pod's service account, turned into one client per
//! address. The kube crate parses the files; the command line decides which file is used ([`Origin`]).

use std::{
    error::Error,
    fmt, io,
    path::{Path, PathBuf},
    time::Duration,
};

use hyper_util::{
    client::legacy::{Client as HttpClient, connect::HttpConnector},
    rt::TokioExecutor,
};
use kube::{
    Client, Config,
    client::{Body, ConfigExt as _},
    config::{Kubeconfig, KubeconfigError},
};
use tower::{
    BoxError, Layer as _,
    util::{MapErr, MapRequestLayer, option_layer},
};

use super::{error::causes, token::TokenFile};
use crate::config::{Cluster, Origin};

/// Connect timeout.
const CONNECT: Duration = Duration::from_secs(3);
/// TCP keepalive: a dead peer is detected after IDLE + PROBES * PROBE.
const IDLE: Duration = Duration::from_secs(10);
const PROBE: Duration = Duration::from_secs(5);
const PROBES: u32 = 3;

/// Why no client can be created.
#[derive(Debug, thiserror::Error)]
pub enum AccessError {
    #[error("{origin}: cannot be read: {source}; name a kubeconfig with --kubeconfig FILE")]
    Unreadable { origin: Origin, source: io::Error },
    #[error("{origin}: {why}; compare with what `kubectl config view --raw --flatten` prints")]
    Kubeconfig { origin: Origin, why: String },
    #[error(
        "{origin}: proxy-url {url}: API servers are spoken to directly by this version; remove proxy-url, or name the \
         servers with --server"
    )]
    Proxy { origin: Origin, url: String },
    #[error("{origin}: {why}; run in a pod with a service account, or give --kubeconfig FILE")]
    InCluster { origin: Origin, why: String },
    #[error(
        "{origin}: server {server:?} is not an address of an API server; write it as in https://192.168.8.201:6443"
    )]
    Server { origin: Origin, server: String },
    #[error("{origin}: {why}; look at the user's token, client-certificate and client-key")]
    Credentials { origin: Origin, why: String },
}

/// One address of the API server, and its client.
#[derive(Clone)]
pub struct Server {
    /// As written in the configuration.
    pub address: String,
    pub client: Client,
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Server").field(&self.address).finish()
    }
}

/// A client per address, in the order in which they are tried. Reads files, sends no request.
///
/// Must be called within a runtime.
pub fn servers(cluster: &Cluster) -> Result<Vec<Server>, AccessError> {
    let origin = &cluster.origin;
    let config = match origin {
        Origin::InCluster => Config::incluster_env()
            .map_err(|error| AccessError::InCluster { origin: origin.clone(), why: causes(&error) })?,
        Origin::Flag(path) | Origin::ConfigFile(path) | Origin::Home(path) => {
            of_files(origin, std::slice::from_ref(path))?
        }
        Origin::Environment(paths) => of_files(origin, paths)?,
    };
    if cluster.servers.is_empty() {
        return Ok(vec![server(origin, config)?]);
    }
    let at = |address: &String| {
        let mut config = config.clone();
        config.cluster_url = address
            .parse()
            .map_err(|_| AccessError::Server { origin: origin.clone(), server: address.clone() })?;
        server(origin, config)
    };
    cluster.servers.iter().map(at).collect()
}

/// Merges kubeconfig files as kubectl does.
fn of_files(origin: &Origin, paths: &[PathBuf]) -> Result<Config, AccessError> {
    let wrong =
        |error: KubeconfigError| AccessError::Kubeconfig { origin: origin.clone(), why: causes(&error) };
    let mut merged: Option<Kubeconfig> = None;
    for path in paths {
        readable(origin, path)?;
        let next = Kubeconfig::read_from(path).map_err(wrong)?;
        merged = Some(match merged {
            Some(merged) => merged.merge(next).map_err(wrong)?,
            None => next,
        });
    }
    let kubeconfig = merged.unwrap_or_default();
    if kubeconfig.clusters.is_empty() {
        let why = "it names no cluster".to_owned();
        return Err(AccessError::Kubeconfig { origin: origin.clone(), why });
    }
    // Checked before the kube crate sees it: the crate also takes HTTPS_PROXY from the environment, but an agent that
    // forwards the node's traffic must not depend on a proxy.
    if let Some(url) = proxy_of(&kubeconfig) {
        return Err(AccessError::Proxy { origin: origin.clone(), url });
    }
    let mut config = Config::try_from(kubeconfig).map_err(wrong)?;
    config.proxy_url = None;
    Ok(config)
}

/// The proxy-url of the current context's cluster.
fn proxy_of(kubeconfig: &Kubeconfig) -> Option<String> {
    let current = kubeconfig.current_context.as_ref()?;
    let context = kubeconfig.contexts.iter().find(|named| &named.name == current)?.context.as_ref()?;
    let cluster = kubeconfig.clusters.iter().find(|named| named.name == context.cluster)?.cluster.as_ref()?;
    cluster.proxy_url.clone().filter(|url| !url.is_empty())
}

fn readable(origin: &Origin, path: &Path) -> Result<(), AccessError> {
    match std::fs::File::open(path) {
        Ok(_) => Ok(()),
        Err(source) => Err(AccessError::Unreadable { origin: origin.clone(), source }),
    }
}

fn server(origin: &Origin, mut config: Config) -> Result<Server, AccessError> {
    let address = config.cluster_url.to_string().trim_end_matches('/').to_owned();
    if config.cluster_url.host().is_none()
        || !matches!(config.cluster_url.scheme_str(), Some("http" | "https"))
    {
        return Err(AccessError::Server { origin: origin.clone(), server: address });
    }
    let wrong = |error: &dyn Error| AccessError::Credentials { origin: origin.clone(), why: causes(error) };
    // The crate uses one of several credentials; a token file has lower precedence than inline credentials.
    let user = &mut config.auth_info;
    let path = if user.token.is_none() && user.username.is_none() { user.token_file.take() } else { None };
    let token = path.map(|path| TokenFile::open(path.as_ref())).transpose().map_err(|error| wrong(&error))?;
    let client = client(config, token).map_err(|error| wrong(&error))?;
    Ok(Server { address, client })
}

/// Built like the kube crate's client, but with shorter limits (the crate waits 30 s for a connection and retries by
/// itself) and with keepalives: a server that loses power closes no connection.
fn client(config: Config, token: Option<TokenFile>) -> Result<Client, kube::Error> {
    let mut connector = HttpConnector::new();
    connector.enforce_http(false);
    connector.set_connect_timeout(Some(CONNECT));
    connector.set_nodelay(true);
    connector.set_keepalive(Some(IDLE));
    connector.set_keepalive_interval(Some(PROBE));
    connector.set_keepalive_retries(Some(PROBES));
    let connector = config.rustls_https_connector_with_connector(connector)?;
    let http: HttpClient<_, Body> = HttpClient::builder(TokioExecutor::new()).build(connector);
    let http = MapErr::new(http, BoxError::from);
    let service = option_layer(config.auth_layer()?).layer(http);
    let token = token.map(|token| MapRequestLayer::new(move |request| token.show(request)));
    let service = option_layer(token).layer(service);
    let service = config.base_uri_layer().layer(service);
    Ok(Client::new(service, config.default_namespace))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The error for a kubeconfig with this text.
    fn complaint(name: &str, text: &str) -> String {
        let path = std::env::temp_dir().join(format!("shunt-access-{name}-{}", std::process::id()));
        std::fs::write(&path, text).unwrap();
        let origin = Origin::Flag(path.clone());
        let result = servers(&Cluster { origin, servers: Vec::new(), watch_list: false });
        std::fs::remove_file(&path).unwrap();
        let error = result.unwrap_err().to_string();
        assert!(error.starts_with(&format!("--kubeconfig {}: ", path.display())), "{error}");
        error
    }

    fn kubeconfig(cluster: &str, user: &str) -> String {
        format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: c\n\
             contexts: [{{name: c, context: {{cluster: c, user: u}}}}]\n\
             clusters: [{{name: c, cluster: {cluster}}}]\nusers: [{{name: u, user: {user}}}]\n"
        )
    }

    #[tokio::test]
    async fn a_bad_kubeconfig_says_what_is_wrong_and_what_to_do() {
        for (name, text, want) in [
            ("yaml", "clusters: [\n".to_owned(), "YAML"),
            ("empty", String::new(), "names no cluster"),
            (
                "context",
                kubeconfig("{server: 'https://a'}", "{}").replace("current-context: c", "current-context: d"),
                "context",
            ),
            ("server", kubeconfig("{server: 'a b'}", "{}"), "url"),
            ("scheme", kubeconfig("{server: 'ftp://a'}", "{}"), "is not an address of an API server"),
            (
                "ca",
                kubeconfig("{server: 'https://a', certificate-authority: /does/not/exist}", "{}"),
                "/does/not/exist",
            ),
            (
                "proxy",
                kubeconfig("{server: 'https://a', proxy-url: 'http://p:1'}", "{}"),
                "proxy-url http://p:1",
            ),
            ("token", kubeconfig("{server: 'https://a'}", "{tokenFile: /does/not/exist}"), "/does/not/exist"),
            ("key", kubeconfig("{server: 'https://a'}", "{client-certificate-data: '!'}"), "client"),
        ] {
            let error = complaint(name, &text);
            assert!(error.contains(want), "{name}: {error}");
            assert!(error.contains("; "), "{name} says nothing to do: {error}");
        }
    }

    #[tokio::test]
    async fn a_missing_file_is_named() {
        let origin = Origin::Flag("/does/not/exist".into());
        let error =
            servers(&Cluster { origin, servers: Vec::new(), watch_list: false }).unwrap_err().to_string();
        assert!(error.contains("/does/not/exist") && error.contains("No such file"), "{error}");
    }

    #[tokio::test]
    async fn several_servers_replace_the_files_one() {
        let path = std::env::temp_dir().join(format!("shunt-access-several-{}", std::process::id()));
        std::fs::write(&path, kubeconfig("{server: 'https://a'}", "{token: t}")).unwrap();
        let origin = Origin::Environment(vec![path.clone()]);
        let several =
            vec!["https://192.168.8.201:6443".to_owned(), "https://[fd00::1]:6443/k8s/clusters/c".to_owned()];
        let found = servers(&Cluster { origin, servers: several.clone(), watch_list: false });
        std::fs::remove_file(&path).unwrap();
        let found: Vec<String> = found.unwrap().into_iter().map(|server| server.address).collect();
        assert_eq!(found, several);
    }
}
