//! Loads the embedded object into the kernel: checks the pinned maps against it, creates or reuses maps, sets the
//! read-only globals, loads every program.
//!
//! Attaches nothing and replaces no pinned program: if it fails, the programs of an earlier run keep working.

use std::{
    collections::BTreeMap,
    fmt::Display,
    os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd},
};

use aya::{
    Ebpf, EbpfLoader,
    maps::Map,
    programs::{Program, ProgramError},
};
use proxy_common::map;

use super::{
    DatapathError, OBJECT,
    layout::{Layout, Mismatch},
    pins::Pins,
};
use crate::{
    bpf::{
        self,
        map::RawMap,
        probe::{self, BPF_F_IPV6, Features},
    },
    config::{Config, MapSizes, SocketLb},
    maps::kernel::KernelStore,
};

/// Every program of the object that is attached or run.
pub const PROGRAMS: [&str; 16] = [
    "ingress_l2",
    "egress_l2",
    "ingress_l3",
    "egress_l3",
    "clock",
    "connect4",
    "connect6",
    "sendmsg4",
    "sendmsg6",
    "recvmsg4",
    "recvmsg6",
    "getpeername4",
    "getpeername6",
    "ingress_xdp",
    "xdp_native",
    "xdp_soft",
];

/// Loaded only with `--xdp`.
const XDP_PROGRAMS: [&str; 3] = ["ingress_xdp", "xdp_native", "xdp_soft"];

/// The section of the object that holds the read-only globals, and the name of the map they become.
pub const GLOBALS_SECTION: &str = ".rodata";

/// Lines of the verifier's log to show: the last ones contain the reason.
const LOG_LINES: usize = 20;

/// Values of the programs' read-only globals.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Globals {
    /// Netns cookie whose sockets are translated; 0: all.
    pub socket_netns: u64,
    /// This namespace's cookie: only its sockets reach NodePorts at loopback addresses.
    pub host_netns: u64,
    pub hz: u32,
    pub trace: u32,
    pub csum_ipv6: u64,
    pub set_retval: u32,
    /// Flags of `bpf_fib_lookup` that name a route's source; 0: sources come from SOURCE_ADDRS alone.
    pub fib_source: u32,
    /// Not 0: SERVICE_STATS is updated.
    pub stats: u32,
    /// Not 0: `--symmetric-replies`.
    pub symmetric: u32,
}

impl Globals {
    /// For this kernel, this network namespace and this configuration.
    pub fn new(features: &Features, config: &Config) -> Result<Self, DatapathError> {
        let failed = |action| move |source| DatapathError::Io { action, source };
        let host_netns = probe::netns_cookie().map_err(failed("reading the network namespace's cookie"))?;
        Ok(Self {
            socket_netns: match config.socket_lb {
                SocketLb::Host => host_netns,
                SocketLb::Off | SocketLb::All => 0,
            },
            host_netns,
            hz: probe::jiffies_per_second().map_err(failed("reading the clock's resolution"))?,
            trace: config.trace.into(),
            csum_ipv6: if features.csum_ipv6 { BPF_F_IPV6 } else { 0 },
            set_retval: features.set_retval.into(),
            fib_source: features.fib_source,
            stats: (config.sizes.stats > 1).into(),
            symmetric: config.symmetric_replies.into(),
        })
    }
}

/// The loaded programs and the open maps.
#[derive(Debug)]
pub struct Loaded {
    programs: BTreeMap<&'static str, OwnedFd>,
    pub store: KernelStore,
    ingress: RawMap,
    events: RawMap,
    /// Owns the maps that are not pinned: read-only data, and the ring buffer of the trace.
    ebpf: Ebpf,
}

impl Loaded {
    /// A loaded program.
    pub fn program(&self, name: &'static str) -> Result<BorrowedFd<'_>, DatapathError> {
        self.programs.get(name).map(|fd| fd.as_fd()).ok_or(DatapathError::Incomplete { name })
    }

    /// All programs by name.
    pub fn programs(&self) -> impl Iterator<Item = (&'static str, BorrowedFd<'_>)> {
        self.programs.iter().map(|(name, fd)| (*name, fd.as_fd()))
    }

    /// INGRESS, a program array.
    pub fn ingress(&self) -> &RawMap {
        &self.ingress
    }

    /// EVENTS, which `shunt monitor` reads.
    pub fn monitor_events(&self) -> &RawMap {
        &self.events
    }

    /// The read-only globals.
    pub fn globals(&self) -> Result<BorrowedFd<'_>, DatapathError> {
        match self.ebpf.map(GLOBALS_SECTION) {
            Some(Map::Array(globals)) => Ok(globals.fd().as_fd()),
            _ => Err(DatapathError::Incomplete { name: map::GLOBALS }),
        }
    }

