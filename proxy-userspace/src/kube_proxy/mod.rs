//! kube-proxy on this node: whether one is running, what it left in the kernel in any of its modes, and the removal of
//! that. `shunt check` looks, `shunt cleanup --kube-proxy` removes. Nothing else is touched: kube-proxy's objects are
//! recognised by exact names (`names`).
//!
//! No external program is called: nf_tables, ipsets, IPVS and devices are accessed by netlink, iptables-legacy tables
//! by iptables' socket options.

pub mod alive;
mod ipset;
mod ipvs;
mod names;
mod rules;

use std::{
    collections::BTreeSet,
    io::{self, Write},
    net::IpAddr,
    path::Path,
};

use serde::Serialize;

use self::{alive::Sign, ipvs::Server, rules::Rules};
use crate::{
    datapath::{
        devices::Devices,
        netlink::{Request, Socket},
    },
    inspect::{self, status},
    netfilter::{self, Chain, Kind, nftables, nftables::Removal},
};

const RTM_DELLINK: u16 = 17;

/// Why nothing (more) was removed.
#[derive(Debug, thiserror::Error)]
pub enum KubeProxyError {
    #[error(
        "kube-proxy is alive here ({signs}) and would create the removed objects again: `{fix}` first, or use --force"
    )]
    Alive { signs: String, fix: &'static str },
    #[error("looking for {what} failed (run as root, or with CAP_NET_ADMIN)")]
    Look { what: &'static str, source: io::Error },
    #[error("removing {what} failed")]
    Remove { what: String, source: io::Error },
}

/// The result of a cleanup.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Report {
    pub removed: Vec<String>,
    /// Kept objects, with the reason.
    pub kept: Vec<String>,
}

/// What a kube-proxy left in this network namespace.
#[derive(Clone, Debug, Default)]
pub struct Leftovers {
    rules: Rules,
    servers: Vec<Server>,
    others: Vec<Server>,
    /// The ifindex of kube-ipvs0.
    device: Option<u32>,
    sets: BTreeSet<String>,
}

/// How to stop a running one.
pub fn how_to_stop(signs: &[Sign]) -> &'static str {
    if signs.iter().any(Sign::is_k3s) {
        "k3s server --disable-kube-proxy"
    } else {
        "kubectl -n kube-system delete daemonset kube-proxy"
    }
}

/// Signs of a running kube-proxy, excluding shunt's own listeners.
pub fn signs(bpffs: &Path) -> Vec<Sign> {
    let agent = status::agent(&inspect::pins::Pins::new(bpffs)).ok().flatten();
    let agent = agent.filter(|agent| status::is_alive(agent, status::unix_now()));
    alive::signs(agent.map(|agent| agent.pid))
}

impl Leftovers {
    /// Searches for everything; `chains` as read by `netfilter`.
    pub fn among(chains: &[Chain]) -> Result<Self, KubeProxyError> {
        let look = |what| move |source| KubeProxyError::Look { what, source };
        let tables = nftables::tables().map_err(look("nftables tables"))?;
        let devices = Socket::open().and_then(|mut netlink| Devices::dump(&mut netlink));
        let devices = devices.map_err(look("devices"))?;
        let device = devices.links.values().find(|link| link.name == names::IPVS_DEVICE);
        let device = device.map(|link| link.index);
        let addresses = |of_device: bool| -> BTreeSet<IpAddr> {
            let all = devices.addresses.keys();
            all.filter(|(index, _)| (Some(*index) == device) == of_device).map(|(_, ip)| *ip).collect()
        };
        let vips = device.map(|_| addresses(true));
        let (servers, others) = ipvs::servers()
            .map_err(look("ipvs virtual servers"))?
            .into_iter()
            .partition(|server| ipvs::is_own(server, vips.as_ref(), &addresses(false)));
        let sets = ipset::sets().map_err(look("ipsets"))?;
        Ok(Self { rules: Rules::among(&tables, chains), servers, others, device, sets })
    }

    /// A summary for people; empty if there are none.
    pub fn places(&self) -> Vec<String> {
        let mut places: Vec<String> = self.rules.places().into_iter().collect();
        let counted = |count: usize, what: &str| (count > 0).then(|| format!("{count} {what}"));
        places.extend(counted(self.servers.len(), "ipvs virtual servers"));
        places.extend(self.device.map(|_| format!("device {}", names::IPVS_DEVICE)));
        places.extend(counted(self.sets.len(), "ipsets"));
        places
    }

