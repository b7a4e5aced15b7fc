//! Other software on this node that serves Services: a running kube-proxy, rules that one has left, and a DNS cache that has
//! the address of a Service.

use std::{collections::BTreeSet, net::IpAddr, path::Path};

use super::{finding::Finding, survey::Survey};
use crate::kube_proxy::{self, Leftovers, alive::Sign};

/// The device of NodeLocal DNSCache.
const DNS_CACHE: &str = "nodelocaldns";

pub(super) fn examine(survey: &Survey, bpffs: &Path) -> Vec<Finding> {
    let signs = kube_proxy::signs(bpffs);
    let left = match &survey.rules {
        Ok(chains) => Leftovers::among(chains).map(|left| left.places()).map_err(|error| error.to_string()),
        Err(error) => Err(error.to_string()),
    };
    let mut findings = vec![evaluate_kube_proxy(&signs, left.as_deref().unwrap_or_default())];
    if let Err(error) = left {
        findings.push(Finding::warn(
            "packet filter",
            format!("its rules cannot be read ({error}), so their effect on shunt is unknown"),
            "run as root or with CAP_NET_ADMIN",
        ));
    }
    findings.extend(evaluate_dns_cache(&cached(survey), survey.maps.as_ref().map(|maps| &maps.vips)));
    findings
}

fn evaluate_kube_proxy(signs: &[Sign], places: &[String]) -> Finding {
    const CHECK: &str = "kube-proxy";
    let places = places.join(", ");
    if signs.is_empty() && places.is_empty() {
        return Finding::ok(CHECK, "not present");
    }
    if signs.is_empty() {
        return Finding::warn(
            CHECK,
            format!("not running, but it left {places}, which may still translate Services"),
            "shunt cleanup --kube-proxy (on this node)",
        );
    }
    let signs_text = signs.iter().map(Sign::to_string).collect::<Vec<_>>().join("; ");
    let with = if places.is_empty() { String::new() } else { format!(", with {places}") };
    Finding::fail(
        CHECK,
        format!("running ({signs_text}){with}: two proxies would translate the same Services"),
        format!("{}; then, on each node, shunt cleanup --kube-proxy", kube_proxy::how_to_stop(signs)),
    )
}

/// Addresses of the cache's device, without link-local ones.
fn cached(survey: &Survey) -> Vec<IpAddr> {
    let device = survey.devices.links.values().find(|link| link.name == DNS_CACHE);
    let Some(device) = device else { return Vec::new() };
    let all = survey.devices.addresses.keys().filter(|(index, _)| *index == device.index);
    all.map(|(_, ip)| *ip)
        .filter(|ip| match ip {
            IpAddr::V4(v4) => !v4.is_link_local(),
            IpAddr::V6(v6) => !v6.is_unicast_link_local(),
        })
        .collect()
}

/// `vips`: the addresses of Services, if known.
fn evaluate_dns_cache(held: &[IpAddr], vips: Option<&BTreeSet<IpAddr>>) -> Option<Finding> {
    let held: Vec<_> = held.iter().filter(|ip| vips.is_none_or(|vips| vips.contains(*ip))).collect();
    if held.is_empty() {
        return None;
    }
    let held = held.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    Some(Finding::warn(
        "dns cache",
        format!(
            "{DNS_CACHE} has the Service address {held}: shunt translates it at the devices of pods, so their queries bypass \
             the cache"
        ),
        "configure the cache as for kube-proxy's ipvs mode: it listens only on 169.254.20.10, and the kubelet runs with \
         --cluster-dns=169.254.20.10",
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::finding::Level;

    #[test]
    fn a_running_proxy_fails_and_its_leftovers_warn() {
        let places = ["KUBE chains of nftables table ip nat (3)".to_owned()];
        let live = evaluate_kube_proxy(&[Sign::Process { pid: 12 }], &places);
        assert!(live.level == Level::Fail && live.detail.contains("(pid 12), with KUBE chains"), "{live:?}");
        assert!(live.fix.contains("delete daemonset") && live.fix.contains("--kube-proxy"), "{live:?}");
        let left = evaluate_kube_proxy(&[], &places);
        assert!(left.level == Level::Warn && left.fix.starts_with("shunt cleanup"), "{left:?}");
        assert_eq!(evaluate_kube_proxy(&[], &[]).level, Level::Ok);
    }

    #[test]
    fn a_cache_with_the_address_of_a_service() {
        let held = ["10.96.0.10".parse().unwrap()];
        assert_eq!(evaluate_dns_cache(&held, None).unwrap().level, Level::Warn);
        assert!(evaluate_dns_cache(&held, Some(&held.into())).unwrap().detail.contains("10.96.0.10"));
        assert_eq!(evaluate_dns_cache(&held, Some(&BTreeSet::new())), None, "not the address of a Service");
        assert_eq!(evaluate_dns_cache(&[], None), None);
    }
}
