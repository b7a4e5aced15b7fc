//! Process 1 of the virtual machine: mounts, modules, two pods and a Service; then `shunt`, traffic, the report, power
//! off. (Or the leftovers of ipvs mode, see [`super::ipvs`].)
//!
//! The machine's own network namespace is the node.

use std::{
    ffi::CString,
    fs::{self, File},
    io::{Read, Write},
    net::{IpAddr, SocketAddr, TcpStream},
    os::fd::AsRawFd,
    path::Path,
    process::{Child, Command, Stdio},
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use nix::{
    mount::{MsFlags, mount},
    sys::{
        reboot::{RebootMode, reboot},
        signal::{Signal, kill},
    },
    unistd::Pid,
};
use serde_json::Value;

use super::{
    END, Ended, Program, REPORT, Report, Seen, Task,
    command::{SLOW, ended, ip, wait},
    image, ipvs,
};
use crate::{
    net::{
        Netns, Place, offload,
        plan::{BOTH, Family},
    },
    traffic::{Client, Outcome, Server},
};

const MANIFESTS: &str = "/run/manifests";
const RUN_LOG: &str = "/run/shunt.log";
const HEALTHZ: &str = "127.0.0.1:10256";

/// The program `vm-init`.
pub fn main() -> ! {
    let mut report = Report::default();
    if let Err(error) = work(&mut report) {
        report.failure = Some(format!("{error:#}"));
    }
    let json = serde_json::to_string(&report).unwrap_or_else(|error| format!("{error}"));
    println!("\n{REPORT}{json}\n{END}");
    let _ = std::io::stdout().flush();
    // The serial line still transmits while we wait; a machine that cannot power off is killed by the host.
    thread::sleep(Duration::from_millis(500));
    let _ = reboot(RebootMode::RB_POWER_OFF);
    loop {
        thread::sleep(SLOW);
    }
}

fn work(report: &mut Report) -> Result<()> {
    // SAFETY: no other thread runs yet that could read the environment.
    unsafe { std::env::set_var("PATH", "/bin") };
    mounts()?;
    report.kernel = fs::read_to_string("/proc/sys/kernel/osrelease")?.trim().to_owned();
    modules()?;
    let task =
        std::env::args().find_map(|word| Task::from_word(&word)).context("no task on the command line")?;
    if task == Task::Ipvs {
        return ipvs::leave_and_clean_up(report);
    }
    report.check = ended(Command::new(image::SHUNT).args(["check"]), SLOW)?;
    manifests()?;
    match task {
        Task::Ipvs => Ok(()),
        Task::Serve => serve(report),
        Task::Refuse => {
            report.run = ended(&mut shunt_run(), SLOW)?;
            Ok(())
        }
    }
}

fn mounts() -> Result<()> {
    for (kind, at) in [
        ("proc", "/proc"),
        ("sysfs", "/sys"),
        ("devtmpfs", "/dev"),
        ("tmpfs", "/run"),
        ("bpf", "/sys/fs/bpf"),
        ("cgroup2", "/sys/fs/cgroup"),
    ] {
        mount(Some(kind), at, Some(kind), MsFlags::empty(), None::<&str>)
            .with_context(|| format!("mounting {kind} at {at}"))?;
    }
    Ok(())
}

/// Loads the modules in numerical order.
fn modules() -> Result<()> {
    let mut files: Vec<_> = fs::read_dir(image::MODULES)?.collect::<std::io::Result<Vec<_>>>()?;
    files.sort_by_key(fs::DirEntry::file_name);
    for entry in files {
        let file = File::open(entry.path())?;
        let parameters = CString::default();
        // SAFETY: the descriptor is open and the parameters are a terminated string, both for the whole call.
        let result =
            unsafe { libc::syscall(libc::SYS_finit_module, file.as_raw_fd(), parameters.as_ptr(), 0) };
        if result != 0 {
            let error = std::io::Error::last_os_error();
            return Err(error).with_context(|| format!("loading module {}", entry.path().display()));
        }
    }
    Ok(())
}

/// A pod of the guest: its name, namespace and addresses.
struct Pod {
    place: Place,
    v4: &'static str,
    v6: &'static str,
}

impl Pod {
    /// A namespace, a veth pair, and a route on the node to each address, as a CNI without a bridge creates them.
    fn new(name: &str, v4: &'static str, v6: &'static str) -> Result<Self> {
        let netns = Netns::new(name)?;
        let path = netns.path();
        ip(&format!(
            "link add {name} type veth peer name eth0 netns {path}\n\
             addr add 172.20.0.1/32 dev {name}\naddr add fd00:172:20::1/128 dev {name} nodad\nlink set {name} up\n\
             route add {v4} dev {name}\nroute add {v6} dev {name}",
            path = path.display()
        ))?;
        netns.ip(&format!(
            "addr add {v4}/32 dev eth0\naddr add {v6}/128 dev eth0 nodad\nlink set eth0 up\n\
             route add 172.20.0.1 dev eth0\nroute add default via 172.20.0.1\n\
             route add fd00:172:20::1 dev eth0\nroute add default via fd00:172:20::1"
        ))?;
        Ok(Self { place: Place::inside(Arc::new(netns)), v4, v6 })
    }
}

/// A machine at the other end of the uplink. As with a network card, checksums on the wire are complete.
fn outside() -> Result<Place> {
    let netns = Netns::new("outside")?;
    let path = netns.path();
    ip(&format!("link set lo up\nlink add uplink type veth peer name eth0 netns {}", path.display()))?;
    netns.ip("addr add 192.168.8.1/24 dev eth0\naddr add fd00:8::1/64 dev eth0 nodad\nlink set eth0 up")?;
    offload::tx_checksum(&netns, "eth0", false)?;
    offload::receive(&netns, "eth0", true)?;
    Ok(Place::inside(Arc::new(netns)))
}

const VIP_V4: &str = "10.68.0.10";
const VIP_V6: &str = "fd00:10:68::a";
const NODE_PORT: u16 = 30080;

fn serve(report: &mut Report) -> Result<()> {
    fs::write("/proc/sys/net/ipv4/ip_forward", "1")?;
    fs::write("/proc/sys/net/ipv6/conf/all/forwarding", "1")?;
    let outside = outside()?;
    // A route to the Service range, as every node has by its default route; a device without link-layer header.
    ip(
        "addr add 192.168.8.201/24 dev uplink\naddr add fd00:8::201/64 dev uplink nodad\nlink set uplink up\n\
        route add default via 192.168.8.1\nroute add default via fd00:8::1\n\
        tuntap add mode tun name tun0\nlink set tun0 up",
    )?;
    let client = Pod::new("client", "172.20.0.10", "fd00:172:20::10")?;
    let backend = Pod::new("web", "172.20.0.11", "fd00:172:20::11")?;
    let _server = Server::tcp(&backend.place, "[::]:8080".parse()?, "web")?;
    let log = File::create(RUN_LOG)?;
    let mut shunt = shunt_run()
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .spawn()
        .context("starting shunt")?;
    let served = ready(&mut shunt).and_then(|()| {
        programs(&mut report.programs)?;
        use_service(&client, report);
        use_node_port(&outside, report);
        report.lane = lane()?;
        Ok(())
    });
    report.run = stop(shunt)?;
    served
}

fn shunt_run() -> Command {
    let mut command = Command::new(image::SHUNT);
    command
        .args(["run", "--manifests", MANIFESTS, "--node-name", "node-1"])
        .args(["--healthz-bind-address", HEALTHZ, "--xdp", "native"])
        .env("NO_COLOR", "1");
    command
}

/// Waits until `/readyz` returns 200.
fn ready(shunt: &mut Child) -> Result<()> {
    let deadline = Instant::now() + SLOW;
    let mut said = String::new();
    while Instant::now() < deadline {
        if let Some(status) = shunt.try_wait()? {
            bail!("`shunt run` ended with {status}");
        }
        said = match readyz() {
            Ok(answer) if answer.starts_with("HTTP/1.1 200") => return Ok(()),
            Ok(answer) => answer,
            Err(error) => error.to_string(),
        };
        thread::sleep(Duration::from_millis(100));
    }
    bail!("`shunt run` was not ready within {SLOW:?}: {said}");
}

fn readyz() -> std::io::Result<String> {
    let mut stream = TcpStream::connect(HEALTHZ)?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    stream.write_all(b"GET /readyz HTTP/1.1\r\nHost: node-1\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

/// One connection to each family's ClusterIP from the pod and from the node itself.
fn use_service(client: &Pod, report: &mut Report) {
    for family in BOTH {
        let (vip, pod): (IpAddr, &str) = match family {
            Family::V4 => (VIP_V4.parse().expect("an address"), client.v4),
            Family::V6 => (VIP_V6.parse().expect("an address"), client.v6),
        };
        let to = SocketAddr::new(vip, 80);
        let attempt = Client::at(&client.place).patience(SLOW / 6).tcp(to);
        let answered =
            matches!(&attempt.outcome, Outcome::Answered(answer) if answer.peer.ip().to_string() == pod);
        report.attempts.push(Seen { answered, what: format!("pod {pod}: {attempt}") });
        let from_node = node_asks(to);
        report.attempts.push(Seen {
            answered: from_node.as_ref().is_ok_and(|answer| answer.contains("web saw ")),
            what: format!("node -> {to}: {from_node:?}"),
        });
    }
}

/// One connection in each family to the NodePort, from outside.
fn use_node_port(outside: &Place, report: &mut Report) {
    for (node, own) in [("192.168.8.201", "192.168.8.1"), ("fd00:8::201", "fd00:8::1")] {
        let to = SocketAddr::new(node.parse().expect("an address"), NODE_PORT);
        let attempt = Client::at(outside).patience(SLOW / 6).tcp(to);
        let answered =
            matches!(&attempt.outcome, Outcome::Answered(answer) if answer.peer.ip().to_string() == own);
        report.attempts.push(Seen { answered, what: format!("outside {own}: {attempt}") });
    }
}

/// The counter of packets that XDP translated.
fn lane() -> Result<u64> {
    let counters = shunt_json(&["counter", "list", "-j"])?;
    let lane = counters.iter().find(|counter| counter["name"] == "xdp_local");
    lane.and_then(|counter| counter["value"].as_u64()).context("there is no counter xdp_local")
}

/// The same from a process of the node, where the socket hooks translate.
fn node_asks(to: SocketAddr) -> std::io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&to, SLOW / 6)?;
    stream.set_read_timeout(Some(SLOW / 6))?;
    stream.write_all(b"GET / HTTP/1.1\r\nHost: web\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

/// `shunt prog list`, and each program's attachment in the kernel.
fn programs(found: &mut Vec<Program>) -> Result<()> {
    let links = shunt_json(&["link", "list", "-j"])?;
    let filters = filters()?;
    for program in shunt_json(&["prog", "list", "-j"])? {
        let name = program["name"].as_str().unwrap_or_default().to_owned();
        let link = links.iter().find(|link| link["prog_id"] == program["id"]);
        let attached = match link.and_then(|link| link["type"].as_str()) {
            Some(kind) => kind.to_owned(),
            None if filters.contains(&format!(" id {} ", program["id"])) => "clsact".to_owned(),
            None => String::new(),
        };
        let verified_insns = program["verified_insns"].as_u64().unwrap_or_default() as u32;
        found.push(Program { name, verified_insns, attached });
    }
    Ok(())
}

/// The classifiers on all devices' hooks, as `tc` prints them: `... direct-action ... id 17 name ... `.
fn filters() -> Result<String> {
    let mut text = String::new();
    for device in ["uplink", "client", "tun0"] {
        for hook in ["ingress", "egress"] {
            let ended = ended(Command::new("tc").args(["filter", "show", "dev", device, hook]), SLOW)?;
            text += &ended.output.replace('\n', " ");
        }
    }
    Ok(text)
}

fn shunt_json(args: &[&str]) -> Result<Vec<Value>> {
    let ended = ended(Command::new(image::SHUNT).args(args), SLOW)?;
    serde_json::from_str(&ended.output)
        .with_context(|| format!("`shunt {}` wrote {}", args.join(" "), ended.output))
}

fn stop(mut shunt: Child) -> Result<Ended> {
    if shunt.try_wait()?.is_none() {
        kill(Pid::from_raw(shunt.id() as i32), Signal::SIGTERM)?;
    }
    let status = wait(&mut shunt, SLOW)?;
    Ok(Ended { status, output: String::from_utf8_lossy(&fs::read(RUN_LOG)?).into_owned() })
}

/// One Service in both families with the pod `web` as its endpoint, and the node.
fn manifests() -> Result<()> {
    fs::create_dir_all(MANIFESTS)?;
    let slice = |family: &str, address: &str| {
        format!(
            "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\n\
             metadata: {{name: web-{}, namespace: default, labels: {{kubernetes.io/service-name: web}}}}\n\
             addressType: {family}\nports:\n- {{name: http, protocol: TCP, port: 8080}}\n\
             endpoints:\n- {{addresses: [\"{address}\"], nodeName: node-1, conditions: {{ready: true}}}}\n---\n",
            family.to_lowercase()
        )
    };
    let text = format!(
        "apiVersion: v1\nkind: Node\nmetadata: {{name: node-1}}\n\
         spec: {{podCIDRs: [\"172.20.0.0/24\", \"fd00:172:20::/64\"]}}\n\
         status: {{addresses: [{{type: InternalIP, address: 192.168.8.201}}, {{type: InternalIP, address: \"fd00:8::201\"}}]}}\n---\n\
         apiVersion: v1\nkind: Service\nmetadata: {{name: web, namespace: default}}\n\
         spec:\n  type: NodePort\n  clusterIP: {VIP_V4}\n  clusterIPs: [{VIP_V4}, \"{VIP_V6}\"]\n  ipFamilies: [IPv4, IPv6]\n\
         \x20 ports:\n  - {{name: http, protocol: TCP, port: 80, targetPort: 8080, nodePort: {NODE_PORT}}}\n---\n{}{}",
        slice("IPv4", "172.20.0.11"),
        slice("IPv6", "fd00:172:20::11")
    );
    let file = Path::new(MANIFESTS).join("web.yaml");
    fs::write(&file, text).with_context(|| format!("writing {}", file.display()))
}
