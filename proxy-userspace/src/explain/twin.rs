//! The datapath once more, for itself: the same programs with the same globals over maps of their own, which hold what
//! the pinned maps hold, as far as the packet can come to it. What runs here changes nothing that anybody else sees.
//!
//! Arrays are as long as the live ones, so that indices mean the same; hashes are small, because entries are copied by
//! key, just before a program may look for them.

use std::{
    cell::RefCell,
    collections::HashMap,
    io,
    os::fd::{AsFd as _, BorrowedFd},
};

use aya::{
    Ebpf, EbpfLoader,
    maps::{Map, MapData},
    programs::{Program, ProgramError},
};
use bytemuck::Pod;
use proxy_common::{Counter, map};

use super::{ExplainError, object};
use crate::{
    bpf::{
        map::RawMap,
        prog::ProgInfo,
        run::{self, Ran},
    },
    datapath::{DatapathError, OBJECT, load::failed_program},
    inspect::pins::Pins,
};

/// Hashes whose entries are copied one by one, and how many there is room for.
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

/// Not pinned; a ring that one flow takes one place of, behind the element that counts.
const HALF_OPEN: (&str, u32) = ("HALF_OPEN", 2);

/// The live maps and their twins.
pub struct Twin {
    ebpf: Ebpf,
    pins: Pins,
    globals: Vec<u8>,
    maps: RefCell<HashMap<&'static str, Pair>>,
    /// What COUNTERS held after the last run.
    counted: Vec<u64>,
}

/// A live map, its twin, and which keys have been copied.
struct Pair {
    live: RawMap,
    own: RawMap,
    copied: std::collections::HashSet<Vec<u8>>,
}

/// What became of a packet at one hook.
pub struct Passed {
    pub ran: Ran,
    /// What was counted, each once.
    pub counters: Vec<Counter>,
}

