//! A node that kube-proxy served: `shunt check` detects it, running or by its leftovers; `shunt cleanup --kube-proxy`
//! removes these and nothing else. There are foreign rules of every kind next to them, which stay unchanged byte for
//! byte, including counters and handles.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::TcpListener,
    process::Stdio,
    thread,
};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use shunt::datapath::netlink::{Request, Socket};
use tests::net::{Netns, scratch::Scratch, shunt::binary};

/// The chains of others, with counters of their own; some have names that begin like kube-proxy's.
const FOREIGN: &str = "*nat
:PREROUTING ACCEPT [1:60]
:INPUT ACCEPT [2:120]
:OUTPUT ACCEPT [3:180]
:POSTROUTING ACCEPT [4:240]
:DOCKER - [0:0]
:KUBE-MARK-DROP - [0:0]
:KUBE-KUBELET-CANARY - [0:0]
[5:300] -A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER
[6:360] -A DOCKER -i docker0 -j RETURN
[7:420] -A KUBE-MARK-DROP -j MARK --set-xmark 0x8000/0x8000
COMMIT
*filter
:INPUT ACCEPT [1:60]
:FORWARD DROP [2:120]
:OUTPUT ACCEPT [3:180]
:KUBE-FIREWALL - [0:0]
:KUBE-ROUTER-FORWARD - [0:0]
:KUBE-POD-FW-ABCDEFGHIJKLMNOP - [0:0]
[8:480] -A INPUT -j KUBE-FIREWALL
[9:540] -A FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
[10:600] -A FORWARD -j KUBE-ROUTER-FORWARD
[11:660] -A KUBE-FIREWALL -m mark --mark 0x8000/0x8000 -j DROP
[12:720] -A KUBE-ROUTER-FORWARD -j KUBE-POD-FW-ABCDEFGHIJKLMNOP
[13:780] -A KUBE-POD-FW-ABCDEFGHIJKLMNOP -p tcp -m tcp --dport 80 -j ACCEPT
COMMIT
*mangle
:PREROUTING ACCEPT [0:0]
:INPUT ACCEPT [0:0]
:FORWARD ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
:POSTROUTING ACCEPT [0:0]
:KUBE-KUBELET-CANARY - [0:0]
[14:840] -A FORWARD -p tcp -m tcp --tcp-flags SYN,RST SYN -j TCPMSS --clamp-mss-to-pmtu
COMMIT
";

