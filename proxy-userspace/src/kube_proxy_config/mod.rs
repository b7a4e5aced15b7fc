//! kube-proxy's configuration file, `KubeProxyConfiguration` of `kubeproxy.config.k8s.io/v1alpha1`: read and judged as
//! kube-proxy does, written, and watched for changes. kubeadm's ConfigMap is read unchanged.
//!
//! Not here: what the fields do. The command line (`cli::merge`) turns them into the flags that mean the same, so
//! there is one way from a setting to the agent.

pub mod duration;
mod effective;
mod nothing;
mod types;
mod validate;
mod watch;

use std::{
    fmt, fs, io,
    path::{Path, PathBuf},
};

use serde_json::Value;

use self::nothing::take_unknown;
pub use self::{
    effective::{configz, effective, write},
    nothing::without_meaning,
    types::{API_VERSION, KIND, KubeProxyConfiguration, Mode},
    watch::{Watcher, WouldStart},
};
use crate::yaml_documents;

/// The feature gate whose meaning `--allow-service-external-ips` has (KEP-5707).
pub const EXTERNAL_IPS_GATE: &str = "AllowServiceExternalIPs";

/// A file that was read: what it says, to be compared with what it says later.
#[derive(Clone, Debug, PartialEq)]
pub struct ConfigFile {
    pub path: PathBuf,
    /// Without defaults.
    pub said: KubeProxyConfiguration,
    /// The same before it was understood: which fields were there.
    pub raw: Value,
    /// Fields that were there and that no version known here has: nothing stood in them.
    pub unknown: Vec<String>,
}

/// What a text says.
#[derive(Clone, Debug, PartialEq)]
pub struct Parsed {
    /// Without defaults.
    pub said: KubeProxyConfiguration,
    /// Its fields as they stand, but for those that are [unknown](Self::unknown).
    pub raw: Value,
    /// Paths of unknown fields in which nothing stands.
    pub unknown: Vec<String>,
}

/// Why a file is no configuration.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("--config {}: {reason}", path.display())]
pub struct ConfigFileError {
    pub path: PathBuf,
    pub reason: Reason,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Reason {
    #[error("cannot be read: {0}; name a file that holds a {KIND}")]
    Unreadable(String),
    #[error("is neither YAML nor JSON: {0}")]
    Syntax(String),
    #[error("is empty; it should hold one {KIND} of {API_VERSION}")]
    Empty,
    #[error("holds {0} documents; leave the one that is a {KIND}")]
    Several(usize),
    #[error(
        "is a ConfigMap, not the {KIND} in it; name the file that it is mounted as, or write it out: kubectl -n kube-system get \
         configmap kube-proxy -o jsonpath='{{.data.config\\.conf}}'"
    )]
    ConfigMap,
    #[error("kind {0:?} is not {KIND}")]
    Kind(String),
    #[error("apiVersion {0:?} is not known; this version reads {API_VERSION}")]
    ApiVersion(String),
    #[error("{0}")]
    Fields(Fields),
}

/// Everything that is wrong with the fields of a document; at least one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fields(pub Vec<FieldError>);

/// What is wrong with one field, and what to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FieldError {
    /// As in `iptables.syncPeriod`; empty is the document itself.
    pub path: String,
    pub what: String,
}

impl fmt::Display for Fields {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, FieldError { path, what }) in self.0.iter().enumerate() {
            let before = if i == 0 { "" } else { "; " };
            let colon = if path.is_empty() { "" } else { ": " };
            write!(f, "{before}{path}{colon}{what}")?;
        }
        Ok(())
    }
}

/// Reads a file and judges it.
pub fn read(path: &Path) -> Result<ConfigFile, ConfigFileError> {
    let failed = |reason| ConfigFileError { path: path.into(), reason };
    let text =
        fs::read_to_string(path).map_err(|error: io::Error| failed(Reason::Unreadable(error.to_string())))?;
    let Parsed { said, raw, unknown } = parse(&text).map_err(failed)?;
    Ok(ConfigFile { path: path.into(), said, raw, unknown })
}

/// What a text says.
pub fn parse(text: &str) -> Result<Parsed, Reason> {
    let mut documents = yaml_documents::parse(text);
    if documents.len() > 1 {
        return Err(Reason::Several(documents.len()));
    }
    let mut raw = documents.pop().ok_or(Reason::Empty)?.value.map_err(Reason::Syntax)?;
    let word = |name| raw.get(name).and_then(Value::as_str).unwrap_or_default();
    match (word("apiVersion"), word("kind")) {
        ("v1", "ConfigMap") => return Err(Reason::ConfigMap),
        (_, kind) if kind != KIND => return Err(Reason::Kind(kind.to_owned())),
        (version, _) if version != API_VERSION => return Err(Reason::ApiVersion(version.to_owned())),
        _ => {}
    }
    let unknown = take_unknown(&mut raw);
    drop_nulls(&mut raw);
    let said: KubeProxyConfiguration =
        serde_path_to_error::deserialize(&raw).map_err(|error| Reason::Fields(Fields(vec![shape(error)])))?;
    let wrong = validate::validate(&said.clone().defaulted());
    if wrong.is_empty() { Ok(Parsed { said, raw, unknown }) } else { Err(Reason::Fields(Fields(wrong))) }
}

/// A null is a field that was left out: so kubeadm writes those that it does not set.
fn drop_nulls(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            fields.retain(|_, value| !value.is_null());
            fields.values_mut().for_each(drop_nulls);
        }
        Value::Array(items) => items.iter_mut().for_each(drop_nulls),
        _ => {}
    }
}

