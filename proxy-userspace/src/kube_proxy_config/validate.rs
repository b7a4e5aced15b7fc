//! Rejects what kube-proxy rejects. Each error has the path of the field, its value and what is expected. The document
//! already has its defaults. As in kube-proxy, the ipvs section is validated in the ipvs mode only.

use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;

use super::{
    duration::GoDuration,
    error::FieldError,
    types::{KubeProxyConfiguration, Mode},
};

const LOCAL_MODES: [&str; 4] = ["ClusterCIDR", "NodeCIDR", "BridgeInterface", "InterfaceNamePrefix"];

struct Errors(Vec<FieldError>);

impl Errors {
    fn push(&mut self, path: &str, message: String) {
        self.0.push(FieldError { path: path.to_owned(), message });
    }

    fn expect(&mut self, is_valid: bool, path: &str, value: impl std::fmt::Display, expected: &str) {
        if !is_valid {
            self.push(path, format!("{value} is not {expected}"));
        }
    }

    fn address(&mut self, path: &str, value: &str) {
        let is_valid = value.parse::<SocketAddr>().is_ok_and(|addr| addr.port() != 0)
            || value.trim_matches(['[', ']']).parse::<IpAddr>().is_ok();
        self.expect(
            is_valid,
            path,
            format_args!("{value:?}"),
            "an address and port such as 0.0.0.0:10256 or [::]:10256",
        );
    }

    fn range(&mut self, path: &str, value: &str) {
        let is_valid = value.trim().parse::<IpNet>().is_ok();
        self.expect(
            is_valid,
            path,
            format_args!("{value:?}"),
            "an address range such as 10.244.0.0/16 or fd00:10::/56",
        );
    }

    fn masquerade_bit(&mut self, path: &str, bit: Option<i32>) {
        let bit = bit.unwrap_or(14);
        self.expect((0..=31).contains(&bit), path, bit, "a bit from 0 to 31");
    }

    fn periods(&mut self, section: &str, sync: GoDuration, min: GoDuration) {
        let expected = format!("at least {section}.minSyncPeriod, which is {min}");
        self.expect(min <= sync, &format!("{section}.syncPeriod"), sync, &expected);
    }
}

/// All invalid fields, in the order of the document.
pub fn validate(config: &KubeProxyConfiguration) -> Vec<FieldError> {
    let mut errors = Errors(Vec::new());
    let burst = config.client_connection.burst;
    errors.expect(burst >= 0, "clientConnection.burst", burst, "zero or more");
    let bind = &config.bind_address;
    errors.expect(
        bind.parse::<IpAddr>().is_ok(),
        "bindAddress",
        format_args!("{bind:?}"),
        "an IP address; leave it out to take the Node's InternalIP",
    );
    errors.address("healthzBindAddress", &config.healthz_bind_address);
    errors.address("metricsBindAddress", &config.metrics_bind_address);
    let mode = Mode::of(&config.mode);
    errors.expect(
        mode.is_some(),
        "mode",
        format_args!("{:?}", config.mode),
        "iptables, ipvs or nftables, or empty",
    );
    errors.masquerade_bit("iptables.masqueradeBit", config.iptables.masquerade_bit);
    errors.periods("iptables", config.iptables.sync_period, config.iptables.min_sync_period);
    if mode == Some(Mode::Ipvs) {
        errors.periods("ipvs", config.ipvs.sync_period, config.ipvs.min_sync_period);
        for (i, range) in config.ipvs.exclude_cidrs.iter().enumerate() {
            errors.range(&format!("ipvs.excludeCIDRs[{i}]"), range);
        }
    }
    errors.masquerade_bit("nftables.masqueradeBit", config.nftables.masquerade_bit);
    errors.periods("nftables", config.nftables.sync_period, config.nftables.min_sync_period);
    detect_local(config, &mut errors);
    cluster_cidr(&config.cluster_cidr, &mut errors);
    node_port_addresses(&config.node_port_addresses, &mut errors);
    let score = config.oom_score_adj.unwrap_or(0);
    errors.expect((-1000..=1000).contains(&score), "oomScoreAdj", score, "from -1000 to 1000");
    for (path, value) in
        [("conntrack.maxPerCore", config.conntrack.max_per_core), ("conntrack.min", config.conntrack.min)]
    {
        let value = value.unwrap_or(0);
        errors.expect(value >= 0, path, value, "zero or more");
    }
    errors.0
}

fn detect_local(config: &KubeProxyConfiguration, errors: &mut Errors) {
    let mode = config.detect_local_mode.as_str();
    errors.expect(
        LOCAL_MODES.contains(&mode),
        "detectLocalMode",
        format_args!("{mode:?}"),
        &LOCAL_MODES.join(", "),
    );
    let needs = |path: &str, name: &str| name.is_empty().then(|| path.to_owned());
    let lacking = match mode {
        "BridgeInterface" => needs("detectLocal.bridgeInterface", &config.detect_local.bridge_interface),
        "InterfaceNamePrefix" => {
            needs("detectLocal.interfaceNamePrefix", &config.detect_local.interface_name_prefix)
        }
        _ => None,
    };
    if let Some(path) = lacking {
        errors.push(&path, format!("is empty; detectLocalMode {mode} needs it"));
    }
}

