//! Output of a KubeProxyConfiguration: as a file for `--write-config-to`, and as JSON for `/configz`.

use std::{fs, io, path::Path};

use serde_json::{Value, json};

use super::types::KubeProxyConfiguration;

/// The response of `/configz`, in kube-proxy's format. Only this output contains the name that the node resolved to.
pub fn configz(doc: &KubeProxyConfiguration, node_name: &str) -> Value {
    let doc = KubeProxyConfiguration { hostname_override: node_name.to_owned(), ..doc.clone() };
    json!({ "kubeproxy.config.k8s.io": doc })
}

/// Writes a document: as JSON if the file name ends in `.json`, else as YAML.
pub fn write(path: &Path, doc: &KubeProxyConfiguration) -> io::Result<()> {
    let is_json = path.extension().is_some_and(|extension| extension == "json");
    let text = if is_json {
        serde_json::to_string_pretty(doc)?
    } else {
        serde_saphyr::to_string(doc).map_err(io::Error::other)?
    };
    fs::write(path, text.trim_end().to_owned() + "\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_configz_contains_the_resolved_node_name() {
        let doc = KubeProxyConfiguration::default();
        let shown = configz(&doc, "node-1");
        assert_eq!(shown["kubeproxy.config.k8s.io"]["hostnameOverride"], "node-1");
        assert_eq!(doc.hostname_override, "");
    }
}
