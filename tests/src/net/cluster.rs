//! A whole cluster. A test or the demo creates it first and drops it last.

use std::{
    env, fs,
    io::Write,
    path::Path,
    process::Stdio,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};

use super::{
    ForeignTraffic, Netns, Node, Place, Pod, Toward, cgroup, checksums, cni,
    foreign_traffic::{self, STRANGER},
    hop, netns,
    plan::{BOTH, Between, Dual, OUTSIDE, Plan, PodNet, pod_addr},
    scratch::{self, Scratch},
    tun::Tunnel,
    wiring, xdp_mode,
};
use crate::manifest;

/// Number of clusters made by this process, so that several can exist side by side.
static MADE: AtomicUsize = AtomicUsize::new(0);

/// Host number of the first pod on each node: 0 is the tunnel device, 1 the bridge.
const FIRST_POD: u8 = 2;

/// A cluster. Fields are dropped in this order.
#[derive(Debug)]
pub struct Cluster {
    foreign: Mutex<Option<ForeignTraffic>>,
    nodes: Vec<Node>,
    pods: Mutex<Vec<Pod>>,
    _tunnel: Option<Tunnel>,
    outside: Place,
    underlay: Arc<Netns>,
    hop: Mutex<Option<Arc<Netns>>>,
    /// Checksum errors seen by pods that were removed.
    past_checksum_errors: Mutex<Vec<String>>,
    files: Scratch,
    id: String,
    plan: Plan,
}

impl Cluster {
    /// Builds the machines, without pods and without shunt.
    pub fn new(plan: Plan) -> Result<Self> {
        sweep(plan.prefix)?;
        scratch::mount_bpffs()?;
        let id = format!("{}-{}-{}", plan.prefix, std::process::id(), MADE.fetch_add(1, Ordering::Relaxed));
        let files = Scratch::new(env::temp_dir().join(&id))?;
        let machine = |name: &str| -> Result<Netns> {
            let mut netns = Netns::new(name)?;
            if plan.published {
                netns.publish(&format!("{id}-{name}"))?;
            }
            Ok(netns)
        };
        let underlay = Arc::new(machine("underlay")?);
        let outside = Arc::new(machine("outside")?);
        let inside = (0..plan.nodes)
            .map(|index| {
                let netns = machine(&format!("node-{}", index + 1))?;
                forwarding(&netns)?;
                Ok(Arc::new(netns))
            })
            .collect::<Result<Vec<_>>>()?;

        let mut cables = wiring::underlay() + &wiring::cable("outside", &outside.path());
        for (index, netns) in inside.iter().enumerate() {
            cables += &wiring::cable(&format!("node-{}", index + 1), &netns.path());
        }
        underlay.ip(&cables)?;
        outside.ip(&wiring::outside())?;
        if plan.xdp.is_some() {
            xdp_mode::wire(&underlay, "outside", &outside)?;
            for (index, netns) in inside.iter().enumerate() {
                xdp_mode::wire(&underlay, &format!("node-{}", index + 1), netns)?;
            }
        }
        let tunnel = (plan.between == Between::Tun).then(|| Tunnel::new(&inside)).transpose()?;
        let mut nodes = Vec::new();
        for (index, netns) in inside.into_iter().enumerate() {
            netns.ip(&wiring::node(index, plan.pod_net))?;
            netns.ip(&wiring::between(index, plan.nodes, plan.between))?;
            if plan.between == Between::Vxlan {
                forwarding_database(&netns, &wiring::forwarding_database(index, plan.nodes))?;
            }
            if plan.cni_rules {
                cni::install(&netns)?;
            }
            if plan.masquerades() {
                cni::masquerade(&netns)?;
            }
            let manifests = files.path().join(netns.name());
            fs::create_dir(&manifests)?;
            nodes.push(Node::new(&id, index, netns, manifests, plan.xdp)?);
        }
        let outside = Place::inside(outside);
        let (foreign, pods, hop, past_checksum_errors) = Default::default();
        let _tunnel = tunnel;
        let cluster = Self {
            foreign,
            nodes,
            pods,
            _tunnel,
            outside,
            underlay,
            hop,
            past_checksum_errors,
            files,
            id,
            plan,
        };
        let documents: Vec<_> = cluster.nodes.iter().map(manifest::node).collect();
        cluster.apply("nodes.yaml", &documents.join("---\n"))?;
        Ok(cluster)
    }

