//! The object embedded in `shunt`, loaded with its own maps in a network namespace of its own.
//!
//! The kernel takes a second or more to verify it, so the tests of one process share one datapath, which is emptied
//! before each use. aya pins maps that are declared as pinned; here the pins are in a private directory and exist only
//! until the maps are open. No program is attached.

use std::{
    collections::HashMap as StdMap,
    fs,
    hash::Hash,
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
    path::Path,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
};

use anyhow::{Context, Result, bail};
use aya::{
    Ebpf, EbpfLoader, Pod,
    maps::{Array, HashMap, LpmTrie, MapData, PerCpuArray, PerCpuHashMap, PerCpuValues, ProgramArray},
    programs::{Program, SchedClassifier, Xdp},
    util::nr_cpus,
};
use bytemuck::Zeroable as _;
use nix::net::if_::if_nametoindex;
use proxy_common::{
    Addr, Affinity, AffinityKey, Backend, Counter, CtEntry, CtKey, Device, DropKey, Fragment, FragmentKey,
    Frontend, FrontendKey, NodeConfig, Service, ServiceStats, SetMember, map,
};

use super::{
    addresses::Last,
    frame::Link,
    run::{self, Outcome, Way, XdpOutcome},
};
use crate::net::{Netns, scratch};

/// Number of datapaths made by this process.
static MADE: AtomicUsize = AtomicUsize::new(0);

/// Entries of CONNTRACK in the shared datapath.
const CONNTRACK: u32 = 65_536;

static SHARED: Mutex<Option<Datapath>> = Mutex::new(None);

/// This process's datapath, with the node's basic configuration and otherwise empty; the calling thread is in its
/// namespace. Further callers wait until it is returned.
pub fn shared() -> Result<Shared> {
    // A test that failed while it held the datapath left nothing that emptying does not remove.
    let mut guard = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
    match &mut *guard {
        Some(node) => {
            node.netns.join()?;
            node.clear()?;
        }
        none => *none = Some(Datapath::load(CONNTRACK)?),
    }
    Ok(Shared(guard))
}

/// The lease of [`shared`].
pub struct Shared(MutexGuard<'static, Option<Datapath>>);

impl std::ops::Deref for Shared {
    type Target = Datapath;

    fn deref(&self) -> &Datapath {
        self.0.as_ref().expect("filled before it was leased")
    }
}

impl std::ops::DerefMut for Shared {
    fn deref_mut(&mut self) -> &mut Datapath {
        self.0.as_mut().expect("filled before it was leased")
    }
}

/// A classifier of the object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Hook {
    Ingress,
    Egress,
}

impl Hook {
    /// The program for this hook on a device of this kind.
    pub fn program(self, link: Link) -> &'static str {
        match (self, link) {
            (Self::Ingress, Link::Ethernet) => "ingress_l2",
            (Self::Egress, Link::Ethernet) => "egress_l2",
            (Self::Ingress, Link::Ip) => "ingress_l3",
            (Self::Egress, Link::Ip) => "egress_l3",
        }
    }
}

/// One node's datapath.
pub struct Datapath {
    pub(super) ebpf: Ebpf,
    pub frontends: HashMap<MapData, FrontendKey, Frontend>,
    pub slots: Array<MapData, u32>,
    pub backends: Array<MapData, Backend>,
    pub services: Array<MapData, Service>,
    pub backend_addrs: HashMap<MapData, FrontendKey, u32>,
    pub ports: Array<MapData, u32>,
    pub node_addrs: HashMap<MapData, Addr, u32>,
    pub node_config: Array<MapData, NodeConfig>,
    pub devices: HashMap<MapData, u32, Device>,
    pub conntrack: HashMap<MapData, CtKey, CtEntry>,
    pub affinity: HashMap<MapData, AffinityKey, Affinity>,
    pub set_members: HashMap<MapData, SetMember, u32>,
    /// By service and address: the `SourceRange` fields after the prefix length.
    pub source_ranges: LpmTrie<MapData, [u32; 5], u32>,
    pub fragments: HashMap<MapData, FragmentKey, Fragment>,
    counters: PerCpuArray<MapData, u64>,
    stats: PerCpuArray<MapData, ServiceStats>,
    drops: PerCpuHashMap<MapData, DropKey, u64>,
    netns: Netns,
    /// Keeps the XDP program attached to the uplink, if it was attached.
    lane: Option<OwnedFd>,
    /// INGRESS, populated.
    slots_of_gate: Option<ProgramArray<MapData>>,
    /// The device to other hosts.
    pub uplink: u32,
    /// The device of a pod.
    pub pod: u32,
    /// The identifiers that [`super::world`] used last.
    pub(super) last: Last,
    /// Ports with bits set in PORTS.
    pub(super) marked: Vec<u16>,
}