/// Rules of an iptables-mode kube-proxy, with its jumps before and after foreign ones. The policies are repeated from
/// [`FOREIGN`]: iptables-legacy-restore would set their counters to zero.
const KUBE_PROXY: &str = "*nat
:PREROUTING ACCEPT [1:60]
:INPUT ACCEPT [2:120]
:OUTPUT ACCEPT [3:180]
:POSTROUTING ACCEPT [4:240]
:KUBE-SERVICES - [0:0]
:KUBE-NODEPORTS - [0:0]
:KUBE-POSTROUTING - [0:0]
:KUBE-MARK-MASQ - [0:0]
:KUBE-PROXY-CANARY - [0:0]
:KUBE-SVC-ABCDEFGHIJKLMNOP - [0:0]
:KUBE-SVL-ABCDEFGHIJKLMNOP - [0:0]
:KUBE-EXT-ABCDEFGHIJKLMNOP - [0:0]
:KUBE-SEP-ABCDEFGHIJKLMNOP - [0:0]
:KUBE-SEP-PONMLKJIHGFEDCBA - [0:0]
:KUBE-FW-ABCDEFGHIJKLMNOP - [0:0]
:KUBE-XLB-ABCDEFGHIJKLMNOP - [0:0]
-I PREROUTING -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES
-A OUTPUT -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES
-A POSTROUTING -m comment --comment \"kubernetes postrouting rules\" -j KUBE-POSTROUTING
-A KUBE-SERVICES -d VIP -p tcp -m tcp --dport 80 -j KUBE-SVC-ABCDEFGHIJKLMNOP
-A KUBE-SERVICES -m addrtype --dst-type LOCAL -j KUBE-NODEPORTS
-A KUBE-NODEPORTS -p tcp -m tcp --dport 30080 -j KUBE-EXT-ABCDEFGHIJKLMNOP
-A KUBE-EXT-ABCDEFGHIJKLMNOP -j KUBE-MARK-MASQ
-A KUBE-EXT-ABCDEFGHIJKLMNOP -g KUBE-SVC-ABCDEFGHIJKLMNOP
-A KUBE-MARK-MASQ -j MARK --set-xmark 0x4000/0x4000
-A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN
-A KUBE-POSTROUTING -j MARK --set-xmark 0x4000/0x0
-A KUBE-POSTROUTING -j MASQUERADE --random-fully
-A KUBE-SVC-ABCDEFGHIJKLMNOP -m statistic --mode random --probability 0.5 -j KUBE-SEP-ABCDEFGHIJKLMNOP
-A KUBE-SVC-ABCDEFGHIJKLMNOP -j KUBE-SEP-PONMLKJIHGFEDCBA
-A KUBE-SEP-ABCDEFGHIJKLMNOP -s POD -j KUBE-MARK-MASQ
-A KUBE-SEP-ABCDEFGHIJKLMNOP -p tcp -m tcp -j DNAT --to-destination TARGET
COMMIT
*filter
:INPUT ACCEPT [1:60]
:FORWARD DROP [2:120]
:OUTPUT ACCEPT [3:180]
:KUBE-SERVICES - [0:0]
:KUBE-EXTERNAL-SERVICES - [0:0]
:KUBE-NODEPORTS - [0:0]
:KUBE-FORWARD - [0:0]
:KUBE-PROXY-FIREWALL - [0:0]
:KUBE-PROXY-CANARY - [0:0]
-I INPUT -m conntrack --ctstate NEW -j KUBE-PROXY-FIREWALL
-A INPUT -j KUBE-NODEPORTS
-A INPUT -m conntrack --ctstate NEW -j KUBE-EXTERNAL-SERVICES
-I FORWARD -j KUBE-FORWARD
-A FORWARD -m conntrack --ctstate NEW -j KUBE-SERVICES
-A OUTPUT -m conntrack --ctstate NEW -j KUBE-SERVICES
-A KUBE-FORWARD -m conntrack --ctstate INVALID -j DROP
-A KUBE-FORWARD -m mark --mark 0x4000/0x4000 -j ACCEPT
COMMIT
*mangle
:KUBE-PROXY-CANARY - [0:0]
COMMIT
";

const NFTABLES: &str = "table ip kube-proxy {
 map service-ips {
  type ipv4_addr . inet_proto . inet_service : verdict
  elements = { 10.68.0.10 . tcp . 80 : goto service-A }
 }
 chain endpoint-A {
  meta l4proto tcp dnat to 172.20.0.11:8080
 }
 chain service-A {
  numgen random mod 2 vmap { 0 : goto endpoint-A, 1 : goto endpoint-A }
 }
 chain services {
  ip daddr . meta l4proto . th dport vmap @service-ips
 }
 chain nat-prerouting {
  type nat hook prerouting priority dstnat; policy accept;
  jump services
 }
}
table ip6 kube-proxy {
 chain nat-output {
  type nat hook output priority -100; policy accept;
 }
}
";
const NFTABLES_FOREIGN: &str = "table inet kube-proxy {
 chain mine {
  counter packets 3 bytes 4
 }
}
table ip cni {
 chain deeper {
  ip daddr 10.0.0.1 accept
 }
 chain prerouting {
  type nat hook prerouting priority dstnat; policy accept;
  jump deeper
 }
}
";

struct Ground {
    netns: Netns,
    bpffs: String,
    files: Scratch,
}

impl Ground {
    fn new(name: &str) -> Result<Self> {
        let name = format!("shunt-test-{}-{name}", std::process::id());
        let files = Scratch::new(std::env::temp_dir().join(&name))?;
        // No maps are pinned there: no agent has run in this namespace.
        Ok(Self { netns: Netns::new(&name)?, bpffs: format!("/sys/fs/bpf/{name}"), files })
    }

    fn shunt(&self, args: &[&str]) -> Result<(bool, String, String)> {
        let program = binary()?;
        let program = program.to_str().context("a path in UTF-8")?;
        let output = self.netns.output(&[&[program, "--bpffs", &self.bpffs][..], args].concat())?;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Ok((output.status.success(), text(&output.stdout), text(&output.stderr)))
    }