    /// `PREFIX-PID-N`: the prefix of all names of this cluster.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// A directory owned by this cluster.
    pub fn files(&self) -> &Path {
        self.files.path()
    }

    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    pub fn node(&self, index: usize) -> &Node {
        &self.nodes[index]
    }

    /// The switch that connects all machines, by the ports `outside`, `node-1` and so on.
    pub fn underlay(&self) -> &Netns {
        &self.underlay
    }

    /// The client outside the cluster, at [`OUTSIDE`].
    pub fn outside(&self) -> &Place {
        &self.outside
    }

    pub fn outside_addr(&self) -> Dual {
        OUTSIDE
    }

    /// Adds the router with the low MTU: see [`hop`]. At most once per cluster.
    pub fn add_hop(&self, mtu: u32) -> Result<()> {
        let mut place = self.hop.lock().expect("no holder panics");
        if place.is_some() {
            bail!("the cluster has its hop already");
        }
        let netns = Arc::new(Netns::new("hop")?);
        self.underlay.ip(&wiring::cable("hop", &netns.path()))?;
        hop::configure(&netns, self.plan.nodes, mtu)?;
        *place = Some(netns);
        Ok(())
    }

    /// Routes packets of `from` (a node or the outside client) to these destinations through the hop from now on.
    pub fn detour(&self, from: &Netns, toward: Toward) -> Result<()> {
        // The hop forwards out of the receiving device. IPv6 redirects cannot be switched off there, so ignore them
        // here.
        from.sysctl("net/ipv6/conf/eth0/accept_redirects", "0")?;
        from.ip(&toward.detour())
    }

    /// Creates a pod on a node, at the node's lowest free address. Nothing runs in it yet.
    pub fn add_pod(&self, node: usize, name: &str) -> Result<Pod> {
        let mut pods = self.pods.lock().expect("no holder panics");
        let taken: Vec<_> = pods.iter().filter(|pod| pod.node() == node).map(Pod::addr).collect();
        let host = (FIRST_POD..foreign_traffic::POD)
            .find(|host| !taken.contains(&pod_addr(node, *host)))
            .context("the node's pod range is full")?;
        self.make_pod(&mut pods, node, name, host)
    }

    fn make_pod(&self, pods: &mut Vec<Pod>, node: usize, name: &str, host: u8) -> Result<Pod> {
        let mut netns = Netns::new(name)?;
        if self.plan.published {
            netns.publish(&format!("{}-pod-{name}", self.id))?;
        }
        let device = format!("veth{host}");
        let mtu = match self.plan.between {
            Between::Routes => 1500,
            Between::Vxlan => 1450,
            Between::Tun => 1400,
        };
        let host_netns = self.nodes[node].netns();
        let lines = wiring::pod_at_node(self.plan.pod_net, &device, &netns.path(), node, host, mtu);
        host_netns.ip(&lines)?;
        if self.plan.pod_net == PodNet::Routed {
            // As CNIs do: the node answers ARP for the gateway immediately.
            host_netns.sysctl(&format!("net/ipv4/conf/{device}/proxy_arp"), "1")?;
            host_netns.sysctl(&format!("net/ipv4/neigh/{device}/proxy_delay"), "0")?;
        }
        netns.ip(&wiring::pod_inside(self.plan.pod_net, node, host))?;
        let pod = Pod::new(name, node, pod_addr(node, host), device, Arc::new(netns));
        pods.push(pod.clone());
        Ok(pod)
    }