impl Datapath {
    /// Loads the datapath with room for this many CONNTRACK entries and configures it. The calling thread moves to its
    /// namespace.
    pub fn load(conntrack: u32) -> Result<Self> {
        Self::load_with(conntrack, 0)
    }

    /// As [`Self::load`], with one in `trace` decisions written to the trace (0: none, and no code for it).
    pub fn load_with(conntrack: u32, trace: u32) -> Result<Self> {
        let number = MADE.fetch_add(1, Ordering::Relaxed);
        let id = format!("shunt-packet-{}-{number}", std::process::id());
        let netns = Netns::new(id.clone())?;
        // Up, so that packets sent by a program can be seen; without traffic of the devices' own.
        netns.sysctl("net/ipv6/conf/default/addr_gen_mode", "1")?;
        netns.ip("link add uplink type veth peer name pod\nlink set uplink up\nlink set pod up\n")?;
        netns.join()?;
        let (uplink, pod) = (if_nametoindex("uplink")?, if_nametoindex("pod")?);

        scratch::mount_bpffs()?;
        let pins = Path::new(scratch::BPFFS).join(id);
        fs::create_dir(&pins).with_context(|| format!("making {}", pins.display()))?;
        let loaded = EbpfLoader::new()
            .default_map_pin_directory(&pins)
            // Only with it does a device checksum over IPv6 stay correct; older kernels are covered by the vm suite.
            .override_global("CSUM_IPV6", &(1u64 << 7), true)
            .override_global("TRACE", &trace, true)
            .map_max_entries(map::CONNTRACK, conntrack)
            .map_max_entries(map::AFFINITY, 64)
            .map_max_entries(map::SOCK_REVNAT, 64)
            .map_max_entries(map::SOCK_BACKEND, 64)
            .load(shunt::object::OBJECT);
        // The maps are open (or were not created), so the pins are no longer needed.
        fs::remove_dir_all(&pins)?;
        let mut ebpf = loaded.context("loading the object: the packet suite must run as root")?;
        for hook in [Hook::Ingress, Hook::Egress] {
            for link in Link::BOTH {
                let name = hook.program(link);
                let program: &mut SchedClassifier =
                    ebpf.program_mut(name).with_context(|| format!("no program {name}"))?.try_into()?;
                program.load().with_context(|| format!("loading {name}"))?;
            }
        }
        let mut node = Self {
            frontends: hash(&mut ebpf, map::FRONTENDS)?,
            slots: array(&mut ebpf, map::SLOTS)?,
            backends: array(&mut ebpf, map::BACKENDS)?,
            services: array(&mut ebpf, map::SERVICES)?,
            backend_addrs: hash(&mut ebpf, map::BACKEND_ADDRS)?,
            ports: array(&mut ebpf, map::PORTS)?,
            node_addrs: hash(&mut ebpf, map::NODE_ADDRS)?,
            node_config: array(&mut ebpf, map::NODE_CONFIG)?,
            devices: hash(&mut ebpf, map::DEVICES)?,
            conntrack: hash(&mut ebpf, map::CONNTRACK)?,
            affinity: hash(&mut ebpf, map::AFFINITY)?,
            set_members: hash(&mut ebpf, map::SET_MEMBERS)?,
            source_ranges: ebpf.take_map(map::SOURCE_RANGES).context("no map SOURCE_RANGES")?.try_into()?,
            fragments: hash(&mut ebpf, map::FRAGMENTS)?,
            counters: ebpf.take_map(map::COUNTERS).context("no map COUNTERS")?.try_into()?,
            stats: ebpf.take_map(map::SERVICE_STATS).context("no map SERVICE_STATS")?.try_into()?,
            drops: ebpf.take_map(map::DROPS).context("no map DROPS")?.try_into()?,
            ebpf,
            uplink,
            pod,
            netns,
            lane: None,
            slots_of_gate: None,
            last: Last::default(),
            marked: Vec::new(),
        };
        node.furnish()?;
        Ok(node)
    }