    /// Rules are removed before the sets they name, virtual servers before the addresses that identify them.
    fn remove(&self) -> Result<Report, KubeProxyError> {
        let mut report = Report::default();
        let failed = |what: &str| {
            let what = what.to_owned();
            move |source| KubeProxyError::Remove { what, source }
        };
        self.remove_rules(&mut report)?;
        ipvs::remove(&self.servers).map_err(failed("ipvs virtual servers"))?;
        report.removed.extend(self.servers.iter().map(Server::to_string));
        if let Some(index) = self.device {
            let mut body = [0; 16];
            body[4..8].copy_from_slice(&index.to_ne_bytes());
            let deleted = Socket::open().and_then(|mut it| it.request(Request::new(RTM_DELLINK, 0, &body)));
            deleted.map_err(failed(names::IPVS_DEVICE))?;
            report.removed.push(format!("device {}", names::IPVS_DEVICE));
        }
        for set in &self.sets {
            match ipset::destroy(set) {
                Ok(()) => report.removed.push(format!("ipset {set}")),
                Err(error) if error.kind() == io::ErrorKind::ResourceBusy => {
                    report.kept.push(format!("ipset {set} ({error})"));
                }
                Err(error) => return Err(failed(&format!("ipset {set}"))(error)),
            }
        }
        let others = self.others.iter().map(|it| format!("{it} (at no address of kube-proxy's)"));
        report.kept.extend(others);
        Ok(report)
    }

    fn remove_rules(&self, report: &mut Report) -> Result<(), KubeProxyError> {
        let Removal { rules, chains, tables } = &self.rules.removal;
        let of = |kind: Kind| Removal {
            rules: rules.iter().filter(|rule| rule.0.kind == kind).cloned().collect(),
            chains: chains.iter().filter(|chain| chain.0.kind == kind).cloned().collect(),
            tables: tables.iter().filter(|table| table.kind == kind).cloned().collect(),
        };
        nftables::remove(&of(Kind::Nftables))
            .map_err(|source| KubeProxyError::Remove { what: "rules of nftables".to_owned(), source })?;
        let legacy = of(Kind::Legacy);
        netfilter::legacy::remove(&legacy.chains, &legacy.rules).map_err(|source| {
            KubeProxyError::Remove { what: "rules of iptables-legacy".to_owned(), source }
        })?;
        report
            .removed
            .extend(rules.iter().map(|(table, chain, _)| format!("a jump in chain {chain} of {table}")));
        report.removed.extend(chains.iter().map(|(table, chain)| format!("chain {chain} of {table}")));
        report.removed.extend(tables.iter().map(ToString::to_string));
        let kept = self.rules.kept.iter();
        report.kept.extend(kept.map(|(table, chain, why)| format!("chain {chain} of {table} ({why})")));
        Ok(())
    }
}

/// Removes what kube-proxy left in this network namespace. Idempotent.
pub fn cleanup(bpffs: &Path, force: bool) -> Result<Report, KubeProxyError> {
    let signs = if force { Vec::new() } else { signs(bpffs) };
    if !signs.is_empty() {
        let words: Vec<_> = signs.iter().map(Sign::to_string).collect();
        return Err(KubeProxyError::Alive { signs: words.join("; "), fix: how_to_stop(&signs) });
    }
    let chains =
        netfilter::chains().map_err(|source| KubeProxyError::Look { what: "packet filter rules", source })?;
    Leftovers::among(&chains)?.remove()
}

pub fn print_report_into(out: &mut impl Write, report: &Report) -> io::Result<()> {
    for what in &report.removed {
        writeln!(out, "removed {what}")?;
    }
    for what in &report.kept {
        writeln!(out, "kept    {what}")?;
    }
    if report.removed.is_empty() {
        writeln!(out, "nothing of kube-proxy's to remove")?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_living_one_is_named_with_how_to_stop_it() {
        let signs = [Sign::Process { pid: 12 }];
        let error = KubeProxyError::Alive { signs: signs[0].to_string(), fix: how_to_stop(&signs) };
        let text = error.to_string();
        assert!(text.contains("pid 12") && text.contains("delete daemonset kube-proxy"), "{text}");
    }

    #[test]
    fn reports_in_words() {
        let mut out = Vec::new();
        print_report_into(&mut out, &Report::default()).unwrap();
        let report = Report { removed: vec!["ipset A".into()], kept: vec!["ipset B (used)".into()] };
        print_report_into(&mut out, &report).unwrap();
        assert_eq!(
            String::from_utf8(out).unwrap(),
            "nothing of kube-proxy's to remove\nremoved ipset A\nkept    ipset B (used)\n"
        );
    }
}
