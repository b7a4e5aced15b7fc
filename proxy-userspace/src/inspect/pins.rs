//! Read access to the pin directories. The layout of each map is checked against the contract before its bytes are read as
//! types of the contract.

use std::{
    fs, io,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
};

use bytemuck::Pod;

use super::{InspectError, map_format};
use crate::{
    bpf::{self, map::RawMap},
    datapath,
};

/// The pin directories of one agent, read-only.
#[derive(Clone, Debug)]
pub struct Pins {
    dirs: datapath::pins::Pins,
}

impl Pins {
    /// The directories under `--bpffs`.
    pub fn new(bpffs: &Path) -> Self {
        Self { dirs: datapath::pins::Pins::under(bpffs) }
    }

    pub fn maps(&self) -> PathBuf {
        self.dirs.maps()
    }

    pub fn progs(&self) -> PathBuf {
        self.dirs.progs()
    }

    pub fn links(&self) -> PathBuf {
        self.dirs.links()
    }

    /// Opens a map of the contract and checks its layout.
    pub fn map(&self, name: &'static str) -> Result<RawMap, InspectError> {
        let path = self.maps().join(name);
        let map = self.open_map(&path)?;
        let found = (map.info().key_size, map.info().value_size);
        match map_format::layout(name) {
            Some(layout) if found != (layout.key_size, layout.value_size) => {
                Err(InspectError::Foreign { path, found, expected: (layout.key_size, layout.value_size) })
            }
            _ => Ok(map),
        }
    }

    /// Opens any pinned map.
    pub fn open_map(&self, path: &Path) -> Result<RawMap, InspectError> {
        RawMap::open(path).map_err(|error| self.explain("opening the map", path, error))
    }

    /// Opens any pinned object.
    pub fn open(&self, path: &Path) -> Result<OwnedFd, InspectError> {
        bpf::obj_get(path).map_err(|error| self.explain("opening", path, error))
    }

    fn explain(&self, action: &'static str, path: &Path, error: io::Error) -> InspectError {
        if error.kind() != io::ErrorKind::NotFound {
            InspectError::io(action, path, error)
        } else if self.maps().is_dir() {
            InspectError::NoSuchPin(path.to_owned())
        } else {
            InspectError::NoPins(self.maps())
        }
    }

    /// All entries of a map of the contract; zero elements of an array are omitted.
    pub fn read<K: Pod, V: Pod>(&self, name: &'static str) -> Result<Vec<(K, V)>, InspectError> {
        let map = self.map(name)?;
        let is_array = map.is_array();
        let mut entries = Vec::new();
        map.for_each(|key, value| {
            if !(is_array && value.iter().all(|byte| *byte == 0)) {
                entries.push((bytemuck::pod_read_unaligned(key), bytemuck::pod_read_unaligned(value)));
            }
        })
        .map_err(|error| InspectError::io("reading the map", self.maps().join(name), error))?;
        Ok(entries)
    }

    /// The values of the elements of an array below `len`, including zero elements.
    pub fn read_first(
        &self,
        name: &'static str,
        len: u32,
        mut each: impl FnMut(&[u8]),
    ) -> Result<(), InspectError> {
        self.map(name)?
            .for_first(len, |_, value| each(value))
            .map_err(|error| InspectError::io("reading the map", self.maps().join(name), error))
    }

    /// The names pinned in one of the directories, sorted; none if the directory does not exist.
    pub fn names(&self, dir: &Path) -> Result<Vec<String>, InspectError> {
        let listing = match fs::read_dir(dir) {
            Ok(listing) => listing,
            Err(error) if error.kind() == io::ErrorKind::NotFound && self.maps().is_dir() => {
                return Ok(Vec::new());
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(InspectError::NoPins(dir.to_owned()));
            }
            Err(error) => return Err(InspectError::io("listing", dir, error)),
        };
        let mut names = listing
            .map(|entry| entry.map(|entry| entry.file_name().to_string_lossy().into_owned()))
            .collect::<Result<Vec<_>, _>>()
            .map_err(|error| InspectError::io("listing", dir, error))?;
        names.sort();
        Ok(names)
    }
}

impl From<datapath::pins::Pins> for Pins {
    fn from(dirs: datapath::pins::Pins) -> Self {
        Self { dirs }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_pin_is_explained() {
        let dir = std::env::temp_dir().join(format!("shunt-pins-{}", std::process::id()));
        let pins = Pins::new(&dir);
        let error = pins.map(proxy_common::map::FRONTENDS).unwrap_err();
        assert!(matches!(error, InspectError::NoPins(_)), "{error}");
        assert!(pins.names(&pins.links()).is_err());
        fs::create_dir_all(pins.maps()).unwrap();
        let error = pins.map(proxy_common::map::FRONTENDS).unwrap_err();
        assert!(matches!(error, InspectError::NoSuchPin(_)), "{error}");
        assert!(pins.names(&pins.links()).unwrap().is_empty());
        fs::remove_dir_all(&dir).unwrap();
    }
}