    /// Removes everything except the basic configuration.
    pub fn clear(&mut self) -> Result<()> {
        empty(&mut self.frontends)?;
        empty(&mut self.backend_addrs)?;
        empty(&mut self.node_addrs)?;
        empty(&mut self.devices)?;
        empty(&mut self.conntrack)?;
        empty(&mut self.affinity)?;
        empty(&mut self.set_members)?;
        self.let_nobody_in()?;
        empty(&mut self.fragments)?;
        self.unwatch()?;
        for port in self.marked.drain(..) {
            self.ports.set(u32::from(port), 0, 0)?;
        }
        let cpus = nr_cpus().map_err(|(_, error)| error)?;
        for id in 0..=self.last.service {
            self.services.set(id, Service::zeroed(), 0)?;
            self.stats.set(id, PerCpuValues::try_from(vec![ServiceStats::zeroed(); cpus])?, 0)?;
        }
        let counted: Vec<DropKey> = self.drops.keys().collect::<Result<_, _>>()?;
        counted.iter().try_for_each(|key| self.drops.remove(key))?;
        for id in 0..=self.last.backend {
            self.backends.set(id, Backend::zeroed(), 0)?;
        }
        for counter in Counter::ALL {
            let zeros = PerCpuValues::try_from(vec![0; cpus])?;
            self.counters.set(*counter as u32, zeros, 0)?;
        }
        self.last = Last::default();
        self.furnish()
    }

    /// Removes the flows only.
    pub fn forget_flows(&mut self) -> Result<()> {
        empty(&mut self.conntrack)
    }

    /// The loaded program of this name.
    pub fn program(&self, name: &str) -> &SchedClassifier {
        self.ebpf.program(name).expect("a program of the object").try_into().expect("a classifier")
    }

