//! In a container as the DaemonSet specifies it: the static binary, uid 0 with only BPF, NET_ADMIN and PERFMON, no new
//! privileges, a read-only root, namespaces of its own. And privileged, as in the overlay.

use std::{
    collections::BTreeMap, ffi::OsString, fs, os::unix::process::CommandExt as _, path::Path,
    process::Command, time::Duration,
};

use anyhow::{Context as _, Result};
use tests::{
    api_server::{ApiServer, Certificates, NAME, TOKEN},
    manifest::{self, Service},
    net::{
        Container, Netns, Node, Plan, Privileges,
        cluster::eventually,
        container::{child_of, root_is_read_only, status},
        plan::{BOTH, Family, vip},
        shunt,
    },
    traffic::{Client, Outcome, Stream, Tally},
};

use crate::world::{NODE_PORT, PORT, TARGET, World, web, web_addr};

const SECOND: Duration = Duration::from_secs(1);

/// The command that starts the static binary in a container on this node.
fn container(world: &World, node: &Node, what: &str, privileges: Privileges) -> Result<Container> {
    let root = world.cluster.files().join(format!("{}-{what}", node.name()));
    fs::create_dir_all(&root)?;
    Ok(Container::new(shunt::static_binary()?, root, privileges).sees(node.manifests()))
}

fn words(container: &Container) -> Vec<OsString> {
    container.command(Path::new(env!("CARGO_BIN_EXE_shunt-contained")))
}

fn start(world: &World, privileges: Privileges, flags: &[&str]) -> Result<()> {
    for node in world.cluster.nodes() {
        node.launch_shunt_by(&words(&container(world, node, "run", privileges)?), flags)?;
    }
    world.cluster.nodes().iter().try_for_each(Node::wait_ready)
}

fn serves(world: &World) {
    for family in BOTH {
        Tally::of(10, || world.pod().tcp(web(family))).even_over(&["near", "far"]);
        Tally::of(10, || world.pod().udp(web(family))).even_over(&["near", "far"]);
        Tally::of(10, || world.host(0).tcp(web(family))).even_over(&["near", "far"]);
        Tally::of(10, || world.host(0).udp(web(family))).even_over(&["near", "far"]);
        for node in 0..2 {
            world.outside().tcp(world.node_port(node, family)).answered();
            world.outside().udp(world.node_port(node, family)).answered();
        }
        world.host(0).tcp(world.node_port(0, family)).answered();
    }
}

/// The process has the properties in the manifest.
fn is_confined(node: &Node, privileges: Privileges) -> Result<()> {
    let pid = child_of(node.shunt_pid()?)?;
    assert_eq!(status(pid, "Uid")?, "0\t0\t0\t0");
    assert!(root_is_read_only(pid)?, "a root that can be written to");
    if let Some(mask) = privileges.effective() {
        for set in ["CapEff", "CapPrm", "CapBnd"] {
            assert_eq!(u64::from_str_radix(&status(pid, set)?, 16)?, mask, "{set}");
        }
        assert_eq!(status(pid, "CapAmb")?, "0000000000000000");
        assert_eq!(status(pid, "NoNewPrivs")?, "1");
    }
    for name in ["mnt", "pid", "ipc", "uts", "cgroup"] {
        let of = |pid: &str| fs::read_link(format!("/proc/{pid}/ns/{name}"));
        assert_ne!(of(&pid.to_string())?, of("self")?, "{name}");
    }
    Ok(())
}

/// Every command that only reads works in a container with no more privileges.
fn can_be_inspected(world: &World, privileges: Privileges) -> Result<()> {
    let node = world.cluster.node(0);
    let words = words(&container(world, node, "exec", privileges)?);
    let look = |args: &[&str]| -> Result<String> {
        let (program, more) = words.split_first().context("a command")?;
        let mut command = node.netns().command(program);
        command.args(more).args(args).arg("--bpffs").arg(node.bpffs()).env("NO_COLOR", "1");
        let output = command.output()?;
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{args:?}: {}: {errors}", output.status);
        Ok(String::from_utf8(output.stdout)?)
    };
    for (args, wanted) in [
        (&["version"][..], "shunt"),
        (&["status"], "Ready"),
        (&["service", "list"], "default/web"),
        (&["service", "show", "default/web"], "default/web"),
        (&["backend", "list"], "default/web"),
        (&["conntrack", "list"], "TCP"),
        (&["counter", "list"], "no_backend"),
        (&["affinity", "list"], ""),
        (&["prog", "list"], "ingress"),
        (&["link", "list"], "eth0"),
        (&["map", "list"], "FRONTENDS"),
        (&["map", "dump", "FRONTENDS"], ""),
    ] {
        let text = look(args)?;
        assert!(text.contains(wanted), "{args:?}: no {wanted} in\n{text}");
    }
    let findings: Vec<BTreeMap<String, String>> = serde_json::from_str(&look(&["check", "-o", "json"])?)?;
    let level =
        |name: &str| findings.iter().find(|found| found["check"] == name).map(|found| &*found["level"]);
    for name in ["capabilities", "bpffs", "cgroup2"] {
        assert_eq!(level(name), Some("ok"), "{name}: {findings:#?}");
    }
    Ok(())
}

