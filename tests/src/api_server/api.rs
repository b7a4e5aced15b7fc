//! The operations that a scenario needs of an API server, the harness's or a real one: scenarios that inject no faults
//! run against either ([`super::of_environment`]).

use std::{
    fmt,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use serde_json::Value;

use super::{certificates::Certificates, request::TOKEN, server::ApiServer};

/// The convention of envtest: a directory with `etcd` and `kube-apiserver`.
pub const ASSETS: &str = "KUBEBUILDER_ASSETS";

/// An API server that stores objects and can be stopped and started again.
pub trait Api: fmt::Debug {
    fn url(&self) -> String;

    fn certificates(&self) -> Option<&Certificates>;

    /// The agent's credential: the token of its service account.
    fn token(&self) -> Result<String>;

    /// Adds or changes an object, including its status.
    fn apply_object(&self, object: Value) -> Result<()>;

    /// Adds new objects; several at a time if that is faster.
    fn add_all(&self, objects: Vec<Value>) -> Result<()> {
        objects.into_iter().try_for_each(|object| self.apply_object(object))
    }

    /// Deletes an object; `name` is `NAMESPACE/NAME`, or a Node's name.
    fn delete(&self, resource: &str, name: &str) -> Result<()>;

    /// Stops the server. Objects can still be changed.
    fn stop(&self) -> Result<()>;

    /// Starts it again at the same address.
    fn start(&self) -> Result<()>;

    /// Compacts the history while the server is stopped: it cannot send the individual changes once it is back.
    fn forget(&self);

    /// Whether it creates the Service `default/kubernetes` and its slice by itself.
    fn makes_kubernetes(&self) -> bool;

    /// Whether it serves ServiceCIDRs.
    fn serves_ranges(&self) -> Result<bool>;

    /// Actions of the agent that it has no permission for; checked at the end of each test.
    fn complaints(&self) -> Vec<String>;

    /// The agent's requests, as far as they are known.
    fn requests(&self) -> Vec<String>;

    /// Adds or changes every object of a multi-document manifest.
    fn apply(&self, manifest: &str) -> Result<()> {
        for document in manifest.split("---\n").filter(|text| !text.trim().is_empty()) {
            self.apply_object(serde_saphyr::from_str(document).context("a manifest of the test")?)?;
        }
        Ok(())
    }

    /// Writes a kubeconfig for this server; `user` contains the user's fields.
    fn kubeconfig_as(&self, path: &Path, user: &str) -> Result<PathBuf> {
        let ca = match self.certificates() {
            Some(tls) => {
                let file = path.with_extension("ca.pem");
                std::fs::write(&file, tls.authority())?;
                format!(", certificate-authority: {}", file.display())
            }
            None => String::new(),
        };
        std::fs::write(path, kubeconfig(&self.url(), &ca, user))
            .with_context(|| format!("writing {}", path.display()))?;
        Ok(path.to_owned())
    }

    /// The same with the agent's token.
    fn kubeconfig(&self, path: &Path) -> Result<PathBuf> {
        self.kubeconfig_as(path, &format!("token: {}", self.token()?))
    }

    /// A client certificate of the agent's user, as the fields of a kubeconfig user.
    fn client_certificate(&self, path: &Path) -> Result<String> {
        let tls = self.certificates().context("the server speaks no TLS")?;
        let (certificate, key) = (path.with_extension("client.pem"), path.with_extension("client.key"));
        let (certificate_pem, key_pem) = tls.client()?;
        std::fs::write(&certificate, certificate_pem)?;
        std::fs::write(&key, key_pem)?;
        Ok(format!("client-certificate: {}, client-key: {}", certificate.display(), key.display()))
    }
}

/// The text of a kubeconfig; `ca` contains more of the cluster's fields.
pub fn kubeconfig(url: &str, ca: &str, user: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Config\ncurrent-context: test\n\
         contexts: [{{name: test, context: {{cluster: test, user: test}}}}]\n\
         clusters: [{{name: test, cluster: {{server: \"{url}\"{ca}}}}}]\n\
         users: [{{name: test, user: {{{user}}}}}]\n"
    )
}

impl Api for ApiServer {
    fn url(&self) -> String {
        self.url()
    }

    fn certificates(&self) -> Option<&Certificates> {
        self.shared.tls.as_ref()
    }

    fn token(&self) -> Result<String> {
        Ok(TOKEN.to_owned())
    }

    fn apply_object(&self, object: Value) -> Result<()> {
        self.store().apply_object(object)
    }

    fn delete(&self, resource: &str, name: &str) -> Result<()> {
        self.store().delete(resource, name)
    }

    fn stop(&self) -> Result<()> {
        self.stop();
        Ok(())
    }

    fn start(&self) -> Result<()> {
        self.start()
    }

    fn forget(&self) {
        self.store().compact();
    }

    fn makes_kubernetes(&self) -> bool {
        false
    }

    fn serves_ranges(&self) -> Result<bool> {
        Ok(true)
    }

    fn complaints(&self) -> Vec<String> {
        let left = self.store().faults_left();
        let unused = (left > 0).then(|| format!("{left} faults that were planned did not happen"));
        self.violations().into_iter().chain(unused).collect()
    }

    fn requests(&self) -> Vec<String> {
        self.store().requests()
    }
}
