//! Fields of a configuration that shunt ignores. They are logged once, together.
//!
//! A field that is empty, or that has kube-proxy's default value, requests nothing and is not logged: kubeadm writes every
//! field of its release. For the same reason an unknown field is accepted if it is empty.

use serde::Deserialize as _;
use serde_json::Value;

use super::types::{EXTERNAL_IPS_GATE, KubeProxyConfiguration, Mode};

/// The paths of ignored fields, sorted.
pub fn ignored_fields(raw: &Value, mode: Mode) -> Vec<String> {
    let default = serde_json::to_value(KubeProxyConfiguration::default().defaulted()).unwrap_or_default();
    let mut found = Vec::new();
    leaves(raw, String::new(), &mut |path, value| {
        let pointer = format!("/{}", path.replace('.', "/"));
        if !is_empty(value) && default.pointer(&pointer) != Some(value) && !has_effect(path, value, mode) {
            found.push(path.to_owned());
        }
    });
    found.sort();
    found
}

fn leaves(value: &Value, path: String, visit: &mut impl FnMut(&str, &Value)) {
    let Value::Object(fields) = value else { return visit(&path, value) };
    for (name, value) in fields {
        let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
        leaves(value, path, visit);
    }
}

/// Removes the fields that are unknown and empty; returns their paths, sorted.
pub fn take_unknown_empty(raw: &mut Value) -> Vec<String> {
    let mut found = Vec::new();
    take_unknown_empty_below(raw, &mut Vec::new(), &mut found);
    found.sort();
    found
}

fn take_unknown_empty_below(value: &mut Value, path: &mut Vec<String>, found: &mut Vec<String>) {
    let Value::Object(fields) = value else { return };
    fields.retain(|name, value| {
        path.push(name.clone());
        let is_unknown = is_empty(value) && is_unknown(path, value);
        if is_unknown {
            found.push(path.join("."));
        } else {
            take_unknown_empty_below(value, path, found);
        }
        path.pop();
        !is_unknown
    });
}

/// Whether the deserializer rejects a document with only this field as unknown.
fn is_unknown(path: &[String], value: &Value) -> bool {
    let document = path.iter().rev().fold(value.clone(), |value, name| {
        Value::Object(serde_json::Map::from_iter([(name.clone(), value)]))
    });
    let mut track = serde_path_to_error::Track::new();
    let decoder = serde_path_to_error::Deserializer::new(&document, &mut track);
    let Err(error) = KubeProxyConfiguration::deserialize(decoder) else { return false };
    error.to_string().starts_with("unknown field") && track.path().to_string() == path.join(".")
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::Bool(true) => false,
        Value::Object(fields) => fields.values().all(is_empty),
        Value::Number(number) => number.as_f64() == Some(0.0),
        Value::String(text) => matches!(text.as_str(), "" | "0" | "0s"),
        Value::Array(items) => items.is_empty(),
    }
}

