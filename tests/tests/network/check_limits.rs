//! Each limit that `shunt check` reports: one case where it applies, and one where it does not.

use std::{path::Path, process::Stdio};

use anyhow::{Context, Result, bail};
use serde_json::Value;
use tests::{
    manifest::{Endpoint, Service},
    net::{
        Lane, Netns, Plan,
        plan::{external, node_addr, vip},
        shunt::binary,
    },
};

use crate::world::World;

/// Runs `shunt check` in a namespace where no agent has run, after the commands `before`, in a mount namespace of its
/// own: mounts made there are removed with it.
fn check_after(netns: &Netns, before: &str) -> Result<Vec<Value>> {
    let binary = binary()?;
    let script =
        format!("{before}\nexec {} --bpffs /sys/fs/bpf/{} check -o json", binary.display(), netns.name());
    let output = netns
        .command("unshare")
        .args(["--mount", "--propagation", "private", "sh", "-e", "-c", &script])
        .stdin(Stdio::null())
        .output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    serde_json::from_str(&text)
        .with_context(|| format!("check wrote {text}{}", String::from_utf8_lossy(&output.stderr)))
}

fn check(netns: &Netns) -> Result<Vec<Value>> {
    check_after(netns, "")
}

fn new(name: &str) -> Result<Netns> {
    Netns::new(format!("shunt-test-{}-{name}", std::process::id()))
}

/// Checks the finding of that name: it has this level and contains these words.
#[track_caller]
fn says(findings: &[Value], name: &str, level: &str, words: &[&str]) {
    let found = findings.iter().find(|finding| finding["check"] == name);
    let found = found.unwrap_or_else(|| panic!("no {name} in {findings:#?}"));
    assert_eq!(found["level"], level, "{found}");
    for word in words {
        assert!(found.to_string().contains(word), "no {word} in {found}");
    }
    let fix = found["fix"].as_str().unwrap_or_default();
    assert_eq!(fix.is_empty(), level == "ok", "{found}");
}

#[track_caller]
fn silent(findings: &[Value], name: &str) {
    let found = findings.iter().find(|finding| finding["check"] == name);
    assert!(found.is_none(), "{found:?}");
}

/// Pods on a bridge, rules that match the connection's state, and whether these rules see the pods' traffic.
#[test]
fn bridged_pods_and_rules_that_ask_for_state() -> Result<()> {
    const CHECK: &str = "bridge netfilter";
    let (node, pod) = (new("limit-bridge")?, new("limit-bridge-pod")?);
    let set = |value: &str| -> Result<()> {
        node.sysctl("net/bridge/bridge-nf-call-iptables", value)?;
        node.sysctl("net/bridge/bridge-nf-call-ip6tables", value)
    };
    set("0")?;
    node.nft(
        "table ip cni {\n chain checked {\n }\n chain forward {\n type filter hook forward priority 0;\n jump checked\n }\n}\n",
    )?;
    says(&check(&node)?, CHECK, "ok", &["no bridged pods"]);
    node.ip(&format!(
        "link add cni0 type bridge\nlink add pod0 type veth peer name eth0 netns {}\nlink set pod0 master cni0",
        pod.path().display()
    ))?;
    says(&check(&node)?, CHECK, "ok", &["cni0", "no rule matches"]);
    node.nft("add rule ip cni checked ct state invalid drop")?;
    says(
        &check(&node)?,
        CHECK,
        "warn",
        &["cni0", "chain checked of nftables table ip cni", "bridge-nf-call-iptables=1"],
    );
    set("1")?;
    says(&check(&node)?, CHECK, "ok", &["cni0"]);
    set("0")?;
    node.nft("flush chain ip cni checked")?;
    says(&check(&node)?, CHECK, "ok", &["no rule matches"]);
    node.run(&[
        "iptables-legacy",
        "-A",
        "FORWARD",
        "-m",
        "conntrack",
        "--ctstate",
        "ESTABLISHED",
        "-j",
        "ACCEPT",
    ])?;
    says(&check(&node)?, CHECK, "warn", &["chain FORWARD of iptables-legacy table filter"]);
    Ok(())
}

