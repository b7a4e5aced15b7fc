//! One look at the maps: the counts of all service ports, of the node, and of its devices' drops, and when that was.

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
    /// The maps are opened anew for each: an agent that starts with other statistics pins another map.
    pub fn read(pins: &Pins) -> Result<Self, InspectError> {
        Ok(Self {
            at: Instant::now(),
            statistics: Statistics::read(pins)?,
            counters: counters::totals(pins)?,
            drops: drops::read(pins)?,
        })
    }
}