    /// `level` and `detail` with `fix` of one check.
    fn check(&self, name: &str) -> Result<(String, String)> {
        let (_, text, _) = self.shunt(&["check", "-o", "json"])?;
        let findings: Vec<Value> = serde_json::from_str(&text).with_context(|| text.clone())?;
        let found = findings.iter().find(|finding| finding["check"] == name);
        let found = found.with_context(|| format!("no {name} in {text}"))?;
        let word = |field: &str| found[field].as_str().unwrap_or_default().to_owned();
        Ok((word("level"), format!("{} | {}", word("detail"), word("fix"))))
    }

    fn cleanup(&self) -> Result<Value> {
        let (success, out, error) = self.shunt(&["cleanup", "--kube-proxy", "-o", "json"])?;
        ensure!(success, "cleanup failed: {error}");
        let reports: Value = serde_json::from_str(&out).with_context(|| out.clone())?;
        Ok(reports[0].clone())
    }

    fn restore(&self, program: &str, more: &str, rules: &str) -> Result<()> {
        let file = self.files.path().join("rules");
        fs::write(&file, rules)?;
        self.netns.run(&["sh", "-c", &format!("{program}-restore {more} < {}", file.display())]).map(drop)
    }

    /// All rules with their counters, without the lines that contain the time.
    fn saved(&self, program: &str) -> Result<String> {
        let text = self.netns.run(&[&format!("{program}-save"), "-c"])?;
        Ok(text.lines().filter(|line| !line.starts_with('#')).map(|line| format!("{line}\n")).collect())
    }
}

fn list(report: &Value, field: &str) -> Vec<String> {
    let all = report[field].as_array().into_iter().flatten();
    all.filter_map(|item| item.as_str().map(str::to_owned)).collect()
}

/// iptables of this kind (`nft`, `legacy`), of both families.
fn iptables(kind: &str) -> Result<()> {
    let ground = Ground::new(&format!("kp-{kind}"))?;
    let programs = [
        (format!("iptables-{kind}"), ["10.68.0.10/32", "172.20.0.11/32", "172.20.0.11:8080"]),
        (format!("ip6tables-{kind}"), ["fd00:10:68::a/128", "fd00:172:20::b/128", "[fd00:172:20::b]:8080"]),
    ];
    let mut before = Vec::new();
    for (program, [vip, pod, target]) in &programs {
        ground.restore(program, "--counters", FOREIGN)?;
        before.push(ground.saved(program)?);
        let rules = KUBE_PROXY.replace("VIP", vip).replace("POD", pod).replace("TARGET", target);
        ground.restore(program, "--noflush --counters", &rules)?;
        assert_ne!(ground.saved(program)?, before[before.len() - 1]);
    }
    let (level, words) = ground.check("kube-proxy")?;
    assert_eq!(level, "warn", "{words}");
    for word in ["nat", "filter", "mangle", "shunt cleanup --kube-proxy"] {
        assert!(words.contains(word), "no {word} in {words}");
    }
    let report = ground.cleanup()?;
    let removed = list(&report, "removed");
    assert!(removed.iter().any(|what| what.contains("chain KUBE-SEP-PONMLKJIHGFEDCBA")), "{removed:?}");
    assert_eq!(list(&report, "kept"), Vec::<String>::new());
    for ((program, _), before) in programs.iter().zip(&before) {
        assert_eq!(&ground.saved(program)?, before, "{program}");
    }
    assert_eq!(ground.check("kube-proxy")?.0, "ok");
    assert_eq!(list(&ground.cleanup()?, "removed"), Vec::<String>::new(), "once is enough");
    Ok(())
}

#[test]
fn what_it_left_in_iptables_nft_goes() -> Result<()> {
    iptables("nft")
}

#[test]
fn what_it_left_in_iptables_legacy_goes() -> Result<()> {
    iptables("legacy")
}

#[test]
fn what_it_left_in_nftables_goes() -> Result<()> {
    let ground = Ground::new("kp-tables")?;
    ground.netns.nft(NFTABLES_FOREIGN)?;
    let rules = || ground.netns.run(&["nft", "-a", "list", "ruleset"]);
    let before = rules()?;
    ground.netns.nft(NFTABLES)?;
    let (level, words) = ground.check("kube-proxy")?;
    assert_eq!(level, "warn", "{words}");
    assert!(words.contains("nftables table ip kube-proxy") && words.contains("ip6 kube-proxy"), "{words}");
    assert_eq!(
        list(&ground.cleanup()?, "removed"),
        ["nftables table ip kube-proxy", "nftables table ip6 kube-proxy"]
    );
    assert_eq!(rules()?, before);
    assert_eq!(ground.check("kube-proxy")?.0, "ok");
    Ok(())
}