    /// A pod with TCP and UDP servers on `port`, in both families, to which the CNI's rules allow new flows.
    pub fn add_server(&self, node: usize, name: &str, port: u16) -> Result<Pod> {
        let pod = self.add_pod(node, name)?;
        pod.serve_tcp(port)?;
        pod.serve_udp(port)?;
        self.allow(pod.addr(), port)?;
        Ok(pod)
    }

    /// Allows new flows to this address and port in the CNI's rules, if the cluster has them.
    pub fn allow(&self, addr: Dual, port: u16) -> Result<()> {
        if !self.plan.cni_rules {
            return Ok(());
        }
        for node in &self.nodes {
            for family in BOTH {
                cni::allow(node.netns(), addr.of(family), "tcp", port)?;
                cni::allow(node.netns(), addr.of(family), "udp", port)?;
            }
        }
        Ok(())
    }

    /// Removes a pod and its cable.
    pub fn remove_pod(&self, pod: &Pod) -> Result<()> {
        pod.stop_serving();
        let errors = checksums::errors(pod.place().netns())?;
        self.past_checksum_errors.lock().expect("no holder panics").extend(errors);
        self.nodes[pod.node()].netns().ip(&format!("link del {}\n", pod.device()))?;
        self.pods.lock().expect("no holder panics").retain(|other| other.name() != pod.name());
        Ok(())
    }

    /// Writes a manifest on every node.
    pub fn apply(&self, file: &str, text: &str) -> Result<()> {
        self.nodes.iter().try_for_each(|node| node.write_manifest(file, text))
    }

    /// Removes a manifest from every node.
    pub fn remove(&self, file: &str) -> Result<()> {
        self.nodes.iter().try_for_each(|node| Ok(fs::remove_file(node.manifests().join(file))?))
    }

    /// Starts `shunt run` on every node and waits until all are ready.
    pub fn start(&self, more: &[&str]) -> Result<()> {
        if foreign_traffic::is_asked_for() && self.foreign.lock().expect("no holder panics").is_none() {
            self.start_foreign_traffic(&[], 0)?;
        }
        self.nodes.iter().try_for_each(|node| node.launch_shunt(more))?;
        self.nodes.iter().try_for_each(Node::wait_ready)
    }

    /// Starts foreign traffic on all nodes, with direct flows of their processes to `backends` at this port. All of it
    /// must have been answered correctly when the cluster is dropped.
    pub fn start_foreign_traffic(&self, backends: &[&Pod], port: u16) -> Result<()> {
        let stranger = Arc::new(Netns::new("stranger")?);
        self.underlay.ip(&wiring::cable("stranger", &stranger.path()))?;
        let Dual { v4, v6 } = STRANGER;
        stranger
            .ip(&format!("link set eth0 up\naddr add {v4}/24 dev eth0\naddr add {v6}/64 dev eth0 nodad\n"))?;
        let mut pods = self.pods.lock().expect("no holder panics");
        let own = (0..self.nodes.len())
            .map(|node| self.make_pod(&mut pods, node, &format!("foreign-{node}"), foreign_traffic::POD))
            .collect::<Result<Vec<_>>>()?;
        let backends: Vec<Pod> = backends.iter().copied().cloned().collect();
        let traffic = ForeignTraffic::start(stranger, &self.nodes, own, &backends, port)?;
        *self.foreign.lock().expect("no holder panics") = Some(traffic);
        Ok(())
    }

    /// Stops the foreign traffic, if any, and fails unless all of it was answered correctly.
    pub fn end_foreign_traffic(&self) -> Result<()> {
        let Some(traffic) = self.foreign.lock().expect("no holder panics").take() else { return Ok(()) };
        let mut summary = traffic.finish();
        // Replies to foreign traffic that the test's servers received.
        let pods = self.pods.lock().expect("no holder panics");
        summary.strays.extend(pods.iter().flat_map(Pod::strays));
        summary.strays.extend(self.nodes.iter().flat_map(Node::strays));
        println!("{summary}");
        ensure!(summary.is_right(), "{summary}");
        Ok(())
    }