/// Whether shunt implements the field. `mode` selects the sections that take effect; it is logged separately.
fn has_effect(path: &str, value: &Value, mode: Mode) -> bool {
    let (section, field) = path.split_once('.').unwrap_or((path, ""));
    match section {
        "apiVersion" | "kind" | "mode" | "hostnameOverride" | "bindAddress" | "healthzBindAddress" => true,
        "metricsBindAddress" | "bindAddressHardFail" | "detectLocalMode" | "detectLocal" | "clusterCIDR" => {
            true
        }
        "nodePortAddresses" | "oomScoreAdj" => true,
        "featureGates" => field == EXTERNAL_IPS_GATE,
        "clientConnection" => field == "kubeconfig",
        "logging" => field == "verbosity",
        // shunt does not track TCP windows, so it translates segments outside the window, too.
        "conntrack" => field != "tcpBeLiberal",
        "iptables" => match field {
            "masqueradeAll" => mode != Mode::NfTables,
            "localhostNodePorts" | "syncPeriod" | "minSyncPeriod" => mode == Mode::IpTables,
            _ => false,
        },
        "ipvs" => match field {
            "syncPeriod" | "minSyncPeriod" => mode == Mode::Ipvs,
            // Kubernetes sets no weights, so wrr equals rr.
            "scheduler" => matches!(value.as_str(), Some("rr" | "wrr")),
            _ => false,
        },
        "nftables" => mode == Mode::NfTables && field != "masqueradeBit",
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::{super::parse::parse, *};

    fn found(fields: &str) -> Vec<String> {
        let parsed = parse(&format!(
            "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n{fields}"
        ))
        .expect(fields);
        ignored_fields(&parsed.raw, parsed.config.proxy_mode())
    }

    #[test]
    fn empty_and_default_values_are_not_reported() {
        for fields in [
            "clientConnection: {acceptContentTypes: '', burst: 0, contentType: '', kubeconfig: /k, qps: 0}",
            "clientConnection: {burst: 10, contentType: application/vnd.kubernetes.protobuf}",
            "iptables: {masqueradeBit: 14, localhostNodePorts: null, syncPeriod: 0s}",
            "ipvs: {excludeCIDRs: null, strictARP: false, tcpTimeout: 0s, scheduler: rr}",
            "winkernel: {enableDSR: false, networkName: ''}",
            "logging: {flushFrequency: 0, verbosity: 2}",
            "configSyncPeriod: 0s\nenableProfiling: false\nportRange: ''\nmode: iptables\noomScoreAdj: -500",
            "featureGates: {AllowServiceExternalIPs: true}",
        ] {
            assert!(found(fields).is_empty(), "{fields}: {:?}", found(fields));
        }
    }

    #[test]
    fn unknown_empty_fields_are_removed() {
        for (fields, want) in [
            ("{}", ""),
            (
                "{mode: '', conntrack: {maxPerCore: 0, min: null}, iptables: {}, featureGates: {A.b: false}}",
                "",
            ),
            ("{conntrack: {max: 0, maxPerCore: null}}", "conntrack.max"),
            ("{zero: 0s, winkernel: {networkName: '', newField: ''}}", "winkernel.newField, zero"),
            ("{new: {a: '', b: {c: null, d: []}}, f: false, n: null, l: [], o: {}}", "f, l, n, new, o"),
            ("{logging: {options: {json: {anything: '0'}}}}", ""),
            // Non-empty ones stay, and are rejected later.
            ("{new: {a: '', b: 1}, conntrack: {max: 7}, f: true, l: [''], t: 1s}", ""),
        ] {
            let mut raw: Value = serde_saphyr::from_str(fields).unwrap();
            let mut left = raw.clone();
            assert_eq!(take_unknown_empty(&mut left).join(", "), want, "{fields}");
            if want.is_empty() {
                assert_eq!(left, raw, "{fields}");
            }
            take_unknown_empty(&mut raw);
            assert!(take_unknown_empty(&mut raw).is_empty());
        }
    }

    #[test]
    fn ignored_values_are_reported() {
        let fields = "ipvs: {strictARP: true, scheduler: lc, tcpTimeout: 15m, excludeCIDRs: [10.0.0.0/8]}\n\
                      clientConnection: {qps: 50, burst: 100}\nenableProfiling: true\nconfigSyncPeriod: 1h\n\
                      iptables: {masqueradeBit: 15}\nconntrack: {tcpBeLiberal: true}\nlogging: {format: json}\n\
                      featureGates: {AllAlpha: true}\nportRange: 1000-2000\nwinkernel: {enableDSR: true}\n";
        let want = [
            "clientConnection.burst",
            "clientConnection.qps",
            "configSyncPeriod",
            "conntrack.tcpBeLiberal",
            "enableProfiling",
            "featureGates.AllAlpha",
            "iptables.masqueradeBit",
            "ipvs.excludeCIDRs",
            "ipvs.scheduler",
            "ipvs.strictARP",
            "ipvs.tcpTimeout",
            "logging.format",
            "portRange",
            "winkernel.enableDSR",
        ];
        assert_eq!(found(fields), want);
    }

    #[test]
    fn the_sections_of_other_modes_are_ignored() {
        let periods = "iptables: {syncPeriod: 1m, masqueradeAll: true}\nnftables: {syncPeriod: 1m, masqueradeAll: true}\n";
        assert_eq!(found(periods), ["nftables.masqueradeAll", "nftables.syncPeriod"]);
        let nftables = format!("mode: nftables\n{periods}");
        assert_eq!(found(&nftables), ["iptables.masqueradeAll", "iptables.syncPeriod"]);
        let ipvs = format!("mode: ipvs\nipvs: {{minSyncPeriod: 2s}}\n{periods}");
        assert_eq!(found(&ipvs), ["iptables.syncPeriod", "nftables.masqueradeAll", "nftables.syncPeriod"]);
    }
}
