//! From the text of a configuration file to a validated [`KubeProxyConfiguration`].

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use serde_json::Value;

use super::{
    error::{ConfigFileError, FieldError, FieldErrors, Reason},
    ignored_fields::take_unknown_empty,
    types::{API_VERSION, KIND, KubeProxyConfiguration},
    validate::validate,
};
use crate::yaml_documents;

/// A file that was read. The watcher compares it with later versions.
#[derive(Clone, Debug, PartialEq)]
pub struct ConfigFile {
    pub path: PathBuf,
    /// Without defaults.
    pub config: KubeProxyConfiguration,
    /// The document before deserialization: shows which fields are present.
    pub raw: Value,
    /// Paths of fields that are empty and unknown to this version.
    pub unknown: Vec<String>,
}

/// A parsed document.
#[derive(Clone, Debug, PartialEq)]
pub struct Parsed {
    /// Without defaults.
    pub config: KubeProxyConfiguration,
    /// The document before deserialization, without the fields in [`unknown`](Self::unknown).
    pub raw: Value,
    /// Paths of fields that are empty and unknown to this version.
    pub unknown: Vec<String>,
}

/// Reads, parses and validates a file.
pub fn read(path: &Path) -> Result<ConfigFile, ConfigFileError> {
    let failed = |reason| ConfigFileError { path: path.into(), reason };
    let text =
        fs::read_to_string(path).map_err(|error: io::Error| failed(Reason::Unreadable(error.to_string())))?;
    let Parsed { config, raw, unknown } = parse(&text).map_err(failed)?;
    Ok(ConfigFile { path: path.into(), config, raw, unknown })
}

/// Parses and validates a text.
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
    let unknown = take_unknown_empty(&mut raw);
    drop_nulls(&mut raw);
    let config: KubeProxyConfiguration = serde_path_to_error::deserialize(&raw)
        .map_err(|error| Reason::Fields(FieldErrors(vec![field_error(error)])))?;
    let errors = validate(&config.clone().defaulted());
    if errors.is_empty() {
        Ok(Parsed { config, raw, unknown })
    } else {
        Err(Reason::Fields(FieldErrors(errors)))
    }
}

/// Removes fields that are null. kubeadm writes null for fields that it does not set.
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

/// The error of the deserializer, with a hint for unknown fields.
fn field_error(error: serde_path_to_error::Error<serde_json::Error>) -> FieldError {
    let path = error.path().to_string();
    let path = if path == "." { String::new() } else { path };
    let text = error.into_inner().to_string();
    let message = match text.strip_prefix("unknown field `").and_then(|rest| rest.split_once('`')) {
        Some((_, known)) => {
            let known =
                known.trim_start_matches(", expected").trim().trim_start_matches("one of").replace('`', "");
            format!("no such field in {API_VERSION}; remove it or correct its name (known: {})", known.trim())
        }
        None => text,
    };
    FieldError { path, message }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEAD: &str = "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n";

    /// The error for these fields.
    fn error_of(fields: &str) -> String {
        parse(&format!("{HEAD}{fields}")).expect_err(fields).to_string()
    }

    #[test]
    fn an_empty_configuration_has_kube_proxys_defaults() {
        let Parsed { config, raw, .. } = parse(HEAD).unwrap();
        assert_eq!(raw.as_object().unwrap().len(), 2);
        let whole = config.defaulted();
        assert_eq!(whole.bind_address, "0.0.0.0");
        assert_eq!(whole.healthz_bind_address, "0.0.0.0:10256");
        assert_eq!(whole.metrics_bind_address, "127.0.0.1:10249");
        assert_eq!((whole.oom_score_adj, whole.iptables.masquerade_bit), (Some(-999), Some(14)));
        assert_eq!(whole.iptables.sync_period.to_string(), "30s");
        assert_eq!(whole.conntrack.tcp_established_timeout.unwrap().to_string(), "24h0m0s");
        let config = parse(&format!("{HEAD}bindAddress: '::'\n")).unwrap().config;
        let whole = config.defaulted();
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
        let config = parse(&text).unwrap().config;
        assert_eq!(
            (config.cluster_cidr.as_str(), config.conntrack.max_per_core, config.conntrack.min),
            ("10.0.0.0/8", Some(7), None)
        );
    }

    #[test]
    fn a_wrong_document_is_rejected() {
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
    fn an_unknown_field_is_rejected_unless_empty() {
        let fields = "conntrack: {max: 0, min: 7}\nnewer: {some: '', more: null}\nclusterCidr: ''\n";
        let parsed = parse(&format!("{HEAD}{fields}")).unwrap();
        assert_eq!(parsed.unknown, ["clusterCidr", "conntrack.max", "newer"]);
        assert_eq!(parsed.config.conntrack.min, Some(7));
        assert!(error_of("conntrack: {max: 1}\n").contains("conntrack.max: no such field"));
        assert!(error_of("newer: {some: '', more: 5m}\n").contains("newer: no such field"));
    }

    #[test]
    fn an_invalid_field_is_named_with_its_path() {
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
            let error = error_of(fields);
            assert!(error.contains(want), "{fields}: {error}");
        }
    }
}
