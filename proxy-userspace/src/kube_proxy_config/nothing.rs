//! Which fields of a configuration say something that means nothing to shunt, and which unknown ones say nothing at all:
//! they are reported, once and together.
//!
//! A field that is empty, or that says what kube-proxy would do without it, asks for nothing and is passed over:
//! kubeadm writes them all, those of its release that this version has not heard of included.

use serde::Deserialize as _;
use serde_json::Value;

use super::types::{KubeProxyConfiguration, Mode};

/// The paths of such fields, sorted.
pub fn without_meaning(raw: &Value, mode: Mode) -> Vec<String> {
    let usual = serde_json::to_value(KubeProxyConfiguration::default().defaulted()).unwrap_or_default();
    let mut found = Vec::new();
    leaves(raw, String::new(), &mut |path, value| {
        let pointer = format!("/{}", path.replace('.', "/"));
        if !is_empty(value) && usual.pointer(&pointer) != Some(value) && !means_something(path, value, mode) {
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

/// Takes those fields out that are unknown and empty; returns their paths, sorted.
pub fn take_unknown(raw: &mut Value) -> Vec<String> {
    let mut found = Vec::new();
    take_unknown_below(raw, &mut Vec::new(), &mut found);
    found.sort();
    found
}

fn take_unknown_below(value: &mut Value, path: &mut Vec<String>, found: &mut Vec<String>) {
    let Value::Object(fields) = value else { return };
    fields.retain(|name, value| {
        path.push(name.clone());
        let is_unknown = is_empty(value) && is_unknown(path, value);
        if is_unknown {
            found.push(path.join("."));
        } else {
            take_unknown_below(value, path, found);
        }
        path.pop();
        !is_unknown
    });
}

/// Asks the decoder, with a document of this field alone.
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

/// `mode` says which sections count, and is spoken of apart.
fn means_something(path: &str, value: &Value, mode: Mode) -> bool {
    let (section, field) = path.split_once('.').unwrap_or((path, ""));
    match section {
        "apiVersion" | "kind" | "mode" | "hostnameOverride" | "bindAddress" | "healthzBindAddress" => true,
        "metricsBindAddress" | "bindAddressHardFail" | "detectLocalMode" | "detectLocal" | "clusterCIDR" => {
            true
        }
        "nodePortAddresses" | "oomScoreAdj" => true,
        "featureGates" => field == super::EXTERNAL_IPS_GATE,
        "clientConnection" => field == "kubeconfig",
        "logging" => field == "verbosity",
        // Segments out of the window are translated like any other.
        "conntrack" => field != "tcpBeLiberal",
        "iptables" => match field {
            "masqueradeAll" => mode != Mode::NfTables,
            "localhostNodePorts" | "syncPeriod" | "minSyncPeriod" => mode == Mode::IpTables,
            _ => false,
        },
        "ipvs" => match field {
            "syncPeriod" | "minSyncPeriod" => mode == Mode::Ipvs,
            // Without weights, which Kubernetes never gives, they are one.
            "scheduler" => matches!(value.as_str(), Some("rr" | "wrr")),
            _ => false,
        },
        "nftables" => mode == Mode::NfTables && field != "masqueradeBit",
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::{super::parse, *};

    fn found(fields: &str) -> Vec<String> {
        let parsed = parse(&format!(
            "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n{fields}"
        ))
        .expect(fields);
        without_meaning(&parsed.raw, parsed.said.proxy_mode())
    }

    #[test]
    fn what_asks_for_nothing_is_passed_over() {
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
    fn what_is_unknown_and_empty_is_taken_out() {
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
            // Those that ask for something stay, and are refused.
            ("{new: {a: '', b: 1}, conntrack: {max: 7}, f: true, l: [''], t: 1s}", ""),
        ] {
            let mut raw: Value = serde_saphyr::from_str(fields).unwrap();
            let mut left = raw.clone();
            assert_eq!(take_unknown(&mut left).join(", "), want, "{fields}");
            if want.is_empty() {
                assert_eq!(left, raw, "{fields}");
            }
            take_unknown(&mut raw);
            assert!(take_unknown(&mut raw).is_empty());
        }
    }

    #[test]
    fn what_asks_for_something_else_is_named() {
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
    fn another_modes_section_counts_for_nothing() {
        let periods = "iptables: {syncPeriod: 1m, masqueradeAll: true}\nnftables: {syncPeriod: 1m, masqueradeAll: true}\n";
        assert_eq!(found(periods), ["nftables.masqueradeAll", "nftables.syncPeriod"]);
        let nftables = format!("mode: nftables\n{periods}");
        assert_eq!(found(&nftables), ["iptables.masqueradeAll", "iptables.syncPeriod"]);
        let ipvs = format!("mode: ipvs\nipvs: {{minSyncPeriod: 2s}}\n{periods}");
        assert_eq!(found(&ipvs), ["iptables.syncPeriod", "nftables.masqueradeAll", "nftables.syncPeriod"]);
    }
}