    /// All checksum errors that network stacks of this cluster counted so far, as [`checksums::errors`] formats them.
    pub fn checksum_errors(&self) -> Result<Vec<String>> {
        let mut found = self.past_checksum_errors.lock().expect("no holder panics").clone();
        let pods = self.pods.lock().expect("no holder panics");
        let places = pods.iter().map(Pod::place).chain([&self.outside]).map(Place::netns);
        let hop = self.hop.lock().expect("no holder panics");
        let more = self.nodes.iter().map(Node::netns).chain(hop.as_deref());
        for netns in places.chain(more) {
            found.extend(checksums::errors(netns)?);
        }
        Ok(found)
    }

    /// Packets that conntrack classified as invalid on any node.
    pub fn invalid(&self) -> Result<u64> {
        self.nodes.iter().map(|node| cni::invalid(node.netns())).sum()
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if !thread::panicking() {
            if let Err(error) = self.end_foreign_traffic() {
                panic!("{error:#}");
            }
            // Every test of the suite checks that rewritten packets had correct checksums.
            match self.checksum_errors() {
                Ok(errors) => assert!(errors.is_empty(), "wrong checksums were received: {errors:#?}"),
                Err(error) => panic!("reading the checksum counters: {error:#}"),
            }
            return;
        }
        for node in &self.nodes {
            let log = node.shunt_log();
            if !log.is_empty() {
                eprintln!("---- shunt on {} wrote:\n{log}----", node.name());
            }
        }
        if let Some(seconds) = env::var("SHUNT_TEST_HOLD").ok().and_then(|value| value.parse().ok()) {
            for node in &self.nodes {
                eprintln!(
                    "{}: nsenter --net={} ; pins in {}",
                    node.name(),
                    node.netns().path().display(),
                    node.bpffs().display()
                );
            }
            eprintln!("outside: nsenter --net={}", self.outside.netns().path().display());
            for pod in self.pods.lock().iter().flat_map(|pods| pods.iter()) {
                eprintln!("{}: nsenter --net={}", pod.name(), pod.place().netns().path().display());
            }
            eprintln!("SHUNT_TEST_HOLD: the cluster stays for {seconds} s");
            thread::sleep(Duration::from_secs(seconds));
        }
    }
}

/// Waits until `condition` holds and returns how long that took. Fails after `within`.
pub fn eventually(within: Duration, mut condition: impl FnMut() -> bool) -> Result<Duration> {
    let start = Instant::now();
    while !condition() {
        if start.elapsed() > within {
            bail!("did not happen within {within:?}");
        }
        thread::sleep(Duration::from_millis(5));
    }
    Ok(start.elapsed())
}

/// Removes what killed processes left behind.
fn sweep(prefix: &str) -> Result<()> {
    let remove_dir = |path: &Path| {
        let _ = fs::remove_dir_all(path);
    };
    scratch::sweep(Path::new(scratch::BPFFS), prefix, remove_dir);
    scratch::sweep(&env::temp_dir(), prefix, remove_dir);
    scratch::sweep(&cgroup::root()?, prefix, cgroup::remove);
    netns::sweep(prefix);
    Ok(())
}

/// A node forwards packets and applies strict source checks.
fn forwarding(netns: &Netns) -> Result<()> {
    netns.sysctl("net/ipv4/ip_forward", "1")?;
    netns.sysctl("net/ipv6/conf/all/forwarding", "1")?;
    for scope in ["all", "default"] {
        netns.sysctl(&format!("net/ipv4/conf/{scope}/rp_filter"), "1")?;
    }
    Ok(())
}

fn forwarding_database(netns: &Netns, lines: &str) -> Result<()> {
    let mut child = netns.command("bridge").args(["-batch", "-"]).stdin(Stdio::piped()).spawn()?;
    child.stdin.take().context("stdin is piped")?.write_all(lines.as_bytes())?;
    let status = child.wait()?;
    if !status.success() {
        bail!("bridge in {}: {status}\n{lines}", netns.name());
    }
    Ok(())
}
