//! The border between the controller's tables and whatever holds them: the kernel, or a fake in tests.
//!
//! The controller decides what every map must hold; a [`MapStore`] reads and writes it and decides nothing.

pub mod kernel;
pub mod memory;

use std::fmt;

/// One write to one map. Keys and values are the bytes of `proxy-common`'s types.
#[derive(Clone, PartialEq, Eq)]
pub enum Op {
    Put { map: &'static str, key: Vec<u8>, value: Vec<u8> },
    Delete { map: &'static str, key: Vec<u8> },
}

/// Why a map could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum MapError {
    /// The map has no room left: nothing of the refused key was written.
    #[error("map {map} is full ({max} entries); raise its size and restart")]
    Full { map: &'static str, max: u32 },
    #[error("map {map} is not open")]
    Missing { map: &'static str },
    #[error("{action} map {map} failed: {source}")]
    Io { map: &'static str, action: &'static str, source: std::io::Error },
}

/// Keys and values as bytes, as read from one map.
pub type RawEntries = Vec<(Vec<u8>, Vec<u8>)>;

/// A holder of maps.
pub trait MapStore {
    /// Everything the map holds. For arrays: every element that is not all zero.
    fn read(&mut self, map: &'static str) -> Result<RawEntries, MapError>;

    /// Carries out `ops` in order, as few system calls as order allows; stops at the first that fails and
    /// says how many were done. Deleting what is not there is no error.
    fn write(&mut self, ops: &[Op]) -> Result<(), (usize, MapError)>;
}

impl Op {
    /// The map it is for.
    pub fn map(&self) -> &'static str {
        match self {
            Self::Put { map, .. } | Self::Delete { map, .. } => map,
        }
    }

    pub fn key(&self) -> &[u8] {
        match self {
            Self::Put { key, .. } | Self::Delete { key, .. } => key,
        }
    }
}

impl fmt::Debug for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Put { map, key, value } => write!(f, "put {map} {key:02x?} = {value:02x?}"),
            Self::Delete { map, key } => write!(f, "delete {map} {key:02x?}"),
        }
    }
}