/// Cilium's device or pins, and the header its agent compiles with.
#[test]
fn cilium_and_how_it_routes() -> Result<()> {
    const CHECK: &str = "cilium";
    let header = |line: &str| {
        format!(
            "mount -t tmpfs tmpfs /run; mkdir -p /run/cilium/state/globals; \
             echo '{line}' > /run/cilium/state/globals/node_config.h"
        )
    };
    let pins = "mount -t bpf bpf /sys/fs/bpf; mkdir -p /sys/fs/bpf/tc/globals; bpftool map create \
                /sys/fs/bpf/tc/globals/cilium_lxc type array key 4 value 4 entries 1 name cilium_lxc";
    if !Path::new("/var/run/cilium").exists() && std::fs::canonicalize("/var/run")? != Path::new("/run") {
        bail!("/var/run is no link to /run here: this test would have to mount elsewhere");
    }
    let node = new("limit-cilium")?;
    let empty = "mount -t bpf bpf /sys/fs/bpf";
    silent(&check_after(&node, empty)?, CHECK);
    says(&check_after(&node, pins)?, CHECK, "warn", &["tc/globals", "bypasses our egress hook"]);
    node.ip("link add cilium_host type veth peer name cilium_net")?;
    let with = |line: &str| check_after(&node, &format!("{empty}; {}", header(line)));
    says(&check_after(&node, empty)?, CHECK, "warn", &["device cilium_", "cilium status"]);
    says(
        &with("#define ENABLE_HOST_ROUTING 1")?,
        CHECK,
        "fail",
        &["bypasses our egress hook", "hostLegacyRouting=true"],
    );
    says(&with("#define ENABLE_NODEPORT 1")?, CHECK, "fail", &["two proxies", "kubeProxyReplacement=false"]);
    says(&with("#define ENABLE_IPV4 1")?, CHECK, "ok", &["device cilium_"]);
    Ok(())
}

/// An interface in a pod's namespace on top of the node's uplink: the node sees only its address.
#[test]
fn a_pod_with_a_macvlan_interface() -> Result<()> {
    const CHECK: &str = "pods' devices";
    let (node, pod, wire) = (new("limit-macvlan")?, new("limit-macvlan-pod")?, new("limit-macvlan-wire")?);
    node.ip(&format!(
        "link add eth0 type veth peer name far netns {}\nlink set eth0 up\naddr add 192.168.8.201/24 dev eth0\n\
         route add default via 192.168.8.1",
        wire.path().display()
    ))?;
    says(&check(&node)?, CHECK, "ok", &[]);
    node.ip(&format!(
        "link add pod0 link eth0 type macvlan mode bridge\nlink set pod0 netns {}",
        pod.path().display()
    ))?;
    pod.ip("link set pod0 up")?;
    says(&check(&node)?, CHECK, "warn", &["eth0 listens for 1 more address", "--socket-lb all"]);
    pod.ip("link del pod0")?;
    says(&check(&node)?, CHECK, "ok", &[]);
    node.ip("link add shim link eth0 type macvlan mode bridge")?;
    says(&check(&node)?, CHECK, "warn", &["shim is a macvlan device on eth0"]);
    Ok(())
}

