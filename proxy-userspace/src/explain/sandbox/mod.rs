//! A private instance of the datapath: the same programs with the same globals, and maps of their own that contain copies of
//! the entries that the packet can reach. Nothing that runs here affects the live datapath.
//!
//! Arrays have the size of the live ones, so that indices stay valid. Hashes are small: entries are copied by key ([`copy`]),
//! just before a program may look them up.

pub mod copy;
mod object;

use std::{
    cell::RefCell,
    collections::{HashMap, HashSet, hash_map::Entry},
    io,
    os::fd::{AsFd as _, BorrowedFd},
};

use aya::{
    Ebpf, EbpfLoader,
    maps::{Map, MapData},
    programs::{Program, ProgramError},
};
use bytemuck::Pod;
use proxy_common::{Counter, NodeConfig, map};

use self::object::ObjectError;
use crate::{
    bpf::{
        map::RawMap,
        prog::ProgInfo,
        run::{self, Ran},
    },
    datapath::{DatapathError, OBJECT, load::failed_program},
    inspect::{InspectError, pins::Pins},
};

/// Hashes whose entries are copied by key, and their size in the sandbox.
const SMALL: [(&str, u32); 11] = [
    (map::FRONTENDS, 64),
    (map::CONNTRACK, 8192),
    (map::BACKEND_ADDRS, 64),
    (map::AFFINITY, 256),
    (map::SET_MEMBERS, 1024),
    (map::SOURCE_RANGES, 64),
    (map::SOCK_REVNAT, 256),
    (map::SOCK_BACKEND, 256),
    (map::FRAGMENTS, 256),
    (map::HELD, 1),
    (map::SERVICE_STATS, 1),
];

/// Not pinned: a ring of which one flow takes one element, behind the element with the count.
const HALF_OPEN: (&str, u32) = ("HALF_OPEN", 2);