/// The CNI's portmap plugin may be configured to mark packets with kube-proxy's chain.
#[test]
fn chains_that_others_jump_to_stay() -> Result<()> {
    for kind in ["nft", "legacy"] {
        let ground = Ground::new(&format!("kp-shared-{kind}"))?;
        let program = format!("iptables-{kind}");
        let rules = KUBE_PROXY
            .replace("VIP", "10.68.0.10/32")
            .replace("POD", "172.20.0.11/32")
            .replace("TARGET", "172.20.0.11:8080");
        ground.restore(&program, "", &rules)?;
        let theirs =
            "*nat\n:CNI-HOSTPORT-SETMARK - [0:0]\n-A CNI-HOSTPORT-SETMARK -j KUBE-MARK-MASQ\nCOMMIT\n";
        ground.restore(&program, "--noflush", theirs)?;
        let kept = list(&ground.cleanup()?, "kept");
        assert_eq!(kept.len(), 2, "{kept:?}");
        assert!(kept[0].contains("KUBE-MARK-MASQ") && kept[1].contains("KUBE-POSTROUTING"), "{kept:?}");
        let left = ground.saved(&program)?;
        for line in [
            "-A CNI-HOSTPORT-SETMARK -j KUBE-MARK-MASQ",
            "-A KUBE-MARK-MASQ -j MARK --set-xmark 0x4000/0x4000",
            "-A KUBE-POSTROUTING -j MASQUERADE --random-fully",
            "-j KUBE-POSTROUTING",
        ] {
            assert!(left.contains(line), "no {line} in {left}");
        }
        assert!(!left.contains("KUBE-SVC") && !left.contains("KUBE-SERVICES"), "{left}");
        assert_eq!(ground.check("kube-proxy")?.0, "ok", "these two are no kube-proxy's sign");
    }
    Ok(())
}

/// An ipset of type hash:ip, as `ipset create NAME hash:ip` makes it.
fn make_set(netns: &Netns, name: &str) -> Result<()> {
    const CREATE: u16 = 6 << 8 | 2;
    let mut request = Request::new(CREATE, 0x600, &[libc::AF_INET as u8, 0, 0, 0]);
    request
        .attribute(1, &[6])
        .attribute(2, &[name.as_bytes(), &[0]].concat())
        .attribute(3, b"hash:ip\0")
        .attribute(4, &[0])
        .attribute(5, &[libc::AF_INET as u8])
        .nested(0x8000 | 7, |_| {});
    netns.enter(|| Socket::open_netfilter()?.request(request)).with_context(|| format!("making set {name}"))
}

fn sets(netns: &Netns) -> Result<Vec<String>> {
    const LIST: u16 = 6 << 8 | 7;
    let mut request = Request::new(LIST, 0, &[libc::AF_INET as u8, 0, 0, 0]);
    request.attribute(1, &[6]).attribute(6, &2u32.to_be_bytes());
    let mut names = Vec::new();
    netns.enter(|| {
        Socket::open_netfilter()?.dump_request(request, |message| {
            let name = shunt::datapath::netlink::attributes(&message.body[4..]).find(|it| it.0 == 2);
            names.extend(name.map(|it| shunt::datapath::netlink::read_str(it.1)));
        })
    })?;
    names.sort();
    Ok(names)
}

