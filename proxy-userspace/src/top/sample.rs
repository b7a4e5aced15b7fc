//! One sample of the maps: counts of all service ports, counters of the node and drops per device, with a time stamp.

use std::time::Instant;

use crate::inspect::{
    InspectError, counters,
    drops::{self, DeviceDrops},
    pins::Pins,
    statistics::Statistics,
};

#[derive(Clone, Debug)]
pub struct Sample {
    pub at: Instant,
    pub statistics: Statistics,
    /// COUNTERS by number.
    pub counters: Vec<u64>,
    pub drops: Vec<DeviceDrops>,
}

impl Sample {
    /// Opens the maps for each sample: an agent that starts with other statistics settings pins a new map.
    pub fn read(pins: &Pins) -> Result<Self, InspectError> {
        Ok(Self {
            at: Instant::now(),
            statistics: Statistics::read(pins)?,
            counters: counters::totals(pins)?,
            drops: drops::read(pins)?,
        })
    }
}
