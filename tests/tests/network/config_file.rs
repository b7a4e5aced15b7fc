//! `--config`: the agent follows a KubeProxyConfiguration, and exits cleanly when it changes while traffic continues.

use std::{fs, path::Path, thread, time::Duration};

use anyhow::{Context as _, Result};
use tests::{
    manifest::Service,
    net::{
        Plan,
        cluster::eventually,
        plan::{BOTH, Family},
    },
};

use crate::world::{TARGET, World, web, web_addr};

/// As written by kubeadm, shortened: with a field that has no effect here, and one with an effect that a server can
/// see.
fn document(masquerade_all: bool) -> String {
    format!(
        "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\nbindAddress: 0.0.0.0\n\
         clientConnection: {{kubeconfig: \"\", qps: 50}}\nclusterCIDR: \"\"\nmode: iptables\n\
         iptables: {{masqueradeAll: {masquerade_all}, masqueradeBit: null, syncPeriod: 0s}}\nnodePortAddresses: null\n"
    )
}

fn replace(path: &Path, text: &str) -> Result<()> {
    let half = path.with_extension("half");
    fs::write(&half, text)?;
    Ok(fs::rename(half, path)?)
}

#[test]
fn a_changed_file_ends_the_agent_and_nothing_else() -> Result<()> {
    let world = World::start(Plan::default(), |world| {
        Service::new("web", web_addr()).node_port(80, TARGET, 30080).pods(&[&world.near]).yaml()
    })?;
    let node = world.cluster.node(0);
    node.stop_shunt()?;
    let file = node.manifests().join("config.conf");
    fs::write(&file, document(false))?;
    let named = file.to_str().context("a path in UTF-8")?;
    node.start_shunt(&["--config", named])?;
    for (what, want) in
        [("ignored fields", "clientConnection.qps"), ("overrides these flags", "--healthz-bind-address")]
    {
        let log = node.shunt_log();
        assert!(log.lines().any(|line| line.contains(what) && line.contains(want)), "{want}: {log}");
    }
    let seen = |family: Family| world.pod().tcp(web(family)).answered().peer.ip();
    let own = BOTH.map(seen);
    let streams = BOTH.map(|family| world.pod().stream(web(family)));
    let before = streams.each_ref().map(|stream| stream.steady(3));

    // Touched, commented, and invalid: the agent continues unchanged.
    fs::write(&file, document(false))?;
    thread::sleep(Duration::from_millis(300));
    replace(&file, &format!("# by hand\n{}", document(false)))?;
    thread::sleep(Duration::from_millis(300));
    replace(&file, &document(false).replace("masqueradeAll: false", "masqueradeAll: perhaps"))?;
    eventually(Duration::from_secs(3), || node.shunt_log().contains("iptables.masqueradeAll: invalid type"))?;
    node.still_runs()?;

    replace(&file, &document(true))?;
    let log = node.wait_ended(Duration::from_secs(5))?;
    assert!(log.contains("has changed: stopping"), "{log}");
    assert_eq!(streams.each_ref().map(|stream| stream.steady(3)), before, "open streams, without an agent");
    assert_eq!(BOTH.map(seen), own, "new connections, without an agent");
    node.start_shunt(&["--config", named])?;
    assert_eq!(streams.each_ref().map(|stream| stream.steady(3)), before);
    for (family, own) in BOTH.into_iter().zip(own) {
        assert_eq!(own, world.client.addr().of(family));
        assert_ne!(seen(family), own, "masqueradeAll is in force");
    }
    Ok(())
}