    /// The descriptor of a hook's program.
    pub fn fd(&self, hook: Hook, link: Link) -> BorrowedFd<'_> {
        self.program(hook.program(link)).fd().expect("loaded").as_fd()
    }

    /// Runs a hook over a packet.
    #[track_caller]
    pub fn run(&self, hook: Hook, link: Link, packet: &[u8], way: Way) -> Outcome {
        match run::run(self.fd(hook, link), packet, way) {
            Ok(outcome) => outcome,
            Err(error) if error.raw_os_error() == Some(libc::EBADMSG) => {
                panic!("{hook:?} spoiled the device's checksum of {packet:02x?}")
            }
            Err(error) => panic!("BPF_PROG_TEST_RUN of {hook:?} over {packet:02x?}: {error}"),
        }
    }

    /// A packet that arrives at the uplink.
    #[track_caller]
    pub fn ingress(&self, link: Link, packet: &[u8]) -> Outcome {
        self.run(
            Hook::Ingress,
            link,
            packet,
            Way { device: self.uplink, came_in: self.uplink, complete: false },
        )
    }

    /// A forwarded packet that leaves through the uplink.
    #[track_caller]
    pub fn egress(&self, link: Link, packet: &[u8]) -> Outcome {
        self.run(Hook::Egress, link, packet, Way { device: self.uplink, came_in: self.pod, complete: false })
    }

    /// A packet of the node's own that leaves through the uplink.
    #[track_caller]
    pub fn own(&self, link: Link, packet: &[u8]) -> Outcome {
        self.run(Hook::Egress, link, packet, Way { device: self.uplink, came_in: 0, complete: false })
    }

    /// Turns the uplink into a wire with neighbours at the other end (except for hosts of
    /// [`super::addresses::UNKNOWN`]) and attaches the XDP program to it: a test run accepts only such a device's
    /// index.
    pub fn wire(&mut self) -> Result<()> {
        if self.lane.is_some() {
            return Ok(());
        }
        self.netns.sysctl("net/ipv4/ip_forward", "1")?;
        self.netns.sysctl("net/ipv6/conf/all/forwarding", "1")?;
        self.netns.ip(&super::addresses::wiring())?;
        let gate: &mut SchedClassifier =
            self.ebpf.program_mut("ingress_xdp").context("no ingress_xdp")?.try_into()?;
        gate.load().context("loading ingress_xdp")?;
        let next = self.program("ingress_l2").fd()?.try_clone()?;
        let mut slots: ProgramArray<MapData> =
            self.ebpf.take_map(map::INGRESS).context("no map INGRESS")?.try_into()?;
        slots.set(0, &next, 0)?;
        self.slots_of_gate = Some(slots);
        const DRIVER: u32 = 1 << 2;
        // Loaded only to have it verified: no device here needs it.
        let soft: &mut Xdp = self.ebpf.program_mut("xdp_soft").context("no xdp_soft")?.try_into()?;
        soft.load().context("loading xdp_soft")?;
        let program: &mut Xdp = self.ebpf.program_mut("xdp_native").context("no XDP program")?.try_into()?;
        program.load().context("loading xdp_native")?;
        let link = shunt::bpf::link::create_xdp(program.fd()?.as_fd(), self.uplink, DRIVER)?;
        self.lane = Some(link);
        Ok(())
    }

    /// Gives the neighbours on a wired uplink its own MAC address: a frame that the XDP program has sent is then
    /// addressed to this node again, so that a test run can repeat the program on it.
    pub fn mirror(&mut self) -> Result<()> {
        self.netns.ip(&super::addresses::mirror())
    }

    /// The XDP program, which is loaded with [`Self::wire`].
    pub fn lane_fd(&self) -> BorrowedFd<'_> {
        let program: &Xdp =
            self.ebpf.program("xdp_native").expect("of the object").try_into().expect("of type XDP");
        program.fd().expect("wired").as_fd()
    }

    /// A frame that arrives at the uplink, at XDP.
    #[track_caller]
    pub fn lane(&self, frame: &[u8]) -> XdpOutcome {
        run::run_xdp(self.lane_fd(), frame, self.uplink).expect("BPF_PROG_TEST_RUN of the XDP program")
    }

    /// Sum of a counter over the CPUs.
    pub fn counter(&self, counter: Counter) -> u64 {
        self.counters.get(&(counter as u32), 0).expect("every counter has an element").iter().sum()
    }

    /// The traffic of a service port, over all CPUs.
    pub fn stats(&self, service: u32) -> Result<ServiceStats> {
        let mut sum = ServiceStats::zeroed();
        for cpu in self.stats.get(&service, 0)?.iter() {
            sum.flows += cpu.flows;
            sum.packets_in += cpu.packets_in;
            sum.bytes_in += cpu.bytes_in;
            sum.packets_out += cpu.packets_out;
            sum.bytes_out += cpu.bytes_out;
        }
        Ok(sum)
    }

    /// DROPS, over all CPUs: device and reason, sorted.
    pub fn drops(&self) -> Result<Vec<((u32, u32), u64)>> {
        let mut all = Vec::new();
        for entry in self.drops.iter() {
            let (key, values) = entry?;
            all.push(((key.ifindex, key.reason), values.iter().sum()));
        }
        all.sort_unstable();
        Ok(all)
    }

    /// Every program of the object, loaded to get its name and the number of instructions that the verifier processed.
    pub fn verified(&mut self) -> Result<Vec<(String, u32)>> {
        let names: Vec<_> = self.ebpf.programs().map(|(name, _)| name.to_owned()).collect();
        let mut all = Vec::new();
        for name in names {
            let program = self.ebpf.program_mut(&name).context("listed")?;
            let info = match program {
                Program::SchedClassifier(program) => {
                    if program.fd().is_err() {
                        program.load()?;
                    }
                    program.info()?
                }
                Program::Xdp(program) => {
                    if program.fd().is_err() {
                        program.load()?;
                    }
                    program.info()?
                }
                Program::CgroupSockAddr(program) => {
                    program.load()?;
                    program.info()?
                }
                _ => bail!("{name} is a program of a kind unknown to this harness"),
            };
            let walked = info.verified_instruction_count().context("the kernel does not tell (5.16)")?;
            all.push((name, walked));
        }
        all.sort();
        Ok(all)
    }

    /// All entries of CONNTRACK.
    pub fn flows(&self) -> StdMap<CtKey, CtEntry> {
        self.conntrack.iter().map(|entry| entry.expect("nobody else writes")).collect()
    }
}

fn empty<K: Pod + Eq + Hash, V: Pod>(map: &mut HashMap<MapData, K, V>) -> Result<()> {
    let keys: Vec<K> = map.keys().collect::<Result<_, _>>()?;
    keys.iter().try_for_each(|key| Ok(map.remove(key)?))
}

fn hash<K: Pod + Eq + Hash, V: Pod>(ebpf: &mut Ebpf, name: &str) -> Result<HashMap<MapData, K, V>> {
    Ok(ebpf.take_map(name).with_context(|| format!("no map {name}"))?.try_into()?)
}

fn array<V: Pod>(ebpf: &mut Ebpf, name: &str) -> Result<Array<MapData, V>> {
    Ok(ebpf.take_map(name).with_context(|| format!("no map {name}"))?.try_into()?)
}