/// The decoder's words, said so that somebody can act on them.
fn shape(error: serde_path_to_error::Error<serde_json::Error>) -> FieldError {
    let path = error.path().to_string();
    let path = if path == "." { String::new() } else { path };
    let words = error.into_inner().to_string();
    let what = match words.strip_prefix("unknown field `").and_then(|rest| rest.split_once('`')) {
        Some((_, known)) => {
            let known =
                known.trim_start_matches(", expected").trim().trim_start_matches("one of").replace('`', "");
            format!("no such field in {API_VERSION}; remove it or mend its name (known: {})", known.trim())
        }
        None => words,
    };
    FieldError { path, what }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEAD: &str = "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n";

    /// What is wrong with these fields.
    fn complaint(fields: &str) -> String {
        parse(&format!("{HEAD}{fields}")).expect_err(fields).to_string()
    }

    #[test]
    fn a_file_that_says_nothing_has_kube_proxys_defaults() {
        let Parsed { said, raw, .. } = parse(HEAD).unwrap();
        assert_eq!(raw.as_object().unwrap().len(), 2);
        let whole = said.defaulted();
        assert_eq!(whole.bind_address, "0.0.0.0");
        assert_eq!(whole.healthz_bind_address, "0.0.0.0:10256");
        assert_eq!(whole.metrics_bind_address, "127.0.0.1:10249");
        assert_eq!((whole.oom_score_adj, whole.iptables.masquerade_bit), (Some(-999), Some(14)));
        assert_eq!(whole.iptables.sync_period.to_string(), "30s");
        assert_eq!(whole.conntrack.tcp_established_timeout.unwrap().to_string(), "24h0m0s");
        let said = parse(&format!("{HEAD}bindAddress: '::'\n")).unwrap().said;
        let whole = said.defaulted();
        assert_eq!(
            (whole.healthz_bind_address.as_str(), whole.metrics_bind_address.as_str()),
            ("[::]:10256", "[::1]:10249")
        );
    }

    #[test]
    fn json_and_nulls_are_read() {
        let text = format!(
            "{{\"apiVersion\": \"{API_VERSION}\", \"kind\": \"{KIND}\", \"clusterCIDR\": \"10.0.0.0/8\", \
                            \"conntrack\": {{\"min\": null, \"maxPerCore\": 7}}, \"nodePortAddresses\": null}}"
        );
        let said = parse(&text).unwrap().said;
        assert_eq!(
            (said.cluster_cidr.as_str(), said.conntrack.max_per_core, said.conntrack.min),
            ("10.0.0.0/8", Some(7), None)
        );
    }

    #[test]
    fn what_is_no_such_document_is_said() {
        for (text, want) in [
            ("", "is empty"),
            ("# nothing\n---\n", "is empty"),
            ("a: [\n", "neither YAML nor JSON"),
            ("kind: Pod\napiVersion: v1\n", "kind \"Pod\" is not KubeProxyConfiguration"),
            ("- a\n", "kind \"\" is not KubeProxyConfiguration"),
            ("apiVersion: v1\nkind: ConfigMap\ndata: {config.conf: x}\n", "is a ConfigMap"),
            (
                "apiVersion: kubeproxy.config.k8s.io/v1alpha2\nkind: KubeProxyConfiguration\n",
                "this version reads kubeproxy.config.k8s.io/v1alpha1",
            ),
        ] {
            let error = parse(text).unwrap_err().to_string();
            assert!(error.contains(want), "{text:?}: {error}");
        }
        assert_eq!(parse(&format!("{HEAD}---\n{HEAD}")).unwrap_err(), Reason::Several(2));
        let missing = read(Path::new("/does/not/exist")).unwrap_err().to_string();
        assert!(missing.starts_with("--config /does/not/exist: cannot be read: No such file"), "{missing}");
    }

    #[test]
    fn an_unknown_field_is_refused_only_where_something_stands_in_it() {
        let fields = "conntrack: {max: 0, min: 7}\nnewer: {some: '', more: null}\nclusterCidr: ''\n";
        let parsed = parse(&format!("{HEAD}{fields}")).unwrap();
        assert_eq!(parsed.unknown, ["clusterCidr", "conntrack.max", "newer"]);
        assert_eq!(parsed.said.conntrack.min, Some(7));
        assert!(complaint("conntrack: {max: 1}\n").contains("conntrack.max: no such field"));
        assert!(complaint("newer: {some: '', more: 5m}\n").contains("newer: no such field"));
    }

    #[test]
    fn a_wrong_field_is_named_with_its_path() {
        for (fields, want) in [
            ("clusterCidr: 10.0.0.0/8\n", "clusterCidr: no such field"),
            ("iptables: {masqueradeBits: 3}\n", "iptables.masqueradeBits: no such field"),
            (
                "iptables: {masqueradeBits: 3}\n",
                "(known: masqueradeBit, masqueradeAll, localhostNodePorts, syncPeriod, minSyncPeriod)",
            ),
            (
                "iptables: {masqueradeAll: maybe}\n",
                "iptables.masqueradeAll: invalid type: string \"maybe\", expected a boolean",
            ),
            (
                "iptables: {syncPeriod: 30}\n",
                "iptables.syncPeriod: invalid type: integer `30`, expected a duration such as 30s",
            ),
            (
                "conntrack: {udpTimeout: -1s}\n",
                "conntrack.udpTimeout: invalid value: string \"-1s\", expected a duration",
            ),
            ("nodePortAddresses: [1]\n", "nodePortAddresses[0]: invalid type: integer"),
            ("nodePortAddresses: 10.0.0.0/8\n", "nodePortAddresses: invalid type: string"),
            ("featureGates: {A: \"true\"}\n", "featureGates.A: invalid type: string"),
        ] {
            let error = complaint(fields);
            assert!(error.contains(want), "{fields}: {error}");
        }
    }
}
