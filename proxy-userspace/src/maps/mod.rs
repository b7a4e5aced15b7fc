//! The interface between the controller's tables and what stores them: the kernel, or memory.
//!
//! The controller decides what every map must hold; a [`MapStore`] only reads and writes.

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
    /// All entries of the map. For arrays: the elements that are not all zero.
    fn read(&mut self, map: &'static str) -> Result<RawEntries, MapError>;

    /// Carries out `ops` in order with as few system calls as possible; stops at the first failure and returns how many
    /// were done. Deleting a missing key is not an error.
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
