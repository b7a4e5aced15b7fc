//! Reads the ring buffer EVENTS from its pin. A ring buffer has only one reader. Events are not interpreted here.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd},
    path::PathBuf,
};

use aya::maps::{Map, MapData, RingBuf};
use proxy_common::{FlowEvent, map};

use super::error::MonitorError;
use crate::inspect::pins::Pins;

pub struct Ring {
    buffer: RingBuf<MapData>,
    path: PathBuf,
}

impl Ring {
    pub fn open(pins: &Pins) -> Result<Self, MonitorError> {
        // Only for its error message if the pin is missing or not accessible.
        pins.map(map::EVENTS)?;
        let path = pins.maps().join(map::EVENTS);
        let buffer = MapData::from_pin(&path).and_then(Map::from_map_data).and_then(RingBuf::try_from);
        match buffer {
            Ok(buffer) => Ok(Self { buffer, path }),
            Err(error) => Err(MonitorError::Ring { path, source: io::Error::other(error) }),
        }
    }

    /// Discards the events that an earlier reader left.
    pub fn discard(&mut self) {
        while self.buffer.next().is_some() {}
    }

    /// Calls `each` with up to `most` events, until it returns `false`; returns the number of events read.
    pub fn read(
        &mut self,
        most: usize,
        mut each: impl FnMut(&FlowEvent) -> Result<bool, MonitorError>,
    ) -> Result<usize, MonitorError> {
        for read in 0..most {
            let Some(item) = self.buffer.next() else { return Ok(read) };
            let event = bytemuck::try_pod_read_unaligned(&item)
                .map_err(|_| MonitorError::Foreign { path: self.path.clone(), found: item.len() })?;
            if !each(&event)? {
                return Ok(read + 1);
            }
        }
        Ok(most)
    }
}

impl AsFd for Ring {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.buffer.as_fd()
    }
}