impl Twin {
    /// Makes the maps and reads the programs; none of these is loaded yet.
    pub fn new(pins: &Pins) -> Result<Self, ExplainError> {
        let path = pins.maps().join(map::GLOBALS);
        let live = pins.open_map(&path)?;
        let globals = live.lookup(&0u32.to_ne_bytes()).map_err(ExplainError::map(map::GLOBALS))?;
        let globals = globals.unwrap_or_default();
        let object = object::private(OBJECT, &globals)?;
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

    /// A global of the programs that run.
    pub fn global(&self, name: &'static str) -> Result<u64, ExplainError> {
        object::global(OBJECT, &self.globals, name)?.ok_or(ExplainError::NoGlobal(name))
    }

    fn with<T>(
        &self,
        name: &'static str,
        f: impl FnOnce(&mut Pair) -> io::Result<T>,
    ) -> Result<T, ExplainError> {
        let mut maps = self.maps.borrow_mut();
        let pair = match maps.entry(name) {
            std::collections::hash_map::Entry::Occupied(entry) => entry.into_mut(),
            std::collections::hash_map::Entry::Vacant(entry) => {
                let data = self.ebpf.map(name).and_then(data).ok_or(DatapathError::Incomplete { name })?;
                let own = data.fd().as_fd().try_clone_to_owned().and_then(RawMap::new);
                let own = own.map_err(ExplainError::map(name))?;
                entry.insert(Pair { live: self.pins.map(name)?, own, copied: Default::default() })
            }
        };
        f(pair).map_err(ExplainError::map(name))
    }

    /// Copies one entry, if that was not done before, and returns it as it is in the twin now.
    pub fn copy<K: Pod, V: Pod>(&self, name: &'static str, key: &K) -> Result<Option<V>, ExplainError> {
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

    /// Copies all entries; of an array those that are not zero.
    pub fn copy_all(&self, name: &'static str) -> Result<(), ExplainError> {
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

    /// An entry of the live map, which the programs do not read or must not find.
    pub fn live<K: Pod, V: Pod>(&self, name: &'static str, key: &K) -> Result<Option<V>, ExplainError> {
        self.with(name, |pair| {
            let value = pair.live.lookup(bytemuck::bytes_of(key))?;
            Ok(value.map(|value| bytemuck::pod_read_unaligned(&value)))
        })
    }

    /// An entry of the twin.
    pub fn own<K: Pod, V: Pod>(&self, name: &'static str, key: &K) -> Result<Option<V>, ExplainError> {
        self.with(name, |pair| {
            let value = pair.own.lookup(bytemuck::bytes_of(key))?;
            Ok(value.map(|value| bytemuck::pod_read_unaligned(&value)))
        })
    }

    /// All entries of a twin.
    pub fn each_own<K: Pod, V: Pod>(
        &self,
        name: &'static str,
        mut each: impl FnMut(&K, &V),
    ) -> Result<(), ExplainError> {
        self.with(name, |pair| {
            pair.own.for_each(|key, value| {
                each(&bytemuck::pod_read_unaligned(key), &bytemuck::pod_read_unaligned(value));
            })
        })
    }

    /// Writes an entry of the twin.
    pub fn put<K: Pod, V: Pod>(&self, name: &'static str, key: &K, value: &V) -> Result<(), ExplainError> {
        self.with(name, |pair| pair.own.update(bytemuck::bytes_of(key), bytemuck::bytes_of(value)))
    }

    /// Runs a classifier as the hook of `device`, over a packet that came in by `came_in`.
    pub fn classify(
        &mut self,
        name: &'static str,
        frame: &[u8],
        device: u32,
        came_in: u32,
    ) -> Result<Passed, ExplainError> {
        let ran = run::classifier(self.program(name)?, frame, device, came_in);
        self.passed(ran.map_err(|source| ExplainError::Run { name, source })?)
    }

    /// Runs an XDP program over a frame that came in by `device`.
    pub fn xdp(&mut self, name: &'static str, frame: &[u8], device: u32) -> Result<Passed, ExplainError> {
        let ran = run::xdp(self.program(name)?, frame, device);
        self.passed(ran.map_err(|source| ExplainError::Run { name, source })?)
    }

    /// Loads a program the first time that it is wanted: the verifier takes its time over the large ones.
    fn program(&mut self, name: &'static str) -> Result<BorrowedFd<'_>, ExplainError> {
        let program = self.ebpf.program_mut(name).ok_or(DatapathError::Incomplete { name })?;
        let loaded = match program {
            Program::SchedClassifier(p) => loaded(p.load()).and_then(|()| p.fd()),
            Program::Xdp(p) => loaded(p.load()).and_then(|()| p.fd()),
            _ => return Err(DatapathError::Incomplete { name }.into()),
        };
        Ok(loaded.map_err(|error| refused(failed_program(name, error)))?.as_fd())
    }

    /// Whether the pinned program of this name has the instructions of ours.
    pub fn is_what_runs(&mut self, name: &'static str) -> Result<bool, ExplainError> {
        let asked = |source| ExplainError::Run { name, source };
        let live = self.pins.open(&self.pins.progs().join(name))?;
        let live = ProgInfo::of(live.as_fd()).map_err(asked)?;
        Ok(ProgInfo::of(self.program(name)?).map_err(asked)?.tag == live.tag)
    }

    fn passed(&mut self, ran: Ran) -> Result<Passed, ExplainError> {
        let now: Vec<u64> = (0..Counter::ALL.len() as u32)
            .map(|number| {
                let values = self.with(map::COUNTERS, |pair| pair.own.lookup(&number.to_ne_bytes()))?;
                let values = values.unwrap_or_default();
                Ok(values.chunks_exact(8).map(bytemuck::pod_read_unaligned::<u64>).sum())
            })
            .collect::<Result<_, ExplainError>>()?;
        let counters = Counter::ALL.iter().zip(now.iter().zip(&self.counted));
        let counters = counters.filter(|(_, (now, before))| now > before).map(|(counter, _)| *counter);
        let counters = counters.collect();
        self.counted = now;
        Ok(Passed { ran, counters })
    }
}

/// What the verifier refuses to callers without CAP_PERFMON it says is "prohibited for !root".
fn refused(error: DatapathError) -> DatapathError {
    match error {
        DatapathError::Program { ref log, .. } if log.contains("!root") => {
            DatapathError::Privilege { source: io::ErrorKind::PermissionDenied.into() }
        }
        other => other,
    }
}

/// Loaded already is loaded.
fn loaded(result: Result<(), ProgramError>) -> Result<(), ProgramError> {
    match result {
        Err(ProgramError::AlreadyLoaded) => Ok(()),
        other => other,
    }
}

/// The map behind aya's types, of the kinds that hold data here.
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

/// The system's error number at the bottom of a chain of errors.
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