    /// Sets the ingress program that `ingress_xdp` tail-calls; before it is attached, and replacing an earlier run's.
    pub fn fill_ingress(&self) -> std::io::Result<()> {
        if !self.programs.contains_key("ingress_xdp") {
            return Ok(());
        }
        let next = self.program("ingress_l2").map_err(std::io::Error::other)?;
        self.ingress.update(&0u32.to_ne_bytes(), &(next.as_raw_fd() as u32).to_ne_bytes())
    }

    /// Pins the programs and their globals, and removes pins of programs that are not loaded.
    pub fn pin_programs(&self, pins: &Pins) -> Result<(), DatapathError> {
        for (name, program) in self.programs() {
            let path = pins.prog(name);
            bpf::obj_repin(program, &path).map_err(|e| DatapathError::pin(&path, e))?;
        }
        let path = pins.map(map::GLOBALS);
        bpf::obj_repin(self.globals()?, &path).map_err(|e| DatapathError::pin(&path, e))?;
        for name in Pins::names(&pins.progs()).map_err(|e| DatapathError::pin(&pins.progs(), e))? {
            if !self.programs().any(|(loaded, _)| loaded == name) {
                bpf::remove_pin(&pins.prog(&name)).map_err(|e| DatapathError::pin(&pins.prog(&name), e))?;
            }
        }
        Ok(())
    }

    /// The object, for the reader of the trace.
    pub fn ebpf_mut(&mut self) -> &mut Ebpf {
        &mut self.ebpf
    }
}

/// All maps that outlive the process.
fn pinned_maps() -> impl Iterator<Item = &'static str> {
    map::ALL.into_iter().chain([map::INGRESS, map::EVENTS])
}

/// The ring of half-open flows; not pinned, so not in [`map::ALL`].
const HALF_OPEN: &str = "HALF_OPEN";

/// Maximum number of half-open flows: with a translated source each has four halves, so this is half of CONNTRACK.
fn half_open_max(sizes: &MapSizes) -> u32 {
    sizes.conntrack / 8
}

/// The maps with a configurable size.
fn sizes(sizes: &MapSizes) -> Vec<(&'static str, u32)> {
    vec![
        (map::CONNTRACK, sizes.conntrack),
        (map::FRONTENDS, sizes.frontends),
        (map::BACKENDS, sizes.backends),
        (map::BACKEND_ADDRS, sizes.backends),
        (map::BACKEND_META, sizes.backends),
        (map::SLOTS, sizes.slots),
        (map::SERVICES, sizes.services),
        (map::SERVICE_META, sizes.services),
        // A map has at least one element.
        (map::SERVICE_STATS, sizes.stats.max(1)),
        (map::AFFINITY, sizes.affinity),
        (map::SET_MEMBERS, sizes.slots),
        (map::SOURCE_RANGES, sizes.source_ranges),
        // The first element is the ring's position.
        (HALF_OPEN, half_open_max(sizes) + 1),
    ]
}

/// Loads the object with its maps pinned under `pins`. `with_xdp`: the XDP programs are loaded too.
pub fn load(
    pins: &Pins,
    globals: &Globals,
    map_sizes: &MapSizes,
    with_xdp: bool,
) -> Result<Loaded, DatapathError> {
    let sizes = sizes(map_sizes);
    check_pins(pins, &sizes)?;
    let paths: Vec<_> = pinned_maps().map(|name| (name, pins.map(name))).collect();
    let mut loader = EbpfLoader::new();
    for (name, path) in &paths {
        loader.map_pin_path(name, path.as_path());
    }
    for (name, size) in &sizes {
        loader.map_max_entries(name, *size);
    }
    let mut ebpf = loader
        .override_global("SOCKET_NETNS", &globals.socket_netns, true)
        .override_global("HOST_NETNS", &globals.host_netns, true)
        .override_global("HZ", &globals.hz, true)
        .override_global("TRACE", &globals.trace, true)
        .override_global("CSUM_IPV6", &globals.csum_ipv6, true)
        .override_global("SET_RETVAL", &globals.set_retval, true)
        .override_global("FIB_SOURCE", &globals.fib_source, true)
        .override_global("SYMMETRIC", &globals.symmetric, true)
        .override_global("STATS", &globals.stats, true)
        .override_global("HALF_OPEN_MAX", &half_open_max(map_sizes), true)
        .load(OBJECT)
        .map_err(|source| DatapathError::Object { source: Box::new(source) })?;
    let programs = load_programs(&mut ebpf, with_xdp)?;
    let store = KernelStore::open(&pins.maps(), &map::ALL)
        .map_err(|e| DatapathError::pin(&pins.maps(), std::io::Error::other(e)))?;
    let open = |name| RawMap::open(&pins.map(name)).map_err(|e| DatapathError::pin(&pins.map(name), e));
    Ok(Loaded { programs, store, ingress: open(map::INGRESS)?, events: open(map::EVENTS)?, ebpf })
}