/// The objects of ipvs mode other than virtual servers, which this machine's kernel does not support (see the vm
/// suite).
#[test]
fn sets_and_the_device_of_ipvs_mode_go() -> Result<()> {
    let ground = Ground::new("kp-ipvs")?;
    for name in ["KUBE-CLUSTER-IP", "KUBE-6-LOOP-BACK", "KUBE-NODE-PORT-LOCAL-TCP", "KUBE-SRC-ABC", "mine"] {
        make_set(&ground.netns, name)?;
    }
    ground
        .netns
        .ip("link add kube-ipvs0 type veth peer name other\naddr add 10.68.0.10/32 dev kube-ipvs0")?;
    let rules = "*nat\n:KUBE-SERVICES - [0:0]\n:KUBE-LOAD-BALANCER - [0:0]\n:KUBE-NODE-PORT - [0:0]\n\
                 -A PREROUTING -j KUBE-SERVICES\n\
                 -A KUBE-SERVICES -m set --match-set KUBE-CLUSTER-IP dst -j ACCEPT\nCOMMIT\n\
                 *filter\n:KUBE-IPVS-FILTER - [0:0]\n:KUBE-IPVS-OUT-FILTER - [0:0]\n\
                 :KUBE-SOURCE-RANGES-FIREWALL - [0:0]\n:MINE - [0:0]\n\
                 -A INPUT -j KUBE-IPVS-FILTER\n-A MINE -m set --match-set mine src -j ACCEPT\nCOMMIT\n";
    for kind in ["nft", "legacy"] {
        ground.restore(&format!("iptables-{kind}"), "", rules)?;
    }
    let (level, words) = ground.check("kube-proxy")?;
    assert_eq!(level, "warn", "{words}");
    assert!(words.contains("device kube-ipvs0") && words.contains("3 ipsets"), "{words}");
    let report = ground.cleanup()?;
    let removed = list(&report, "removed");
    assert!(removed.iter().any(|what| what == "ipset KUBE-CLUSTER-IP"), "{removed:?}");
    assert_eq!(sets(&ground.netns)?, ["KUBE-SRC-ABC", "mine"]);
    for kind in ["nft", "legacy"] {
        let left = ground.saved(&format!("iptables-{kind}"))?;
        assert!(!left.contains("KUBE") && left.contains("--match-set mine src"), "{left}");
    }
    assert!(!ground.netns.run(&["ip", "-o", "link"])?.contains("kube-ipvs0"));
    assert_eq!(ground.check("kube-proxy")?.0, "ok");
    Ok(())
}

/// A process of that name in the node's network namespace; one in another namespace belongs to another node.
#[test]
fn a_living_one_is_found_and_its_rules_are_left() -> Result<()> {
    let (ground, other) = (Ground::new("kp-alive")?, Netns::new("kp-elsewhere")?);
    ground.netns.nft(NFTABLES)?;
    let program = ground.files.path().join("kube-proxy");
    fs::copy("/bin/sleep", &program)?;
    let mut elsewhere = other.command(&program).arg("600").stdin(Stdio::null()).spawn()?;
    assert_eq!(ground.check("kube-proxy")?.0, "warn");
    let mut here = ground.netns.command(&program).arg("600").stdin(Stdio::null()).spawn()?;
    let (level, words) = ground.check("kube-proxy")?;
    let refused = ground.shunt(&["cleanup", "--kube-proxy"])?;
    let forced = ground.shunt(&["cleanup", "--kube-proxy", "--force"])?;
    for child in [&mut here, &mut elsewhere] {
        child.kill()?;
        child.wait()?;
    }
    assert_eq!(level, "fail", "{words}");
    for word in [format!("pid {}", here.id()), "delete daemonset kube-proxy".into(), "ip kube-proxy".into()] {
        assert!(words.contains(&word), "no {word} in {words}");
    }
    assert!(
        !refused.0 && refused.2.contains("kube-proxy is alive") && refused.2.contains("--force"),
        "{refused:?}"
    );
    assert!(forced.0 && forced.1.contains("removed nftables table ip kube-proxy"), "{forced:?}");
    assert_eq!(ground.check("kube-proxy")?.0, "ok");
    Ok(())
}

/// One inside a process of another name (k3s) is detected by its responses.
#[test]
fn one_that_only_listens_is_found() -> Result<()> {
    let ground = Ground::new("kp-listens")?;
    let listener = ground.netns.enter(|| TcpListener::bind("127.0.0.1:10249"))?;
    let server = thread::spawn(move || -> std::io::Result<()> {
        for mode in ["ipvs", "shunt"] {
            let (mut stream, _) = listener.accept()?;
            let mut asked = [0; 512];
            let _ = stream.read(&mut asked)?;
            write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{mode}", mode.len())?;
        }
        Ok(())
    });
    let (level, words) = ground.check("kube-proxy")?;
    assert_eq!(level, "fail", "{words}");
    assert!(words.contains("port 10249") && words.contains("ipvs mode"), "{words}");
    assert_eq!(ground.check("kube-proxy")?.0, "ok", "another program that is none");
    server.join().expect("the server does not panic")?;
    Ok(())
}
