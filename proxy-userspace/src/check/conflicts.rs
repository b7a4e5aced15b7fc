//! Who else serves Services on this node: a kube-proxy, alive or by what it left, and a cache that holds a
//! Service's address.

use std::{collections::BTreeSet, net::IpAddr, path::Path};

use super::{Finding, survey::Survey};
use crate::kube_proxy::{self, Leftovers, alive::Sign};

/// NodeLocal DNSCache's device.
const DNS_CACHE: &str = "nodelocaldns";

pub(super) fn examine(survey: &Survey, bpffs: &Path) -> Vec<Finding> {
    let signs = kube_proxy::signs(bpffs);
    let left = match &survey.rules {
        Ok(chains) => Leftovers::among(chains).map(|left| left.places()).map_err(|error| error.to_string()),
        Err(error) => Err(error.to_string()),
    };
    let mut findings = vec![judge_kube_proxy(&signs, left.as_deref().unwrap_or_default())];
    if let Err(error) = left {
        findings.push(Finding::warn(
            "packet filter",
            format!("its rules cannot be read ({error}), so what they mean for shunt is not known"),
            "run as root or with CAP_NET_ADMIN",
        ));
    }
    findings.extend(judge_dns_cache(&cached(survey), survey.maps.as_ref().map(|maps| &maps.vips)));
    findings
}

fn judge_kube_proxy(signs: &[Sign], places: &[String]) -> Finding {
    const CHECK: &str = "kube-proxy";
    let places = places.join(", ");
    if signs.is_empty() && places.is_empty() {
        return Finding::ok(CHECK, "not here");
    }
    if signs.is_empty() {
        return Finding::warn(
            CHECK,
            format!("none is running, but one left {places}, which may still translate Services"),
            "shunt cleanup --kube-proxy (on this node)",
        );
    }
    let signs_text = signs.iter().map(Sign::to_string).collect::<Vec<_>>().join("; ");
    let with = if places.is_empty() { String::new() } else { format!(", with {places}") };
    Finding::fail(
        CHECK,
        format!("it is running ({signs_text}){with}: two proxies would translate the same Services"),
        format!("{}; then, on each node, shunt cleanup --kube-proxy", kube_proxy::how_to_stop(signs)),
    )
}

/// Addresses of the cache's device, but for those that only this link knows.
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

/// `vips`: the Services' addresses, where they are known.
fn judge_dns_cache(held: &[IpAddr], vips: Option<&BTreeSet<IpAddr>>) -> Option<Finding> {
    let held: Vec<_> = held.iter().filter(|ip| vips.is_none_or(|vips| vips.contains(*ip))).collect();
    if held.is_empty() {
        return None;
    }
    let held = held.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    Some(Finding::warn(
        "dns cache",
        format!(
            "{DNS_CACHE} holds the Service address {held}: shunt translates it at the pods' devices, so their \
             queries pass by the cache"
        ),
        "set the cache up as for kube-proxy's ipvs mode: it listens on 169.254.20.10 alone, and kubelet gets \
         --cluster-dns=169.254.20.10",
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::Level;

    #[test]
    fn a_live_proxy_fails_and_what_one_left_warns() {
        let places = ["KUBE chains of nftables table ip nat (3)".to_owned()];
        let live = judge_kube_proxy(&[Sign::Process { pid: 12 }], &places);
        assert!(live.level == Level::Fail && live.detail.contains("(pid 12), with KUBE chains"), "{live:?}");
        assert!(live.fix.contains("delete daemonset") && live.fix.contains("--kube-proxy"), "{live:?}");
        let left = judge_kube_proxy(&[], &places);
        assert!(left.level == Level::Warn && left.fix.starts_with("shunt cleanup"), "{left:?}");
        assert_eq!(judge_kube_proxy(&[], &[]).level, Level::Ok);
    }

    #[test]
    fn a_cache_at_a_services_address() {
        let held = ["10.96.0.10".parse().unwrap()];
        assert_eq!(judge_dns_cache(&held, None).unwrap().level, Level::Warn);
        assert!(judge_dns_cache(&held, Some(&held.into())).unwrap().detail.contains("10.96.0.10"));
        assert_eq!(judge_dns_cache(&held, Some(&BTreeSet::new())), None, "it is no Service's");
        assert_eq!(judge_dns_cache(&[], None), None);
    }
}