/// Loads all programs in parallel: verifying the large ones takes time.
fn load_programs(ebpf: &mut Ebpf, with_xdp: bool) -> Result<BTreeMap<&'static str, OwnedFd>, DatapathError> {
    let mut found: BTreeMap<String, &mut Program> =
        ebpf.programs_mut().map(|(name, program)| (name.to_owned(), program)).collect();
    std::thread::scope(|scope| {
        let mut loading = Vec::new();
        for name in PROGRAMS.into_iter().filter(|name| with_xdp || !XDP_PROGRAMS.contains(name)) {
            let program = found.remove(name).ok_or(DatapathError::Incomplete { name })?;
            loading.push((name, scope.spawn(move || load_program(name, program))));
        }
        loading
            .into_iter()
            .map(|(name, thread)| {
                let loaded = thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
                Ok((name, loaded))
            })
            .collect()
    })
}

fn load_program(name: &'static str, program: &mut Program) -> Result<OwnedFd, DatapathError> {
    let fd = match program {
        Program::SchedClassifier(p) => p.load().and_then(|()| p.fd()),
        Program::CgroupSockAddr(p) => p.load().and_then(|()| p.fd()),
        Program::Xdp(p) => p.load().and_then(|()| p.fd()),
        _ => return Err(DatapathError::Incomplete { name }),
    };
    fd.and_then(|fd| fd.as_fd().try_clone_to_owned().map_err(ProgramError::IOError))
        .map_err(|error| failed_program(name, error))
}

pub(crate) fn failed_program(name: &str, error: ProgramError) -> DatapathError {
    let (reason, log) = match &error {
        ProgramError::LoadError { io_error, verifier_log } => {
            (io_error.to_string(), last_lines(verifier_log))
        }
        other => (other.to_string(), String::new()),
    };
    DatapathError::Program { name: name.into(), kernel: probe::kernel_release(), reason, log }
}

fn last_lines(log: &impl Display) -> String {
    let log = log.to_string();
    let lines: Vec<_> = log.lines().map(str::trim_end).filter(|line| !line.is_empty()).collect();
    lines[lines.len().saturating_sub(LOG_LINES)..].join("\n")
}

/// Compares every pinned map with the object's layout.
fn check_pins(pins: &Pins, sizes: &[(&'static str, u32)]) -> Result<(), DatapathError> {
    let object = aya_obj::Object::parse(OBJECT)
        .map_err(|e| DatapathError::Object { source: Box::new(aya::EbpfError::ParseError(e)) })?;
    let mut outgrown = None;
    for name in pinned_maps() {
        let wanted = object.maps.get(name).ok_or(DatapathError::Incomplete { name })?;
        let wanted = Layout {
            map_type: wanted.map_type(),
            key_size: wanted.key_size(),
            value_size: wanted.value_size(),
            max_entries: sizes.iter().find(|s| s.0 == name).map_or(wanted.max_entries(), |s| s.1),
            flags: wanted.map_flags(),
        };
        let path = pins.map(name);
        let pinned = match RawMap::open(&path) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => continue,
            other => other.map_err(|e| DatapathError::pin(&path, e))?,
        };
        match Layout::from(pinned.info()).serves(&wanted) {
            // Statistics may be reset; nothing depends on them.
            Err(Mismatch::Size { .. }) if name == map::SERVICE_STATS => outgrown = Some(path),
            other => other.map_err(|reason| DatapathError::Layout { path, reason })?,
        }
    }
    // Only after all other checks: a failed start must leave the running programs their map.
    match outgrown {
        Some(path) => std::fs::remove_file(&path).map_err(|e| DatapathError::pin(&path, e)),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_verifier_log_is_cut_to_its_end() {
        let log = (0..100).map(|i| format!("{i}: r0 = 0\n\n")).collect::<String>();
        let last = last_lines(&log);
        assert_eq!(last.lines().count(), LOG_LINES);
        assert!(last.ends_with("99: r0 = 0"), "{last}");
    }

    #[test]
    fn twins_of_a_map_are_sized_alike() {
        let all = sizes(&MapSizes::default());
        let of = |name| all.iter().find(|s| s.0 == name).unwrap().1;
        assert_eq!(of(map::BACKENDS), of(map::BACKEND_ADDRS));
        assert!(all.iter().all(|(name, _)| *name == HALF_OPEN || map::ALL.contains(name)));
    }
}