#[test]
fn a_cni_whose_pods_have_no_device() -> Result<()> {
    let node = new("limit-cni")?;
    let with = |text: &str| {
        check_after(
            &node,
            &format!(
                "mount -t tmpfs tmpfs /etc; mkdir -p /etc/cni/net.d; echo '{text}' > /etc/cni/net.d/10.conflist"
            ),
        )
    };
    let found = with(r#"{"plugins": [{"type": "bridge"}]}"#)?;
    says(&found, "pods' devices", "ok", &[]);
    says(&found, "pod network", "ok", &["bridge"]);
    for plugin in ["macvlan", "ipvlan", "sriov"] {
        let multus = format!(r#"{{"type": "multus", "delegates": [{{"type": "{plugin}"}}]}}"#);
        says(&with(&multus)?, "pods' devices", "warn", &[plugin, "--socket-lb all"]);
    }
    Ok(())
}

/// Rules in the form of AWS VPC CNI's, in both kinds of iptables.
#[test]
fn marks_on_connections_to_the_node() -> Result<()> {
    const CHECK: &str = "connection marks";
    for program in ["iptables-nft", "iptables-legacy"] {
        let node = new(&format!("limit-aws-{program}"))?;
        let iptables = |line: &str| {
            let words: Vec<_> = [program].into_iter().chain(line.split(' ')).collect();
            node.run(&words).map(drop)
        };
        iptables("-t mangle -A PREROUTING -m addrtype --dst-type LOCAL -j ACCEPT")?;
        iptables("-t nat -N MY-SNAT-CHAIN")?;
        silent(&check(&node)?, CHECK);
        iptables("-t mangle -A PREROUTING -m addrtype --dst-type LOCAL -j CONNMARK --set-mark 0x80")?;
        says(&check(&node)?, CHECK, "warn", &["chain PREROUTING", "--masquerade-all"]);
        iptables("-t mangle -F PREROUTING")?;
        silent(&check(&node)?, CHECK);
        iptables("-t nat -N AWS-CONNMARK-CHAIN-0")?;
        says(&check(&node)?, CHECK, "warn", &["AWS-CONNMARK-CHAIN-0", "AWS_VPC_K8S_CNI_EXTERNALSNAT"]);
    }
    Ok(())
}

#[test]
fn a_forward_policy_of_drop() -> Result<()> {
    const CHECK: &str = "forward policy";
    let node = new("limit-forward")?;
    says(&check(&node)?, CHECK, "ok", &[]);
    for program in ["iptables-nft", "ip6tables-legacy"] {
        node.run(&[program, "-P", "FORWARD", "DROP"])?;
        says(&check(&node)?, CHECK, "warn", &["chain FORWARD of", "outside the pod range"]);
        node.run(&[program, "-P", "FORWARD", "ACCEPT"])?;
        says(&check(&node)?, CHECK, "ok", &[]);
    }
    Ok(())
}

#[test]
fn a_dns_cache_at_a_services_address() -> Result<()> {
    const CHECK: &str = "dns cache";
    let node = new("limit-dns")?;
    node.ip("link add nodelocaldns type veth peer name other\naddr add 169.254.20.10/32 dev nodelocaldns")?;
    silent(&check(&node)?, CHECK);
    node.ip("addr add 10.68.0.53/32 dev nodelocaldns")?;
    says(&check(&node)?, CHECK, "warn", &["10.68.0.53", "--cluster-dns=169.254.20.10"]);
    Ok(())
}

/// Limits that only an agent's maps show: locations of the backends, addresses of Services.
#[test]
fn limits_that_the_maps_show() -> Result<()> {
    let world = World::start(Plan { xdp: None, ..Plan::default() }, |world| world.web().yaml())?;
    let node = world.cluster.node(0);
    let check = || -> Result<Vec<Value>> {
        let output = node.shunt_output(&["check", "-o", "json"])?;
        Ok(serde_json::from_slice(&output.stdout)?)
    };
    node.netns().run(&["iptables-nft", "-P", "FORWARD", "DROP"])?;
    node.netns()
        .ip("link add nodelocaldns type veth peer name other\naddr add 10.99.0.53/32 dev nodelocaldns")?;
    let found = check()?;
    says(&found, "forward policy", "ok", &["every backend is a pod's"]);
    says(&found, "pods' devices", "ok", &[]);
    says(&found, "kube-proxy", "ok", &[]);
    silent(&found, "dns cache");
    silent(&found, "xdp lane");

    // A Service whose backend is not a pod, and one whose backend is a pod of this node with an underlay address.
    let outside = Service::new("outside", vip(50)).tcp(80, 8080).endpoints([Endpoint::at(external(9))]);
    let lan = Service::new("lan", vip(51)).tcp(80, 8080).endpoints([Endpoint::node(node)]);
    let lan =
        lan.yaml().replace(&format!("addresses: [\"{}\"]", node_addr(0).v4), "addresses: [\"192.168.8.77\"]");
    let dns = Service::new("dns", vip(53)).tcp(53, 8080).pods(&[&world.near]);
    world.cluster.apply("more.yaml", &[outside.yaml(), lan, dns.yaml()].join("---\n"))?;
    node.netns().ip(&format!("addr add {}/32 dev nodelocaldns", vip(53).v4))?;
    tests::net::cluster::eventually(std::time::Duration::from_secs(30), || {
        let list = node.shunt_json(&["backend", "list"]).unwrap_or_default().to_string();
        list.contains("192.168.8.77") && list.contains(&external(9).v4.to_string())
    })?;
    let found = check()?;
    says(&found, "forward policy", "warn", &[&external(9).v4.to_string(), "default/outside"]);
    says(&found, "pods' devices", "warn", &["192.168.8.77", "eth0"]);
    says(&found, "dns cache", "warn", &[&vip(53).v4.to_string()]);
    Ok(())
}

#[test]
fn the_xdp_lane_and_the_rules_it_passes_by() -> Result<()> {
    let world = World::start(Plan::default().xdp(Lane::Generic), |world| world.web().yaml())?;
    let node = world.cluster.node(0);
    let check = || -> Result<Vec<Value>> {
        let output = node.shunt_output(&["check", "-o", "json"])?;
        Ok(serde_json::from_slice(&output.stdout)?)
    };
    says(&check()?, "xdp lane", "ok", &["eth0"]);
    node.netns().nft(
        "table inet restrict {\n chain forward {\n type filter hook forward priority 0;\n tcp dport 8080 counter drop\n }\n}\n",
    )?;
    says(&check()?, "xdp lane", "warn", &["eth0", "chain forward of nftables table inet restrict"]);
    Ok(())
}

/// Rules that match NodePorts by number on ingress, in both kinds of iptables.
#[test]
fn rules_by_the_number_of_a_node_port() -> Result<()> {
    const CHECK: &str = "NodePort rules";
    let node = new("limit-by-number")?;
    node.nft(
        "table inet fw {\n chain other {\n }\n chain input {\n type filter hook input priority 0;\n tcp dport 22 accept\n \
         tcp sport 30080 accept\n jump other\n }\n chain forward {\n type filter hook forward priority 0;\n tcp dport \
         30080 drop\n }\n}\n",
    )?;
    silent(&check(&node)?, CHECK);
    for (rule, words) in [
        ("tcp dport 30080 drop", "dport 30080)"),
        ("udp dport 30000-32767 ip saddr 192.0.2.0/24 accept", "dport 30000-32767)"),
        ("tcp dport { 22, 30443 } drop", "dport 30443)"),
        ("tcp dport { 22, 30100-30200 } drop", "dport 30100-30200)"),
        ("tcp dport vmap { 31000 : drop }", "dport 31000)"),
        ("th dport >= 32000 drop", "dport 32000-65535)"),
    ] {
        node.nft(&format!("add rule inet fw other {rule}"))?;
        let fix = "--nodeport-source-ranges";
        let place = "chain other of nftables table inet fw";
        says(&check(&node)?, CHECK, "warn", &["rule handle ", words, place, fix]);
        node.nft("flush chain inet fw other")?;
        silent(&check(&node)?, CHECK);
    }
    for program in ["iptables-nft", "iptables-legacy", "ip6tables-legacy"] {
        for line in [
            "-t raw -A PREROUTING -p tcp --dport 30080 -j DROP",
            "-A INPUT -p udp -m multiport --dports 53,30000:32767 -j ACCEPT",
        ] {
            let node = new(&format!("limit-by-number-{program}"))?;
            let words: Vec<_> = [program].into_iter().chain(line.split(' ')).collect();
            node.run(&words)?;
            let place = if line.contains("raw") { "chain PREROUTING of" } else { "chain INPUT of" };
            says(&check(&node)?, CHECK, "warn", &["dport 30", place]);
        }
    }
    Ok(())
}

/// Rules that match conntrack's original destination, or whether there was a translation.
#[test]
fn rules_that_ask_conntrack_for_a_translation() -> Result<()> {
    const CHECK: &str = "conntrack rules";
    let node = new("limit-original")?;
    node.nft("table inet fw {\n chain forward {\n type filter hook forward priority 0;\n ct state established accept\n }\n}\n")?;
    silent(&check(&node)?, CHECK);
    for (rule, words) in [
        ("meta l4proto tcp ct original proto-dst 30080 drop", "(ct original)"),
        ("ct original ip daddr 192.168.8.201 accept", "(ct original)"),
        ("ct status dnat accept", "(ct status dnat)"),
    ] {
        node.nft(&format!("add rule inet fw forward {rule}"))?;
        says(&check(&node)?, CHECK, "warn", &[words, "chain forward of nftables table inet fw"]);
        node.nft("flush chain inet fw forward")?;
        silent(&check(&node)?, CHECK);
    }
    for ask in ["--ctorigdstport 30080", "--ctorigdst 192.168.8.201", "--ctstate DNAT"] {
        let node = new("limit-original-legacy")?;
        let line = format!("iptables-legacy -A FORWARD -m conntrack {ask} -p tcp -j ACCEPT");
        node.run(&line.split(' ').collect::<Vec<_>>())?;
        says(
            &check(&node)?,
            CHECK,
            "warn",
            &["rule 1 (ct ", "chain FORWARD of iptables-legacy table filter"],
        );
    }
    Ok(())
}

/// A forward chain in firewalld's form: the policy accepts, and the last rule rejects.
#[test]
fn a_final_reject_behind_a_policy_that_accepts() -> Result<()> {
    const CHECK: &str = "final reject";
    let node = new("limit-reject")?;
    node.nft(
        "table inet firewalld {\n chain filter_FORWARD {\n type filter hook forward priority 10;\n ct state \
         {established,related} accept\n iifname lo accept\n tcp dport 22 reject\n }\n}\n",
    )?;
    silent(&check(&node)?, CHECK);
    node.nft("add rule inet firewalld filter_FORWARD counter reject with icmpx type admin-prohibited")?;
    says(
        &check(&node)?,
        CHECK,
        "warn",
        &["chain filter_FORWARD of nftables table inet firewalld", "--add-source"],
    );
    for program in ["iptables-nft", "iptables-legacy"] {
        let node = new(&format!("limit-reject-{program}"))?;
        node.run(&[program, "-A", "FORWARD", "-s", "192.0.2.0/24", "-j", "REJECT"])?;
        silent(&check(&node)?, CHECK);
        node.run(&[program, "-A", "FORWARD", "-j", "REJECT"])?;
        says(&check(&node)?, CHECK, "warn", &["rejects what is left", "chain FORWARD of"]);
    }
    Ok(())
}