/// The Service without the other node's server.
fn near_only(world: &World) -> String {
    Service::new("web", web_addr()).node_port(PORT, TARGET, NODE_PORT).pods(&[&world.near]).yaml()
}

fn metrics(netns: &Netns) -> Result<String> {
    netns.run(&["curl", "-sSf", "http://127.0.0.1:10249/metrics"])
}

fn does_everything(privileges: Privileges) -> Result<()> {
    let world = World::without_shunt(Plan::default())?;
    world.cluster.apply("services.yaml", &world.web().yaml())?;
    start(&world, privileges, &[])?;
    for node in world.cluster.nodes() {
        is_confined(node, privileges)?;
        for path in ["/healthz", "/livez", "/readyz"] {
            assert_eq!(node.health(path)?, 200, "{path}");
        }
        assert!(metrics(node.netns())?.contains("# TYPE "));
    }
    serves(&world);
    can_be_inspected(&world, privileges)?;

    // A device created later is hooked too.
    let late = world.cluster.add_pod(0, "late")?;
    let client = Client::at(late.place());
    for family in BOTH {
        eventually(SECOND, || matches!(client.tcp(web(family)).outcome, Outcome::Answered(_)))?;
    }

    // Connected sockets of the node are closed when their backend is removed: SOCK_DESTROY is permitted.
    let sockets: Vec<_> =
        (0..4).map(|_| world.host(0).udp_connected(web(Family::V4))).collect::<Result<_, _>>()?;
    let on_far: Vec<_> =
        sockets.iter().filter(|it| it.ask().is_ok_and(|answer| answer.backend == "far")).collect();
    assert_eq!(on_far.len(), 2);
    world.cluster.apply("services.yaml", &near_only(&world))?;
    for socket in on_far {
        eventually(SECOND, || {
            let told = socket.take_error().ok().flatten();
            told.is_some_and(|error| error.raw_os_error() == Some(libc::ECONNABORTED))
        })
        .context("a socket whose backend left")?;
    }
    world.cluster.apply("services.yaml", &world.web().yaml())?;
    for family in BOTH {
        let far =
            || matches!(world.host(0).tcp(web(family)).outcome, Outcome::Answered(it) if it.backend == "far");
        eventually(SECOND, far)?;
    }

    survives_a_restart(&world, privileges)?;
    // The kubelet sets the oom_score_adj of a pod of this priority class; the agent's own attempt is logged in one line
    // at INFO.
    let logs: String = world.cluster.nodes().iter().map(Node::shunt_log).collect();
    for word in ["ermission", "not permitted", "ERROR", "Read-only", "os error"] {
        let lines: Vec<_> = logs
            .lines()
            .filter(|line| line.contains(word) && !line.contains("oom_score_adj stays"))
            .collect();
        assert!(lines.is_empty(), "{lines:#?}");
    }
    Ok(())
}

fn survives_a_restart(world: &World, privileges: Privileges) -> Result<()> {
    let open: Vec<Stream> = BOTH
        .into_iter()
        .flat_map(|family| {
            let through_port = world.outside().stream(world.node_port(0, family));
            [world.pod().stream(web(family)), through_port, world.host(0).stream(web(family))]
        })
        .collect();
    let before: Vec<_> = open.iter().map(|stream| stream.steady(2)).collect();
    for node in world.cluster.nodes() {
        node.stop_shunt()?;
    }
    let now: Vec<_> = open.iter().map(|stream| stream.steady(5)).collect();
    assert_eq!(now, before, "while shunt is away");
    start(world, privileges, &[])?;
    let now: Vec<_> = open.iter().map(|stream| stream.steady(5)).collect();
    assert_eq!(now, before, "after it came back");
    serves(world);
    Ok(())
}

#[test]
fn with_three_capabilities_on_a_read_only_root() -> Result<()> {
    does_everything(Privileges::Three)
}

#[test]
fn privileged() -> Result<()> {
    does_everything(Privileges::All)
}