fn cluster_cidr(text: &str, errors: &mut Errors) {
    let ranges: Vec<&str> = if text.is_empty() { Vec::new() } else { text.split(',').collect() };
    let parsed: Result<Vec<IpNet>, _> = ranges.iter().map(|range| range.trim().parse::<IpNet>()).collect();
    let Ok(parsed) = parsed else {
        return ranges.iter().for_each(|range| errors.range("clusterCIDR", range));
    };
    let v6 = parsed.iter().filter(|range| range.addr().is_ipv6()).count();
    let is_valid = v6 <= 1 && parsed.len() - v6 <= 1;
    errors.expect(
        is_valid,
        "clusterCIDR",
        format_args!("{text:?}"),
        "one range, or one of each family as in 10.244.0.0/16,fd00:10::/56",
    );
}

fn node_port_addresses(list: &[String], errors: &mut Errors) {
    let path = |i| format!("nodePortAddresses[{i}]");
    for (i, one) in list.iter().enumerate() {
        if one != "primary" {
            errors.range(&path(i), one);
        } else if list.len() > 1 {
            errors.push(
                &path(i),
                "\"primary\" cannot be combined with ranges; remove it or the ranges".to_owned(),
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::parse::parse;

    fn errors_of(fields: &str) -> String {
        let text =
            format!("apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n{fields}");
        parse(&text).map_or_else(|error| error.to_string(), |_| String::new())
    }

    #[test]
    fn rejects_what_kube_proxy_rejects() {
        for (fields, want) in [
            ("bindAddress: here", "bindAddress: \"here\" is not an IP address"),
            ("healthzBindAddress: ':10256'", "healthzBindAddress: \":10256\" is not an address and port"),
            ("metricsBindAddress: 127.0.0.1:0", "metricsBindAddress: \"127.0.0.1:0\""),
            ("metricsBindAddress: localhost:10249", "metricsBindAddress: \"localhost:10249\""),
            ("mode: userspace", "mode: \"userspace\" is not iptables, ipvs or nftables"),
            ("iptables: {masqueradeBit: 32}", "iptables.masqueradeBit: 32 is not a bit from 0 to 31"),
            ("nftables: {masqueradeBit: -1}", "nftables.masqueradeBit: -1"),
            (
                "iptables: {syncPeriod: 5s, minSyncPeriod: 6s}",
                "iptables.syncPeriod: 5s is not at least iptables.minSyncPeriod, which is 6s",
            ),
            ("nftables: {minSyncPeriod: 31s}", "nftables.syncPeriod: 30s is not at least"),
            (
                "mode: ipvs\nipvs: {minSyncPeriod: 1m}",
                "ipvs.syncPeriod: 30s is not at least ipvs.minSyncPeriod, which is 1m0s",
            ),
            ("mode: ipvs\nipvs: {excludeCIDRs: [10.0.0.0/8, x]}", "ipvs.excludeCIDRs[1]: \"x\""),
            ("detectLocalMode: Magic", "detectLocalMode: \"Magic\" is not ClusterCIDR, NodeCIDR"),
            ("detectLocalMode: BridgeInterface", "detectLocal.bridgeInterface: is empty"),
            ("detectLocalMode: InterfaceNamePrefix", "detectLocal.interfaceNamePrefix: is empty"),
            ("clusterCIDR: 10.0.0.0", "clusterCIDR: \"10.0.0.0\" is not an address range"),
            (
                "clusterCIDR: '10.0.0.0/8,11.0.0.0/8'",
                "clusterCIDR: \"10.0.0.0/8,11.0.0.0/8\" is not one range, or one of each",
            ),
            ("clusterCIDR: '10.0.0.0/8,fd00::/8,fc00::/8'", "clusterCIDR:"),
            (
                "nodePortAddresses: [10.0.0.0/8, primary]",
                "nodePortAddresses[1]: \"primary\" cannot be combined",
            ),
            ("nodePortAddresses: [eth0]", "nodePortAddresses[0]: \"eth0\" is not an address range"),
            ("oomScoreAdj: -1001", "oomScoreAdj: -1001 is not from -1000 to 1000"),
            ("conntrack: {maxPerCore: -1}", "conntrack.maxPerCore: -1 is not zero or more"),
            ("clientConnection: {burst: -1}", "clientConnection.burst: -1"),
        ] {
            let found = errors_of(fields);
            assert!(found.contains(want), "{fields}: {found:?}");
        }
    }

    #[test]
    fn accepts_what_kube_proxy_accepts() {
        for fields in [
            "clusterCIDR: '10.244.0.0/16,fd00:10::/56'",
            "nodePortAddresses: [primary]",
            "healthzBindAddress: 0.0.0.0",
            "metricsBindAddress: '[::]:10249'",
            "ipvs: {minSyncPeriod: 1m}",
            "detectLocalMode: ClusterCIDR",
            "detectLocalMode: BridgeInterface\ndetectLocal: {bridgeInterface: cni0}",
            "iptables: {masqueradeBit: 0, syncPeriod: 1s, minSyncPeriod: 1s}",
            "udpIdleTimeout: 250ms",
        ] {
            assert_eq!(errors_of(fields), "", "{fields}");
        }
    }

    #[test]
    fn all_errors_are_reported_at_once() {
        let found = errors_of("oomScoreAdj: 2000\nmode: x\n");
        assert!(found.contains("mode: \"x\"") && found.contains("; oomScoreAdj: 2000"), "{found}");
    }
}
