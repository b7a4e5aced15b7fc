//! What kube-proxy refuses in a configuration, refused with the field's path, what it is, and what it should be. The
//! document has its defaults already. As in kube-proxy, the ipvs section is judged in the ipvs mode only.

use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;

use super::{
    FieldError,
    duration::GoDuration,
    types::{KubeProxyConfiguration, Mode},
};

const LOCAL_MODES: [&str; 4] = ["ClusterCIDR", "NodeCIDR", "BridgeInterface", "InterfaceNamePrefix"];

struct Wrong(Vec<FieldError>);

impl Wrong {
    fn say(&mut self, path: &str, what: String) {
        self.0.push(FieldError { path: path.to_owned(), what });
    }

    fn unless(&mut self, is_right: bool, path: &str, value: impl std::fmt::Display, expected: &str) {
        if !is_right {
            self.say(path, format!("{value} is not {expected}"));
        }
    }

    fn address(&mut self, path: &str, value: &str) {
        let is_right = value.parse::<SocketAddr>().is_ok_and(|addr| addr.port() != 0)
            || value.trim_matches(['[', ']']).parse::<IpAddr>().is_ok();
        self.unless(
            is_right,
            path,
            format_args!("{value:?}"),
            "an address and port such as 0.0.0.0:10256 or [::]:10256",
        );
    }

    fn range(&mut self, path: &str, value: &str) {
        let is_right = value.trim().parse::<IpNet>().is_ok();
        self.unless(
            is_right,
            path,
            format_args!("{value:?}"),
            "an address range such as 10.244.0.0/16 or fd00:10::/56",
        );
    }

    fn masquerade_bit(&mut self, path: &str, bit: Option<i32>) {
        let bit = bit.unwrap_or(14);
        self.unless((0..=31).contains(&bit), path, bit, "a bit from 0 to 31");
    }

    fn periods(&mut self, section: &str, sync: GoDuration, min: GoDuration) {
        let expected = format!("at least {section}.minSyncPeriod, which is {min}");
        self.unless(min <= sync, &format!("{section}.syncPeriod"), sync, &expected);
    }
}

/// Everything that is wrong, in the order of the fields.
pub fn validate(config: &KubeProxyConfiguration) -> Vec<FieldError> {
    let mut wrong = Wrong(Vec::new());
    let burst = config.client_connection.burst;
    wrong.unless(burst >= 0, "clientConnection.burst", burst, "zero or more");
    let bind = &config.bind_address;
    wrong.unless(
        bind.parse::<IpAddr>().is_ok(),
        "bindAddress",
        format_args!("{bind:?}"),
        "an IP address; leave it out to take the Node's InternalIP",
    );
    wrong.address("healthzBindAddress", &config.healthz_bind_address);
    wrong.address("metricsBindAddress", &config.metrics_bind_address);
    let mode = Mode::of(&config.mode);
    wrong.unless(
        mode.is_some(),
        "mode",
        format_args!("{:?}", config.mode),
        "iptables, ipvs or nftables, nor empty",
    );
    wrong.masquerade_bit("iptables.masqueradeBit", config.iptables.masquerade_bit);
    wrong.periods("iptables", config.iptables.sync_period, config.iptables.min_sync_period);
    if mode == Some(Mode::Ipvs) {
        wrong.periods("ipvs", config.ipvs.sync_period, config.ipvs.min_sync_period);
        for (i, range) in config.ipvs.exclude_cidrs.iter().enumerate() {
            wrong.range(&format!("ipvs.excludeCIDRs[{i}]"), range);
        }
    }
    wrong.masquerade_bit("nftables.masqueradeBit", config.nftables.masquerade_bit);
    wrong.periods("nftables", config.nftables.sync_period, config.nftables.min_sync_period);
    detect_local(config, &mut wrong);
    cluster_cidr(&config.cluster_cidr, &mut wrong);
    node_port_addresses(&config.node_port_addresses, &mut wrong);
    let score = config.oom_score_adj.unwrap_or(0);
    wrong.unless((-1000..=1000).contains(&score), "oomScoreAdj", score, "from -1000 to 1000");
    for (path, value) in
        [("conntrack.maxPerCore", config.conntrack.max_per_core), ("conntrack.min", config.conntrack.min)]
    {
        let value = value.unwrap_or(0);
        wrong.unless(value >= 0, path, value, "zero or more");
    }
    wrong.0
}

fn detect_local(config: &KubeProxyConfiguration, wrong: &mut Wrong) {
    let mode = config.detect_local_mode.as_str();
    wrong.unless(
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
        wrong.say(&path, format!("is empty; detectLocalMode {mode} needs it"));
    }
}

fn cluster_cidr(text: &str, wrong: &mut Wrong) {
    let ranges: Vec<&str> = if text.is_empty() { Vec::new() } else { text.split(',').collect() };
    let parsed: Result<Vec<IpNet>, _> = ranges.iter().map(|range| range.trim().parse::<IpNet>()).collect();
    let Ok(parsed) = parsed else {
        return ranges.iter().for_each(|range| wrong.range("clusterCIDR", range));
    };
    let v6 = parsed.iter().filter(|range| range.addr().is_ipv6()).count();
    let is_right = v6 <= 1 && parsed.len() - v6 <= 1;
    wrong.unless(
        is_right,
        "clusterCIDR",
        format_args!("{text:?}"),
        "one range, or one of each family as in 10.244.0.0/16,fd00:10::/56",
    );
}

fn node_port_addresses(list: &[String], wrong: &mut Wrong) {
    let path = |i| format!("nodePortAddresses[{i}]");
    for (i, one) in list.iter().enumerate() {
        if one != "primary" {
            wrong.range(&path(i), one);
        } else if list.len() > 1 {
            wrong.say(&path(i), "\"primary\" stands alone; remove it or the ranges".to_owned());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::parse;

    fn complaints(fields: &str) -> String {
        let text =
            format!("apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n{fields}");
        parse(&text).map_or_else(|error| error.to_string(), |_| String::new())
    }

    #[test]
    fn what_kube_proxy_refuses_is_refused() {
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
            ("nodePortAddresses: [10.0.0.0/8, primary]", "nodePortAddresses[1]: \"primary\" stands alone"),
            ("nodePortAddresses: [eth0]", "nodePortAddresses[0]: \"eth0\" is not an address range"),
            ("oomScoreAdj: -1001", "oomScoreAdj: -1001 is not from -1000 to 1000"),
            ("conntrack: {maxPerCore: -1}", "conntrack.maxPerCore: -1 is not zero or more"),
            ("clientConnection: {burst: -1}", "clientConnection.burst: -1"),
        ] {
            let found = complaints(fields);
            assert!(found.contains(want), "{fields}: {found:?}");
        }
    }

    #[test]
    fn what_kube_proxy_takes_is_taken() {
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
            assert_eq!(complaints(fields), "", "{fields}");
        }
    }

    #[test]
    fn everything_wrong_is_said_at_once() {
        let found = complaints("oomScoreAdj: 2000\nmode: x\n");
        assert!(found.contains("mode: \"x\"") && found.contains("; oomScoreAdj: 2000"), "{found}");
    }
}