/// The sandbox cannot be set up or does not run.
#[derive(Debug, thiserror::Error)]
pub enum SandboxError {
    #[error(transparent)]
    Inspect(#[from] InspectError),
    #[error(transparent)]
    Datapath(#[from] DatapathError),
    #[error(transparent)]
    Object(#[from] ObjectError),
    #[error(
        "the running programs have no global {0}: they are of another version; use the shunt binary that is running"
    )]
    NoGlobal(&'static str),
    #[error("copying {name}")]
    Map { name: &'static str, source: io::Error },
    #[error("running {name} on the packet")]
    Run { name: &'static str, source: io::Error },
}

impl SandboxError {
    fn map(name: &'static str) -> impl Fn(io::Error) -> Self {
        move |source| Self::Map { name, source }
    }
}

/// The live maps and their copies, with the programs over the copies.
pub struct Sandbox {
    ebpf: Ebpf,
    pins: Pins,
    globals: Vec<u8>,
    maps: RefCell<HashMap<&'static str, Pair>>,
    /// COUNTERS after the last run.
    counted: Vec<u64>,
}

/// A live map, its copy, and the keys that have been copied.
struct Pair {
    live: RawMap,
    own: RawMap,
    copied: HashSet<Vec<u8>>,
}

/// The result of one hook.
pub struct HookRun {
    pub ran: Ran,
    /// Counters that increased.
    pub counters: Vec<Counter>,
}

impl Sandbox {
    /// Creates the maps and parses the programs. Programs are loaded on first use.
    pub fn new(pins: &Pins) -> Result<Self, SandboxError> {
        let path = pins.maps().join(map::GLOBALS);
        let live = pins.open_map(&path)?;
        let globals = live.lookup(&0u32.to_ne_bytes()).map_err(SandboxError::map(map::GLOBALS))?;
        let globals = globals.unwrap_or_default();
        let object = object::unpinned(OBJECT, &globals)?;
        let mut loader = EbpfLoader::new();
        for name in map::ALL {
            let live = pins.map(name)?;
            let small = SMALL.iter().find(|(small, _)| *small == name).map(|(_, len)| *len);
            loader.map_max_entries(name, small.unwrap_or(live.info().max_entries));
        }
        loader.map_max_entries(HALF_OPEN.0, HALF_OPEN.1);
        let ebpf = loader.load(&object).map_err(|source| match root_cause(&source) {
            Some(libc::EPERM | libc::EACCES) => {
                DatapathError::Privilege { source: io::ErrorKind::PermissionDenied.into() }
            }
            _ => DatapathError::Object { source: Box::new(source) },
        })?;
        let counted = vec![0; Counter::ALL.len()];
        Ok(Self { ebpf, pins: pins.clone(), globals, maps: RefCell::default(), counted })
    }

    /// NODE_CONFIG.
    pub fn node_config(&self) -> Result<NodeConfig, SandboxError> {
        Ok(self.copy(map::NODE_CONFIG, &0u32)?.unwrap_or(bytemuck::Zeroable::zeroed()))
    }

    /// A global of the running programs.
    pub fn global(&self, name: &'static str) -> Result<u64, SandboxError> {
        object::global(OBJECT, &self.globals, name)?.ok_or(SandboxError::NoGlobal(name))
    }

    fn with<T>(
        &self,
        name: &'static str,
        f: impl FnOnce(&mut Pair) -> io::Result<T>,
    ) -> Result<T, SandboxError> {
        let mut maps = self.maps.borrow_mut();
        let pair = match maps.entry(name) {
            Entry::Occupied(entry) => entry.into_mut(),
            Entry::Vacant(entry) => {
                let data = self.ebpf.map(name).and_then(data).ok_or(DatapathError::Incomplete { name })?;
                let own = data.fd().as_fd().try_clone_to_owned().and_then(RawMap::new);
                let own = own.map_err(SandboxError::map(name))?;
                entry.insert(Pair { live: self.pins.map(name)?, own, copied: Default::default() })
            }
        };
        f(pair).map_err(SandboxError::map(name))
    }

    /// Copies one entry, unless it has been copied before, and returns it as it is in the sandbox.
    pub fn copy<K: Pod, V: Pod>(&self, name: &'static str, key: &K) -> Result<Option<V>, SandboxError> {
        let key = bytemuck::bytes_of(key);
        self.with(name, |pair| {
            if pair.copied.insert(key.to_vec())
                && let Some(value) = pair.live.lookup(key)?
            {
                pair.own.update(key, &value)?;
            }
            Ok(pair.own.lookup(key)?.map(|value| bytemuck::pod_read_unaligned(&value)))
        })
    }

    /// Copies all entries, without zero elements of an array.
    pub fn copy_all(&self, name: &'static str) -> Result<(), SandboxError> {
        self.with(name, |pair| {
            let is_array = pair.live.is_array();
            let mut entries = Vec::new();
            pair.live.for_each(|key, value| {
                if !(is_array && value.iter().all(|byte| *byte == 0)) {
                    entries.push((key.to_vec(), value.to_vec()));
                }
            })?;
            let entries = entries.iter().map(|(key, value)| (key.as_slice(), value.as_slice()));
            pair.own.update_all(entries).map_err(|error| error.source)
        })
    }

    /// An entry of the live map, for maps that the programs do not read and entries that they must not find.
    pub fn live<K: Pod, V: Pod>(&self, name: &'static str, key: &K) -> Result<Option<V>, SandboxError> {
        self.with(name, |pair| {
            let value = pair.live.lookup(bytemuck::bytes_of(key))?;
            Ok(value.map(|value| bytemuck::pod_read_unaligned(&value)))
        })
    }

    /// An entry of the sandbox.
    pub fn own<K: Pod, V: Pod>(&self, name: &'static str, key: &K) -> Result<Option<V>, SandboxError> {
        self.with(name, |pair| {
            let value = pair.own.lookup(bytemuck::bytes_of(key))?;
            Ok(value.map(|value| bytemuck::pod_read_unaligned(&value)))
        })
    }

    /// All entries of a map of the sandbox.
    pub fn each_own<K: Pod, V: Pod>(
        &self,
        name: &'static str,
        mut each: impl FnMut(&K, &V),
    ) -> Result<(), SandboxError> {
        self.with(name, |pair| {
            pair.own.for_each(|key, value| {
                each(&bytemuck::pod_read_unaligned(key), &bytemuck::pod_read_unaligned(value));
            })
        })
    }

    /// Writes an entry of the sandbox.
    pub fn put<K: Pod, V: Pod>(&self, name: &'static str, key: &K, value: &V) -> Result<(), SandboxError> {
        self.with(name, |pair| pair.own.update(bytemuck::bytes_of(key), bytemuck::bytes_of(value)))
    }

    /// Runs a classifier as a hook of `device`, on a packet that arrived on `ingress_device`.
    pub fn classify(
        &mut self,
        name: &'static str,
        frame: &[u8],
        device: u32,
        ingress_device: u32,
    ) -> Result<HookRun, SandboxError> {
        let ran = run::classifier(self.program(name)?, frame, device, ingress_device);
        self.result(ran.map_err(|source| SandboxError::Run { name, source })?)
    }

    /// Runs an XDP program on a frame that arrived on `device`.
    pub fn xdp(&mut self, name: &'static str, frame: &[u8], device: u32) -> Result<HookRun, SandboxError> {
        let ran = run::xdp(self.program(name)?, frame, device);
        self.result(ran.map_err(|source| SandboxError::Run { name, source })?)
    }

    /// Loads a program on first use: the verifier needs a long time for the large ones.
    fn program(&mut self, name: &'static str) -> Result<BorrowedFd<'_>, SandboxError> {
        let program = self.ebpf.program_mut(name).ok_or(DatapathError::Incomplete { name })?;
        let loaded = match program {
            Program::SchedClassifier(p) => loaded(p.load()).and_then(|()| p.fd()),
            Program::Xdp(p) => loaded(p.load()).and_then(|()| p.fd()),
            _ => return Err(DatapathError::Incomplete { name }.into()),
        };
        Ok(loaded.map_err(|error| load_error(failed_program(name, error)))?.as_fd())
    }

    /// Whether the pinned program of this name has the same instructions as that of the sandbox.
    pub fn matches_live(&mut self, name: &'static str) -> Result<bool, SandboxError> {
        let failed = |source| SandboxError::Run { name, source };
        let live = self.pins.open(&self.pins.progs().join(name))?;
        let live = ProgInfo::of(live.as_fd()).map_err(failed)?;
        Ok(ProgInfo::of(self.program(name)?).map_err(failed)?.tag == live.tag)
    }

    fn result(&mut self, ran: Ran) -> Result<HookRun, SandboxError> {
        let now: Vec<u64> = (0..Counter::ALL.len() as u32)
            .map(|number| {
                let values = self.with(map::COUNTERS, |pair| pair.own.lookup(&number.to_ne_bytes()))?;
                let values = values.unwrap_or_default();
                Ok(values.chunks_exact(8).map(bytemuck::pod_read_unaligned::<u64>).sum())
            })
            .collect::<Result<_, SandboxError>>()?;
        let counters = Counter::ALL.iter().zip(now.iter().zip(&self.counted));
        let counters = counters.filter(|(_, (now, before))| now > before).map(|(counter, _)| *counter);
        let counters = counters.collect();
        self.counted = now;
        Ok(HookRun { ran, counters })
    }
}

/// The verifier reports "prohibited for !root" if CAP_PERFMON is missing.
fn load_error(error: DatapathError) -> DatapathError {
    match error {
        DatapathError::Program { ref log, .. } if log.contains("!root") => {
            DatapathError::Privilege { source: io::ErrorKind::PermissionDenied.into() }
        }
        other => other,
    }
}

/// A program that is already loaded is no error.
fn loaded(result: Result<(), ProgramError>) -> Result<(), ProgramError> {
    match result {
        Err(ProgramError::AlreadyLoaded) => Ok(()),
        other => other,
    }
}

/// The data of aya's map types, for the types that the datapath uses.
fn data(map: &Map) -> Option<&MapData> {
    match map {
        Map::Array(data)
        | Map::HashMap(data)
        | Map::LpmTrie(data)
        | Map::LruHashMap(data)
        | Map::PerCpuArray(data)
        | Map::PerCpuHashMap(data)
        | Map::PerCpuLruHashMap(data) => Some(data),
        _ => None,
    }
}

/// The errno at the end of a chain of errors.
fn root_cause(error: &(dyn std::error::Error + 'static)) -> Option<i32> {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if let Some(number) = error.downcast_ref::<io::Error>().and_then(io::Error::raw_os_error) {
            return Some(number);
        }
        cause = error.source();
    }
    None
}