#[test]
fn three_capabilities_do_for_the_xdp_lanes() -> Result<()> {
    for lane in ["generic", "native"] {
        let world = World::without_shunt(Plan::default())?;
        world.cluster.apply("services.yaml", &world.web().yaml())?;
        start(&world, Privileges::Three, &["--xdp", lane])?;
        serves(&world);
        let links = world.cluster.node(0).shunt_command(&["link", "list"])?;
        assert!(links.contains("xdp"), "{lane}: {links}");
    }
    Ok(())
}

/// Other namespaces' sockets require CAP_SYS_ADMIN and the host's /proc: this is logged once, and everything else
/// works.
#[test]
fn what_three_capabilities_cannot_do_is_said() -> Result<()> {
    let world = World::without_shunt(Plan::default())?;
    world.cluster.apply("services.yaml", &world.web().yaml())?;
    start(&world, Privileges::Three, &["--socket-lb", "all"])?;
    serves(&world);
    let node = world.cluster.node(0);
    let pod = Client::at(&node.process_of(&world.client)?);
    for family in BOTH {
        Tally::of(10, || pod.tcp(web(family))).even_over(&["near", "far"]);
        let socket = pod.udp_connected(web(family))?;
        socket.ask()?;
    }
    world.cluster.apply("services.yaml", &near_only(&world))?;
    eventually(5 * SECOND, || node.shunt_log().contains("CAP_SYS_ADMIN")).context("a line in the log")?;
    node.still_runs()
}

/// As in the base: the pod's service account, and the API server at another address than the ClusterIP in the
/// environment. Here the address is a name, which the static C library has to resolve without loading a library.
#[test]
fn the_api_server_is_followed_with_the_pods_account_and_by_name() -> Result<()> {
    let world = World::without_shunt(Plan::default())?;
    let certificates = Certificates::new()?;
    let files = world.cluster.files();
    let account = files.join("account");
    fs::create_dir(&account)?;
    fs::write(account.join("token"), TOKEN)?;
    fs::write(account.join("ca.crt"), certificates.authority())?;
    fs::write(account.join("namespace"), "kube-system")?;
    let hosts = files.join("hosts");
    fs::write(&hosts, format!("127.0.0.1 localhost\n192.168.8.100 {NAME}\n"))?;
    let at = "192.168.8.100:6443".parse()?;
    let server = ApiServer::start_at(Some(world.cluster.outside().shared_netns()), at, Some(certificates))?;
    for node in world.cluster.nodes() {
        server.store().apply(&manifest::node(node))?;
    }
    server.store().apply(&Service::new("kubernetes", vip(1)).tcp(443, 6443).yaml())?;
    server.store().apply(&world.web().yaml())?;
    for node in world.cluster.nodes() {
        let container = container(&world, node, "run", Privileges::Three)?
            .sees_at(&account, "/var/run/secrets/kubernetes.io/serviceaccount")
            .sees_at(&hosts, "/etc/hosts")
            .env("KUBERNETES_SERVICE_HOST", "10.68.0.1")
            .env("KUBERNETES_SERVICE_PORT", "443");
        node.launch_shunt_by(&words(&container), &["--server", &format!("https://{NAME}:6443")])?;
    }
    world.cluster.nodes().iter().try_for_each(Node::wait_ready)?;
    serves(&world);
    assert_eq!(server.violations(), Vec::<String>::new());
    Ok(())
}

/// With the binary only: no library, no /proc, no /etc.
#[test]
fn the_static_binary_runs_in_an_empty_chroot() -> Result<()> {
    let world = World::without_shunt(Plan::default())?;
    let root = world.cluster.files().join("chroot");
    fs::create_dir(&root)?;
    fs::copy(shunt::static_binary()?, root.join("shunt"))?;
    fs::write(root.join("services.yaml"), world.web().yaml())?;
    let run = |args: &[&str]| -> Result<String> {
        let mut command = Command::new("/shunt");
        let inside = root.clone();
        // SAFETY: between fork and exec the closure makes two system calls; the path it holds was allocated before.
        unsafe {
            command.pre_exec(move || {
                nix::unistd::chroot(&inside)?;
                Ok(nix::unistd::chdir("/")?)
            });
        }
        let output = command.args(args).env_clear().output()?;
        anyhow::ensure!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
        Ok(String::from_utf8(output.stdout)?)
    };
    assert!(run(&["version"])?.starts_with("shunt "));
    assert!(run(&["--help"])?.contains("Usage"));
    let tables = run(&["compile", "-f", "/services.yaml", "--node-name", "node-1"])?;
    assert!(tables.contains("default/web"), "{tables}");
    assert!(run(&["completions", "bash"])?.contains("shunt"));
    Ok(())
}
